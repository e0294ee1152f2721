"""`rewardkit rl train` from end to end: one's own reward, held-out figures, going on after a stop, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_rewardkit_rl_loop import PROBLEMS, Even, Halves

from rewardkit.cli import main
from rewardkit.rl import loop as loop_module
from rewardkit.rl.config import RlConfig
from rewardkit.rl.training import train
from rewardkit.sources import is_playground, problems_from
from verifiers.errors import ConfigError
from verifiers.jsonl import read_jsonl

REWARD = """
def reward(prompts, completions, completion_ids, **columns):
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]

def broken(prompts, completions, **columns):
    raise ValueError("no such thing")
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"id": f"p-{n}", "prompt": f"One apple and {n} apples: ", "answer": str(n)} for n in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = [{"id": f"h-{n}", "prompt": f"Two apples and {n}: ", "answer": str(n)} for n in range(3)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    (tmp_path / "open.jsonl").write_text(json.dumps({"id": "open", "prompt": "One: ", "answer": None}) + "\n")
    (tmp_path / "half.jsonl").write_text('{"id": "half", "prompt": "One \\ud800: ", "answer": "1"}\n')
    (tmp_path / "rewards.py").write_text(REWARD)
    return tmp_path


def command(data: Path, policy: Path, out: str, *more: Any) -> int:
    files = {"--init": policy, "--data": data / "train.jsonl", "--out": data / out}
    sizes = {"--prompts": 2, "--group": 2, "--max-new-tokens": 6, "--rate": 1e-3, "--seed": 1, "--preset": "rloo"}
    usual = [word for flag, value in (files | sizes).items() if flag not in more for word in (flag, value)]
    return main([str(word) for word in ("rl", "train", *usual, *more)])


def plain(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in read_jsonl(path)]


def test_a_reward_of_one_s_own_from_the_command_line(
    data: Path, tiny_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = ("--rewards", f"{data / 'rewards.py'}:reward")
    held = ("--held-out", data / "held.jsonl", "--eval-every", 2, "--eval-samples", 2)
    assert command(data, tiny_policy, "run", *mine, *held, "--steps", 3) == 0
    said = capsys.readouterr().out
    assert said.startswith("rloo: 2 x 2 responses a step, on-policy")
    rows = read_jsonl(data / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [step for step, row in enumerate(rows) if "heldout/pass@1" in row] == [0, 2, 3]
    drawn = read_jsonl(data / "run/rollouts.jsonl")
    assert [row["step"] for row in drawn] == [1, 2, 3]
    assert all(0 <= one["reward"] <= 1 for row in drawn for one in row["responses"])
    facts = json.loads((data / "run/results.json").read_text())["facts"]
    assert (facts["steps"], facts["updates"], facts["processes"]) == (3, 3, 1)
    assert (data / "run/model/model.safetensors").exists()
    assert "Reinforcement learning" in (data / "run/report.html").read_text()


def test_a_run_that_was_stopped_goes_on_with_the_same_figures(
    data: Path, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = ("--rewards", f"{data / 'rewards.py'}:reward", "--steps", 4, "--save-steps", 2)
    assert command(data, tiny_policy, "whole", *mine) == 0
    real = loop_module.Loop.step

    def stopping(self: Any) -> Any:
        if self.done == 3:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(loop_module.Loop, "step", stopping)
    assert command(data, tiny_policy, "cut", *mine) == 130
    assert [row["step"] for row in plain(data / "cut/metrics.jsonl")] == [1, 2, 3]
    monkeypatch.undo()
    assert command(data, tiny_policy, "cut", *mine, "--resume") == 0
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert plain(data / "cut" / name) == plain(data / "whole" / name)
    one, other = ((data / name / "model/model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert one == other
    facts, again = (json.loads((data / name / "results.json").read_text())["facts"] for name in ("cut", "whole"))
    assert facts == again | {"resumed_at": 2}, "what is told at the end is told of the whole run"
    # A line that a kill left unfinished is dropped; a run that has ended tells the same when it is taken up again.
    with (data / "cut/metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "rew')
    assert command(data, tiny_policy, "cut", *mine, "--resume") == 0
    assert plain(data / "cut/metrics.jsonl") == plain(data / "whole/metrics.jsonl")
    assert json.loads((data / "cut/results.json").read_text())["facts"] == again | {"resumed_at": 4}


def test_a_refused_resume_leaves_the_run_as_it_was(
    data: Path, tiny_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = ("--rewards", f"{data / 'rewards.py'}:reward", "--steps", 1)
    assert command(data, tiny_policy, "run", *mine) == 0
    before = {path.name: path.read_bytes() for path in (data / "run").glob("*.jsonl")}
    assert command(data, tiny_policy, "run", *mine, "--resume") == 2
    assert {path.name: path.read_bytes() for path in (data / "run").glob("*.jsonl")} == before
    assert len(before) == 2
    words = ["rl", "train", "--init", str(tiny_policy), "--data", "playground:train:9", "--save-steps", "1", "--resume"]
    assert main(words) == 2
    assert "resume goes on with the run in out; say which one, by --out" in capsys.readouterr().err


def test_where_nothing_is_scored_there_is_no_outcome(data: Path, tiny_policy: Path) -> None:
    mine = ("--rewards", f"{data / 'rewards.py'}:broken", "--min-scored", 0, "--steps", 1)
    assert command(data, tiny_policy, "run", *mine) == 0
    (row,) = read_jsonl(data / "run/metrics.jsonl")
    assert "outcome/mean" not in row and "reward/mean" not in row
    facts = json.loads((data / "run/results.json").read_text())["facts"]
    assert facts["outcome_first"] is facts["outcome_last"] is None


def test_a_file_may_be_called_like_the_playground(data: Path, tiny_policy: Path) -> None:
    (data / "train.jsonl").rename(data / "playground_mine.jsonl")
    problems = problems_from(str(data / "playground_mine.jsonl"))
    assert [problem.id for problem in problems] == [f"p-{n}" for n in range(6)]
    assert is_playground("playground") and is_playground("playground:test:3") and not is_playground("playground_mine")


def test_step_scores_that_no_step_is_credited_for_are_said_to_be_idle(tiny_policy: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = RlConfig(init=str(tiny_policy), preset="rloo", steps=1, prompts=2, group=2, max_new_tokens=4)
    given = {"even": Even(), "halves": Halves()}
    train(config, PROBLEMS, given, out=tmp_path / "model", work=tmp_path / "work", on_say=said.append)
    assert "note: advantage.kind='rloo' credits no steps: their scores go to the guards alone" in said
    with pytest.raises(ConfigError, match="rewards must be a RewardList, or a mapping of names to rewards; got \\["):
        train(config, PROBLEMS, [Even()], out=tmp_path / "model", work=tmp_path / "work")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rewards", "FOLDER/rewards.py:broken"], "only 0 of 4 responses got a reward"),
        (["--rewards", "FOLDER/rewards.py:nothing"], "nothing"),
        (["--rewards", "maths"], "there is no reward 'maths'; take one of math, box"),
        (["--change", "clip.kind=cispo", "--change", "clip.cap=0.5"], "clip.cap of cispo"),
        (["--eval-every", "2"], "eval_every has no effect without held-out problems"),
        (["--held-out", "FOLDER/train.jsonl", "--eval-every", "1"], "is learned from and held out; hold out others"),
        (["--resume"], "resume has no effect without checkpoints; set save_steps to 1 or more"),
        (["--held-out", "FOLDER/held.jsonl"], "held_out has no effect with eval_every=0; say after how many steps"),
        (["--data", "FOLDER/open.jsonl"], "problem 'open' has no reference answer, which the reward math needs"),
        (["--data", "FOLDER/open.jsonl", "--rewards", "length"], "which the reward length needs"),
        (
            ["--rewards", "math", "--rewards", "length", "--group", "1", "--preset", "reinforce_pp"],
            "group=1 leaves the reward length nothing to compare a response with",
        ),
        (["--data", "FOLDER/half.jsonl"], r"holds half a character ('\ud800', a lone surrogate)"),
        (["--data", "playground_mine"], "playground_mine"),
        (["--data", "playground:train:9", "--limit", "0"], "limit must be 1 or more; got 0"),
        (["--init", "data/playground/prm"], "holds LlamaForTokenClassification, not a causal language model"),
        (["--out", "FOLDER/train.jsonl/run"], "cannot be made (Not a directory); choose another --out"),
        (["--outcome", "maths"], "outcome must name one of the rewards math; got 'maths'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    words: list[str], message: str, data: Path, tiny_policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("FOLDER", str(data)) for word in words]
    assert command(data, tiny_policy, "run", "--steps", 1, *given) in (1, 2)
    assert message in capsys.readouterr().err
