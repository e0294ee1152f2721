"""The contents of a run folder as named fields: what `reading.py` fills in and the rest of the report draws.

Every accuracy is an `Estimate`, so that no figure or table can show one without its interval and its number
of problems. What a run did not measure is None or an empty tuple, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over problems with its 95 % interval (None where the run gave none)."""

    mean: float
    low: float | None
    high: float | None
    problems: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One choice rule: its accuracy at each number of responses, in rising order."""

    rule: str
    points: tuple[tuple[int, Estimate], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Paired difference of two rules, first minus second, at n responses."""

    first: str
    second: str
    n: int
    difference: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Auc:
    """An AUC with its interval, the pairs it counts and the problems they come from."""

    auc: float
    low: float | None
    high: float | None
    pairs: int
    problems: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstError:
    """F1 of finding the first wrong step, and its two halves with their counts of responses."""

    f1: float
    on_erroneous: float
    on_correct: float
    erroneous: int
    correct: int
    threshold: float | None
    protocol: str | None = None
    """How the threshold came about."""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounded:
    """A figure with its interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityPoint:
    """One bin of scores: how many, their mean, the share of right steps with an interval."""

    count: int
    score: float
    outcome: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StepQuality:
    """How good the step scores are; what was not measured is None."""

    auc_within: Auc | None
    auc_first_error: Auc | None
    auc_pooled: float | None
    first_error_f1: FirstError | None
    ece: float | None
    ece_bounds: Bounded | None = None
    brier: Bounded | None = None
    reliability: tuple[ReliabilityPoint, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one part of the run cost."""

    part: str
    prefill_tokens: int
    decoded_tokens: int
    scored_tokens: int
    judged: int
    seconds: float
    flops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """A quality gate: the value reached, the floor set, whether it held."""

    name: str
    value: float
    floor: float
    held: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """results.json."""

    title: str | None = None
    summary: tuple[str, ...] = ()
    facts: tuple[tuple[str, Any], ...] = ()
    curves: tuple[Curve, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    steps: StepQuality | None = None
    costs: tuple[Cost, ...] = ()
    gates: tuple[Gate, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """One response to a problem: steps with scores (None: not scored) and, where known, their truth."""

    sample: int
    role: str
    steps: tuple[str, ...]
    scores: tuple[float | None, ...]
    truth: tuple[str, ...] | None
    extracted: str | None
    correct: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One problem with the responses kept of it."""

    problem_id: str
    prompt: str
    answer: str
    responses: tuple[Answered, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run folder as read; `notes` says in sentences what is absent, empty or cut off."""

    name: str
    config: str
    env: Any = None
    results: Results = field(default_factory=Results)
    metrics: tuple[Mapping[str, Any], ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
