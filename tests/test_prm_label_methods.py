"""Labelling methods on one stream of roll-outs: what each keeps, what it spares, and what a kill costs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prm.formats import StepRow
from prm.labelling import LabelConfig, label
from prm.rollouts import FileLog, MemoryLog
from search.engines.scripted_engine import ScriptedEngine
from verifiers.core import Problem, Response, Verdict
from verifiers.errors import ConfigError, DataError

GOOD, BAD = "\\boxed{1}", "\\boxed{0}"
TEXTS = tuple(
    "\n\n".join(steps)
    for steps in [
        *[["a", "b", "c", "d", GOOD]] * 6,
        *[["a", "b", "c", "x", BAD]] * 3,
        *[["a", "b", "y", "z", "w", BAD]] * 2,
        ["a", "q", "\\boxed{?}"],
        *[["s", "t", "u", "v", BAD]] * 4,
    ]
)
"""Behind a: 6 right, 5 wrong, 1 undecided; behind a, b: 6 of 11; behind c: 6 of 9; behind x, y or s: none."""
WRONG = "\n\n".join(["a", "b", "y", "z", "w", BAD])


class Judge:
    """1 is right, 0 is wrong, ? is undecided."""

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        names = {"1": Verdict.correct("1"), "0": Verdict.incorrect("0")}
        return [names.get(r.text[-2:-1], Verdict.undecided("?", kind="none")) for r in responses]


class Marks:
    """Step scores that fall at `y` and `x`."""

    def score_steps(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        found = []
        for response in responses:
            at = min((response.text.find(mark) for mark in "xys" if mark in response.text), default=10**9)
            starts = [response.text.find(step) for step in response.text.split("\n\n")]
            found.append(tuple(0.9 if start < at else 0.1 for start in starts))
        return found


def setup(count: int) -> tuple[list[Problem], list[Response], ScriptedEngine]:
    problems = [Problem(id=f"p{n}", prompt=f"Question {n}\n") for n in range(count)]
    engine = ScriptedEngine({str(p.prompt): TEXTS for p in problems})
    return problems, [Response(problem_id=p.id, text=WRONG, sample=n) for n, p in enumerate(problems)], engine


def run(
    problems: Sequence[Problem], responses: Sequence[Response], engine: ScriptedEngine, **more: Any
) -> list[list[StepRow]]:
    options = {name: more.pop(name) for name in ("log", "scorer", "chunk") if name in more}
    config = LabelConfig(**more)
    return list(label(problems, responses, engine=engine, verifier=Judge(), config=config, **options))


def drawn(rows: list[list[StepRow]]) -> int:
    """Roll-outs that the response rows count, the last step's (which cost nothing) left out."""
    return sum(sum(row.trials[:-1]) + sum(row.undecided[:-1]) for (row, *_) in rows)


@pytest.mark.parametrize(
    ("threshold", "at_once", "doubling"),
    [(0.0, 1, False), (0.0, 3, False), (0.0, 1, True), (0.5, 1, False), (0.5, 3, False)],
)
def test_early_stop_keeps_every_hard_label_and_a_beginning_of_every_stream(
    threshold: float, at_once: int, doubling: bool
) -> None:
    problems, responses, engine = setup(40)
    log = MemoryLog()
    fixed = run(problems, responses, engine, trials=16, threshold=threshold, log=log)
    early_log = MemoryLog()
    options = {"threshold": threshold, "at_once": at_once, "doubling": doubling}
    early = run(problems, responses, engine, method="early_stop", trials=16, log=early_log, **options)
    assert [row.labels("hard") for (row,) in early] == [row.labels("hard") for (row,) in fixed]
    assert drawn(early) < 0.75 * drawn(fixed) == 0.75 * 40 * 5 * 16
    for key, rollouts in early_log.streams.items():
        assert rollouts == log.streams[key][: len(rollouts)]
    assert all(row.stopped for (row,) in early)
    assert not any(row.stopped for (row,) in fixed)


def test_the_sequential_test_labels_or_says_nothing() -> None:
    problems, responses, engine = setup(30)
    rows = run(problems, responses, engine, method="sequential", trials=24, low=0.05, high=0.4, error=0.05)
    labels = [row.labels("hard") for (row,) in rows]
    # Behind y nothing succeeds: 7 failures reach log 0.05 = -3.0 at log(0.6 / 0.95) = -0.46 each.
    assert all(row.trials[2:5] == (7, 7, 7) for (row,) in rows)
    assert all(found[2:] == [False] * 4 for found in labels)
    assert sum(found[0] is True for found in labels) >= 29
    assert sum(sum(row.trials[:2]) for (row,) in rows) / 60 < 4


