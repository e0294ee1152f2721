"""Choice rules: the stated tie rules, votes over classes, and agreement with a naive recount."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.choose import answer_classes, best, majority, weighted
from verifiers.errors import ConfigError

CLASSES = st.lists(st.none() | st.integers(0, 3), min_size=1, max_size=8)
SCORES = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, math.inf])
VOTES = CLASSES.flatmap(
    lambda labels: st.tuples(
        st.just(labels),
        st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0]), min_size=len(labels), max_size=len(labels)),
    )
)


def close(a: str, b: str) -> bool:
    return abs(float(a) - float(b)) < 0.01


def test_classes_by_strings() -> None:
    assert answer_classes(["2", None, "3", "2", None, "3", "4"]) == [0, None, 1, 0, None, 1, 2]
    assert answer_classes([]) == []
    assert answer_classes([None, None]) == [None, None]


def test_classes_by_a_relation_join_spellings() -> None:
    assert answer_classes(["0.5", "1", "0.50", "1.0", "0.501"], close) == [0, 1, 0, 1, 0]


def test_the_relation_sees_new_strings_and_first_members_only() -> None:
    asked: list[tuple[str, str]] = []

    def same(a: str, b: str) -> bool:
        asked.append((a, b))
        return close(a, b)

    answer_classes(["1", "2", "1", "1.0", "2", "2.0", "1.0"], same)
    assert asked == [("2", "1"), ("1.0", "1"), ("2.0", "1"), ("2.0", "2")]


@given(st.lists(st.none() | st.sampled_from("abcd"), max_size=10))
def test_class_numbers_count_first_appearances(answers: list[str | None]) -> None:
    classes = answer_classes(answers)
    order = list(dict.fromkeys(answer for answer in answers if answer is not None))
    assert classes == [None if answer is None else order.index(answer) for answer in answers]


@given(st.lists(SCORES, min_size=1, max_size=8))
def test_best_is_the_earliest_maximum(scores: list[float]) -> None:
    assert best(scores) == scores.index(max(scores))


def test_majority_ties_go_to_the_earliest_class_and_its_earliest_member() -> None:
    assert majority([None, 1, 0, 0, 1]) == 1
    assert majority([None, 1, 0, 0, 1, 0]) == 2
    assert majority([None, None]) is None


def test_weighted_ties_go_to_the_earliest_class_and_its_best_member() -> None:
    assert weighted([0, 1, 0, 1], [0.25, 1.0, 0.75, 0.0]) == 2  # 1.0 each: class 0 came first
    assert weighted([0, 1, 0, 1], [0.25, 1.0, 0.75, 0.25]) == 1
    assert weighted([0, 0, 0], [0.5, 0.75, 0.75]) == 1
    assert weighted([0, 0, 0], [0.5, 0.75, 0.75], pick_best=False) == 0
    assert weighted([None, 0], [9.0, 0.0]) == 1  # who is silent does not vote
    assert weighted([None], [1.0]) is None
    assert weighted([0, 1], [-2.0, -1.0]) == 1


def recount(classes: Sequence[int | None], weights: Sequence[float]) -> int | None:
    """Members of the class with the largest total, found the slow way."""
    winner, most = None, -math.inf
    for index, label in enumerate(classes):
        if label is not None and label not in classes[:index]:
            total = sum(w for other, w in zip(classes, weights, strict=True) if other == label)
            if total > most:
                winner, most = label, total
    if winner is None:
        return None
    members = [(-weights[i], i) for i, label in enumerate(classes) if label == winner]
    return min(members)[1]


@given(VOTES)
def test_votes_agree_with_a_recount(votes: tuple[list[int | None], list[float]]) -> None:
    classes, weights = votes
    assert weighted(classes, weights) == recount(classes, weights)
    assert majority(classes) == recount(classes, [1.0] * len(classes))
    assert weighted(classes, [1.0] * len(classes)) == majority(classes)


def test_what_has_no_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="NaN, which has no place in an order"):
        best([1.0, math.nan])
    with pytest.raises(ConfigError, match="NaN"):
        weighted([0, 1], [1.0, math.nan])
    with pytest.raises(ConfigError, match="at least one response to choose from; got none"):
        best([])
    with pytest.raises(ConfigError, match="at least one response"):
        majority([])
    with pytest.raises(ConfigError, match="one weight a response; got 1 for 2 responses"):
        weighted([0, 1], [1.0])
