"""Shaped rewards by hand, and against the verifiers that say the same of texts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardkit.rl.loss.shaping import group_length, repetition, shape, soft_overlong
from rewardkit.rl.settings.sections import Shaping
from verifiers.core import Problem, Response, Verdict
from verifiers.errors import ConfigError
from verifiers.length import GroupLength, SoftOverlong
from verifiers.repetition import NgramPenalty

NAN = math.nan


def f64(row: list[float]) -> torch.Tensor:
    return torch.tensor(row, dtype=torch.float64)


def test_soft_overlong_at_its_corners() -> None:
    lengths = torch.tensor([0, 79, 80, 90, 100, 101, 500])
    assert soft_overlong(lengths, limit=100, margin=20).tolist() == pytest.approx([0, 0, 0, -0.5, -1, -1, -1])
    with pytest.raises(ConfigError, match="margin of soft overlong must be above 0 and at most the limit 100; got 200"):
        soft_overlong(lengths, limit=100, margin=200)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 30), st.data())
def test_soft_overlong_is_the_verifiers(lengths: list[int], limit: int, data: st.DataObject) -> None:
    margin = data.draw(st.integers(1, limit))
    responses = [Response(problem_id="p", text="x", token_ids=(1,) * n) for n in lengths if n]
    problems = [Problem(id="p", prompt="")] * len(responses)
    verdicts = SoftOverlong(limit=limit, margin=margin).judge(problems, responses)
    found = soft_overlong(torch.tensor([n for n in lengths if n], dtype=torch.long), limit=limit, margin=margin)
    assert found.tolist() == pytest.approx([v.score for v in verdicts], abs=1e-6)


def test_the_length_reward_by_hand() -> None:
    one = torch.zeros(3, dtype=torch.long)
    lengths = torch.tensor([10, 20, 30])
    assert group_length(lengths, f64([1, 1, 1]), one).tolist() == [0.5, 0, -0.5]
    # A wrong short one gets nothing, a wrong long one is charged.
    assert group_length(lengths, f64([0, 1, 0]), one).tolist() == [0, 0, -0.5]
    # The undecided one's length counts, it gets nothing itself; equal lengths say nothing.
    assert group_length(lengths, f64([1, 1, NAN]), one).tolist() == [0.5, 0, 0]
    assert group_length(torch.tensor([7, 7]), f64([1, 0]), one[:2]).tolist() == [0, 0]
    two = torch.tensor([4, 9, 4, 9])
    assert group_length(torch.tensor([10, 5, 30, 6]), f64([1, 1, 1, 1]), two).tolist() == [0.5, 0.5, -0.5, -0.5]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 20), st.sampled_from([0.0, 1.0])), min_size=1, max_size=8))
def test_the_length_reward_is_the_verifiers(rows: list[tuple[int, int, float]]) -> None:
    problems = [Problem(id=f"p{g}", prompt="") for g, _, _ in rows]
    responses = [Response(problem_id=f"p{g}", text="x", token_ids=(1,) * n) for g, n, _ in rows]
    verdicts = [Verdict.correct("", kind="k") if right else Verdict.incorrect("", kind="k") for *_, right in rows]

    class Known:
        def judge(self, problems: object, responses: object) -> list[Verdict]:
            return verdicts

    wanted = GroupLength(correctness=Known()).judge(problems, responses)
    found = group_length(
        torch.tensor([n for _, n, _ in rows]), f64([r for *_, r in rows]), torch.tensor([g for g, _, _ in rows])
    )
    assert found.tolist() == pytest.approx([v.score for v in wanted])


def test_repetition_is_the_share_of_repeated_ngrams() -> None:
    # 1 2 1 2 1 has the bigrams 12 21 12 21: two of four are different.
    assert repetition([[1, 2, 1, 2, 1], [1, 2, 3], [7], []], ngram=2) == [-0.5, 0, 0, 0]
    assert NgramPenalty(size=2).size == 2


def test_terms_are_weighted_added_and_told_apart() -> None:
    rewards = f64([1.0, 0.0, NAN])
    given = {
        "lengths_B": torch.tensor([5, 10, 7]),
        "outcome_B": rewards,
        "group_B": torch.zeros(3, dtype=torch.long),
        "limit": 10,
    }
    shaping = Shaping(overlong=2.0, cache=0.5, length=0.5, repetition=3.0, ngram=1)
    found = shape(rewards, shaping, ids=[[1, 2, 3, 4, 5], [1, 1], [1, 2]], **given)
    assert found.parts["overlong"].tolist() == pytest.approx([0, -2, -0.8])
    assert found.parts["length"].tolist() == pytest.approx([0.25, -0.25, 0])
    assert found.parts["repetition"].tolist() == pytest.approx([0, -1.5, 0])
    assert found.rewards_B[:2].tolist() == pytest.approx([1.25, -3.75])
    assert found.rewards_B[2].isnan()  # unscored stays unscored
    # The paper's share of the limit, where none is given.
    assert shape(rewards, Shaping(overlong=1.0), **given).parts["overlong"].tolist() == pytest.approx([0, -1, 0])
    assert shape(rewards, Shaping(), **given).parts == {}
    with pytest.raises(ConfigError, match=r"shaping.repetition counts n-grams of token ids; got None, pass ids"):
        shape(rewards, shaping, **given)
