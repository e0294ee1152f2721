"""Scorers made of scorers: weighted sum, gate, first decided, clip, and one shared judgement.

With part scores s_i and weights w_i, a `WeightedSum` is sum_i w_i s_i, added with `math.fsum`, so that the
order of the parts changes no bit of it. A sum that lacks a part is not the same quantity, hence one undecided
part makes it undecided; `undecided="renormalise"` takes the decided parts D instead and keeps the total
weight: sum_D w_i s_i * (sum_i |w_i| / sum_D |w_i|), which is undecided only when every part is. A `Gate` lets
a second scorer count only where a first one holds; `FirstDecided` asks one scorer after another until one
decides; `Clip` bounds a score; `Shared` judges a batch once for several users of the same scorer. `Gate` and
`FirstDecided` show a scorer only the rows it is needed for: what costs is then paid where it counts, and a
group-relative scorer takes the admitted rows as its group. Every composed verdict carries its parts by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from verifiers.core import Outcome, Problem, Response, Scorer, Verdict
from verifiers.errors import ConfigError, RewardError


def judged(
    scorer: Scorer, problems: Sequence[Problem], responses: Sequence[Response], *, name: str = ""
) -> list[Verdict]:
    """The verdicts of a scorer, checked: one a response, each a Verdict, each score a finite number.

    Raises ConfigError when problems and responses differ in number, and RewardError naming the scorer when it
    breaks its contract.
    """
    label = name or type(scorer).__name__
    if len(problems) != len(responses):
        raise ConfigError(
            f"{label} needs one problem a response; got {len(problems)} problems and {len(responses)} responses"
        )
    verdicts = scorer.judge(problems, responses)
    if len(verdicts) != len(responses):
        raise RewardError(
            f"scorer {label} returned {len(verdicts)} verdicts for {len(responses)} responses; "
            f"judge() must return one verdict a response, in order"
        )
    for i, verdict in enumerate(verdicts):
        if not isinstance(verdict, Verdict):
            raise RewardError(
                f"scorer {label} returned {type(verdict).__name__} for response {i}; judge() must return "
                f"verifiers.Verdict objects (use from_trl for functions that return numbers)"
            )
        if verdict.score is not None and not math.isfinite(verdict.score):
            raise RewardError(
                f"scorer {label} gave response {i} the score {verdict.score}; "
                f"return a finite score, or Verdict.undecided(...) to abstain"
            )
    return verdicts


def is_group_relative(scorer: object) -> bool:
    """Whether verdicts depend on the other responses to the same problem, so that groups must be whole."""
    return bool(getattr(scorer, "group_relative", False))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A named scorer with its weight."""

    name: str
    """Key of its verdict in `Verdict.parts`."""
    scorer: Scorer
    """Who judges."""
    weight: float = 1.0
    """Factor of its score in a weighted sum; any finite number but 0."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("a Part needs a name that is not empty; it is the key in Verdict.parts")
        if not callable(getattr(self.scorer, "judge", None)):
            raise ConfigError(
                f"part {self.name!r} needs a scorer with judge(problems, responses); "
                f"got {type(self.scorer).__name__}; wrap a reward function with from_trl"
            )
        if not math.isfinite(self.weight) or self.weight == 0.0:
            raise ConfigError(
                f"part {self.name!r} needs a finite weight other than 0; got {self.weight}; "
                f"a part that is not to count is left out"
            )


def _check_parts(owner: str, parts: Sequence[Part], least: int) -> None:
    if len(parts) < least:
        raise ConfigError(f"{owner} needs at least {least} part{'s' * (least > 1)}; got {len(parts)}")
    seen: set[str] = set()
    for part in parts:
        if part.name in seen:
            raise ConfigError(f"{owner} has two parts named {part.name!r}; give each part a name of its own")
        seen.add(part.name)


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """sum_i w_i s_i over named parts; the outcome is always graded (or undecided)."""

    parts: tuple[Part, ...]
    """What is added; at least one part, each name once."""
    undecided: Literal["undecided", "renormalise"] = "undecided"
    """What one undecided part means: the sum is undecided, or the decided parts take over its weight."""

    def __post_init__(self) -> None:
        _check_parts("WeightedSum", self.parts, 1)
        if self.undecided not in ("undecided", "renormalise"):
            raise ConfigError(f"WeightedSum.undecided must be 'undecided' or 'renormalise'; got {self.undecided!r}")

    @property
    def group_relative(self) -> bool:
        """Whether a part compares the responses of one problem."""
        return any(is_group_relative(part.scorer) for part in self.parts)

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """The weighted sums, with each part's verdict in `parts`. Raises RewardError for a broken part."""
        columns = [judged(part.scorer, problems, responses, name=part.name) for part in self.parts]
        return [self._add([column[i] for column in columns]) for i in range(len(responses))]

    def _add(self, verdicts: list[Verdict]) -> Verdict:
        named = {part.name: verdict for part, verdict in zip(self.parts, verdicts, strict=True)}
        decided = [(p, v.score) for p, v in zip(self.parts, verdicts, strict=True) if v.score is not None]
        missing = [name for name, verdict in named.items() if verdict.score is None]
        if missing and (self.undecided == "undecided" or not decided):
            reason = "; ".join(f"{name} is undecided: {named[name].reason}" for name in missing)
            return replace(Verdict.undecided(reason, kind="weighted_sum"), parts=named)
        total = math.fsum(part.weight * score for part, score in decided)
        reason = " + ".join(f"{part.weight:g}*{part.name}({score:g})" for part, score in decided)
        if missing:
            whole = math.fsum(abs(part.weight) for part in self.parts)
            total *= whole / math.fsum(abs(part.weight) for part, _ in decided)
            reason += f", renormalised without {', '.join(missing)}"
        return replace(Verdict.graded(total, reason, kind="weighted_sum"), parts=named)