@pytest.mark.parametrize("method", ["binary_search", "cheapest_search"])
def test_the_first_bad_step_costs_a_fraction(method: str) -> None:
    problems, responses, engine = setup(40)
    fixed = run(problems, responses, engine, trials=16)
    found = run(problems, responses, engine, method=method, trials=16, neighbour=0)
    guided = (
        run(problems, responses, engine, method=method, trials=16, neighbour=0, scorer=Marks())
        if (method == "cheapest_search")
        else found
    )
    for rows in (found, guided):
        assert [row.provenance["first_error"] for (row,) in rows] == [2] * 40
        assert all(row.labels("hard") == [True, True, False, False, False, False] for (row,) in rows)
        assert drawn(rows) < drawn(fixed) / 3
    if method == "cheapest_search":
        assert drawn(guided) < drawn(fixed) / 4
    # Only what was probed has counts, and of a bad step all of K.
    assert all(row.trials[2] == 16 and row.successes[2] == 0 for (row,) in found)


def test_right_and_undecided_responses_cost_nothing() -> None:
    problems, _, engine = setup(2)
    texts = [TEXTS[0], "a\n\nq\n\n\\boxed{?}"]
    responses = [Response(problem_id=p.id, text=text) for p, text in zip(problems, texts, strict=True)]
    (right,), (open_,) = run(problems, responses, engine, method="binary_search", trials=16)
    assert engine.usage.calls == 0
    assert (right.labels("hard"), right.provenance["first_error"]) == ([True] * 5, -1)
    assert (open_.labels("hard"), open_.provenance["first_error"]) == ([None] * 3, None)
    assert (open_.trials, open_.undecided) == ((0, 0, 0), (0, 0, 16))


def test_neighbour_confirmation_draws_from_the_step_behind() -> None:
    problems, responses, engine = setup(1)
    ((row,),) = run(problems, responses, engine, method="cheapest_search", trials=16, neighbour=4)
    assert row.trials[2:4] == (16, 4)
    assert row.provenance["first_error"] == 2


def test_kept_roll_outs_of_stopped_streams_are_the_streams() -> None:
    problems, responses, engine = setup(3)
    log = MemoryLog()
    rows = run(problems, responses, engine, method="early_stop", trials=8, keep_rollouts=True, log=log)
    for response, (own, *kept) in zip(responses, rows, strict=True):
        assert own.source == "response"
        streams = [log.streams[response.problem_id, str(response.sample), step] for step in range(5)]
        decided = [r for stream in streams for r in stream if r.outcome != "undecided"]
        assert len(kept) == len(decided)
        assert [max(row.successes) for row in kept] == [float(r.outcome == "correct") for r in decided]


class TestTree:
    def rows(self, **more: Any) -> tuple[list[list[StepRow]], ScriptedEngine]:
        problems, responses, engine = setup(12)
        return run(problems, responses, engine, method="tree", trials=8, neighbour=0, **more), engine

    def test_nothing_is_searched_or_paid_twice(self) -> None:
        rows, engine = self.rows(searches=6)
        streams = 0
        for tree in rows:
            own, *branches = tree
            assert own.source == "response"
            assert {row.source for row in branches} == {"tree"}
            names = [row.provenance["name"] for row in branches]
            assert len(set(names)) == len(names)
            assert 1 <= len(tree) <= 6
            known = {str(own.sample), *names}
            for row in branches:
                assert row.provenance["parent"] in known
                assert row.provenance["name"].startswith(f"{row.provenance['parent']}.{row.provenance['branch_step']}.")
            streams += sum(n > 0 for row in tree for n in row.trials[:-1])
        assert engine.usage.decoded_tokens > 0
        assert sum(len(tree) for tree in rows) > 2 * len(rows)

    def test_a_state_is_labelled_once_and_rightly(self) -> None:
        rows, _ = self.rows(searches=6)
        for tree in rows:
            for row in tree:
                branch = row.provenance.get("branch_step", -1)
                assert row.hard[: branch + 1] == (None,) * (branch + 1)
                assert row.trials[: branch + 1] == (0,) * (branch + 1)
                first = next(n for n, text in enumerate(row.completions) if text in ("x", "y", "s", BAD))
                # V behind a, b, c is at least one half: that all 8 fail by chance is rare, and then it is named early.
                assert row.provenance["first_error"] <= first
        finds = [
            row.provenance["first_error"] == next(n for n, t in enumerate(row.completions) if t in ("x", "y", "s", BAD))
            for tree in rows
            for row in tree
        ]
        assert sum(finds) / len(finds) > 0.9

    def test_more_searches_go_on_from_fewer(self) -> None:
        few, _ = self.rows(searches=2)
        many, _ = self.rows(searches=5)
        for a, b in zip(few, many, strict=True):
            names = [row.provenance.get("name") for row in a]
            assert [row.provenance.get("name") for row in b][: len(a)] == names
            assert len(a) <= 2

    def test_a_right_response_begins_with_its_first_step(self) -> None:
        problems, _, engine = setup(1)
        response = Response(problem_id="p0", text=TEXTS[0])
        (tree,) = run(problems, [response], engine, method="tree", trials=8, searches=3)
        assert tree[0].labels("hard") == [True] * 5
        assert tree[0].trials[0] + tree[0].undecided[0] == 8
        assert all(row.provenance["branch_step"] == 0 for row in tree[1:2])


