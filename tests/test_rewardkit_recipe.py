"""docs/recipe.md is real: its commands parse, fit together, say what the benchmark does, and run; its arithmetic."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewardkit.cli import app, main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipe.md"


def commands() -> list[list[str]]:
    """Every `rewardkit` line of the page, as arguments."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("rewardkit ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def job(arguments: list[str]) -> Any:
    """The settings that a command line stands for; whatever they refuse is raised."""
    return app.parse_args(arguments, exit_on_error=False, print_error=False)[1].arguments["job"]


def job_of(out: str) -> Any:
    """The settings of the command that writes to runs/`out`."""
    return next(job(one) for one in commands() if one[one.index("--out") + 1] == f"runs/{out}")


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_every_command_is_accepted_and_reads_what_an_earlier_one_wrote() -> None:
    written = {"runs/text.jsonl"}
    for one in commands():
        job(one)
        read = [re.sub(r"^orm:", "", word) for word in one if re.match(r"(orm:)?runs/", word)]
        out = one[one.index("--out") + 1]
        for path in read:
            assert path == out or path in written, (one[0], path)
        names = {"pairs": "pairs.jsonl", "rejection": "kept.jsonl"}
        written |= {out, f"{out}/{names.get(one[0], 'model')}"}
    assert [one[0] for one in commands()].count("rl") == 5


def test_the_page_has_the_settings_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = script("rl_recipe", monkeypatch)
    names = {
        "rlhf": "PPO, Bradley-Terry",
        "dpo": "DPO",
        "grpo": "GRPO",
        "ppo": "PPO, verifier",
        "imitated": "rejection + SFT",
    }
    assert set(names.values()) == set(recipe.METHODS)
    for out, name in names.items():
        assert job_of(out).train.rate == recipe.METHODS[name].rate, name
    drawn = {out: job_of(out).draw for out in ("pairs", "more-pairs", "kept")}
    assert {one.n for one in drawn.values()} == {recipe.DRAWN}
    problems = {out: int(one.data.split(":")[2]) for out, one in drawn.items()}
    assert problems["more-pairs"] == problems["kept"]
    assert problems["pairs"] / problems["kept"] == pytest.approx(recipe.PAIRS_SHARE, abs=0.01)
    # Both run out of tokens together: responses that the chain draws for pairs and for PPO, and GRPO's.
    chain, whole = job_of("rlhf").train, job_of("grpo").train
    assert (chain.prompts, chain.group) == (whole.prompts, whole.group) == (8, 4)
    chained = problems["pairs"] * recipe.DRAWN + chain.steps * 32
    assert chained == pytest.approx(problems["kept"] * recipe.DRAWN, rel=0.02)
    assert whole.steps * 32 == pytest.approx(chained, rel=0.12)
    for train in (chain, job_of("ppo").train):
        assert train.preset == recipe.PPO["preset"] and train.epochs == recipe.PPO["epochs"]


def test_the_settings_of_the_relatives_are_the_page_s(monkeypatch: pytest.MonkeyPatch) -> None:
    relatives = script("rl_relatives", monkeypatch)
    arms = relatives.arms(relatives.Size())
    for out, name in (("distilled", "distillation, right teacher, one a problem"), ("kdrl", "KDRL, k2")):
        train, arm = job_of(out).train, arms[name]
        assert (train.preset, train.change, train.rate, train.steps) == (arm.preset, arm.change, arm.rate, arm.steps)
        assert (train.prompts, train.group, train.epochs) == (arm.prompts, arm.group, arm.epochs)
        assert (train.teacher is not None) is arm.teacher
        assert (train.teacher == "data/playground/policy-right") is arm.right
    # Every arm is a run that the library accepts, and ends with a measurement.
    for arm in arms.values():
        relatives.RlConfig(
            init="p", preset=arm.preset, change=arm.change, teacher="t" if arm.teacher else None, prompts=arm.prompts,
            group=arm.group, updates=arm.updates,
        )  # fmt: skip
        assert arm.steps % arm.every == 0


def curve(*points: float) -> Any:
    """A curve that is the same in two seeds and three problems."""
    return np.broadcast_to(np.array(points)[None, :, None], (2, len(points), 3))


