"""Everything that can reward a response, behind one call: verifiers, outcome models and process reward models.

A source is asked for a batch and answers later; what works in other processes (`workers.py`) begins
at once, what works here waits until it is asked. An undecided verdict is unscored, with the verdict's kind as its
reason. A model scores the very ids that the policy drew where it has the policy's tokenizer, and the text where it has
another one. The ends of steps are token positions in the policy's ids either way: both sides split the same text.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, TypeVar

from prm.credit import Reduction, response_score
from rewardkit.offline.tokens import tokenizer_mark
from rewardkit.rl.rewards.scored import PartValues, StepRewards, Unscored, Value, usable
from rewardkit.rl.rewards.workers import RewardWorkers
from verifiers.compose import judged
from verifiers.core import Problem, Response, Scorer, StepScorer, Verdict
from verifiers.errors import DataError, RewardkitError
from verifiers.steps import BLANK_LINE, response_ids, token_steps

Later: TypeAlias = Callable[[], PartValues]
"""Waits for the values of a batch."""
Row: TypeAlias = tuple[Problem, Response]
T = TypeVar("T")


class Source(Protocol):
    """Something that rewards responses."""

    @property
    def steps(self) -> bool:
        """Whether it is known to score steps; a function may turn out to."""
        ...

    def submit(self, problems: Sequence[Problem], responses: Sequence[Response]) -> Later:
        """Begin to judge a batch."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...


@dataclass(frozen=True, kw_only=True)
class FunctionSource:
    """A user's reward function."""

    workers: RewardWorkers
    """Who calls it."""
    steps: bool = False

    def submit(self, problems: Sequence[Problem], responses: Sequence[Response]) -> Later:
        """See `Source`."""
        return self.workers.submit(problems, responses).collect

    def close(self) -> None:
        """See `Source`."""
        self.workers.close()


@dataclass(frozen=True, kw_only=True)
class ScorerSource:
    """A verifier: the score of its verdict."""

    name: str
    """What reasons call it."""
    scorer: Scorer
    """Who judges."""
    steps: bool = False

    def submit(self, problems: Sequence[Problem], responses: Sequence[Response]) -> Later:
        """See `Source`. RewardkitError that is the user's to mend (no reference answer) is let through."""
        return lambda: self._judge(problems, responses)

    def _judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> PartValues:
        try:
            verdicts = judged(self.scorer, problems, responses, name=self.name)
        except RewardkitError as error:
            if error.usage:
                raise
            return self._broken(str(error), len(responses))
        except Exception as error:
            detail = f"reward {self.name} raised {type(error).__name__}: {error}; mend it"
            return self._broken(detail, len(responses))
        return PartValues(values=tuple(map(self._value, verdicts)))

    def _value(self, verdict: Verdict) -> Value:
        if verdict.score is None:
            detail = f"reward {self.name} cannot tell: {verdict.reason}"
            return Unscored(kind=verdict.kind or "undecided", detail=detail)
        return float(verdict.score)

    def _broken(self, detail: str, rows: int) -> PartValues:
        return PartValues(values=(Unscored(kind="raised", detail=detail, failed=True),) * rows)

    def close(self) -> None:
        """See `Source`."""
        if hasattr(self.scorer, "close"):
            self.scorer.close()


@dataclass(frozen=True, kw_only=True)
class OutcomeSource:
    """An outcome model: its score of the whole response."""

    name: str
    """What reasons call it."""
    model: Any
    """With score_rows((problem, response, evidence)...) and, for graded scores, graded(scores)."""
    graded: bool = True
    """In [0, 1]; else as the model gives it."""
    tokenizer: Any = None
    """The policy's; None lets the model read the text."""
    steps: bool = False

    def submit(self, problems: Sequence[Problem], responses: Sequence[Response]) -> Later:
        """See `Source`."""
        rows = list(zip(problems, _readable(self.model, self.tokenizer, responses), strict=True))
        return lambda: self._judge(rows)

    def _judge(self, rows: Sequence[Row]) -> PartValues:
        scores: list[float | DataError] = _rows_or_each(rows, self._score)
        return PartValues(values=tuple(map(self._value, scores)))

    def _score(self, rows: Sequence[Row]) -> list[float]:
        scores = self.model.score_rows([(problem, response, "") for problem, response in rows])
        return list(self.model.graded(scores) if self.graded else scores)

    def _value(self, score: float | DataError) -> Value:
        return _unreadable(self.name, score) if isinstance(score, DataError) else _finite(self.name, score)

    def close(self) -> None:
        """See `Source`."""


