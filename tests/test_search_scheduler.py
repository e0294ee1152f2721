"""The scheduler: wishes are granted in their order whatever ends first, accounts are exact, kills lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from search_scripts import SAMPLING, Boxed, Disorderly, Marks, engine, problems, texts

from search.plans import Candidate, Draw, Plan, Search, Strategy
from search.runner import Budget, Results, run
from search.strategies.adaptive_vote import AdaptiveVote
from search.strategies.beam import Beam
from search.strategies.best_of_n import BestOfN
from search.strategies.dvts import Dvts
from search.strategies.early_stop import EarlyStop
from search.strategies.mcts import Mcts
from search.strategies.rebase import Rebase
from search.strategies.speculative import SpeculativeRejection
from search.tree import Tree
from verifiers.core import Problem, Response, Sampling, StopReason
from verifiers.errors import ConfigError, DataError, EngineError, RewardError
from verifiers.steps import split_steps

STRATEGIES: list[Strategy] = [
    BestOfN(n=5),
    Beam(n=6, width=2),
    Dvts(n=6, width=3),
    Rebase(n=6),
    EarlyStop(n=3, floor=0.5),
    SpeculativeRejection(n=6, every=1),
    AdaptiveVote(n=9),
    Mcts(iterations=5, width=3),
]
NAMES = [type(strategy).__name__ for strategy in STRATEGIES]


def searched(strategy: Strategy, count: int = 6, *, own: Any = None, **more: Any) -> Results:
    asked = problems(count)
    more = {"scorer": Marks(), "sampling": SAMPLING, "seed": 3} | more
    return run(asked, strategy=strategy, engine=own or engine(asked), **more)


def rows(results: Results) -> list[dict[str, Any]]:
    return [result.to_json() for result in results.results]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_results_do_not_depend_on_what_ends_first(strategy: Strategy) -> None:
    wanted = rows(searched(strategy))
    assert len({json.dumps(row["tree"]) for row in wanted}) > 1
    for seed in range(4):
        assert rows(searched(strategy, own=Disorderly(engine(problems(6)), seed))) == wanted
    assert rows(searched(strategy, seed=4)) != wanted


@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_the_account_is_that_of_a_replay(strategy: Strategy) -> None:
    asked = problems(6)
    own = engine(asked)
    scorer = Marks()
    results = run(asked, strategy=strategy, engine=own, scorer=scorer, sampling=SAMPLING, seed=3)
    paid = 0
    for result in results.results:
        # Every node as often as it was drawn is every token the engine drew.
        assert result.drawn_tokens == result.tree.drawn_tokens
        paid += result.drawn_tokens
        for response, scores in zip(result.responses, result.step_scores, strict=True):
            assert len(scores) == len(split_steps(response.text))
            assert scores == Marks().score_steps([result.problem], [response])[0]
    assert paid == results.ledger.policy.decoded_tokens == own.usage.decoded_tokens
    # No beginning was scored twice.
    assert len(scorer.asked) == len(set(scorer.asked)) == scorer.rows


@pytest.mark.parametrize("budget", [1, 17, 60, 200])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=NAMES)
def test_no_problem_spends_more_than_its_budget(strategy: Strategy, budget: int) -> None:
    results = searched(strategy, budget=Budget(problem=budget), own=Disorderly(engine(problems(6)), 0))
    spent = [result.drawn_tokens for result in results.results]
    assert max(spent) <= budget
    assert results.results == searched(strategy, budget=Budget(problem=budget)).results or rows(results) == rows(
        searched(strategy, budget=Budget(problem=budget))
    )
    if budget == 17:
        assert min(spent) > 0


def test_a_whole_budget_is_shared_out_or_taken_in_passes() -> None:
    even = searched(EarlyStop(n=2), budget=Budget(total=301))
    assert max(result.drawn_tokens for result in even.results) <= 50
    assert even.left_out == ()
    used = [result.drawn_tokens for result in searched(BestOfN(n=1)).results]
    assert set(used) == {len(text.encode()) + 1 for text in texts()} == {39}
    # Three problems reserve 180 of 200 and spend 117; 83 are left, one more fits and leaves 44.
    passes = searched(BestOfN(n=1), budget=Budget(problem=60, total=200))
    assert [result.problem.id for result in passes.results] == ["p0", "p1", "p2", "p3"]
    assert [problem.id for problem in passes.left_out] == ["p4", "p5"]
    own = {f"p{n}": 20 + n for n in range(6)}
    each = searched(EarlyStop(n=1), budget=Budget(problem=own)).results
    assert [result.drawn_tokens for result in each] == list(own.values())
    with pytest.raises(ConfigError, match="no tokens for problem 'p5'"):
        searched(EarlyStop(n=1), budget=Budget(problem={f"p{n}": 9 for n in range(5)}))
    with pytest.raises(ConfigError, match=r"Budget.problem must be 1 or more tokens; got 0"):
        Budget(problem={"p0": 0})
    with pytest.raises(ConfigError, match="not both; leave one out"):
        Budget(problem={"p0": 3}, total=9)
    with pytest.raises(ConfigError, match="3 tokens are less than one for each of 6 problems"):
        searched(BestOfN(n=1), budget=Budget(total=3))
    with pytest.raises(ConfigError, match=r"Budget.total must be 1 or more tokens; got 0"):
        Budget(total=0)


class Nested:
    """Plans in plans: what comes back stands in the order of the wishes."""

    stepwise = True
    needs_scores = False

    def plan(self, search: Search) -> Plan:
        seen = yield [self._walk(search, k, depth) for k, depth in enumerate((2, 0, 3, 1))]
        assert [k for k, _ in seen] == [0, 1, 2, 3]
        assert [node.steps for _, node in seen] == [2, 0, 3, 1]
        nothing = yield []
        assert nothing == []
        return [Candidate(node=node, sample=k) for k, node in seen]

    def _walk(self, search: Search, k: int, depth: int) -> Plan:
        node = search.tree.root
        for _ in range(depth):
            (node,) = yield [Draw(node=node, name=(k,))]
        return k, node


def test_plans_in_plans_are_sent_results_in_order() -> None:
    results = searched(Nested(), own=Disorderly(engine(problems(6)), 5))
    for result in results.results:
        assert [len(split_steps(r.text)) for r in result.responses] == [2, 0, 3, 1]
        assert [r.stop_reason for r in result.responses][2] is StopReason.STOP


def test_a_loop_is_ended_and_a_long_text_is_drawn_in_pieces() -> None:
    asked = problems(1)
    loop = "Step A+ " + "again " * 400
    long = "Step A+ " + " ".join(str(n) for n in range(900)) + " \\boxed{1}"
    for text, reason, most in ((loop, StopReason.REPETITION, 512), (long, StopReason.STOP, len(long) + 1)):
        own = engine(asked, [text])
        sampling = Sampling(max_new_tokens=5000)
        (result,) = run(asked, strategy=BestOfN(n=1), engine=own, scorer=Marks(), sampling=sampling).results
        (response,) = result.responses
        assert response.stop_reason is reason
        assert result.drawn_tokens == len(response.token_ids) <= most
        kinds = [event.kind.value for event in result.tree.events]
        assert ("loop" in kinds) == (reason is StopReason.REPETITION)


def test_rules_choose_among_candidates() -> None:
    def chosen(rule: Any, **more: Any) -> list[str]:
        found = searched(BestOfN(n=5), rule=rule, **more).results
        return [result.response.text if result.response else "" for result in found]

    for result, text in zip(searched(BestOfN(n=5)).results, chosen("best"), strict=True):
        top = max(result.scores())
        assert text == result.responses[result.scores().index(top)].text
    votes = chosen("majority", scorer=None)
    for result, text in zip(searched(BestOfN(n=5)).results, votes, strict=True):
        counts = [sum(r.text[-2] == other.text[-2] for other in result.responses) for r in result.responses]
        assert text == result.responses[counts.index(max(counts))].text
    assert chosen("first") == [result.responses[0].text for result in searched(BestOfN(n=5)).results]
    with pytest.raises(ConfigError, match="rule 'best' needs a scorer"):
        searched(BestOfN(), scorer=None, rule="best")
    with pytest.raises(ConfigError, match="EarlyStop decides by step scores; give a scorer"):
        searched(EarlyStop(), scorer=None)


class Short:
    """A scorer that forgets something."""

    def __init__(self, rows: int, steps: int) -> None:
        self.rows, self.steps = rows, steps

    def score_steps(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        return [tuple([0.5] * max(0, len(split_steps(r.text)) - self.steps)) for r in responses][self.rows :]


def test_bad_scorers_prompts_and_problems_are_named() -> None:
    with pytest.raises(RewardError, match="one tuple of scores a response; got 0 for 1 responses"):
        searched(BestOfN(n=1), 1, scorer=Short(1, 0))
    with pytest.raises(RewardError, match="one score a step; got 2 for 3 steps of a response to problem 'p0'"):
        searched(BestOfN(n=1), 1, scorer=Short(0, 1))
    with pytest.raises(ConfigError, match="problem ids must differ"):
        run([*problems(1), *problems(1)], strategy=BestOfN(), engine=engine(problems(1)))
    with pytest.raises(ConfigError, match="at least one problem"):
        run([], strategy=BestOfN(), engine=engine(problems(1)))
    asked = problems(1)
    with pytest.raises(EngineError, match="the prompt of problem 'p0' has 11 tokens"):
        from search.engines.scripted_engine import ScriptedEngine

        run(asked, strategy=BestOfN(), engine=ScriptedEngine({"Question 0\n": ["x"]}, context_length=11))


def test_any_scorer_serves() -> None:
    def by_function(problem: Problem, response: Response) -> float:
        return Marks().score_steps([problem], [response])[0][-1]

    assert rows(searched(Beam(n=6, width=2), scorer=by_function, reduction="min")) == rows(searched(Beam(n=6, width=2)))
    judged = searched(BestOfN(n=5), scorer=Boxed())
    for result in judged.results:
        assert result.response is not None
        assert ("{1}" in result.response.text) == any("{1}" in r.text for r in result.responses)
    with pytest.raises(RewardError, match=r"numbers in \[0, 1\]; got 2.0"):
        searched(BestOfN(n=1), scorer=lambda problem, response: 2.0)
    with pytest.raises(ConfigError, match="a scorer must have score_steps or judge"):
        searched(BestOfN(n=1), scorer=3)


JOB = """
import sys, time
sys.path.insert(0, {tests!r})
from search_scripts import Marks
from test_search_scheduler import searched
from search.strategies.early_stop import EarlyStop
class Slow(Marks):
    def score_steps(self, problems, responses):
        time.sleep(0.05)
        return super().score_steps(problems, responses)