@dataclass(frozen=True, kw_only=True)
class Gate:
    """`then` counts only where `condition` holds; elsewhere the score is `closed`."""

    condition: Scorer
    """Who opens the gate: a correct verdict does, an incorrect one does not."""
    then: Scorer
    """Who judges the rows that pass; it never sees the others."""
    closed: float = 0.0
    """Score of a row that does not pass: incorrect at 0, graded otherwise."""
    threshold: float | None = None
    """For a graded condition: the least score that opens the gate."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.closed):
            raise ConfigError(f"Gate.closed must be a finite score; got {self.closed}")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigError(f"Gate.threshold must be a finite score or None; got {self.threshold}")

    @property
    def group_relative(self) -> bool:
        """Whether either scorer compares the responses of one problem."""
        return is_group_relative(self.condition) or is_group_relative(self.then)

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Verdicts with parts `condition` and, where the gate is open, `then`.

        A row whose condition is undecided is undecided. Raises ConfigError when the condition is graded and
        no threshold says what holding means.
        """
        conditions = judged(self.condition, problems, responses, name="condition")
        opened = [i for i, verdict in enumerate(conditions) if self._holds(verdict)]
        inner = judged(self.then, [problems[i] for i in opened], [responses[i] for i in opened], name="then")
        passed = dict(zip(opened, inner, strict=True))
        return [self._combine(conditions[i], passed.get(i)) for i in range(len(responses))]

    def _holds(self, verdict: Verdict) -> bool:
        if verdict.score is None:
            return False
        if self.threshold is not None:
            return verdict.score >= self.threshold
        if verdict.outcome is Outcome.GRADED:
            raise ConfigError(
                f"the condition of a Gate gave a graded score ({verdict.score:g}: {verdict.reason}); "
                f"set Gate.threshold to the least score that opens it"
            )
        return verdict.outcome is Outcome.CORRECT

    def _combine(self, condition: Verdict, then: Verdict | None) -> Verdict:
        if then is not None:
            return replace(then, parts={"condition": condition, "then": then})
        if condition.score is None:
            made = Verdict.undecided(f"the gate is undecided: {condition.reason}", kind="gate")
        else:
            reason = f"the gate is closed: {condition.reason}"
            outcome = Outcome.INCORRECT if self.closed == 0.0 else Outcome.GRADED
            made = Verdict(outcome=outcome, score=self.closed, reason=reason, kind="gate")
        return replace(made, parts={"condition": condition})


