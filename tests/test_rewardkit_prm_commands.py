"""`rewardkit prm label | score | calibrate | train | eval`, end to end on the playground and a public layout."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from public_prms import NAMES, beside, build
from reference_scores import reference

from prm.formats import StepRow, read_stepwise, write_rows
from prm.model import ProcessModel
from rewardkit import playground
from rewardkit.cli import main
from verifiers.jsonl import read_jsonl, write_jsonl

PRM = str(playground.asset("prm"))
POLICY = str(playground.asset("policy"))
PROMPT = "Tom has 12 pens and buys 30 more. How many are left?"
STEPS = ["First, 12 + 30 = 42.", "So the answer is \\boxed{42}."]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels that a command made."""
    out = tmp_path_factory.mktemp("labels") / "run"
    code = run(
        "prm", "label", "--policy", POLICY, "--problems", "playground:validation:16:7", "--max-new-tokens", 192,
        "--samples", 2, "--trials", 6, "--method", "early_stop", "--out", out,
    )  # fmt: skip
    assert code == 0
    return out / "labels.jsonl"


def test_label_stops_early_and_reports_the_noise(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_stepwise(labels)
    assert len(rows) == 32
    assert all(row.stopped for row in rows)
    assert any(0 < n < 6 for row in rows for n in row.trials[:-1])
    facts = json.loads((labels.parent / "results.json").read_text())["facts"]
    assert 0 <= facts["label noise"]["good steps called bad"] < 0.5
    assert {path.name for path in labels.parent.glob("*.jsonl")} == {
        "labels.jsonl",
        "responses.jsonl",
        "rollouts.jsonl",
    }
    # What was drawn is what the rows count, last steps left out.
    logged = sum(len(row["rollouts"]) for row in read_jsonl(labels.parent / "rollouts.jsonl"))
    assert logged == sum(sum(row.trials[:-1]) + sum(row.undecided[:-1]) for row in rows)


def test_label_with_a_guide(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = run(
        "prm", "label", "--policy", POLICY, "--problems", "playground:validation:6:7", "--max-new-tokens", 192,
        "--samples", 2, "--trials", 6, "--method", "cheapest_search", "--scorer", PRM, "--out", out,
    )  # fmt: skip
    assert code == 0
    for row in read_stepwise(out / "labels.jsonl"):
        first = row.provenance["first_error"]
        labels = row.labels("hard")
        assert labels == [True] * len(labels) if first == -1 else labels.index(False) == first


SECOND = {"eurus": "--reference", "math_psa": "--base", "pqm": "--base"}
"""The flag that names the second model of a family."""


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("genprm", "thinkprm", "trl_bos", "versaprm_qwen")])
def test_score_reads_public_checkpoints(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / f"{name}-prm", seed=2)
    data = tmp_path / "responses.jsonl"
    write_jsonl(
        data,
        [
            {"id": "a", "prompt": PROMPT, "completions": STEPS, "mine": 1},
            {"prompt": PROMPT, "response": "\n\n".join(STEPS)},
            {"prompt": [{"role": "user", "content": PROMPT}], "response": STEPS[0]},
        ],
    )
    out = tmp_path / "run"
    more = (SECOND[name], beside(folder)) if name in SECOND else ()
    assert run("prm", "score", "--model", folder, "--adapter", name, "--data", data, "--out", out, *more) == 0
    rows = read_jsonl(out / "scores.jsonl")
    wanted, first = reference(name, folder, PROMPT, STEPS), reference(name, folder, PROMPT, STEPS[:1])
    if name in ("eurus", "pqm"):
        # Their published scores are raw; the file's lie in [0, 1].
        wanted, first = ([1 / (1 + math.exp(-value)) for value in values] for values in (wanted, first))
    assert rows[0]["step_scores"] == pytest.approx(wanted, abs=1e-5)
    assert rows[1]["step_scores"] == pytest.approx(wanted, abs=1e-5)
    assert rows[2]["step_scores"] == pytest.approx(first, abs=1e-5)
    assert (rows[0]["mine"], rows[0]["scores"]["min"]) == (1, pytest.approx(min(wanted), abs=1e-5))
    assert rows[0]["scores"]["product"] == pytest.approx(math.prod(wanted), abs=1e-5)
    assert json.loads((out / "results.json").read_text())["facts"]["adapter"] == name