@dataclass(frozen=True, kw_only=True)
class StepSource:
    """A process reward model: the scores of a response's steps, or one score made of them."""

    name: str
    """What reasons call it."""
    scorer: StepScorer
    """Scores steps in [0, 1]."""
    tokenizer: Any
    """The policy's: where its steps end."""
    reduction: Reduction | None = None
    """How the steps' scores become one (`prm/credit.py`); None gives the steps themselves."""
    separator: str = BLANK_LINE
    """What the scorer splits steps at."""

    @property
    def steps(self) -> bool:
        """See `Source`."""
        return self.reduction is None

    def submit(self, problems: Sequence[Problem], responses: Sequence[Response]) -> Later:
        """See `Source`."""
        ends = [self._ends(response) for response in responses] if self.steps else [()] * len(responses)
        rows = list(zip(problems, _readable(self.scorer, self.tokenizer, responses), strict=True))
        return lambda: PartValues(values=tuple(map(self._value, _rows_or_each(rows, self._score), ends)))

    def _score(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        return self.scorer.score_steps([problem for problem, _ in rows], [response for _, response in rows])

    def _value(self, scores: tuple[float, ...] | DataError, ends: tuple[int, ...]) -> Value:
        if isinstance(scores, DataError):
            return _unreadable(self.name, scores)
        if not all(map(usable, scores)):
            return _finite(self.name, math.nan)
        if self.reduction is not None:
            return response_score(scores, self.reduction)
        if len(scores) != len(ends):
            return Unscored(
                kind="bad_steps",
                detail=f"reward {self.name} scored {len(scores)} steps where the policy's tokens hold {len(ends)}; "
                f"both must split at {self.separator!r}",
                failed=True,
            )
        return StepRewards(scores, ends)

    def _ends(self, response: Response) -> tuple[int, ...]:
        ids = response_ids(self.tokenizer, response)
        spans = token_steps(self.tokenizer, response, ids, separator=self.separator)
        return tuple(span.token_end - 1 for span in spans)

    def close(self) -> None:
        """See `Source`."""


def step_source(name: str, scorer: Any, tokenizer: Any, reduction: Reduction | None = None) -> StepSource:
    """A source from a process reward model, which says itself where it splits steps."""
    from prm.readings import OwnReading

    reading = getattr(scorer, "reading", None)
    separator = reading.separator if isinstance(reading, OwnReading) else BLANK_LINE
    return StepSource(name=name, scorer=scorer, tokenizer=tokenizer, reduction=reduction, separator=separator)


def _readable(model: Any, tokenizer: Any, responses: Sequence[Response]) -> list[Response]:
    """Without their ids where those mean nothing to the model."""
    own = getattr(model, "tokenizer", None)
    if own is None or (tokenizer is not None and _mark(own) == _mark(tokenizer)):
        return list(responses)
    return [replace(response, token_ids=(), logprobs=()) for response in responses]


_MARKS: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def _mark(tokenizer: Any) -> str:
    """`tokenizer_mark`, which reads the whole vocabulary, once a tokenizer."""
    if tokenizer not in _MARKS:
        _MARKS[tokenizer] = tokenizer_mark(tokenizer)
    return _MARKS[tokenizer]


def _rows_or_each(rows: Sequence[Row], score: Callable[[Sequence[Row]], Sequence[T]]) -> list[T | DataError]:
    """All rows at once; where one of them cannot be read, each by itself, with the error in place of its value."""
    if not rows:
        return []
    try:
        return list(score(rows))
    except DataError as error:
        if len(rows) == 1:
            return [error]
        return [value for row in rows for value in _rows_or_each([row], score)]


def _unreadable(name: str, error: DataError) -> Unscored:
    return Unscored(kind="unreadable", detail=f"reward {name} cannot read a response: {error}", failed=True)


def _finite(name: str, score: float) -> Value:
    if usable(score):
        return float(score)
    detail = f"reward {name} gave the score {score}; its model computes no numbers, check it"
    return Unscored(kind="not_a_number", detail=detail, failed=True)
