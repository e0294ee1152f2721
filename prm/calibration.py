"""Scores -> probabilities: monotone maps fitted on labelled steps, by where in the response a step stands.

    isotonic   the best non-decreasing map in weighted squared error (pool adjacent violators; Zadrozny and Elkan 2002)
    platt      sigmoid(a z + b), by maximum likelihood                          (Platt 1999)

of the log-odds z that the model gives (scikit-learn fits both). A score says nothing by itself about how often a policy
succeeds from there: process reward models overestimate it, and more so for weak policies (Park et al. 2025, arXiv
2506.09338). The gap depends on the position, so there is one map for each part of the response, step t of T (from 1)
standing in part ceil(parts t / T), and one for all, used for a part with too few labels and for a response that is not
finished, whose T is not known yet. Targets are counts (successes of trials) of the steps; each trial weighs the same.

Isotonic maps keep a distance of 1 / (n + 2) from 0 and 1, n being their trials: no finite sample shows certainty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from verifiers.errors import ConfigError, DataError, ModelError

CalibrationMethod: TypeAlias = Literal["isotonic", "platt"]
FEWEST = 200
"""Trials that a part needs for a map of its own."""
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSteps:
    """One response's log-odds and what roll-outs from its steps came to, parallel; 0 trials: unlabelled."""

    problem_id: str
    log_odds: tuple[float, ...]
    successes: tuple[float, ...]
    trials: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.log_odds) == len(self.successes) == len(self.trials):
            raise DataError(
                f"there must be one score and one count a step; got {len(self.log_odds)} scores, "
                f"{len(self.successes)} and {len(self.trials)} counts (problem {self.problem_id!r})"
            )


@dataclass(frozen=True, slots=True)
class Map:
    """One monotone map of log-odds: by knots between which it is linear, or sigmoid(slope z + shift)."""

    knots: tuple[tuple[float, float], ...] = ()
    slope: float = 1.0
    shift: float = 0.0

    def apply(self, log_odds_N: Floats) -> Floats:
        """Probabilities, shape (N,)."""
        if not self.knots:
            return np.asarray(1 / (1 + np.exp(-np.clip(self.slope * log_odds_N + self.shift, -500, 500))))
        x, y = np.array(self.knots).T
        return np.asarray(np.interp(log_odds_N, x, y))


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A map for each part of a response and one for all."""

    method: CalibrationMethod
    parts: tuple[Map | None, ...]
    whole: Map
    trials: int
    """Trials it was fitted on."""

    def apply(self, log_odds: Sequence[float], *, finished: bool = True) -> tuple[float, ...]:
        """Probabilities of the steps of one response."""
        if not log_odds:
            return ()
        values_T = np.array(log_odds, dtype=float)
        if not finished:
            return tuple(self.whole.apply(values_T).tolist())
        places = [part_of(t, len(log_odds), len(self.parts)) for t in range(len(log_odds))]
        maps = [self.parts[place] or self.whole for place in places]
        return tuple(float(m.apply(values_T[t : t + 1])[0]) for t, m in enumerate(maps))

    def to_json(self) -> dict[str, Any]:
        """For the card."""
        return {
            "method": self.method,
            "trials": self.trials,
            "whole": _written(self.whole),
            "parts": [None if part is None else _written(part) for part in self.parts],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Calibration:
        """From the card. Raises ModelError where it is broken."""
        try:
            parts = tuple(None if part is None else _read(part) for part in row["parts"])
            return cls(method=row["method"], trials=row["trials"], whole=_read(row["whole"]), parts=parts)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the card's calibration cannot be read ({error!r}); fit it again") from error


def _written(found: Map) -> dict[str, Any]:
    return (
        {"knots": [list(knot) for knot in found.knots]} if found.knots else {"slope": found.slope, "shift": found.shift}
    )


def _read(row: Mapping[str, Any]) -> Map:
    if "knots" in row:
        return Map(knots=tuple((float(x), float(y)) for x, y in row["knots"]))
    return Map(slope=float(row["slope"]), shift=float(row["shift"]))


def part_of(step: int, steps: int, parts: int) -> int:
    """Which part of a response step number `step` (from 0) of `steps` belongs to."""
    return math.ceil(parts * (step + 1) / steps) - 1


def fit_calibration(
    rows: Sequence[CalibrationSteps], *, method: CalibrationMethod = "isotonic", parts: int = 3
) -> Calibration:
    """Fit on labelled steps; never on the problems that the result is measured on.

    Raises DataError when there is no trial, or when all of them came out the same.
    """
    if method not in ("isotonic", "platt"):
        raise ConfigError(f"calibration method must be 'isotonic' or 'platt'; got {method!r}")
    if parts < 1:
        raise ConfigError(f"parts must be 1 or more; got {parts!r}")
    collected: list[list[tuple[float, float, float]]] = [[] for _ in range(parts)]
    for row in rows:
        for t, (z, s, n) in enumerate(zip(row.log_odds, row.successes, row.trials, strict=True)):
            if n > 0:
                collected[part_of(t, len(row.log_odds), parts)].append((z, s, n))
    everything = np.array([step for part in collected for step in part]).reshape(-1, 3)
    wins, trials = everything[:, 1].sum(), everything[:, 2].sum()
    if not 0 < wins < trials:
        raise DataError(
            f"calibration needs steps that succeed and steps that fail; got {wins:g} successes in {trials:g} trials"
        )
    return Calibration(
        method=method,
        parts=tuple(_fit_part(np.array(part).reshape(-1, 3), method) for part in collected),
        whole=_fit(everything, method),
        trials=int(trials),
    )


def _fit_part(steps_N3: Floats, method: CalibrationMethod) -> Map | None:
    wins, trials = steps_N3[:, 1].sum(), steps_N3[:, 2].sum()
    return _fit(steps_N3, method) if trials >= FEWEST and 0 < wins < trials else None


def _fit(steps_N3: Floats, method: CalibrationMethod) -> Map:
    z_N, s_N, n_N = steps_N3.T
    if method == "platt":
        from sklearn.linear_model import LogisticRegression

        both = np.concatenate([z_N, z_N])[:, None]
        labels = np.repeat([1, 0], len(z_N))
        fitted = LogisticRegression(C=np.inf).fit(both, labels, sample_weight=np.concatenate([s_N, n_N - s_N]))
        return Map(slope=float(fitted.coef_[0, 0]), shift=float(fitted.intercept_[0]))
    from sklearn.isotonic import IsotonicRegression

    margin = 1 / (n_N.sum() + 2)
    fitted = IsotonicRegression(y_min=margin, y_max=1 - margin, out_of_bounds="clip")
    fitted.fit(z_N, s_N / n_N, sample_weight=n_N)
    return Map(knots=tuple(zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True)))
