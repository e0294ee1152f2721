"""How far hard Monte-Carlo labels can be trusted: a good step all of whose K roll-outs fail is called bad.

A step from which the policy succeeds with chance V is called bad with chance (1 - V)^K, and two labellings disagree
with chance 2 (1 - V)^K (1 - (1 - V)^K). V is not known, but its distribution over steps is estimated from the counts:
the non-parametric maximum likelihood estimate (Kiefer and Wolfowitz 1956) over a grid,

    w <- mean over steps of  w_g Binomial(s; n, V_g) / sum over h of w_h Binomial(s; n, V_h)        (EM)

which uses every step with its own number of trials. From it follow, for any K, the share of good steps (V at least
`good`) that are called bad, the share of "bad" labels that stand on good steps, and the flip rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prm.formats import StepRow
from verifiers.errors import ConfigError, DataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelNoise:
    """What hard labels from K roll-outs are worth on these steps."""

    trials: int
    """K."""
    good: float
    """From which chance of success on a step counts as good."""
    steps: int
    """Steps it was estimated from."""
    good_called_bad: float
    """Share of good steps whose K roll-outs all fail."""
    bad_labels_wrong: float
    """Share of "bad" labels that stand on good steps."""
    flip_rate: float
    """Share of steps whose label changes when K new roll-outs are drawn."""


def value_distribution(
    successes: Sequence[float], trials: Sequence[int], *, points: int = 101, rounds: int = 500
) -> tuple[Floats, Floats]:
    """(V, weight) on a grid from 0 to 1: the likeliest distribution of the chance of success. Shapes (points,)."""
    kept = [(s, n) for s, n in zip(successes, trials, strict=True) if n]
    if not kept:
        raise DataError("a label-noise report needs labelled steps; there are none")
    pairs, counts = np.unique(np.array(kept), axis=0, return_counts=True)
    grid_G = np.linspace(0, 1, points)
    s_N1, n_N1 = pairs[:, :1], pairs[:, 1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        won = np.where(s_N1 > 0, s_N1 * np.log(grid_G), 0.0)
        lost = np.where(n_N1 > s_N1, (n_N1 - s_N1) * np.log1p(-grid_G), 0.0)
    likelihood_NG = np.exp(won + lost)
    weights_G = np.full(points, 1 / points)
    for _ in range(rounds):
        shares_NG = likelihood_NG * weights_G
        shares_NG /= shares_NG.sum(1, keepdims=True)
        weights_G = counts @ shares_NG / counts.sum()
    return grid_G, weights_G


def label_noise(rows: Sequence[StepRow], *, trials: int, good: float = 0.1) -> LabelNoise:
    """The report for labels from `trials` roll-outs a step, whatever the rows themselves were labelled with.

    Last steps are left out: their count is one verdict, counted K times.
    """
    if trials < 1 or not 0 < good <= 1:
        raise ConfigError(f"trials must be 1 or more and good in (0, 1]; got {trials!r} and {good!r}")
    own = [row for row in rows if row.source != "rollout"]
    successes = [s for row in own for s in row.successes[:-1]]
    counts = [n for row in own for n in row.trials[:-1]]
    grid_G, weights_G = value_distribution(successes, counts)
    fails_G = (1 - grid_G) ** trials
    is_good_G = grid_G >= good
    called_bad = float((weights_G * fails_G).sum())
    wrong = float((weights_G * fails_G)[is_good_G].sum())
    share_good = float(weights_G[is_good_G].sum())
    return LabelNoise(
        trials=trials,
        good=good,
        steps=sum(n > 0 for n in counts),
        good_called_bad=wrong / share_good if share_good else 0.0,
        bad_labels_wrong=wrong / called_bad if called_bad else 0.0,
        flip_rate=float((weights_G * 2 * fails_G * (1 - fails_G)).sum()),
    )
