"""Reward functions in workers: TRL's signature, hostile functions, deadlines, order, overlap, a pool that survives."""

from __future__ import annotations

import asyncio
import datetime
import math
import operator
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardkit.rl.rewards.calling import call, load_function, split_spec
from rewardkit.rl.rewards.scored import PartValues, StepRewards, Unscored
from rewardkit.rl.rewards.workers import RewardWorkers, pieces, trl_columns
from verifiers.core import Problem, Response
from verifiers.errors import ConfigError, MissingFileError, RewardError

FUNCTIONS = '''
import os, signal, subprocess, sys, time
import numpy as np
from neighbour import HALF
from rewardkit.rl.rewards.scored import StepRewards

print("noise while importing")

def length(completions, **columns):
    return [float(len(text)) for text in completions]

def half(prompts, completions):
    return [HALF for _ in completions]

def echo(prompts, completions, completion_ids, answer, level, **rest):
    sizes = [len(str(p)) * 1000 + len(str(c)) * 100 for p, c in zip(prompts, completions)]
    rest = [sum(ids) + int(a) * 10 + (l or 0) for ids, a, l in zip(completion_ids, answer, level)]
    return [float(a + b) for a, b in zip(sizes, rest)]

def first_word(completions, **columns):
    return [None if one == "skip" else np.float32(1.5) if one == "np" else 1 for one in completions]

def steps(completions, completion_ids, **columns):
    return [StepRewards([0.5, 1], [0, len(ids) - 1]) if len(ids) > 1 else None for ids in completion_ids]

def bad_steps(completions, **columns):
    return [StepRewards((0.5,), (99,)), StepRewards((0.5,), (0, 1)), StepRewards((float("nan"),), (0,)), 1.0]

def odd(completions, **columns):
    return [float("nan"), float("inf"), "0.5", [1.0], {}, 10 ** 400, 2.0, 1e300, -1e18]

async def waits(completions, **columns):
    return [2.0 for _ in completions]

def logs(completions, log_metric, log_extra, trainer_state):
    assert trainer_state is None
    log_metric("words", np.mean([len(text.split()) for text in completions]))
    log_extra("seen", completions)
    return [0.0] * len(completions)

def logs_over(completions, log_metric):
    log_metric("mean", 77)
    return [0.0] * len(completions)

def logs_nan(completions, log_metric):
    log_metric("words", float("nan"))
    return [0.0] * len(completions)

def logs_too_few(completions, log_extra, **columns):
    log_extra("seen", ["one"])
    return [0.0] * len(completions)

def naps(completions, **columns):
    time.sleep(max(float(text) for text in completions))
    return [float(text) for text in completions]

def hostile(completions, level, **columns):
    """Does what the completion says, once for the whole call."""
    what = completions[0]
    if what == "raise":
        raise ValueError("no such\\nproblem")
    if what == "sleep":
        time.sleep(600)
    if what == "spin":
        while True:
            pass
    if what == "exit":
        sys.exit(3)
    if what == "_exit":
        os._exit(3)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "memory":
        return [float(len(bytearray(1 << 40)))]
    if what == "eat":
        held = []
        while True:
            held.append(bytearray(50 << 20))
    if what == "recurse":
        return hostile(completions, level)
    if what == "short":
        return [1.0] * (len(completions) - 1)
    if what == "long":
        return [1.0] * (len(completions) + 1)
    if what == "none":
        return None
    if what == "text":
        return "x" * len(completions)
    if what == "dict":
        return {"rewards": [1.0]}
    if what == "generator":
        return (1.0 for _ in completions)
    if what == "flood":
        for _ in range(20000):
            print("x" * 1000)
            print("y" * 1000, file=sys.stderr)
        os.write(1, b"z" * 100000)
    if what == "child":
        child = subprocess.Popen(["sleep", "600"])
        with open(level[0], "w") as file:
            file.write(str(child.pid))
        time.sleep(600)
    return [1.0] * len(completions)
'''

