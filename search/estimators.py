"""Exact accuracy of a choice rule at every n <= N from one sample of N responses, with intervals.

For one problem with N responses, a rule at n is the expected correctness of what it picks from a uniformly
random subset of n responses without replacement:

    pass@n  1 - C(N - c, n) / C(N, n), c the number of right ones       (Chen et al. 2021, arXiv 2107.03374)
    BoN@n   sum over groups of equal score, best first, of P(the best drawn lies in the group) x its accuracy
    maj@n   sum over subset compositions; ties between classes are broken uniformly at random

maj@n counts compositions by dynamic programming over classes; a brute force over all subsets agrees (tests).
Weighted votes have no closed form: `weighted_at` averages over seeded random subsets (exact at n = N).
Intervals are percentile bootstraps over problems, which are the independent units; two rules are compared on
the same resamples (paired).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search.choose import weighted
from verifiers.errors import ConfigError

MAJORITY_MAX = 1024
"""Counts of subsets of more responses than this do not fit into a float64."""


def pass_at(right: Sequence[bool], n: int) -> float:
    """Probability that at least one of n drawn responses is right."""
    total, hits = _sizes(right, n), sum(map(bool, right))
    return 1.0 - math.comb(total - hits, n) / math.comb(total, n)


def best_of(right: Sequence[bool], scores: Sequence[float], n: int) -> float:
    """Expected correctness of the best-scored of n drawn responses; equal scores share evenly."""
    total = _sizes(right, n)
    if len(scores) != total:
        raise ConfigError(f"there must be one score a response; got {len(scores)} for {total} responses")
    groups: dict[float, list[bool]] = {}
    for score, hit in zip(scores, right, strict=True):
        groups.setdefault(score, []).append(bool(hit))
    expected = 0.0
    above = 0
    subsets = math.comb(total, n)
    for score in sorted(groups, reverse=True):
        members = groups[score]
        # none of the `above` better ones drawn, minus none of these either
        reached = math.comb(total - above, n) - math.comb(total - above - len(members), n)
        expected += reached * sum(members) / (len(members) * subsets)
        above += len(members)
    return expected


def majority_at(right: Sequence[bool], classes: Sequence[int | None], n: int) -> float:
    """Expected correctness of the majority class among n drawn responses; a draw without votes is wrong.

    A class is right when its members are; classes must not mix right and wrong responses.
    """
    total = _sizes(right, n)
    if total > MAJORITY_MAX:
        raise ConfigError(f"maj@n is exact for at most {MAJORITY_MAX} responses a problem; got {total}")
    sizes = Counter(label for label in classes if label is not None)
    truth: dict[int, bool] = {}
    for label, hit in zip(classes, right, strict=True):
        if label is not None and truth.setdefault(label, bool(hit)) != bool(hit):
            raise ConfigError(f"answer class {label} holds right and wrong responses; judge by class")
    silent = sum(label is None for label in classes)
    favourable = 0.0
    for label, hit in truth.items():
        if hit:
            others = [size for other, size in sizes.items() if other != label]
            favourable += _wins(sizes[label], others, silent, n)
    return favourable / math.comb(total, n)


def _wins(own: int, others: Sequence[int], silent: int, n: int) -> float:
    """Number of n-subsets in which a class of `own` members has the most votes; k-way ties count 1/k."""
    won = 0.0
    for votes in range(1, min(own, n) + 1):
        # ways[s][t]: draws of s responses from the other classes, none above `votes`, t of them tied
        ways = np.zeros((n - votes + 1, len(others) + 1))
        ways[0, 0] = 1.0
        for size in others:
            following = np.zeros_like(ways)
            for count in range(min(size, votes, n - votes) + 1):
                share = math.comb(size, count) * ways[: ways.shape[0] - count]
                if count == votes:
                    following[count:, 1:] += share[:, :-1]
                else:
                    following[count:] += share
            ways = following
        for drawn in range(n - votes + 1):
            rest = n - votes - drawn
            if rest <= silent:
                split = sum(ways[drawn, ties] / (ties + 1) for ties in range(ways.shape[1]))
                won += math.comb(own, votes) * math.comb(silent, rest) * split
    return won


def weighted_at(
    right: Sequence[bool],
    classes: Sequence[int | None],
    weights: Sequence[float],
    n: int,
    *,
    draws: int = 64,
    seed: int = 0,
) -> float:
    """Expected correctness of the weighted vote among n drawn responses, over `draws` seeded subsets."""
    total = _sizes(right, n)
    if n == total:
        subsets = [list(range(total))]
    else:
        rng = np.random.default_rng((seed, n, total))
        subsets = [sorted(rng.choice(total, size=n, replace=False).tolist()) for _ in range(draws)]
    hits = 0
    for subset in subsets:
        chosen = weighted([classes[i] for i in subset], [weights[i] for i in subset])
        hits += chosen is not None and bool(right[subset[chosen]])
    return hits / len(subsets)


def _sizes(right: Sequence[bool], n: int) -> int:
    if not 1 <= n <= len(right):
        raise ConfigError(f"n must be between 1 and the number of responses, {len(right)}; got {n}")
    return len(right)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over problems with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


def bootstrap(
    values: Sequence[float] | npt.NDArray[np.float64],
    *,
    statistic: Callable[[npt.NDArray[np.float64]], float] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap over problems of the mean, or of another `statistic` of the values."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ConfigError("an interval needs at least one problem; got none")
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(array), size=(resamples, len(array)))
    if statistic is None:
        means = array[picks].mean(1)
        centre = float(array.mean())
    else:
        means = np.array([statistic(array[pick]) for pick in picks])
        centre = float(statistic(array))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean=centre, low=float(low), high=float(high), n=len(array))


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> Estimate:
    """Mean of first - second over the same problems, with its paired 95 % interval."""
    if len(first) != len(second):
        raise ConfigError(f"a paired comparison needs equal lengths; got {len(first)} and {len(second)}")
    return bootstrap(np.asarray(first) - np.asarray(second), resamples=resamples, seed=seed)
