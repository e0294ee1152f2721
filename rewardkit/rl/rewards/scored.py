"""What a reward may say about a response, and what a batch of rewards comes to.

A reward says one of three things of a response: a finite number, its steps (`StepRewards`: how the response stands at
the end of each step, Phi_t), or nothing (None). What says nothing is `Unscored` and carries why; it is never a 0, which
would reward silence where wrong answers cost something (trl#6427, verl#5635). `Scored` is a batch of rewards as the
training loop takes them: a number or None a response, the reason where there is none, and counts for the metrics.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from verifiers.errors import RewardError

ABSTAINED = "abstained"
"""Kind of an unscored response for which a reward function returned None."""
LARGEST = 1e18
"""Size of a reward whose square float32 can still hold."""


def usable(value: float) -> bool:
    """Whether a number can be a reward: finite, and no larger than what variances can be taken of."""
    return abs(value) <= LARGEST


@dataclass(frozen=True, slots=True)
class StepRewards:
    """The steps of one response as a step scorer sees them; a reward function may return it in place of a number."""

    values: tuple[float, ...]
    """Phi_t: the score of the response as it stands at the end of step t (`rewardkit/rl/credit/step_rewards.py`)."""
    ends: tuple[int, ...]
    """Index of each step's last token among the response's token ids (`completion_ids`), counted from 0."""

    def __post_init__(self) -> None:
        # A reward function may hand over lists, arrays, numpy's numbers; what is wrong with them is told by `fault`.
        object.__setattr__(self, "values", tuple(map(_as_float, self.values)))
        object.__setattr__(self, "ends", tuple(map(_as_int, self.ends)))

    def fault(self, tokens: int) -> str:
        """What is wrong with these steps of a response of so many tokens, in words; "" if nothing is."""
        if len(self.values) != len(self.ends):
            return f"{len(self.values)} values for {len(self.ends)} ends"
        if not all(isinstance(end, int) for end in self.ends):
            return f"ends that are no whole numbers: {list(self.ends)!r:.80}"
        if any(after <= before for before, after in zip((-1, *self.ends), self.ends, strict=False)):
            return f"ends that do not rise from 0: {list(self.ends)!r:.80}"
        if self.ends and self.ends[-1] >= tokens:
            return f"the end {self.ends[-1]} in a response of {tokens} tokens"
        if not all(isinstance(value, float) and usable(value) for value in self.values):
            return f"values that are no finite numbers up to {LARGEST:g}: {list(self.values)!r:.80}"
        return ""


def _as_float(value: Any) -> Any:
    try:
        return value if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return value


def _as_int(value: Any) -> Any:
    try:
        return operator.index(value)
    except TypeError:
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Unscored:
    """Why a reward says nothing of a response."""

    kind: str
    """One word to count by: abstained, raised, timeout, ..., or the kind of an undecided verdict."""
    detail: str
    """One sentence that names the reward."""
    failed: bool = False
    """Whether the reward broke; else it could not tell."""


Value: TypeAlias = float | StepRewards | Unscored
"""What one reward says of one response."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartValues:
    """What one reward says of a batch."""

    values: tuple[Value, ...]
    """One a response."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What a function logged with TRL's `log_metric`."""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns that a function logged with TRL's `log_extra`, one text a response, for the table of samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A batch of rewards."""

    rewards: tuple[float | None, ...]
    """One a response: the weighted sum of its parts, or None where it is unscored."""
    steps: tuple[StepRewards | None, ...] | None = None
    """The steps of the responses, None for one whose steps were not scored; None altogether without a step scorer."""
    parts: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    """Each part's own number a response, not weighted; of a part with steps, its last value."""
    reasons: tuple[Unscored | None, ...] = ()
    """Why a response is unscored; None where it is not."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Of all that the parts left unscored: how many responses, by "part/kind"."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures of this batch for the log: means, spreads, shares and counts, by name."""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns for the table of samples."""

    @property
    def scored(self) -> int:
        """How many responses have a reward."""
        return sum(reward is not None for reward in self.rewards)

    def with_nan(self) -> list[float]:
        """The rewards with NaN for None."""
        return [math.nan if reward is None else reward for reward in self.rewards]


def first_details(reasons: Sequence[Unscored | None], *, most: int = 3) -> str:
    """The commonest details of what is unscored, with how often each came: "5 x reward f raised ...; 1 x ..."."""
    found = Counter(reason.detail for reason in reasons if reason is not None)
    said = [f"{count} x {detail}" for detail, count in found.most_common(most)]
    rest = len(found) - len(said)
    return "; ".join(said) + (f"; and {rest} more reasons" if rest > 0 else "")


def require_scored(reasons: Sequence[Unscored | None], *, share: float) -> None:
    """Raise RewardError where fewer than this share of a batch is scored; `reasons` holds None for a scored one."""
    scored = sum(reason is None for reason in reasons)
    if reasons and scored < share * len(reasons):
        raise RewardError(
            f"only {scored} of {len(reasons)} responses got a reward, fewer than min_scored={share:g} asks for "
            f"({first_details(reasons)}); mend the reward, or lower min_scored"
        )


def require_no_failure(values: Sequence[Value]) -> None:
    """Raise RewardError for the first value that is a failure; what merely could not be told is let through."""
    for value in values:
        if isinstance(value, Unscored) and value.failed:
            raise RewardError(f"{value.detail} (on_error='unscored' would count such responses and go on)")