BROKEN = "import rewardkit\nraise OSError('no model here')\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "neighbour.py").write_text("HALF = 0.5\n")
    (folder / "search.py").write_text("raise RuntimeError('a stranger of this name')\n")
    (folder / "broken.py").write_text(BROKEN)
    (folder / "dies.py").write_text("import os\nos._exit(7)\n")
    (folder / "my_rewards.py").write_text(FUNCTIONS)
    return folder / "my_rewards.py"


@pytest.fixture(scope="module")
def hostile(file: Path) -> Iterator[RewardWorkers]:
    workers = RewardWorkers(f"{file}:hostile", timeout_s=20.0, memory_mb=512)
    workers.start()
    yield workers
    workers.close()


def batch(texts: Sequence[str], **metadata: Sequence[Any]) -> tuple[list[Problem], list[Response]]:
    """One problem a response, with the metadata columns given."""
    problems = [
        Problem(id=f"p{n}", prompt="ask", answer=str(n), metadata={key: values[n] for key, values in metadata.items()})
        for n in range(len(texts))
    ]
    responses = [
        Response(problem_id=f"p{n}", text=text, token_ids=tuple(range(1, 1 + len(text))), sample=n)
        for n, text in enumerate(texts)
    ]
    return problems, responses


def score(function: str | Callable[..., Any], texts: Sequence[str], **settings: Any) -> PartValues:
    workers = RewardWorkers(function, **settings)
    try:
        return workers.score(*batch(texts))
    finally:
        workers.close()


def kinds(found: PartValues) -> list[str]:
    return [value.kind if isinstance(value, Unscored) else "scored" for value in found.values]


# -- what a function may return --


def test_numbers_neighbours_and_noise(file: Path) -> None:
    assert score(f"{file}:length", ["a", "bcd", ""]).values == (1.0, 3.0, 0.0)
    assert score(f"{file}:half", ["a", "b"]).values == (0.5, 0.5)  # takes no **columns


def test_trl_columns_arrive(file: Path) -> None:
    messages = ({"role": "user", "content": "ask"},)
    problems = [
        Problem(id="one", prompt="ask", answer="1", metadata={"level": 3}),
        Problem(id="two", prompt=messages, answer="2"),
    ]
    responses = [
        Response(problem_id="one", text="say", token_ids=(5, 6)),
        Response(problem_id="two", text="say", token_ids=(7,)),
    ]
    columns = trl_columns(problems, responses)
    assert columns == {
        "level": [3, None],
        "id": ["one", "two"],
        "answer": ["1", "2"],
        "prompts": ["ask", [{"role": "user", "content": "ask"}]],
        "completions": ["say", [{"role": "assistant", "content": "say"}]],
        "completion_ids": [[5, 6], [7]],
    }
    workers = RewardWorkers(f"{file}:echo")
    found = workers.score(problems, responses)
    workers.close()
    chat_prompt, chat_answer = str(columns["prompts"][1]), str(columns["completions"][1])
    assert found.values == (3000 + 300 + 11 + 10 + 3.0, len(chat_prompt) * 1000 + len(chat_answer) * 100 + 7 + 20.0)


def test_none_is_unscored_and_never_a_zero(file: Path) -> None:
    found = score(f"{file}:first_word", ["x", "skip", "np"])
    assert found.values[0] == 1.0 and found.values[2] == 1.5
    assert found.values[1] == Unscored(kind="abstained", detail="reward function first_word returned None")


def test_steps_come_back(file: Path) -> None:
    found = score(f"{file}:steps", ["abc", "d"])
    assert found.values[0] == StepRewards((0.5, 1.0), (0, 2))
    assert kinds(found) == ["scored", "abstained"]


