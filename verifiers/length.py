"""Rewards that depend on how long a response is: soft overlong, linear, target, cosine, group-relative.

Written |y| for the length in the chosen unit:

- `SoftOverlong` (DAPO, arXiv 2503.14476, eq. 13): 0 up to L - c; (L - c - |y|) / c up to L; -1 beyond.
- `LinearLength`: -rate * |y|, never under `floor`.
- `CosineLength` (Yeo et al., arXiv 2502.03373): r_L + (r_0 - r_L) (1 + cos(pi |y| / L)) / 2, with one pair of
  ends (r_0 at length 0, r_L at length L) for right answers and one for wrong ones. Past L the cosine would
  turn back and pay for length again (open-r1's does); here it stays at r_L, or falls to the paper's `beyond`.
- `TargetLength` (L1, arXiv 2503.04697): exact, right - a |n - |y||; max, right * clip(a (n - |y|) + d, 0, 1).
- `GroupLength` (Kimi k1.5, arXiv 2501.12599): lambda = 1/2 - (|y| - min) / (max - min) over all responses to
  one problem; right answers get lambda, wrong ones min(0, lambda), everyone 0 when all lengths are equal.

`GroupLength` gives the length term alone, which a `WeightedSum` adds to correctness. Lengths are measured on
the sampled tokens unless `unit` says otherwise; there is no silent fall back to characters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

from verifiers.compose import is_group_relative, judged
from verifiers.core import Outcome, Problem, Response, Scorer, Verdict
from verifiers.errors import ConfigError

Unit: TypeAlias = Literal["tokens", "characters", "words"]
"""What a length counts: sampled tokens, characters (code points), or words between white space."""


def check_unit(owner: str, unit: str) -> None:
    """Raises ConfigError unless `unit` is one of the three."""
    if unit not in ("tokens", "characters", "words"):
        raise ConfigError(f"{owner}.unit must be 'tokens', 'characters' or 'words'; got {unit!r}")


def token_ids_of(owner: str, response: Response) -> tuple[int, ...]:
    """The sampled ids; raises ConfigError for a text that came without them."""
    if response.text and not response.token_ids:
        raise ConfigError(
            f"{owner} has unit 'tokens', but the response to problem {response.problem_id!r} carries no "
            f"token ids; set unit to 'characters' or 'words', or pass responses with token_ids"
        )
    return response.token_ids


def length_of(response: Response, unit: Unit, *, owner: str = "length_of") -> int:
    """The length of a response in `unit`; raises ConfigError for tokens of a response without token ids."""
    if unit == "tokens":
        return len(token_ids_of(owner, response))
    return len(response.text) if unit == "characters" else len(response.text.split())


def _finite(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ConfigError(f"{owner}.{name} must be a finite number; got {value}")


def _correctness(
    owner: str, scorer: Scorer, problems: Sequence[Problem], responses: Sequence[Response]
) -> list[Verdict]:
    """Verdicts that are right, wrong or undecided; a graded one does not say which ends apply."""
    verdicts = judged(scorer, problems, responses, name=f"{owner}.correctness")
    for verdict in verdicts:
        if verdict.outcome is Outcome.GRADED:
            raise ConfigError(
                f"{owner}.correctness must say right or wrong; got a graded score ({verdict.score}: "
                f"{verdict.reason}); use a verifier, or from_trl(..., correct_from=...)"
            )
    return verdicts


def _with_correctness(made: Verdict, verdict: Verdict) -> Verdict:
    return replace(made, extracted=verdict.extracted, parts={"correctness": verdict})


def _unjudged(kind: str, verdict: Verdict) -> Verdict:
    made = Verdict.undecided(f"correctness is undecided: {verdict.reason}", kind=kind)
    return _with_correctness(made, verdict)


@dataclass(frozen=True, kw_only=True)
class SoftOverlong:
    """DAPO's soft overlong punishment, in [-1, 0]."""

    limit: int
    """L: the length at which the punishment is full."""
    margin: int
    """c: how far before the limit it starts; 0 makes the limit a hard cut."""
    unit: Unit = "tokens"
    """What `limit` and `margin` count."""

    def __post_init__(self) -> None:
        check_unit("SoftOverlong", self.unit)
        if self.limit < 1:
            raise ConfigError(f"SoftOverlong.limit must be 1 or more {self.unit}; got {self.limit}")
        if not 0 <= self.margin <= self.limit:
            raise ConfigError(f"SoftOverlong.margin must be in [0, limit={self.limit}]; got {self.margin}")

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Graded verdicts. Raises ConfigError where tokens are asked for and absent."""
        return [self._punish(length_of(response, self.unit, owner="SoftOverlong")) for response in responses]

    def _punish(self, length: int) -> Verdict:
        free = self.limit - self.margin
        if length <= free:
            score, how = 0.0, f"within {free}"
        elif length <= self.limit:
            score, how = (free - length) / self.margin, f"{length - free} into the margin of {self.margin}"
        else:
            score, how = -1.0, f"beyond the limit of {self.limit}"
        return Verdict.graded(score, f"{length} {self.unit}, {how}", kind="soft_overlong")


@dataclass(frozen=True, kw_only=True)
class LinearLength:
    """-rate * length, never under `floor`."""

    rate: float
    """What one unit of length costs; negative to pay for length."""
    floor: float | None = None
    """Least score, or None for no bound."""
    unit: Unit = "tokens"
    """What the rate is per."""

    def __post_init__(self) -> None:
        check_unit("LinearLength", self.unit)
        _finite("LinearLength", rate=self.rate, floor=self.floor or 0.0)
        if self.rate == 0.0:
            raise ConfigError("LinearLength.rate 0 would have no effect; set what one unit of length costs")
        if self.floor is not None and (self.floor >= 0.0 or self.rate < 0.0):
            raise ConfigError(
                f"LinearLength.floor must be negative and goes with a positive rate; "
                f"got floor {self.floor:g} with rate {self.rate:g}"
            )

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Graded verdicts. Raises ConfigError where tokens are asked for and absent."""
        made = []
        for response in responses:
            length = length_of(response, self.unit, owner="LinearLength")
            score = 0.0 if length == 0 else -self.rate * length
            score = score if self.floor is None else max(score, self.floor)
            reason = f"{length} {self.unit} at {self.rate:g} each"
            made.append(Verdict.graded(score, reason, kind="linear_length"))
        return made


