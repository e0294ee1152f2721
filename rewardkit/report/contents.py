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
class Strategy:
    """One search strategy over all problems: its accuracy and what it cost; what was not measured is None."""

    strategy: str
    accuracy: Estimate
    tokens: float
    """Generated a problem."""
    rule: str | None = None
    n: int | None = None
    prefill_tokens: float | None = None
    """Prompt tokens read, a problem."""
    scored_tokens: float | None = None
    """Read by the scorer, a problem."""
    scorer_calls: int | None = None
    seconds: float | None = None
    scorer_seconds: float | None = None
    occupancy: float | None = None
    """Share of the engine's rows in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A choice rule over one pool of responses: tokens a problem, number of responses, accuracy, in rising order."""

    rule: str
    points: tuple[tuple[float, int, Estimate], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualCompute:
    """A strategy against a rule over Best-of-n at the n that costs as much: accuracy, first minus second."""

    strategy: str
    rule: str
    n: float
    cost: float
    """Of a problem, in tokens of the policy."""
    difference: Estimate


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
    strategies: tuple[Strategy, ...] = ()
    references: tuple[Reference, ...] = ()
    equal_compute: tuple[EqualCompute, ...] = ()


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
class TreeNode:
    """One step of a search tree. Node 0, the prompt, is not among a tree's nodes; the others count from 1."""

    parent: int
    text: str
    draws: int
    """How often it was drawn."""
    score: float | None
    """Of the newest step; None: not scored."""
    ended: str | None
    """Why nothing follows; None where the response goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeEvent:
    """A decision about a node, with its reason."""

    kind: str
    node: int
    to: int | None
    candidate: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Searched:
    """What one strategy did on one problem."""

    problem_id: str
    strategy: str
    prompt: str
    answer: str
    pred: str | None
    """The whole response that was chosen."""
    correct: bool | None
    tokens: int
    """Generated, those of given-up parts included."""
    candidates: int
    nodes: tuple[TreeNode, ...]
    events: tuple[TreeEvent, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Searches:
    """The searches of the problems that are shown, and how many there are."""

    shown: tuple[tuple[Searched, ...], ...] = ()
    """Problem by problem, most telling first."""
    problems: int = 0
    repeated: int = 0
    """Rows left out because their problem and strategy stand in the file already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutResponse:
    """A response drawn while training; None is not scored."""

    text: str
    reward: float | None
    parts: tuple[tuple[str, float | None], ...]
    """Name and value of each reward, before weights."""
    unscored: str | None
    """Why it has no reward."""
    stop_reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutStep:
    """The first group of a training step."""

    step: int
    why: str
    """Why this step is shown."""
    problem_id: str
    prompt: str
    answer: str
    responses: tuple[RolloutResponse, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run folder as read; `notes` says in sentences what is absent, empty or cut off."""

    name: str
    config: str
    env: Any = None
    results: Results = field(default_factory=Results)
    metrics: tuple[Mapping[str, Any], ...] = ()
    samples: tuple[Sample, ...] = ()
    searches: Searches = field(default_factory=Searches)
    rollouts: tuple[RolloutStep, ...] = ()
    """Of a reinforcement-learning run."""
    notes: Mapping[str, str] = field(default_factory=dict)