def test_rows_at_fault_are_told_one_by_one(file: Path) -> None:
    found = score(f"{file}:bad_steps", ["a", "b", "c", "d"])
    assert kinds(found) == ["bad_steps", "bad_steps", "bad_steps", "scored"]
    details = [value.detail for value in found.values if isinstance(value, Unscored)]
    assert "the end 99 in a response of 1 tokens for completion 0" in details[0]
    assert "1 values for 2 ends" in details[1] and "no finite numbers up to 1e+18: [nan]" in details[2]
    odd = score(f"{file}:odd", ["a"] * 9)
    assert kinds(odd) == ["not_a_number"] * 6 + ["scored", "not_a_number", "scored"]
    said = [value.detail for value in odd.values if isinstance(value, Unscored)]
    assert said[0] == (
        "reward function odd returned nan for completion 0; return a finite number up to 1e+18, or None "
        "to leave it unscored"
    )
    assert "returned '0.5' for completion 2" in said[2]
    assert all(value.failed for value in odd.values if isinstance(value, Unscored))


def test_async_functions_and_logs(file: Path) -> None:
    assert score(f"{file}:waits", ["a", "b"]).values == (2.0, 2.0)
    found = score(f"{file}:logs", ["a b", "c", "d", "e f g h"], workers=2)
    # the mean over rows of what two calls logged
    assert found.metrics == {"words": pytest.approx(2.0)}
    assert found.extra == {"seen": ("a b", "c", "d", "e f g h")}
    few = score(f"{file}:logs_too_few", ["a", "b"])
    assert kinds(few) == ["raised"] * 2
    for name, said in (
        ("logs_over", "log_metric('mean') would take the place of the reward's own figure; use another name"),
        ("logs_nan", "log_metric('words') got nan; log finite numbers"),
    ):
        (one,) = score(f"{file}:{name}", ["a"]).values
        assert isinstance(one, Unscored) and said in one.detail


# -- hostile functions: each ends as stated, in bounded time, and the pool works afterwards --

ENDS = {
    "raise": ("raised", "raised ValueError: no such problem (my_rewards.py, line "),
    "exit": ("raised", "raised SystemExit: 3 "),
    "_exit": ("crash", "ended its process (the worker ended with status 3)"),
    "kill": ("crash", "ended its process (the worker ended with status -9)"),
    "memory": ("memory", "needed more than 512 MiB"),
    "eat": ("memory", "needed more than 512 MiB"),
    "recurse": ("raised", "raised RecursionError"),
    "short": ("wrong_length", "returned 2 values for 3 completions; it must return one number"),
    "long": ("wrong_length", "returned 4 values for 3 completions"),
    "none": ("wrong_type", "returned None; it must return a list"),
    "text": ("wrong_type", "returned one str, not a list"),
    "dict": ("wrong_type", "returned one dict, not a list"),
    "generator": ("wrong_type", "returned one generator, not a list"),
    "flood": ("scored", ""),
}


@pytest.mark.parametrize("what", ENDS)
def test_hostile_functions_end_as_stated(hostile: RewardWorkers, what: str) -> None:
    kind, said = ENDS[what]
    start = time.monotonic()
    found = hostile.score(*batch([what, "b", "c"], level=[""] * 3))
    assert kinds(found) == [kind] * 3
    assert time.monotonic() - start < 60.0  # of the 600 that it would sleep
    for value in found.values:
        if isinstance(value, Unscored):
            assert value.failed and "reward function hostile" in value.detail and said in value.detail
            assert "\n" not in value.detail
    assert hostile.score(*batch(["fine"], level=[""])).values == (1.0,)


@pytest.mark.parametrize("what", ["sleep", "spin"])
def test_hanging_functions_are_killed_at_the_deadline(file: Path, what: str) -> None:
    workers = RewardWorkers(f"{file}:hostile", timeout_s=0.5)
    workers.start()
    start = time.monotonic()
    found = workers.score(*batch([what, "b"], level=["", ""]))
    assert 0.4 < time.monotonic() - start < 60.0  # of 600
    assert kinds(found) == ["timeout"] * 2
    assert isinstance(found.values[0], Unscored)
    assert found.values[0].detail == (
        "reward function hostile did not return within 0.5 s and was killed; make it faster, or raise "
        "timeout_s (--reward-timeout)"
    )
    assert workers.score(*batch(["fine"], level=[""])).values == (1.0,)
    workers.close()


