"""Which problems a step gets, and the responses that are drawn to them.

Problems come in shuffled rounds of all of them; the order depends on the seed alone, and a position in it is all that a
run needs to go on. Response j of a group is drawn from a stream that (seed, step, problem id, j) name, whatever else is
in the batch. All groups of a draw decode together, and each is handed out as soon as its last response ended. With a
limit on the tokens of a piece, groups that did not end are left over and go on in another draw (`rollouts.py`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from rewardkit.rl.sampling.rollouts import Piece, Rollout
from search.engines.rows import RepetitionRule
from search.strategies.best_of_n import request_for, responses_of
from verifiers.core import Continuation, Engine, GenerationRequest, Problem, Response, derive_seed
from verifiers.errors import ConfigError
from verifiers.streams import Stream

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Group:
    """A problem and the responses drawn to it, with their log-probabilities."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    responses: tuple[Response, ...]
    pieces: tuple[tuple[Piece, ...], ...] = ()
    """Which weights drew each response."""

    def behind(self, step: int) -> int:
        """Steps by which the weights that drew a token were behind `step`, added up over all tokens."""
        return sum((step - piece.version) * piece.tokens for pieces in self.pieces for piece in pieces)


class Order(Generic[Item]):
    """The problems (or rows of another kind), one after another, in shuffled rounds."""

    def __init__(self, problems: Sequence[Item], *, seed: int, position: int = 0) -> None:
        if not problems:
            raise ConfigError("there must be at least one problem to learn from; got none")
        self.problems, self.seed, self.position = list(problems), seed, position
        self._round, self._places = -1, [0]

    def take(self, count: int) -> list[Item]:
        """The next problems; a problem comes again after all others."""
        found = []
        for _ in range(count):
            number, place = divmod(self.position, len(self.problems))
            if number != self._round:
                self._places = list(range(len(self.problems)))
                random.Random(derive_seed(self.seed, "order", number)).shuffle(self._places)
                self._round = number
            found.append(self.problems[self._places[place]])
            self.position += 1
        return found


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where responses and their pieces end."""

    most: int
    """Tokens of a response."""
    piece: int = 0
    """Tokens of a piece; 0: a response is drawn at once."""
    repetition: RepetitionRule | None = None
    """See `rollouts`."""


@dataclass(frozen=True, kw_only=True)
class OpenGroup:
    """A problem whose responses have not begun, or not ended."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    seed: int
    """Of the group's random streams."""
    rollouts: tuple[Rollout, ...]

    @property
    def whole(self) -> bool:
        """Whether all its responses have ended."""
        return all(rollout.stop_reason is not None for rollout in self.rollouts)

    @property
    def oldest(self) -> int | None:
        """Version of the oldest weights that drew a token of it; None before the first."""
        return min((piece.version for rollout in self.rollouts for piece in rollout.pieces), default=None)

    def requests(self, limits: Limits, context: int) -> list[GenerationRequest]:
        """What draws the next pieces of all responses that go on; one request for all of them at the beginning."""
        if self.oldest is None:
            piece = min(limits.piece, limits.most) if limits.piece else None
            whole = GenerationRequest(
                prefix_ids=self.prompt_ids, n=len(self.rollouts), seed=self.seed, max_new_tokens=piece
            )
            return [whole]
        most = self.most(limits, context)
        return [
            rollout.request(
                self.prompt_ids,
                seed=self.seed,
                sample=sample,
                tokens=min(limits.piece or most, most - len(rollout.token_ids)),
            )
            for sample, rollout in enumerate(self.rollouts)
            if rollout.stop_reason is None
        ]

    def most(self, limits: Limits, context: int) -> int:
        """Tokens that end a response: the limit, or the end of the model's context."""
        return min(limits.most, context - len(self.prompt_ids))

    def as_group(self, engine: Engine) -> Group:
        """Once it is whole."""
        drawn = []
        for rollout in self.rollouts:
            assert rollout.stop_reason is not None
            drawn.append(
                Continuation(token_ids=rollout.token_ids, logprobs=rollout.logprobs, stop_reason=rollout.stop_reason)
            )
        return Group(
            problem=self.problem,
            prompt_ids=self.prompt_ids,
            responses=responses_of(engine, self.problem, drawn),
            pieces=tuple(rollout.pieces for rollout in self.rollouts),
        )

    def to_state(self) -> dict[str, Any]:
        """Plain JSON-able values, without the problem."""
        return {
            "prompt": list(self.prompt_ids),
            "seed": self.seed,
            "rollouts": [rollout.to_state() for rollout in self.rollouts],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], problem: Problem) -> OpenGroup:
        """What `to_state` gave, for the same problem."""
        return cls(
            problem=problem,
            prompt_ids=tuple(state["prompt"]),
            seed=state["seed"],
            rollouts=tuple(Rollout.from_state(rollout) for rollout in state["rollouts"]),
        )