@pytest.mark.parametrize("name", ["genprm", "thinkprm"])
def test_score_has_generative_models_write(name: str, tmp_path: Path) -> None:
    from prm.generative import GenerativeModel
    from prm.model import ProcessModel

    folder = build(name, tmp_path / f"{name}-prm", seed=2)
    data = tmp_path / "responses.jsonl"
    write_jsonl(data, [{"prompt": PROMPT, "completions": STEPS}])
    words = ("prm", "score", "--model", folder, "--data", data, "--dtype", "float32", "--critique-tokens", 6)
    assert run(*words, "--out", tmp_path / "run") == 0
    model = ProcessModel.load(folder, dtype="float32")
    assert isinstance(model, GenerativeModel)
    model.max_new_tokens = 6
    (row,) = read_jsonl(tmp_path / "run" / "scores.jsonl")
    assert row["step_scores"] == pytest.approx(model.score(PROMPT, STEPS), abs=1e-6)
    assert len(row["step_scores"]) == len(STEPS)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["facts"]["adapter"] == name


def test_score_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "responses.jsonl"
    write_jsonl(data, [{"prompt": PROMPT, "completions": STEPS}, {"prompt": PROMPT}])
    assert run("prm", "score", "--model", PRM, "--data", data, "--out", tmp_path / "x") == 2
    assert "responses.jsonl, line 2: needs 'completions'" in capsys.readouterr().err
    write_jsonl(data, [{"prompt": PROMPT, "completions": STEPS}])
    assert run("prm", "score", "--model", PRM, "--data", data, "--critique-tokens", 9, "--out", tmp_path / "x") == 2
    assert "which writes no critiques; leave it out" in capsys.readouterr().err
    assert run("prm", "score", "--model", POLICY, "--data", data, "--out", tmp_path / "x") == 2
    assert "name its convention by adapter=" in capsys.readouterr().err
    assert run("prm", "score", "--model", PRM, "--dtype", "int8", "--data", data, "--out", tmp_path / "x") == 2
    assert "dtype must be auto" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_calibrate_writes_a_model_that_gives_probabilities(labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    # The shipped model knows its chances; one that is sure of everything does not.
    bold = ProcessModel.load(PRM, device="cpu")
    with torch.no_grad():
        bold.model.score.weight.mul_(6)
    bold.save(tmp_path / "bold")
    arguments = ("--model", tmp_path / "bold", "--data", labels, "--method", "platt", "--parts", 1)
    assert run("prm", "calibrate", *arguments, "--out", out) == 0
    facts = json.loads((out / "results.json").read_text())["facts"]
    rows = [row for row in read_stepwise(labels) if any(row.trials)]
    assert facts["trials"] == sum(sum(row.trials) for row in rows)
    assert facts["ECE after, held out"] < 0.7 * facts["ECE before, held out"]
    assert facts["Brier score after, held out"] < facts["Brier score before, held out"]
    assert "Reliability of the step scores" in (out / "report.html").read_text()
    before, after = bold, ProcessModel.load(out / "model", device="cpu")
    assert after.calibration is not None
    (odds,) = before.log_odds([rows[0].problem], [rows[0].response])
    assert after.score_steps([rows[0].problem], [rows[0].response]) == [after.calibration.apply(odds)]
    # Another checkpoint's calibration is kept with its convention.
    public = build("versaprm", tmp_path / "VersaPRM", seed=1)
    assert run("prm", "calibrate", "--model", public, "--data", labels, "--out", tmp_path / "public") == 0
    assert ProcessModel.load(tmp_path / "public" / "model", device="cpu").adapter == "versaprm"


def shorter(labels: Path, folder: Path) -> Path:
    """Labels with a false equation in a row whose label is good."""
    rows = read_stepwise(labels)
    odd = StepRow(
        prompt="q\n", completions=("1 + 1 = 3.", "End."), successes=(2.0, 2.0), trials=(2, 2), problem_id="odd"
    )
    path = folder / "labels.jsonl"
    write_jsonl(path, write_rows([*rows, odd]))
    return path


def test_train_with_prior_and_consensus_and_resume(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = shorter(labels, tmp_path), tmp_path / "run"
    arguments: list[Any] = [
        "prm", "train", "--init", PRM, "--data", data, "--steps", 4, "--rows", 8, "--micro-rows", 8, "--warmup", 1,
        "--freeze-init", "--prior", PRM, "--consensus", "drop_row", "--save-steps", 2, "--out", out,
    ]  # fmt: skip
    assert run(*arguments) == 0
    facts = json.loads((out / "results.json").read_text())["facts"]
    assert facts["rows against arithmetic"] >= 1
    assert len(facts["prior worth, roll-outs"]) == 5
    weights = (out / "model" / "model.safetensors").read_bytes()
    metrics = (out / "metrics.jsonl").read_text()
    assert run(*arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert run(*arguments, "--resume") == 0
    assert (out / "model" / "model.safetensors").read_bytes() == weights
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [
        json.loads(line)["step"] for line in metrics.splitlines()
    ]


def test_soft_labels_alone_take_a_prior(labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(
        "prm", "train", "--init", PRM, "--data", labels, "--labels", "hard", "--prior", PRM, "--out", tmp_path / "x"
    )
    assert code == 2
    assert "--prior makes soft labels" in capsys.readouterr().err


def test_eval_picks_its_threshold_on_other_rows(labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = run("prm", "eval", "--model", PRM, "--data", labels, "--threshold-data", labels, "--out", out)
    assert code == 0
    steps = json.loads((out / "results.json").read_text())["steps"]
    assert steps["first_error_f1"]["protocol"] == "Threshold picked on 32 other responses."
    assert steps["first_error_f1"]["low"] <= steps["first_error_f1"]["f1"] <= steps["first_error_f1"]["high"]
    assert steps["brier"]["low"] <= steps["brier"]["value"] <= steps["brier"]["high"]
    assert sum(point["count"] for point in steps["reliability"]) == sum(
        sum(n > 0 for n in row.trials) for row in read_stepwise(labels)
    )
    page = (out / "report.html").read_text()
    assert "Brier score" in page
    assert "Threshold picked on 32 other responses." in page


PRM800K = {
    "question": {"problem": "1 + 1 + 1?", "ground_truth_answer": "3"},
    "label": {
        "steps": [
            {"completions": [{"text": "1 + 1 = 2", "rating": 1, "flagged": False}], "chosen_completion": 0},
            {
                "completions": [
                    {"text": "2 + 1 = 3", "rating": 0, "flagged": False},
                    {"text": "2 + 1 = 4", "rating": -1, "flagged": False},
                ],
                "chosen_completion": 0,
            },
        ],
        "finish_reason": "solution",
    },
    "is_quality_control_question": False,
    "is_initial_screening_question": False,
}


def test_convert_says_what_a_layout_means_and_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "prm800k.jsonl"
    write_jsonl(data, [PRM800K])
    arguments = ("prm", "convert", "--data", data, "--layout", "prm800k")
    assert run(*arguments, "--neutral", "bad", "--out", tmp_path / "bad.jsonl") == 0
    labels = sorted(json.dumps(row["labels"]) for row in read_jsonl(tmp_path / "bad.jsonl"))
    assert labels == ["[1.0, 0.0]", "[1.0, 0.0]"]
    assert run(*arguments, "--branches", "chosen", "--to", "math_shepherd", "--out", tmp_path / "ms.jsonl") == 0
    (row,) = read_jsonl(tmp_path / "ms.jsonl")
    assert row["label"] == "1 + 1 + 1? Step 1: 1 + 1 = 2 +\nStep 2: 2 + 1 = 3 +"
    assert run(*arguments, "--out", tmp_path / "ms.jsonl") == 2
    assert "exists already" in capsys.readouterr().err
    assert run("prm", "convert", "--data", data, "--neutral", "bad", "--out", tmp_path / "x") == 2
    assert "--neutral is about prm800k" in capsys.readouterr().err
    soft = tmp_path / "soft.jsonl"
    write_jsonl(soft, [{"prompt": "q", "completions": ["Step 1: a"], "labels": [0.5]}])
    assert run("prm", "convert", "--data", soft, "--to", "math_shepherd", "--out", tmp_path / "y.jsonl") == 2
    assert not (tmp_path / "y.jsonl").exists()
    assert run("prm", "convert", "--data", soft, "--to", "math_shepherd", "--lossy", "--out", tmp_path / "y.jsonl") == 0
