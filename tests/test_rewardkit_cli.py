"""The command line: exit codes, error texts and help (golden files), and every command once on small input.

Golden files are written again by `REWARDKIT_REGENERATE=1 pytest tests/test_rewardkit_cli.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from rewardkit.cli import main

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str, text: str) -> None:
    """Compare with a golden file, or write it when asked."""
    path = GOLDEN / name
    if os.environ.get("REWARDKIT_REGENERATE"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{name} differs; if that is meant, regenerate it as the module says"


@pytest.fixture
def cases(tmp_path: Path, tiny_policy: Path) -> dict[str, tuple[list[str], Path]]:
    """Bad input by name: (arguments, folder that must stay as it is)."""
    good = {"id": "a", "prompt": "1 + 1 = ?\n", "answer": "2", "response": "\\boxed{2}", "correct": True}
    files = {
        "good.jsonl": json.dumps(good) + "\n",
        "broken.jsonl": json.dumps(good) + '\n{"id": "b", "prompt": \n' + json.dumps({**good, "id": "c"}) + "\n",
        "empty.jsonl": "",
        "long.jsonl": json.dumps({**good, "prompt": "one apple " * 300}) + "\n",
        "stepwise.jsonl": json.dumps({"prompt": "q", "completions": ["a", "b"], "labels": [True]}) + "\n",
        "config.yaml": "data: good.jsonl\nanswr_column: answer\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    no_tokenizer = tmp_path / "no-tokenizer"
    shutil.copytree(tiny_policy, no_tokenizer, ignore=lambda folder, names: [n for n in names if "tokenizer" in n])
    existing = tmp_path / "existing"
    existing.mkdir()
    (existing / "precious.txt").write_text("keep me")
    out = ["--out", str(tmp_path / "new")]
    policy = ["--policy", str(tiny_policy)]
    rows = {
        "missing file": ["score", "--data", str(tmp_path / "none.jsonl")],
        "broken line": ["score", "--data", str(tmp_path / "broken.jsonl")],
        "unknown column": ["score", "--data", str(tmp_path / "good.jsonl"), "--answer-column", "anser"],
        "unknown prompt column": [
            *("search", *policy, "--problems", str(tmp_path / "good.jsonl"), "--prompt-column", "promt", *out)
        ],
        "empty data": ["score", "--data", str(tmp_path / "empty.jsonl")],
        "empty problems": ["search", *policy, "--problems", str(tmp_path / "empty.jsonl"), *out],
        "no tokenizer": ["search", "--policy", str(no_tokenizer), "--problems", str(tmp_path / "good.jsonl"), *out],
        "missing policy": [
            *("search", "--policy", str(tmp_path / "nowhere"), "--problems", str(tmp_path / "good.jsonl"), *out)
        ],
        "prompt too long": ["search", *policy, "--problems", str(tmp_path / "long.jsonl"), "--n", "1", *out],
        "policy as scorer": [
            *("search", *policy, "--scorer", str(tiny_policy), "--problems", str(tmp_path / "good.jsonl"), *out)
        ],
        "existing run folder": [*("prm", "label", *policy, "--problems", "playground:train:1", "--out", str(existing))],
        "nothing to resume": [*("prm", "label", *policy, "--problems", "playground:train:1", "--resume", *out)],
        "labels of wrong length": [
            *("prm", "train", "--data", str(tmp_path / "stepwise.jsonl"), "--init", str(tiny_policy), *out)
        ],
        "bad playground source": ["search", *policy, "--problems", "playground:test:many", *out],
        "bad split": ["search", *policy, "--problems", "playground:exam:3", *out],
        "bad setting": [
            *("prm", "train", "--data", str(tmp_path / "good.jsonl"), "--init", "x", "--rows", "5", "--micro-rows", "2")
        ],
        "eval of nothing": ["prm", "eval", "--model", str(tiny_policy)],
        "missing config": ["score", "--config", str(tmp_path / "none.yaml")],
        "unknown key in config": ["score", "--config", str(tmp_path / "config.yaml")],
        "unknown flag": ["score", "--date", "x.jsonl"],
        "unknown command": ["serch"],
        "report of nothing": ["report", str(tmp_path / "no-run")],
        "merge of one": ["merge", str(tiny_policy), "--weights", "1", *out],
    }
    return {name: (arguments, tmp_path) for name, arguments in rows.items()}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_bad_input_is_one_sentence_exit_2_and_nothing_overwritten(
    cases: dict[str, tuple[list[str], Path]], tiny_policy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = {}
    for name, (arguments, folder) in cases.items():
        before = snapshot(folder)
        code = main(arguments)
        message = capfd.readouterr().err.strip().splitlines()[-1]
        assert code == 2, (name, code, message)
        assert message.startswith("rewardkit: "), (name, message)
        assert "Traceback" not in message
        after = snapshot(folder)
        assert {k: after[k] for k in before} == before, f"{name} changed a file"
        message = message.replace(str(folder), "<tmp>").replace(str(tiny_policy), "<policy>")
        told[name] = re.sub(r"<tmp>/new\S*", "<new>", message)
    golden("errors.json", json.dumps(told, indent=1) + "\n")


@pytest.mark.parametrize(
    "words",
    [
        *("", "score", "search", "report", "quickstart", "prm", "prm label", "prm train", "prm eval"),
        *(
            "orm",
            "orm train",
            "orm calibrate",
            "orm eval",
            "orm score",
            "pairs",
            "rejection",
            "sft",
            "dpo",
            "merge",
            "rl",
            "rl train",
        ),
    ],
)
def test_help(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*words.split(), "--help"]) == 0
    golden(f"help-{words.replace(' ', '-') or 'top'}.txt", capsys.readouterr().out)


def test_score_counts_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": "right", "response": "\\boxed{0.5}", "answer": "1/2", "correct": True},
        {"id": "wrong", "response": "#### 3", "answer": "4", "correct": False},
        {"id": "misjudged", "response": "#### 3", "answer": "3", "correct": False},
        {"id": "no reference", "response": "#### 3", "answer": "", "correct": True},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["score", "--data", str(data), "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["outcomes"] == {"correct": 2, "incorrect": 1, "undecided": 1}
    assert results["accuracy"] == pytest.approx(2 / 3)  # undecided is left out of the mean
    assert results["agreement"] == pytest.approx(2 / 4)  # and never agrees
    assert "misjudged: recorded False" in printed and "no reference: recorded True" in printed
    assert "right: recorded" not in printed
    verdicts = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [row["score"] for row in verdicts] == [1.0, 0.0, 1.0, None]


def test_a_config_file_fills_the_job_and_flags_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "#### 3", "gold": "3"}\n{"text": "#### 4", "gold": "3"}\n')
    config = tmp_path / "job.yaml"
    config.write_text(f"data: {data}\nresponse_column: text\nanswer_column: gold\nlimit: 1\n")
    assert main(["score", "--config", str(config)]) == 0
    assert "1 responses judged" in capsys.readouterr().out
    assert main(["score", "--limit", "2", "--config", str(config)]) == 0
    assert "2 responses judged" in capsys.readouterr().out


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_label_train_eval_search_report(
    tmp_path: Path, playground_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, model = tmp_path / "labels", tmp_path / "prm"
    common = ("--policy", playground_policy, "--max-new-tokens", 192)
    assert run("prm", "label", *common, "--problems", "playground:train:4", "--samples", 4, "--trials", 2,
               "--out", labels) == 0  # fmt: skip
    rows = [json.loads(line) for line in (labels / "labels.jsonl").read_text().splitlines()]
    assert sorted((row["problem_id"], row["sample"]) for row in rows) == [
        (f"train-0-{problem}", sample) for problem in range(4) for sample in range(4)
    ]
    assert all(trials == 2 for row in rows for trials in row["trials"])
    # a finished run resumed adds nothing; its own config.yaml makes the same labels again
    before = (labels / "labels.jsonl").read_bytes()
    assert run("prm", "label", *common, "--problems", "playground:train:4", "--samples", 4, "--trials", 2,
               "--out", labels, "--resume") == 0  # fmt: skip
    assert (labels / "labels.jsonl").read_bytes() == before
    assert run("prm", "label", "--config", labels / "config.yaml", "--out", tmp_path / "again") == 0
    assert (tmp_path / "again" / "labels.jsonl").read_bytes() == before
    assert run("prm", "label", *common, "--problems", "playground:train:4", "--samples", 4, "--trials", 3,
               "--out", labels, "--resume") == 2  # fmt: skip
    assert "trials=2, not 3" in capsys.readouterr().err

    assert run("prm", "train", "--init", playground_policy, "--data", labels / "labels.jsonl", "--steps", 4,
               "--rows", 4, "--micro-rows", 2, "--warmup", 1, "--lm-weight", 0.1, "--out", model) == 0  # fmt: skip
    metrics = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert all(row["loss"] > row["step_loss"] > 0 for row in metrics)  # the language-model part stands beside it

    assert run("search", *common, "--scorer", model / "model", "--problems", "playground:test:6", "--n", 4,
               "--out", tmp_path / "search") == 0  # fmt: skip
    results = json.loads((tmp_path / "search" / "results.json").read_text())
    final = {curve["rule"]: curve["points"][-1]["mean"] for curve in results["curves"]}
    assert final["best by oracle"] == final["any (pass@n)"] >= final["majority"]
    (row,) = results["strategies"]
    assert row["strategy"] == "best_of_n n=4"
    assert row["tokens"] > 0
    assert row["scored_tokens"] > 0
    assert "Search trees" in (tmp_path / "search" / "report.html").read_text()

    assert run("prm", "eval", "--model", model / "model", "--data", labels / "labels.jsonl",
               "--out", tmp_path / "eval") == 0  # fmt: skip
    figures = json.loads((tmp_path / "eval" / "results.json").read_text())["steps"]
    assert 0 <= figures["auc_within"]["auc"] <= 1 and figures["auc_within"]["pairs"] > 0
    assert run("report", tmp_path / "eval") == 0


@pytest.mark.slow
def test_quickstart_small(tmp_path: Path) -> None:
    code = run("quickstart", "--problems", 12, "--n", 4, "--label-problems", 2, "--trials", 2, "--train-steps", 2,
               "--shipped-rows", 50, "--out", tmp_path / "run")  # fmt: skip
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    # so small a run may miss a floor; the code must say whether it did
    assert code == (0 if all(gate["held"] for gate in results["gates"]) else 3)
    assert results["facts"]["rows labelled in this run"] == 8 and results["facts"]["shipped rows mixed in"] == 50
    assert results["steps"]["auc_within"]["auc"] > 0.8
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {
        "config.yaml", "env.json", "labels.jsonl", "metrics.jsonl", "results.json", "samples.jsonl", "report.html",
        "model",
    }  # fmt: skip