def test_what_a_function_started_dies_with_it(file: Path, tmp_path: Path) -> None:
    workers = RewardWorkers(f"{file}:hostile", timeout_s=1.5)
    workers.start()
    note = tmp_path / "child"
    assert kinds(workers.score(*batch(["child"], level=[str(note)]))) == ["timeout"]
    child = int(note.read_text())
    for _ in range(100):
        # a zombie that nobody reaps has ended, too
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("the child of a killed worker lives on")
    workers.close()


# -- batches in pieces --


def test_the_order_of_results_is_that_of_inputs(file: Path) -> None:
    workers = RewardWorkers(f"{file}:naps", workers=3, rows=1)
    workers.start()
    texts = ["0.6", "0", "0.3", "0.01", "0"]
    found = workers.score(*batch(texts))
    assert found.values == tuple(map(float, texts))
    workers.close()


def test_work_goes_on_while_the_caller_does_something_else(file: Path) -> None:
    workers = RewardWorkers(f"{file}:naps", workers=2)
    workers.start()
    one = workers.submit(*batch(["3.0"]))
    two = workers.submit(*batch(["0.0"]))
    assert two.collect().values == (0.0,)
    assert two.done and not one.done
    assert one.collect().values == (3.0,) and one.done
    workers.close()


def test_a_call_that_breaks_costs_its_own_rows_only(file: Path) -> None:
    workers = RewardWorkers(f"{file}:hostile", workers=2, rows=2)
    found = workers.score(*batch(["a", "b", "_exit", "d", "e"], level=[""] * 5))
    assert kinds(found) == ["scored", "scored", "crash", "crash", "scored"]
    workers.close()
    assert workers.score(*batch(["a"], level=[""])).values == (1.0,)  # usable after close
    workers.close()