def open_groups(engine: Engine, problems: Sequence[Problem], *, n: int, seed: int, stream: str) -> list[OpenGroup]:
    """`n` responses to every problem, not begun; `stream` names their random streams beside seed and problem id.

    A problem that comes several times in one call gets another stream each time. Raises EngineError naming a problem
    whose prompt is too long.
    """
    times: Counter[str] = Counter()
    found = []
    for problem in problems:
        request = request_for(engine, problem, n=n, seed=derive_seed(seed, stream, times[problem.id]))
        times[problem.id] += 1
        found.append(
            OpenGroup(problem=problem, prompt_ids=request.prefix_ids, seed=request.seed, rollouts=(Rollout(),) * n)
        )
    return found


class Draw:
    """Groups that one version of the weights draws on, each told of once nothing of it decodes any more."""

    def __init__(
        self, groups: Sequence[OpenGroup], *, engine: Engine, stream: Stream | None, limits: Limits, version: int
    ) -> None:
        """`engine` has the tokenizer and the context; without a stream, all that was to be drawn has been."""
        self.groups, self.version = list(groups), version
        self.sample: list[tuple[tuple[int, ...], Continuation]] = []
        """Prefixes and what was drawn behind them, as it came."""
        self._engine, self._stream, self._limits = engine, stream, limits
        self._places: dict[int, tuple[int, int]] = {}
        self._prefixes: dict[int, tuple[int, ...]] = {}
        self._missing = [0] * len(self.groups)
        if stream is None:
            return
        asked = [(n, r) for n, group in enumerate(groups) for r in group.requests(limits, engine.context_length)]
        for ticket, (number, request) in zip(stream.submit([r for _, r in asked]), asked, strict=True):
            self._places[ticket] = number, request.first
            self._prefixes[ticket] = request.prefix_ids
            self._missing[number] += 1

    def collect(
        self,
        on_group: Callable[[int, Group], None] = lambda number, group: None,
        on_left: Callable[[int], None] = lambda number: None,
    ) -> list[Group]:
        """Wait for all groups; those that are whole. The others stand in `left`.

        `on_group` is told a group's number and the group while others still decode, `on_left` the number of one that
        goes on another time.
        """
        found: dict[int, Group] = {}

        def tell(number: int) -> None:
            if self.groups[number].whole:
                found[number] = self.groups[number].as_group(self._engine)
                on_group(number, found[number])
            else:
                on_left(number)

        for number in [number for number, missing in enumerate(self._missing) if not missing]:
            tell(number)
        for number in self._arrivals():
            tell(number)
        return [found[number] for number in sorted(found)]

    def settle(self) -> None:
        """Wait for all groups without telling of them."""
        for _ in self._arrivals():
            pass

    @property
    def left(self) -> list[OpenGroup]:
        """Groups that are not whole."""
        return [group for group in self.groups if not group.whole]

    def _arrivals(self) -> Iterator[int]:
        if self._stream is None:
            return
        try:
            while self._stream.waiting:
                for ticket, drawn in self._stream.collect():
                    number, first = self._places[ticket]
                    self._take(number, first, drawn)
                    self.sample += [(self._prefixes[ticket], one) for one in drawn]
                    self._missing[number] -= 1
                    if not self._missing[number]:
                        yield number
        finally:
            self._stream.cancel(list(self._places))
        self._stream = None

    def _take(self, number: int, first: int, drawn: Sequence[Continuation]) -> None:
        group, limits = self.groups[number], self._limits
        rollouts = list(group.rollouts)
        most = group.most(limits, self._engine.context_length)
        for sample, one in enumerate(drawn, start=first):
            rollouts[sample] = rollouts[sample].gone_on(one, version=self.version, most=most, rule=limits.repetition)
        self.groups[number] = replace(group, rollouts=tuple(rollouts))
