"""Every estimator against the mean over all subsets, and the laws of the intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.choose import weighted
from search.estimators import (
    Estimate,
    best_of,
    bootstrap,
    majority_at,
    paired_difference,
    pass_at,
    weighted_at,
)
from verifiers.errors import ConfigError

RIGHT = st.lists(st.booleans(), min_size=1, max_size=9)
SCORED = st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.3, 0.4])), min_size=1, max_size=9)
TRUTH = {0: True, 1: False, 2: False, 3: True}
"""Which answer classes are right; two of them, as an unconfirmed relation may leave."""
LABELS = st.lists(st.none() | st.sampled_from([0, 0, 1, 2, 3]), min_size=1, max_size=9)


def mean_over_subsets(total: int, n: int, value: Callable[[Sequence[int]], float]) -> float:
    subsets = list(combinations(range(total), n))
    return math.fsum(value(subset) for subset in subsets) / len(subsets)


def truth_of(classes: Sequence[int | None]) -> list[bool]:
    return [label is not None and TRUTH[label] for label in classes]


def vote(classes: Sequence[int | None], subset: Sequence[int]) -> float:
    """Share of right classes among the largest ones of a subset; 0 when nobody votes."""
    counts = Counter(classes[i] for i in subset if classes[i] is not None)
    top = [label for label, count in counts.items() if count == max(counts.values())]
    return sum(TRUTH[label] for label in top) / len(top) if top else 0.0


@given(RIGHT)
def test_pass_at_is_the_mean_over_all_subsets(right: list[bool]) -> None:
    for n in range(1, len(right) + 1):
        exact = mean_over_subsets(len(right), n, lambda s: float(any(right[i] for i in s)))
        assert pass_at(right, n) == pytest.approx(exact, abs=1e-12)


@given(SCORED)
def test_best_of_is_the_mean_over_all_subsets_ties_shared(rows: list[tuple[bool, float]]) -> None:
    right, scores = [row[0] for row in rows], [row[1] for row in rows]

    def picked(subset: Sequence[int]) -> float:
        top = max(scores[i] for i in subset)
        hits = [right[i] for i in subset if scores[i] == top]
        return sum(hits) / len(hits)

    for n in range(1, len(right) + 1):
        assert best_of(right, scores, n) == pytest.approx(mean_over_subsets(len(right), n, picked), abs=1e-12)


@given(LABELS)
def test_majority_is_the_mean_over_all_subsets_ties_shared(classes: list[int | None]) -> None:
    right = truth_of(classes)
    for n in range(1, len(classes) + 1):
        exact = mean_over_subsets(len(classes), n, lambda s: vote(classes, s))
        assert majority_at(right, classes, n) == pytest.approx(exact, abs=1e-12)


@given(SCORED)
def test_order_and_limits(rows: list[tuple[bool, float]]) -> None:
    right, scores = [row[0] for row in rows], [row[1] for row in rows]
    total, share = len(rows), sum(row[0] for row in rows) / len(rows)
    passes = [pass_at(right, n) for n in range(1, total + 1)]
    assert passes == sorted(passes)
    assert passes[-1] == float(any(right))
    for rule in (pass_at(right, 1), best_of(right, scores, 1)):
        assert rule == pytest.approx(share, abs=1e-12)
    for n in range(1, total + 1):
        # Nobody beats the oracle, the worst order is its mirror image, and equal scores choose at random.
        oracle = best_of(right, [float(hit) for hit in right], n)
        assert oracle == pytest.approx(passes[n - 1], abs=1e-12)
        worst = best_of(right, [-float(hit) for hit in right], n)
        assert worst == pytest.approx(1 - pass_at([not hit for hit in right], n), abs=1e-12)
        assert worst - 1e-12 <= best_of(right, scores, n) <= oracle + 1e-12
        assert best_of(right, [0.5] * total, n) == pytest.approx(share, abs=1e-12)


@given(LABELS)
def test_right_and_wrong_votes_and_silence_add_up(classes: list[int | None]) -> None:
    right = truth_of(classes)
    wrong = [label is not None and not TRUTH[label] for label in classes]
    silent = sum(label is None for label in classes)
    for n in range(1, len(classes) + 1):
        nobody = math.comb(silent, n) / math.comb(len(classes), n)
        both = majority_at(right, classes, n) + majority_at(wrong, classes, n)
        assert both + nobody == pytest.approx(1.0, abs=1e-12)


def test_hand_worked_values() -> None:
    # 2 of 4 right, n = 2: one of six pairs holds no right one.
    assert pass_at([True, True, False, False], 2) == pytest.approx(5 / 6)
    # Scores 3 (wrong) > 2 (right) > 1 (wrong): pairs {3,2} {3,1} wrong, {2,1} right.
    assert best_of([False, True, False], [3.0, 2.0, 1.0], 2) == pytest.approx(1 / 3)
    # a a b and silence, n = 2: {aa} 1, {ab} twice a half, {a-} twice 1, {b-} 0.
    assert majority_at([True, True, False, False], [0, 0, 1, None], 2) == pytest.approx((1 + 1 + 2 + 0) / 6)


def test_large_pools_stay_exact() -> None:
    right = [i % 3 == 0 for i in range(2000)]
    assert best_of(right, [0.0] * 2000, 1000) == pytest.approx(667 / 2000, rel=1e-12)
    assert best_of(right, [float(hit) for hit in right], 1000) == pytest.approx(1.0, abs=1e-12)
    classes = [i % 4 for i in range(64)]
    values = [majority_at([c == k for c in classes], classes, 33) for k in range(4)]
    assert values == pytest.approx([0.25] * 4, abs=1e-12)
    with pytest.raises(ConfigError, match="exact for at most 1024 responses a problem; got 1025"):
        majority_at([True] * 1025, [0] * 1025, 2)


@given(LABELS, st.integers(0, 5))
def test_weighted_at_all_responses_is_the_vote_itself(classes: list[int | None], seed: int) -> None:
    weights = [float(w) for w in np.random.default_rng(seed).random(len(classes))]
    chosen = weighted(classes, weights)
    expected = 0.0 if chosen is None else float(truth_of(classes)[chosen])
    assert weighted_at(truth_of(classes), classes, weights, len(classes), seed=seed) == expected


def test_weighted_at_below_all_converges_on_all_subsets() -> None:
    classes: list[int | None] = [0, 1, None, 0, 2, 1, 3, 1]
    weights = [0.9, 0.4, 0.8, 0.1, 0.7, 0.35, 0.6, 0.3]
    right = truth_of(classes)

    def picked(subset: Sequence[int]) -> float:
        chosen = weighted([classes[i] for i in subset], [weights[i] for i in subset])
        return 0.0 if chosen is None else float(right[subset[chosen]])

    for n in (1, 3, 5):
        exact = mean_over_subsets(8, n, picked)
        # 4000 draws: four standard errors of a share are at most 4 * 0.5 / sqrt(4000) = 0.032
        assert weighted_at(right, classes, weights, n, draws=4000) == pytest.approx(exact, abs=0.032)
    first, again, other = (weighted_at(right, classes, weights, 3, draws=50, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_what_cannot_be_estimated_is_refused() -> None:
    for n in (0, 4):
        with pytest.raises(ConfigError, match=f"between 1 and the number of responses, 3; got {n}"):
            pass_at([True, False, True], n)
    with pytest.raises(ConfigError, match="one score a response; got 1 for 2 responses"):
        best_of([True, False], [1.0], 1)
    with pytest.raises(ConfigError, match="class 7 holds right and wrong responses; judge by class"):
        majority_at([True, False], [7, 7], 1)
    with pytest.raises(ConfigError, match="at least one problem; got none"):
        bootstrap([])
    with pytest.raises(ConfigError, match="equal lengths; got 2 and 1"):
        paired_difference([1.0, 0.0], [1.0])


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(0, 99))
def test_bootstrap_laws(values: list[float], seed: int) -> None:
    whole = bootstrap(values, resamples=200, seed=seed)
    assert whole == bootstrap(values, resamples=200, seed=seed)
    assert whole.n == len(values)
    assert whole.mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert min(values) - 1e-12 <= whole.low <= whole.high <= max(values) + 1e-12
    narrow = bootstrap(values, resamples=200, seed=seed, level=0.5)
    assert whole.low <= narrow.low <= narrow.high <= whole.high
    moved = bootstrap([v + 3 for v in values], resamples=200, seed=seed)
    assert (moved.low - 3, moved.high - 3) == pytest.approx((whole.low, whole.high), abs=1e-9)
    same = bootstrap(values, resamples=200, seed=seed, statistic=lambda a: float(a.mean()))
    assert (same.mean, same.low, same.high) == pytest.approx((whole.mean, whole.low, whole.high), abs=1e-12)


def test_bootstrap_has_the_normal_width() -> None:
    values = [float(i % 2) for i in range(400)]
    half = 1.96 * 0.5 / math.sqrt(400)
    found = bootstrap(values, resamples=4000)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.004)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        found = bootstrap(rng.random(60), resamples=300, seed=trial)
        held += found.low <= 0.5 <= found.high
    # binomial(200, .95): 190 +- 3.1; five deviations below
    assert 174 <= held < 200


def test_paired_difference_uses_the_pairs() -> None:
    first = [float(v) for v in np.random.default_rng(0).random(50)]
    second = [v - 0.125 for v in first]
    found = paired_difference(first, second, resamples=500)
    assert (found.mean, found.low, found.high) == pytest.approx((0.125, 0.125, 0.125), abs=1e-12)
    mirrored = paired_difference(second, first, resamples=500)
    assert mirrored.mean == -found.mean
    unrelated = paired_difference(first, second[::-1], resamples=500)
    assert unrelated.high - unrelated.low > 0.1


def test_estimates_say_mean_interval_and_n() -> None:
    assert str(Estimate(mean=0.5, low=0.25, high=0.7504, n=12)) == "0.500 [0.250, 0.750] (n=12)"
