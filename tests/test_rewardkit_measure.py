"""Figures of a run from pools that are made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from rewardkit import playground
from rewardkit.measure import (
    add_step_scores,
    comparison,
    cost_figures,
    curve_figures,
    curves_of,
    run_search,
    same_answer,
    sample_rows,
    scored_steps,
    step_figures,
)
from rewardkit.step_truth import judge_steps
from search.engines.scripted_engine import ScriptedEngine
from search.strategies.best_of_n import Pool
from verifiers.core import Problem, Response, Sampling, Usage
from verifiers.errors import DataError
from verifiers.maths import MathVerifier
from verifiers.steps import split_steps

N = 4
PROBLEMS = playground.problems(6, split="test", seed=3)


def slipped(problem: Problem) -> str:
    """The worked solution with a slip in its last step, box included."""
    solution = problem.metadata["solution"]
    head, last = solution.rsplit(" = ", 1)
    return f"{head} = {last.replace(str(problem.answer), '997')}"


ENGINE_SCRIPT = {str(p.prompt): [p.metadata["solution"], slipped(p)] for p in PROBLEMS}


class Truth:
    """A step scorer that knows the truth; `flip` makes it say the opposite."""

    def __init__(self, *, flip: bool = False) -> None:
        self.flip, self.usage = flip, Usage()

    def score_steps(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        self.usage += Usage(prefill_tokens=100, calls=1)
        return [
            tuple(0.9 if truth.sound != self.flip else 0.1 for truth in judge_steps(problem, response.text))
            for problem, response in zip(problems, responses, strict=True)
        ]


def searched(scorer: Any = None) -> Any:
    return run_search(
        PROBLEMS, engine=ScriptedEngine(ENGINE_SCRIPT), n=N, sampling=Sampling(), verifier=MathVerifier(),
        scorer=scorer, seed=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pools() -> tuple[Pool, ...]:
    found = searched(Truth()).pools
    rights = {right for pool in found for right in pool.right}
    assert rights == {True, False}
    return tuple(found)


def test_a_search_is_drawn_judged_and_scored_and_says_what_it_cost() -> None:
    found = searched(Truth())
    assert [pool.problem.id for pool in found.pools] == [p.id for p in PROBLEMS]
    assert list(found.costs) == ["sampling", "verifying", "PRM scoring"]
    assert found.costs["sampling"].policy.decoded_tokens > 0
    assert found.costs["verifying"].judged == N * len(PROBLEMS)
    assert found.costs["PRM scoring"].scored_tokens == 100
    for pool in found.pools:
        assert len(pool.responses) == len(pool.verdicts) == len(pool.step_scores["PRM"]) == N
        for response, right in zip(pool.responses, pool.right, strict=True):
            assert right == (response.text == pool.problem.metadata["solution"])
    bare = run_search(PROBLEMS, engine=ScriptedEngine(ENGINE_SCRIPT), n=2, sampling=Sampling(), verifier=None)
    assert list(bare.costs) == ["sampling"]
    assert not bare.pools[0].verdicts


def test_step_scores_go_to_their_response_and_are_reduced(pools: tuple[Pool, ...]) -> None:
    for pool in pools:
        for index, response in enumerate(pool.responses):
            steps = pool.step_scores["PRM"][index]
            assert steps == Truth().score_steps([pool.problem], [response])[0]
            assert pool.scores["PRM min"][index] == min(steps)
            assert pool.scores["PRM last"][index] == steps[-1]
            assert pool.scores["PRM mean"][index] == pytest.approx(sum(steps) / len(steps))
    again, ledger = add_step_scores(pools, Truth(flip=True), name="liar")  # type: ignore[arg-type]
    assert set(again[0].step_scores) == {"PRM", "liar"}
    assert again[0].scores["PRM min"] == pools[0].scores["PRM min"]
    assert ledger.scored_tokens == 100
    assert ledger.scorer_calls == 1


def test_step_figures_of_the_truth_and_of_its_opposite(pools: tuple[Pool, ...]) -> None:
    figures = step_figures(scored_steps(pools))
    assert figures["auc_within"]["auc"] == figures["auc_first_error"]["auc"] == figures["auc_pooled"] == 1.0
    assert figures["first_error_f1"]["f1"] == 1.0
    assert figures["ece"] == pytest.approx(0.1)
    json.dumps(figures, allow_nan=False)
    liar, _ = add_step_scores(pools, Truth(flip=True), name="liar")  # type: ignore[arg-type]
    worst = step_figures(scored_steps(liar, name="liar"))
    assert worst["auc_within"]["auc"] == worst["auc_pooled"] == worst["first_error_f1"]["f1"] == 0.0
    assert worst["ece"] == pytest.approx(0.9)


def test_scores_that_do_not_match_the_steps_are_an_error(pools: tuple[Pool, ...]) -> None:
    from dataclasses import replace

    broken = replace(pools[0], step_scores={"PRM": ((0.5,),) * N})
    with pytest.raises(DataError, match=r"has \d steps in its text, but 1 were scored"):
        scored_steps([broken])


def test_curves_stand_between_their_controls(pools: tuple[Pool, ...]) -> None:
    curves = curves_of(pools)
    rows = {row["rule"]: row["points"] for row in curve_figures(curves)}
    assert all([point["n"] for point in points] == [1, 2, 4] for points in rows.values())
    at = {rule: points[-1]["mean"] for rule, points in rows.items()}
    assert at["best by PRM min"] == at["best by oracle"] == at["any (pass@n)"]
    share = sum(sum(pool.right) for pool in pools) / (N * len(pools))
    assert rows["first"][0]["mean"] == pytest.approx(share)
    assert all(row["problems"] == len(pools) and row["low"] <= row["mean"] <= row["high"] for row in rows["majority"])
    gain = comparison(curves, "best by PRM min", "first")
    assert gain["n"] == N
    assert gain["mean"] == pytest.approx(at["best by PRM min"] - share)
    assert {"first", "second", "low", "high", "problems"} <= set(gain)
    json.dumps([curve_figures(curves), gain], allow_nan=False)


def test_costs_are_rows_with_flops() -> None:
    found = searched(Truth())
    rows = cost_figures(found.costs, policy_parameters=10, scorer_parameters=7)
    by_part = {row["part"]: row for row in rows}
    sampling = by_part["sampling"]
    assert sampling["flops"] == 2 * 10 * (sampling["prefill_tokens"] + sampling["decoded_tokens"])
    assert by_part["PRM scoring"]["flops"] == 2 * 7 * 100
    assert by_part["verifying"]["judged"] == N * len(PROBLEMS)
    assert all(row["seconds"] >= 0 for row in rows)


def test_sample_rows_show_choice_and_rejection_with_truth(pools: tuple[Pool, ...]) -> None:
    rows = sample_rows(pools)
    json.dumps(rows, allow_nan=False)
    assert [row["problem_id"] for row in rows] == [p.id for p in PROBLEMS]
    for row, pool in zip(rows, pools, strict=True):
        roles = [response["role"] for response in row["responses"]]
        assert roles[0].startswith("chosen by PRM")
        assert sum("majority" in role for role in roles) == 1
        chosen = row["responses"][0]
        assert chosen["correct"] is any(pool.right)
        for response in row["responses"]:
            own = pool.responses[response["sample"]]
            assert response["steps"] == [step.text for step in split_steps(own.text)]
            assert len(response["scores"]) == len(response["steps"]) == len(response["truth"])
            assert response["correct"] is (own.text == pool.problem.metadata["solution"])
            assert response["extracted"] == (pool.problem.answer if response["correct"] else "997")
        if len(set(pool.right)) == 2:
            assert any("rejected" in role and not r["correct"] for role, r in zip(roles, row["responses"], strict=True))


def test_sample_rows_without_truth_verdicts_or_scores() -> None:
    engine = ScriptedEngine({"Hello\n": ["One.\n\nTwo."]})
    found = run_search([Problem(id="x", prompt="Hello\n")], engine=engine, n=2, sampling=Sampling(), verifier=None)
    assert sample_rows(found.pools) == [{"problem_id": "x", "prompt": "Hello\n", "answer": None, "responses": []}]
    scored, _ = add_step_scores(found.pools, Flat())  # type: ignore[arg-type]
    (row,) = sample_rows(scored)
    assert row["responses"][0] == {
        "sample": 0, "role": "chosen by PRM", "steps": ["One.", "Two."], "scores": [0.5, 0.5], "truth": None,
        "extracted": None, "correct": None,
    }  # fmt: skip


class Flat(Truth):
    """Says one half to every step."""

    def score_steps(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        return [(0.5,) * len(split_steps(response.text)) for response in responses]


def test_answers_vote_together_when_they_are_equal() -> None:
    assert same_answer("1/2", "0.5")
    assert not same_answer("1/2", "2")
    assert not same_answer("", "2")