JOB = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_prm_label_methods import Judge, setup
from prm.labelling import LabelConfig, label
from prm.rollouts import FileLog
problems, responses, engine = setup(6)
calls = 0
generate = engine.generate
def counted(requests, sampling):
    global calls
    calls += 1
    if calls == {kill_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    return generate(requests, sampling)
engine.generate = counted
log = FileLog({path!r})
config = LabelConfig(method={method!r}, trials=8)
list(label(problems, responses, engine=engine, verifier=Judge(), config=config, log=log, chunk=3))
"""


@pytest.mark.parametrize("method", ["early_stop", "binary_search", "tree"])
def test_a_killed_job_goes_on_without_a_roll_out_lost_or_doubled(method: str, tmp_path: Path) -> None:
    problems, responses, engine = setup(6)
    with FileLog(tmp_path / "whole.jsonl") as log:
        whole = run(problems, responses, engine, method=method, trials=8, log=log, chunk=3)
    paid = engine.usage
    for kill_at in (2, 4):
        path = tmp_path / f"killed-{kill_at}.jsonl"
        job = JOB.format(tests=str(Path(__file__).parent), path=str(path), method=method, kill_at=kill_at)
        root = Path(__file__).parents[1]
        done = subprocess.run([sys.executable, "-c", job], cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        kept = path.read_bytes()
        assert kept
        problems, responses, engine = setup(6)
        with FileLog(path) as log:
            resumed = run(problems, responses, engine, method=method, trials=8, log=log, chunk=3)
        assert resumed == whole
        assert path.read_bytes().startswith(kept)

        def streams(file: Path) -> dict[tuple[Any, ...], list[Any]]:
            found: dict[tuple[Any, ...], list[Any]] = {}
            for row in map(json.loads, file.read_text().splitlines()):
                stream = found.setdefault((row["problem_id"], row["response"], row["step"]), [])
                assert len(stream) == row["first"]
                stream += row["rollouts"]
            return found

        # The same roll-outs, each written once, and only the missing ones paid for.
        assert streams(path) == streams(tmp_path / "whole.jsonl")
        already = sum(len(r[2]) for row in map(json.loads, kept.splitlines()) for r in row["rollouts"])
        assert engine.usage.decoded_tokens == paid.decoded_tokens - already


def test_a_broken_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"problem_id": "p", "response": "0", "step": 1, "first": 3, "rollouts": []}) + "\n")
    with pytest.raises(DataError, match="line 1: roll-outs from number 3 follow 0 of"):
        FileLog(path)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match="doubling has no effect on method 'fixed'"):
        LabelConfig(doubling=True)
    with pytest.raises(ConfigError, match="with a threshold it draws nearly all"):
        LabelConfig(method="early_stop", threshold=0.5, doubling=True)
    with pytest.raises(ConfigError, match="threshold has no effect on method 'tree'"):
        LabelConfig(method="tree", threshold=0.5)
    with pytest.raises(ConfigError, match=r"at_once must lie between 1 and trials \(4\); got 5"):
        LabelConfig(method="early_stop", trials=4, at_once=5)
    with pytest.raises(ConfigError, match=r"got low=0.4 and high=0.3"):
        LabelConfig(method="sequential", low=0.4)
    problems, responses, engine = setup(1)
    with pytest.raises(ConfigError, match="a scorer guides cheapest_search; method 'fixed'"):
        run(problems, responses, engine, scorer=Marks())