@dataclass(frozen=True, kw_only=True)
class FirstDecided:
    """The verdict of the first part that decides; a later part sees only what the earlier ones left open."""

    parts: tuple[Part, ...]
    """Whom to ask, in order; weights have no meaning here and must be 1."""

    def __post_init__(self) -> None:
        _check_parts("FirstDecided", self.parts, 2)
        for part in self.parts:
            if part.weight != 1.0:
                raise ConfigError(
                    f"FirstDecided takes a verdict as it is, so the weight {part.weight:g} of part "
                    f"{part.name!r} would have no effect; leave it out, or use WeightedSum"
                )

    @property
    def group_relative(self) -> bool:
        """Whether a part compares the responses of one problem."""
        return any(is_group_relative(part.scorer) for part in self.parts)

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Verdicts whose `parts` hold everyone who was asked. Raises RewardError for a broken part."""
        asked: list[dict[str, Verdict]] = [{} for _ in responses]
        final: list[Verdict | None] = [None] * len(responses)
        for part in self.parts:
            left = [i for i, verdict in enumerate(final) if verdict is None]
            if not left:
                break
            verdicts = judged(part.scorer, [problems[i] for i in left], [responses[i] for i in left], name=part.name)
            for i, verdict in zip(left, verdicts, strict=True):
                asked[i][part.name] = verdict
                if verdict.score is not None:
                    final[i] = replace(verdict, parts=asked[i])
        return [verdict if verdict is not None else self._nobody(asked[i]) for i, verdict in enumerate(final)]

    def _nobody(self, asked: dict[str, Verdict]) -> Verdict:
        reason = "; ".join(f"{name}: {verdict.reason}" for name, verdict in asked.items())
        return replace(Verdict.undecided(f"nobody decided: {reason}", kind="first_decided"), parts=asked)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """min(max(score, low), high). The outcome stays what it was: clipping changes size, not rightness."""

    scorer: Scorer
    """Whose scores are bounded; undecided verdicts pass unchanged."""
    low: float | None = None
    """Least score, or None for no bound."""
    high: float | None = None
    """Greatest score, or None for no bound."""

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ConfigError("a Clip without low and high would have no effect; set at least one of them")
        for name, bound in (("low", self.low), ("high", self.high)):
            if bound is not None and not math.isfinite(bound):
                raise ConfigError(f"Clip.{name} must be a finite score or None; got {bound}")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ConfigError(f"Clip needs low < high; got low {self.low:g} and high {self.high:g}")

    @property
    def group_relative(self) -> bool:
        """Whether the scorer compares the responses of one problem."""
        return is_group_relative(self.scorer)

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """The scorer's verdicts with bounded scores; a changed one keeps the original as part `unclipped`."""
        return [self._clip(verdict) for verdict in judged(self.scorer, problems, responses)]

    def _clip(self, verdict: Verdict) -> Verdict:
        if verdict.score is None:
            return verdict
        score = verdict.score
        score = score if self.low is None else max(score, self.low)
        score = score if self.high is None else min(score, self.high)
        if score == verdict.score:
            return verdict
        reason = f"{verdict.reason}; clipped from {verdict.score:g}"
        return replace(verdict, score=score, reason=reason, parts={**verdict.parts, "unclipped": verdict})


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Judges a batch once, however many scorers of one composition ask: the last batch is remembered.

    `Shared(scorer=verifier)` used both as the correctness of a length reward and as a part of its own makes
    the verifier run once. Only a batch of the very same objects is answered from memory.
    """

    scorer: Scorer
    """Who judges; it must give the same verdict for the same row."""
    _last: list[tuple[tuple[Problem, ...], tuple[Response, ...], list[Verdict]]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def group_relative(self) -> bool:
        """Whether the scorer compares the responses of one problem."""
        return is_group_relative(self.scorer)

    @property
    def needs_answer(self) -> bool:
        """Whether the scorer judges no problem without a reference answer."""
        return bool(getattr(self.scorer, "needs_answer", False))

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """The scorer's verdicts, remembered for the next call. Raises RewardError for a broken scorer."""
        asked, given = tuple(problems), tuple(responses)
        for last_problems, last_responses, verdicts in list(self._last):
            if _same_objects(last_responses, given) and _same_objects(last_problems, asked):
                return list(verdicts)
        verdicts = judged(self.scorer, problems, responses)
        # One slice assignment, so that threads see the old memory or the new one, never half of either.
        self._last[:] = [(asked, given, list(verdicts))]
        return verdicts

    def __reduce__(self) -> tuple[Callable[[Scorer], Shared], tuple[Scorer]]:
        return (_shared, (self.scorer,))  # what is remembered stays in its process


def _shared(scorer: Scorer) -> Shared:
    return Shared(scorer=scorer)


def _same_objects(left: tuple[object, ...], right: tuple[object, ...]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