searched(EarlyStop(n=3, floor=0.5), 40, scorer=Slow(), path={path!r})
"""


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole = searched(EarlyStop(n=3, floor=0.5), 40, path=tmp_path / "whole.jsonl")
    path = tmp_path / "killed.jsonl"
    root = Path(__file__).parents[1]
    code = JOB.format(tests=str(Path(__file__).parent), path=str(path))
    job = subprocess.Popen([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    until = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < 5:
        assert job.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    assert job.wait(timeout=30) == -signal.SIGKILL
    done = path.read_bytes().count(b"\n")
    assert 5 <= done < 40
    seen: list[str] = []
    again = searched(EarlyStop(n=3, floor=0.5), 40, path=path, on_result=lambda result: seen.append(result.problem.id))
    assert rows(again) == rows(whole)
    assert len(seen) == 40 - done
    assert sorted(path.read_bytes().splitlines()) == sorted((tmp_path / "whole.jsonl").read_bytes().splitlines())
    # Nothing is left to pay.
    assert searched(EarlyStop(n=3, floor=0.5), 40, path=path).ledger.policy.decoded_tokens == 0


def test_rows_are_search_and_learns_and_read_back(tmp_path: Path) -> None:
    results = searched(EarlyStop(n=3, floor=0.5))
    for result in results.results:
        row = json.loads(json.dumps(result.to_json()))
        assert {"problem", "answer", "completions", "scores", "pred", "completion_tokens"} <= row.keys()
        assert len(row["completions"]) == len(row["scores"]) == len(row["completion_tokens"])
        assert row["pred"] in row["completions"]
        back = type(result).from_json(result.problem, row)
        assert back.to_json() == row
        assert back.responses == result.responses
        assert {node.ids for node in back.tree.nodes.values()} == {node.ids for node in result.tree.nodes.values()}
    row["tree"]["nodes"][1]["parent"] = 99
    with pytest.raises(DataError, match="node 2 stands behind node 99, which is not there before it"):
        Tree.from_json(result.problem, row["tree"])
