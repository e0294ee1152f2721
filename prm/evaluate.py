"""How good are step scores, measured against known step truth.

    AUC within      probability that, of two responses to the same problem, the one whose step t is sound scores
                    higher at step t; counted over all such pairs (ties one half). Pooled over problems and steps
                    the AUC is inflated: "early steps are safe" alone earns 0.8 there and nothing here.
    first-error F1  harmonic mean of two accuracies (ProcessBench, Zheng et al. 2024, arXiv 2412.06559): the first
                    step scored below the threshold is the first wrong one (on responses with an error), or no
                    step is below it (on responses without).
    ECE             expected calibration error over equal-width bins of the scores (Naeini et al. 2015).
    Brier score     mean squared difference of score and outcome (Brier 1950).

The first-error threshold is part of the result: 0.5 as it stands, or picked on other responses (`pick_threshold`) and
then applied unchanged; picking it on the responses it is reported on, as is sometimes done, flatters.

Intervals are bootstraps over problems.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from verifiers.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredSteps:
    """Scores and truth of one response's steps, parallel. `sound[t]`: no step up to t is wrong."""

    problem_id: str
    scores: tuple[float, ...]
    sound: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.sound):
            raise DataError(
                f"there must be one score a step; got {len(self.scores)} scores for {len(self.sound)} steps "
                f"(problem {self.problem_id!r})"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class WithinAuc:
    """An AUC over pairs inside groups, with a 95 % interval over problems."""

    auc: float
    low: float
    high: float
    pairs: int
    problems: int


def auc_within(
    rows: Sequence[ScoredSteps], *, first_errors_only: bool = False, resamples: int = 1000, seed: int = 0
) -> WithinAuc:
    """AUC over pairs of responses to the same problem at the same step index.

    With `first_errors_only` a step counts only while all steps before it are sound, so that finding the error
    itself is measured and not remembering it. Raises DataError when no problem has both kinds of step.
    """
    groups: dict[tuple[str, int], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in rows:
        for index, (score, sound) in enumerate(zip(row.scores, row.sound, strict=True)):
            if first_errors_only and index and not row.sound[index - 1]:
                break
            groups[row.problem_id, index][sound].append(score)
    won: dict[str, float] = defaultdict(float)
    pairs: dict[str, int] = defaultdict(int)
    for (problem, _), (bad, good) in groups.items():
        if bad and good:
            won[problem] += _wins(np.array(good), np.array(bad))
            pairs[problem] += len(good) * len(bad)
    if not pairs:
        raise DataError(
            "an AUC within a problem needs two responses to it that differ in soundness at some step; "
            f"none of the {len(rows)} responses has such a partner: draw more responses a problem"
        )
    wins_P = np.array([won[problem] for problem in pairs])
    pairs_P = np.array([pairs[problem] for problem in pairs], dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(pairs_P), size=(resamples, len(pairs_P)))
    low, high = np.quantile(wins_P[picks].sum(1) / pairs_P[picks].sum(1), [0.025, 0.975])
    return WithinAuc(
        auc=float(wins_P.sum() / pairs_P.sum()),
        low=float(low),
        high=float(high),
        pairs=int(pairs_P.sum()),
        problems=len(pairs_P),
    )


def auc_pooled(rows: Sequence[ScoredSteps]) -> float:
    """AUC over all pairs of steps, whatever problem or index; read it beside `auc_within` only."""
    good = np.array([s for row in rows for s, sound in zip(row.scores, row.sound, strict=True) if sound])
    bad = np.array([s for row in rows for s, sound in zip(row.scores, row.sound, strict=True) if not sound])
    if not len(good) or not len(bad):
        raise DataError("a pooled AUC needs sound and unsound steps; one kind is missing")
    return float(_wins(good, bad) / (len(good) * len(bad)))


def _wins(good: npt.NDArray[np.float64], bad: npt.NDArray[np.float64]) -> float:
    """Number of (good, bad) pairs in which good is higher; equal ones count one half."""
    ordered = np.sort(bad)
    below = np.searchsorted(ordered, good, side="left")
    up_to = np.searchsorted(ordered, good, side="right")
    return float((below + up_to).sum() / 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstErrorF1:
    """ProcessBench's figures at one threshold."""

    f1: float
    on_erroneous: float
    """Share of responses with an error whose first error was found at the right step."""
    on_correct: float
    """Share of responses without an error in which nothing was flagged."""
    erroneous: int
    correct: int
    threshold: float


def first_error_f1(rows: Sequence[ScoredSteps], *, threshold: float = 0.5) -> FirstErrorF1:
    """First-error F1 at a stated threshold. Raises DataError when one of the two kinds of response is missing."""
    if not 0.0 < threshold < 1.0:
        raise ConfigError(f"threshold must lie between 0 and 1; got {threshold!r}")
    hits = {True: [0, 0], False: [0, 0]}
    for row in rows:
        truth = next((i for i, sound in enumerate(row.sound) if not sound), -1)
        found = next((i for i, score in enumerate(row.scores) if score < threshold), -1)
        hits[truth < 0][0] += found == truth
        hits[truth < 0][1] += 1
    if not hits[True][1] or not hits[False][1]:
        raise DataError("first-error F1 needs responses with and without an error; one kind is missing")
    erroneous, correct = (hits[kind][0] / hits[kind][1] for kind in (False, True))
    f1 = 2 * erroneous * correct / (erroneous + correct) if erroneous + correct else 0.0
    return FirstErrorF1(
        f1=f1,
        on_erroneous=erroneous,
        on_correct=correct,
        erroneous=hits[False][1],
        correct=hits[True][1],
        threshold=threshold,
    )


def pick_threshold(rows: Sequence[ScoredSteps]) -> float:
    """The threshold with the best first-error F1 on these responses, half-way between two scores that occur.

    Report the F1 on other responses. All thresholds that make a difference are tried; ties go to the one nearest 0.5.
    """
    values = sorted({score for row in rows for score in row.scores})
    middles = [(a + b) / 2 for a, b in itertools.pairwise([0.0, *values, 1.0])]
    # A few hundred quantiles of them lose nothing that a few thousand responses could tell.
    picks = sorted({middles[int(n)] for n in np.linspace(0, len(middles) - 1, min(len(middles), 400))})
    usable = [threshold for threshold in picks if 0.0 < threshold < 1.0]
    return max(usable, key=lambda threshold: (first_error_f1(rows, threshold=threshold).f1, -abs(threshold - 0.5)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A figure with a 95 % bootstrap interval over problems."""

    value: float
    low: float
    high: float


def over_problems(
    figure: Callable[[Sequence[ScoredSteps]], float],
    rows: Sequence[ScoredSteps],
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """Any figure of scored responses, with problems drawn with replacement.

    A resample on which the figure is not defined (one kind of response missing) is left out.
    """
    groups: dict[str, list[ScoredSteps]] = defaultdict(list)
    for row in rows:
        groups[row.problem_id].append(row)
    problems = list(groups.values())
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        picked = rng.integers(0, len(problems), size=len(problems))
        with contextlib.suppress(DataError):
            found.append(figure([row for n in picked for row in problems[n]]))
    low, high = np.quantile(found, [0.025, 0.975]) if found else (math.nan, math.nan)
    return Interval(value=figure(rows), low=float(low), high=float(high))


def brier_score(scores: Sequence[float], outcomes: Sequence[bool | float]) -> float:
    """Mean squared difference of score and outcome."""
    if len(scores) != len(outcomes) or not scores:
        raise ConfigError(f"there must be one outcome a score; got {len(scores)} and {len(outcomes)}")
    return float(np.mean((np.asarray(scores, dtype=float) - np.asarray(outcomes, dtype=float)) ** 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityBin:
    """Scores of one bin: how many, their mean, and the mean outcome with a 95 % Wilson interval."""

    count: int
    score: float
    outcome: float
    low: float
    high: float


def reliability(scores: Sequence[float], outcomes: Sequence[bool | float], *, bins: int = 10) -> list[ReliabilityBin]:
    """A reliability diagram's points; empty bins are left out. The interval takes every outcome as one trial."""
    scores_N, outcomes_N = np.asarray(scores, dtype=float), np.asarray(outcomes, dtype=float)
    place_N = np.minimum((scores_N * bins).astype(int), bins - 1)
    found = []
    for place in range(bins):
        inside = place_N == place
        count = int(inside.sum())
        if not count:
            continue
        share, z = float(outcomes_N[inside].mean()), 1.959963984540054
        middle = (share + z * z / (2 * count)) / (1 + z * z / count)
        half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
        found.append(
            ReliabilityBin(
                count=count,
                score=float(scores_N[inside].mean()),
                outcome=share,
                low=max(0.0, middle - half),
                high=min(1.0, middle + half),
            )
        )
    return found


def expected_calibration_error(scores: Sequence[float], outcomes: Sequence[bool | float], *, bins: int = 10) -> float:
    """Mean absolute gap between score and outcome over equal-width bins, weighted by bin size."""
    if len(scores) != len(outcomes) or not scores:
        raise ConfigError(f"there must be one outcome a score; got {len(scores)} and {len(outcomes)}")
    scores_N, outcomes_N = np.asarray(scores, dtype=float), np.asarray(outcomes, dtype=float)
    place_N = np.minimum((scores_N * bins).astype(int), bins - 1)
    size = np.bincount(place_N, minlength=bins)
    gap = np.bincount(place_N, scores_N - outcomes_N, minlength=bins)
    return float(np.abs(gap).sum() / size.sum())