@given(st.lists(st.sampled_from("abc"), max_size=20), st.integers(1, 4), st.integers(0, 5))
def test_pieces_cover_a_batch_and_keep_problems_whole(names: list[str], workers: int, rows: int) -> None:
    found = pieces(names, workers, rows)
    assert [n for start, end in found for n in range(start, end)] == list(range(len(names)))
    for start, _ in found[1:]:
        assert names[start] != names[start - 1]
    most = min(-(-len(names) // workers), rows or len(names))
    for start, end in found:
        assert end - start <= most or len(set(names[start:end])) == 1
    if workers == 1 and not rows:
        assert len(found) == bool(names)


def test_pieces_by_hand() -> None:
    assert pieces(list("aabbccdd"), 2, 0) == [(0, 4), (4, 8)]
    assert pieces(list("aabbccdd"), 3, 0) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert pieces(list("abcdef"), 1, 4) == [(0, 4), (4, 6)]
    assert pieces(list("aaaa"), 4, 1) == [(0, 4)]
    assert pieces([], 2, 0) == []


def test_an_empty_batch(file: Path) -> None:
    assert score(f"{file}:length", []).values == ()


# -- naming, loading, where it runs --


def test_functions_that_cannot_be_found_or_loaded(file: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"there is no file nowhere\.py"):
        RewardWorkers("nowhere.py:reward")
    for wrong in ("reward", "my_rewards.py:", ":reward", "a b:reward", "x.py:two words"):
        with pytest.raises(ConfigError, match="reward"):
            split_spec(wrong)
    for spec, said in (
        (f"{file}:nothing", "has no 'nothing'; it has StepRewards, bad_steps, echo"),
        (f"{file.with_name('broken.py')}:f", r"OSError: no model here \(broken.py, line 2\); mend the import"),
        (f"{file.with_name('dies.py')}:f", "did not start"),
        ("no_such_package.rewards:f", "No module named 'no_such_package'"),
        ("os:sep", "is no function but a str"),
    ):
        workers = RewardWorkers(spec)
        with pytest.raises(RewardError, match=said):
            workers.start()
        workers.close()
    workers = RewardWorkers(f"{file}:nothing")
    with pytest.raises(RewardError, match="reward function nothing cannot be loaded"):
        workers.score(*batch(["a"]))
    workers.close()


def test_modules_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mine"
    package.mkdir()
    (package / "rewards.py").write_text(
        "class Box:\n    @staticmethod\n    def two(completions):\n        return [2.0]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert score("mine.rewards:Box.two", ["a"]).values == (2.0,)


def test_callables_travel_or_say_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_a_class.py").write_text(
        "class Add:\n"
        "    def __init__(self, by):\n"
        "        self.by = by\n"
        "    def __call__(self, completions, **columns):\n"
        "        return [len(text) + self.by for text in completions]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import rewards_of_a_class  # type: ignore[import-not-found]

    workers = RewardWorkers(rewards_of_a_class.Add(10))
    assert workers.name == "Add" and workers.score(*batch(["a", "bc"])).values == (11.0, 12.0)
    workers.close()
    with pytest.raises(ConfigError, match=r"cannot be sent to a worker process .* in_process=True, where it cannot be"):
        RewardWorkers(lambda completions: [1.0])
    with pytest.raises(ConfigError, match="must be callable or named; got int"):
        RewardWorkers(3)  # type: ignore[arg-type]


def test_columns_that_cannot_travel_are_named() -> None:
    workers = RewardWorkers("operator:add")
    with pytest.raises(ConfigError, match=r"columns of the data set cannot be sent to reward add's worker"):
        workers.submit(*batch(["a"], level=[lambda: 0]))
    dated = batch(["a"], level=[datetime.date(2026, 1, 1)])
    assert kinds(workers.score(*dated)) == ["raised"]  # it travels; operator.add takes no columns
    workers.close()


def test_in_this_process_where_asked_for() -> None:
    seen: list[str] = []

    def reward(completions: list[str]) -> list[float]:
        seen.extend(completions)
        return [1.0] * len(completions)

    workers = RewardWorkers(reward, in_process=True)
    workers.start()
    assert not workers.killable and workers.about == (
        "reward: called in this process, where it cannot be killed and has no deadline"
    )
    assert workers.score(*batch(["a", "b"])).values == (1.0, 1.0) and seen == ["a", "b"]
    workers.close()

    def exits(completions: list[str]) -> list[float]:
        raise SystemExit(1)

    def starves(completions: list[str]) -> list[float]:
        raise MemoryError

    assert kinds(RewardWorkers(exits, in_process=True).score(*batch(["a"]))) == ["raised"]
    assert kinds(RewardWorkers(starves, in_process=True).score(*batch(["a"]))) == ["memory"]
    with pytest.raises(ConfigError, match="workers=2 would have no effect"):
        RewardWorkers(reward, in_process=True, workers=2)


def test_by_name_in_this_process(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    assert RewardWorkers(f"{file}:length", in_process=True).score(*batch(["abc"])).values == (3.0,)
    with pytest.raises(RewardError, match="reward function f cannot be loaded: no model here"):
        RewardWorkers(f"{file.with_name('broken.py')}:f", in_process=True)
    with pytest.raises(ConfigError, match="has no 'nothing'"):
        RewardWorkers(f"{file}:nothing", in_process=True)


def test_the_call_itself_inside_an_event_loop() -> None:
    async def reward(completions: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [math.pi]

    async def main() -> dict[str, Any]:
        return call(reward, trl_columns(*batch(["a"])))

    assert asyncio.run(main())["entries"] == [math.pi]
    assert call(operator.itemgetter(0), trl_columns(*batch(["a"])))["kind"] == "raised"
    assert load_function("operator:add") is operator.add


def test_settings_are_checked_and_told(file: Path) -> None:
    workers = RewardWorkers(f"{file}:length", workers=2, timeout_s=1.5, memory_mb=256)
    assert workers.about == "length: 2 processes, killed after 1.5 s or at 256 MiB"
    with pytest.raises(ConfigError, match="rows of reward length must be 0"):
        RewardWorkers(f"{file}:length", rows=-1)
    with pytest.raises(ConfigError, match="timeout_s must be more than 0"):
        RewardWorkers(f"{file}:length", timeout_s=0)
    with pytest.raises(ConfigError, match="got 1 problems and 2 responses"):
        workers.submit(batch(["a"])[0], batch(["a", "b"])[1])