def test_steps_to_the_last_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    relatives = script("rl_relatives", monkeypatch)
    # GRPO ends at 0.6, at step 10; the student is there half-way between its steps 2 and 4.
    curves = {"GRPO": curve(0.4, 0.5, 0.6), "distillation": curve(0.4, 0.55, 0.65)}
    of = relatives.reach("distillation", {"GRPO": 5, "distillation": 2})
    assert of(curves) == pytest.approx(3 / 10)
    # A dip is levelled with what is before it: 0.5 at steps 10 and 15, which is between the student's 0.4 and 0.55.
    curves["GRPO"] = curve(0.4, 0.4, 0.6, 0.4)
    assert of(curves) == pytest.approx(2 * (0.1 / 0.15) / 10)
    assert of({"GRPO": curve(0.4, 0.5, 0.6), "distillation": curve(0.4, 0.45, 0.5)}) == pytest.approx(1.5 * 4 / 10)


def test_pass_at_n_where_pass_at_1_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    relatives = script("rl_relatives", monkeypatch)
    curves = {
        "a": curve(0.4, 0.6, 0.8),
        "a, pass@N": curve(0.9, 0.85, 0.75),
        "b": curve(0.4, 0.5, 0.7),
        "b, pass@N": curve(0.9, 0.9, 0.86),
    }
    names = ("a", "b")
    assert relatives.at_equal_pass_1("b", names)(curves) == pytest.approx(0.86)
    # a passes 0.7 half-way from 0.85 to 0.75.
    assert relatives.at_equal_pass_1("a", names)(curves) == pytest.approx(0.80)
    assert relatives.at_equal_pass_1("b", names, "a")(curves) == pytest.approx(0.06)


def test_a_result_is_taken_up_for_the_same_settings_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = script("rl_runs", monkeypatch)
    assert runs.pass_rates([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).tolist() == [[0.25, 0, 1], [1, 0, 1]]
    monkeypatch.setenv("KEEP", str(tmp_path))
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(len(made))
        return {"number": made[-1]}

    def number(what: Any, *, resume: bool = True) -> int:
        return int(runs.kept("a run", what, make, resume=resume)["number"])

    assert [number([1, (2,)]), number([1, (2,)]), number([1, [3]]), number([1, (2,)])] == [0, 0, 1, 2]
    assert number([1, (2,)], resume=False) == 3
    monkeypatch.setattr(runs, "VERSION", "another")
    assert [number([1, (2,)]), number([1, (2,)])] == [4, 4]
    assert json.loads((tmp_path / "a_run.json").read_text())["result"] == {"number": 4}


SMALL = {
    "--n": "4", "--k": "2", "--steps": "1", "--prompts": "2", "--group": "2", "--epochs": "1", "--max-new-tokens": "96",
    "--micro-rows": "4", "--held-out": None, "--eval-every": None,
}  # fmt: skip


def small(one: list[str]) -> list[str]:
    """The command with as little work as shows that it runs."""
    if "--n" in one:
        at = one.index("--data") + 1
        one = [*one[:at], "playground:train:4", *one[at + 1 :]]
    made = [one[0]]
    words = iter(one[1:])
    for word in words:
        if word not in SMALL:
            made.append(word)
        elif value := [SMALL[word], next(words)][0]:
            made += [word, value]
    if one[0] in ("sft", "dpo") or one[:2] == ["orm", "train"]:
        made += ["--rows", "4", *([] if "--micro-rows" in made else ["--micro-rows", "4"])]
    return made


@pytest.mark.slow
def test_the_whole_page_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    exec(block, {})
    assert len((tmp_path / "runs/text.jsonl").read_text().splitlines()) == 500
    for one in commands():
        if "Qwen/Qwen2.5-0.5B" not in one:
            assert main(small(one)) == 0, capsys.readouterr().err
    said = json.loads((tmp_path / "runs/rlhf/results.json").read_text())["facts"]
    assert said["rewards"] == "1 x orm" and said["steps"] == 1
    for name in ("rlhf", "dpo", "imitated", "grpo", "ppo", "distilled", "kdrl"):
        assert (tmp_path / "runs" / name / "model" / "model.safetensors").exists()