@dataclass(frozen=True, kw_only=True)
class CosineLength:
    """Correctness and length in one number: short right answers and long wrong ones get the most."""

    correctness: Scorer
    """Who says right or wrong; undecided stays undecided."""
    limit: int
    """L: the length at which the far ends are reached."""
    right_at_zero: float = 1.0
    """Score of a right answer of length 0 (open-r1: max_value_correct)."""
    right_at_limit: float = 0.5
    """Score of a right answer at the limit (open-r1: min_value_correct)."""
    wrong_at_zero: float = -1.0
    """Score of a wrong answer of length 0 (open-r1: min_value_wrong)."""
    wrong_at_limit: float = -0.5
    """Score of a wrong answer at the limit (open-r1: max_value_wrong)."""
    beyond: float | None = None
    """Score of anything longer than the limit; None keeps the value at the limit."""
    unit: Unit = "tokens"
    """What `limit` counts."""

    def __post_init__(self) -> None:
        check_unit("CosineLength", self.unit)
        if self.limit < 1:
            raise ConfigError(f"CosineLength.limit must be 1 or more {self.unit}; got {self.limit}")
        ends = (self.right_at_zero, self.right_at_limit, self.wrong_at_zero, self.wrong_at_limit)
        for value in (*ends, self.beyond or 0.0):
            _finite("CosineLength", ends=value)
        if ends[0] == ends[1] and ends[2] == ends[3]:
            raise ConfigError(
                "CosineLength with equal scores at zero and at the limit would not depend on length; "
                "set right_at_zero and right_at_limit, or wrong_at_zero and wrong_at_limit, apart"
            )

    @property
    def group_relative(self) -> bool:
        """Whether the correctness compares the responses of one problem."""
        return is_group_relative(self.correctness)

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Graded verdicts with part `correctness`; ConfigError for absent tokens or a graded correctness."""
        verdicts = _correctness("CosineLength", self.correctness, problems, responses)
        return [self._scale(v, r) for v, r in zip(verdicts, responses, strict=True)]

    def _scale(self, verdict: Verdict, response: Response) -> Verdict:
        length = length_of(response, self.unit, owner="CosineLength")
        if verdict.outcome is Outcome.UNDECIDED:
            return _unjudged("cosine_length", verdict)
        right = verdict.outcome is Outcome.CORRECT
        start = self.right_at_zero if right else self.wrong_at_zero
        end = self.right_at_limit if right else self.wrong_at_limit
        if length > self.limit and self.beyond is not None:
            score = self.beyond
        else:
            progress = min(length, self.limit) / self.limit
            score = end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))
        reason = f"{verdict.outcome.value} in {length} of {self.limit} {self.unit}"
        return _with_correctness(Verdict.graded(score, reason, kind="cosine_length"), verdict)


@dataclass(frozen=True, kw_only=True)
class TargetLength:
    """L1: correctness and the distance to a length that was asked for."""

    correctness: Scorer
    """Who says right (1) or wrong (0); undecided stays undecided."""
    target: int
    """n: the length asked for."""
    form: Literal["exact", "max"] = "exact"
    """"exact" charges the distance on both sides; "max" pays a right answer for what it stays under."""
    rate: float = 0.0003
    """a: score per unit of distance."""
    offset: float = 0.5
    """d: score of a right answer exactly at the target; of the form "max" only."""
    unit: Unit = "tokens"
    """What `target` counts."""

    def __post_init__(self) -> None:
        check_unit("TargetLength", self.unit)
        _finite("TargetLength", rate=self.rate, offset=self.offset)
        if self.target < 1 or self.rate <= 0.0:
            raise ConfigError(f"TargetLength needs target >= 1 and rate > 0; got {self.target} and {self.rate:g}")
        if self.form not in ("exact", "max"):
            raise ConfigError(f"TargetLength.form must be 'exact' or 'max'; got {self.form!r}")
        if self.form == "exact" and self.offset != 0.5:
            raise ConfigError("TargetLength.offset would have no effect with form 'exact'; leave it out")

    @property
    def group_relative(self) -> bool:
        """Whether the correctness compares the responses of one problem."""
        return is_group_relative(self.correctness)

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Graded verdicts with part `correctness`; ConfigError for absent tokens or a graded correctness."""
        verdicts = _correctness("TargetLength", self.correctness, problems, responses)
        made = []
        for verdict, response in zip(verdicts, responses, strict=True):
            length = length_of(response, self.unit, owner="TargetLength")
            if verdict.outcome is Outcome.UNDECIDED:
                made.append(_unjudged("target_length", verdict))
                continue
            right = 1.0 if verdict.outcome is Outcome.CORRECT else 0.0
            if self.form == "exact":
                score = right - self.rate * abs(self.target - length)
            else:
                score = right * min(max(self.rate * (self.target - length) + self.offset, 0.0), 1.0)
            reason = f"{verdict.outcome.value} in {length} {self.unit}, asked for {self.target}"
            made.append(_with_correctness(Verdict.graded(score, reason, kind="target_length"), verdict))
        return made


