"""Where a wrong response goes wrong, from few roll-outs: search for the first step that no roll-out saves.

With the last step known to be wrong, the first bad step e lies in 0..T-1; a probe of step m (roll-outs until the
first success, K at most) says e > m or e <= m. A success is a proof: the policy got to a right answer through every
step up to m. Two ways to choose m in the interval [lo, hi] that is left:

    binary    the middle, as OmegaPRM does (Luo et al. 2024, arXiv 2406.06592): about log2 T probes, half of them bad.
    cheapest  a bad probe costs K roll-outs, a good one only about 1 / V. With weights w over e, the expected cost is

                  F(lo, hi) = min over m in [lo, hi) of  w(m+1..hi) c_good + F(m+1, hi) + w(lo..m) c_bad + F(lo, m)

              solved exactly. As bad probes are dear it walks from the left, in strides, and pays for few of them.
              Weights come from step scores where a scorer is given, w(e) proportional to
              max(Phi_{e-1} - Phi_e, 0) + 0.2/T (Phi before the first step: the largest score; behind the last: 0),
              and are uniform otherwise.

Both take "all K failed" for "bad", and V need not fall from step to step, so a good step with small V may be named.
Neighbour confirmation draws a few roll-outs from the step behind the one found; a success there proves that it was no
error, and the search goes on to the right of it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

LocateBy: TypeAlias = Literal["binary", "cheapest"]
GOOD_COST = 2.0
"""Expected roll-outs of a probe that finds a success."""
DOUBT = 0.2
"""Weight of "anywhere" beside what step scores say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Roll-outs wanted from a step: until the first success, but no more than `trials` ones."""

    step: int
    trials: int


Location: TypeAlias = Generator[Probe, bool, int]
"""Yields probes, is sent whether one succeeded, returns the index of the first bad step."""


def locate(
    steps: int, *, trials: int, by: LocateBy = "binary", neighbour: int = 0, scores: Sequence[float] | None = None
) -> Location:
    """The first bad step of a response of `steps` steps whose last one is bad.

    `neighbour` roll-outs confirm a find (0: none). `scores` are step scores in [0, 1], one a step.
    """
    weights = first_error_weights(steps, scores)
    probed: dict[int, bool] = {}
    low, high = 0, steps - 1
    while True:
        while low < high:
            middle = (low + high) // 2 if by == "binary" else _cheapest(tuple(weights[low : high + 1]), trials) + low
            probed[middle] = yield Probe(step=middle, trials=trials)
            low, high = (middle + 1, high) if probed[middle] else (low, middle)
        behind = low + 1
        if not neighbour or behind >= steps - 1 or behind in probed:
            return low
        probed[behind] = yield Probe(step=behind, trials=neighbour)
        if not probed[behind]:
            return low
        # The policy was saved behind what looked like the error: it lies to the right, where nothing was good yet.
        low, high = behind + 1, next((m for m in sorted(probed) if m > behind and not probed[m]), steps - 1)


def first_error_weights(steps: int, scores: Sequence[float] | None = None) -> list[float]:
    """How likely each step is the first bad one, up to a factor."""
    if scores is None:
        return [1.0] * steps
    before = [max(scores), *scores[:-1]]
    after = [*scores[:-1], 0.0]
    return [max(b - a, 0.0) + DOUBT / steps for b, a in zip(before, after, strict=True)]


def _cheapest(weights: tuple[float, ...], trials: int) -> int:
    """The probe with the least expected cost, for e in 0..len(weights)-1."""
    sums = [0.0]
    for weight in weights:
        sums.append(sums[-1] + weight)

    @cache
    def best(low: int, high: int) -> tuple[float, int]:
        if low == high:
            return 0.0, low
        return min(
            (
                (sums[high + 1] - sums[m + 1]) * min(GOOD_COST, trials)
                + best(m + 1, high)[0]
                + (sums[m + 1] - sums[low]) * trials
                + best(low, m)[0],
                m,
            )
            for m in range(low, high)
        )

    return best(0, len(weights) - 1)[1]
