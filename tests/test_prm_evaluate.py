"""Step-quality figures against brute force, sklearn and hand-counted cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from prm.evaluate import (
    FirstErrorF1,
    ScoredSteps,
    auc_pooled,
    auc_within,
    expected_calibration_error,
    first_error_f1,
)
from verifiers.errors import ConfigError, DataError


def row(problem: str, *steps: tuple[float, bool]) -> ScoredSteps:
    return ScoredSteps(problem_id=problem, scores=tuple(s for s, _ in steps), sound=tuple(t for _, t in steps))


@st.composite
def responses(draw: st.DrawFn) -> ScoredSteps:
    length = draw(st.integers(1, 4))
    first_bad = draw(st.integers(0, length))
    scores = [draw(st.sampled_from([0.0, 0.2, 0.5, 0.5, 0.9, 1.0])) for _ in range(length)]
    return row(draw(st.sampled_from("ab")), *((s, n < first_bad) for n, s in enumerate(scores)))


def brute_force(rows: list[ScoredSteps], first_errors_only: bool) -> tuple[float, int]:
    won, pairs = 0.0, 0
    for one in rows:
        for other in rows:
            for t in range(min(len(one.scores), len(other.scores))):
                if one.problem_id != other.problem_id or not one.sound[t] or other.sound[t]:
                    continue
                if first_errors_only and not (all(one.sound[:t]) and all(other.sound[:t])):
                    continue
                pairs += 1
                won += (one.scores[t] > other.scores[t]) + (one.scores[t] == other.scores[t]) / 2
    return won, pairs


@settings(max_examples=150, deadline=None)
@given(st.lists(responses(), min_size=1, max_size=8), st.booleans())
def test_auc_within_counts_every_pair_once(rows: list[ScoredSteps], first: bool) -> None:
    won, pairs = brute_force(rows, first)
    assume(pairs)
    found = auc_within(rows, first_errors_only=first, resamples=20)
    assert found.pairs == pairs
    assert found.auc == pytest.approx(won / pairs)
    assert 0 <= found.low <= found.high <= 1


def test_auc_of_a_single_group_is_sklearns() -> None:
    rng = np.random.default_rng(0)
    scores, sound = rng.random(60).round(1), rng.random(60) < 0.4
    rows = [row("one", (float(s), bool(t))) for s, t in zip(scores, sound, strict=True)]
    wanted = roc_auc_score(sound, scores)
    assert auc_within(rows).auc == pytest.approx(wanted)
    assert auc_pooled(rows) == pytest.approx(wanted)
    assert auc_within(rows).pairs == sound.sum() * (~sound).sum()


def test_scores_that_know_only_the_position_earn_nothing_within() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for problem in range(40):
        for _ in range(4):
            first_bad = int(rng.integers(2, 8))
            rows.append(row(str(problem), *((1 - t / 10, t < first_bad) for t in range(6))))
    assert auc_within(rows).auc == 0.5
    assert auc_pooled(rows) > 0.75


def test_the_interval_is_over_problems_and_reproducible() -> None:
    good = [row("a", (0.9, True)), row("a", (0.1, False))]
    bad = [row("b", (0.1, True)), row("b", (0.9, False))]
    found = auc_within(good + bad)
    assert (found.auc, found.low, found.high, found.pairs, found.problems) == (0.5, 0.0, 1.0, 2, 2)
    assert auc_within(good + bad) == found
    sure = auc_within(good)
    assert (sure.auc, sure.low, sure.high) == (1.0, 1.0, 1.0)


def test_an_auc_without_pairs_is_an_error() -> None:
    with pytest.raises(DataError, match="none of the 2 responses has such a partner"):
        auc_within([row("a", (0.5, True)), row("b", (0.4, False))])
    with pytest.raises(DataError, match="one kind is missing"):
        auc_pooled([row("a", (0.5, True))])


FOUR = [
    row("a", (0.9, True), (0.2, False), (0.1, False)),  # found at 1: right
    row("a", (0.9, True), (0.8, False), (0.1, False)),  # found at 2, is 1: missed
    row("b", (0.3, True), (0.2, False)),  # found at 0, is 1: missed
    row("b", (0.9, False), (0.8, False)),  # nothing found: missed
    row("c", (0.9, True), (0.5, True)),  # 0.5 is not below 0.5: right
    row("c", (0.9, True), (0.4, True)),  # flagged: wrong
]


def test_first_error_f1_by_hand() -> None:
    assert first_error_f1(FOUR) == FirstErrorF1(
        f1=pytest.approx(2 * 0.25 * 0.5 / 0.75),
        on_erroneous=0.25,
        on_correct=0.5,
        erroneous=4,
        correct=2,
        threshold=0.5,
    )
    lower = first_error_f1(FOUR, threshold=0.15)
    assert (lower.on_erroneous, lower.on_correct, lower.f1) == (0.0, 1.0, 0.0)
    # Of four errors, 0.85 finds a[1] and a[1] at their steps; both right ones are flagged.
    assert first_error_f1(FOUR, threshold=0.85).on_erroneous == 0.5


def test_first_error_f1_refuses_what_it_cannot_say() -> None:
    with pytest.raises(DataError, match="one kind is missing"):
        first_error_f1(FOUR[:4])
    with pytest.raises(ConfigError, match=r"between 0 and 1; got 1\.0"):
        first_error_f1(FOUR, threshold=1.0)


def test_ece_by_hand() -> None:
    # Bins of 0.5: {0.1, 0.3} against {0, 1}: |0.4 - 1|; {0.8, 1.0} against {1, 1}: |1.8 - 2|; over 4.
    assert expected_calibration_error([0.1, 0.3, 0.8, 1.0], [False, True, True, True], bins=2) == pytest.approx(0.2)
    assert expected_calibration_error([0.0, 1.0], [0.0, 1.0]) == 0.0
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1.0
    # Within one bin errors cancel: a calibrated constant has none.
    assert expected_calibration_error([0.25] * 4, [True, False, False, False]) == pytest.approx(0.0)
    with pytest.raises(ConfigError, match="one outcome a score; got 1 and 2"):
        expected_calibration_error([0.5], [True, False])


def test_scores_and_truth_must_be_parallel() -> None:
    with pytest.raises(DataError, match="got 1 scores for 2 steps"):
        ScoredSteps(problem_id="a", scores=(0.5,), sound=(True, False))