@dataclass(frozen=True, kw_only=True)
class GroupLength:
    """Kimi k1.5's length term, in [-1/2, 1/2], relative to the other responses of the same problem id.

    Every response takes part in min and max, undecided ones too: their length is known. A response alone in
    its group gets 0.
    """

    group_relative: ClassVar[bool] = True
    correctness: Scorer
    """Who says right or wrong; undecided stays undecided."""
    unit: Unit = "tokens"
    """What lengths count."""

    def __post_init__(self) -> None:
        check_unit("GroupLength", self.unit)

    @property
    def needs_answer(self) -> bool:
        """Whether `correctness` judges no problem without a reference answer."""
        return bool(getattr(self.correctness, "needs_answer", False))

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Graded verdicts with part `correctness`; ConfigError for absent tokens or a graded correctness."""
        verdicts = _correctness("GroupLength", self.correctness, problems, responses)
        lengths = [length_of(response, self.unit, owner="GroupLength") for response in responses]
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for problem, length in zip(problems, lengths, strict=True):
            groups[problem.id].append(length)
        ends = {name: (min(group), max(group)) for name, group in groups.items()}
        return [
            self._term(verdict, length, *ends[problem.id])
            for verdict, length, problem in zip(verdicts, lengths, problems, strict=True)
        ]

    def _term(self, verdict: Verdict, length: int, shortest: int, longest: int) -> Verdict:
        if verdict.outcome is Outcome.UNDECIDED:
            return _unjudged("group_length", verdict)
        score = 0.0 if longest == shortest else 0.5 - (length - shortest) / (longest - shortest)
        if verdict.outcome is Outcome.INCORRECT:
            score = min(0.0, score)
        reason = f"{verdict.outcome.value} in {length} {self.unit}, group {shortest} to {longest}"
        return _with_correctness(Verdict.graded(score, reason, kind="group_length"), verdict)
