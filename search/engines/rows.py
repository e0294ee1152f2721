"""What every engine does that hands its rows to a program of its own (vLLM in this process or behind HTTP).

A request of n samples is n rows. This module says which requests are refused, how long a row may get, which seed it
draws under, where a stop sequence ends it, and when the last row of a request is there. The programs end a row at a
single token; a stop sequence of several tokens is found here, as the tokens come.

Row j of a request draws under derive_seed(request.seed, request.first + j, request.offset). A text drawn in pieces
(each with its `offset`) is therefore drawn like the text drawn at once, but is not that text: these programs number
their random draws from the start of a request and cannot go on in the middle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from verifiers.core import Continuation, GenerationRequest, Sampling, StopReason, derive_seed
from verifiers.errors import ConfigError, EngineError
from verifiers.streams import Finished, Stream

REASONS = {"stop": StopReason.STOP, "length": StopReason.LENGTH, "repetition": StopReason.REPETITION}
"""vLLM's finish reasons that end a row properly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepetitionRule:
    """End a row when its last tokens are one pattern, `times` times in a row (so does vLLM's repetition detection)."""

    longest: int
    """Most tokens of a pattern."""
    times: int
    """How often the pattern must stand there, 2 or more."""
    shortest: int = 1
    """Fewest tokens of a pattern."""

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ConfigError(
                f"RepetitionRule needs 1 <= shortest <= longest; got shortest {self.shortest!r} and longest "
                f"{self.longest!r}"
            )
        if self.times < 2:
            raise ConfigError(f"RepetitionRule.times must be 2 or more; got {self.times!r}")

    def options(self) -> dict[str, int]:
        """In vLLM's words."""
        return {"max_pattern_size": self.longest, "min_pattern_size": self.shortest, "min_count": self.times}


def check_sampling(sampling: Sampling) -> None:
    """Raise ConfigError for a temperature that vLLM refuses or would silently change."""
    if 0.0 < sampling.temperature < 0.01 or sampling.temperature > 2.0:
        raise ConfigError(
            f"vLLM draws at temperature 0 or from 0.01 to 2; got Sampling.temperature={sampling.temperature!r}"
        )


def check_request(number: int, request: GenerationRequest, context_length: int, vocabulary: int) -> None:
    """Raise ConfigError or EngineError for a request that cannot be answered."""
    if request.n < 1:
        raise ConfigError(f"GenerationRequest.n must be 1 or more; got {request.n!r} in request {number}")
    for name in ("first", "offset"):
        if getattr(request, name) < 0:
            raise ConfigError(
                f"GenerationRequest.{name} must be 0 or more; got {getattr(request, name)!r} in request {number}"
            )
    if request.max_new_tokens is not None and request.max_new_tokens < 1:
        raise ConfigError(
            f"GenerationRequest.max_new_tokens must be 1 or more; got {request.max_new_tokens!r} in request {number}"
        )
    if not request.prefix_ids:
        raise EngineError(f"request {number} has an empty prefix; give at least one token to go on from")
    if len(request.prefix_ids) >= context_length:
        raise EngineError(
            f"the prefix of request {number} has {len(request.prefix_ids)} tokens, but the model's context "
            f"holds {context_length}; shorten the prompt or use a model with a longer context"
        )
    strange = [token for token in request.prefix_ids if not 0 <= token < vocabulary]
    if strange:
        raise EngineError(
            f"the prefix of request {number} holds the token id {strange[0]}, but the model's ids run from 0 to "
            f"{vocabulary - 1}; encode the prompt with this engine's tokenizer"
        )


class Stops:
    """The stop sequences of a sampling: single tokens for the program, longer ones to be found here."""

    def __init__(self, sampling: Sampling, eos_ids: Iterable[int]) -> None:
        ends = {stop[0] for stop in sampling.stop_sequences if len(stop) == 1}
        self.single = sorted(ends | set(eos_ids))
        self.longer = [tuple(stop) for stop in sampling.stop_sequences if len(stop) > 1]

    def end(self, ids: Sequence[int], seen: int) -> int | None:
        """How many of the drawn ids there are when the first longer stop is complete; `seen` were looked at before."""
        for end in range(seen + 1, len(ids) + 1):
            if any(len(stop) <= end and tuple(ids[end - len(stop) : end]) == stop for stop in self.longer):
                return end
        return None


@dataclass(slots=True)
class Row:
    """Sample number `sample` of the request with this ticket, and what it has drawn so far."""

    ticket: int
    sample: int
    prefix: tuple[int, ...]
    seed: int
    limit: int
    """Most tokens it may draw."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def take(self, ids: Sequence[int], logprobs: Sequence[float], stops: Stops) -> bool:
        """Add what came; True where a longer stop sequence is now complete, and what came behind it is dropped."""
        seen = len(self.ids)
        self.ids += ids
        self.logprobs += logprobs
        end = stops.end(self.ids, seen) if stops.longer else None
        if end is None:
            return False
        del self.ids[end:], self.logprobs[end:]
        return True

    def ended(self, reason: StopReason) -> Continuation:
        """The row as a continuation."""
        return Continuation(token_ids=tuple(self.ids), logprobs=tuple(self.logprobs), stop_reason=reason)


@dataclass(slots=True)
class _Open:
    n: int
    found: dict[int, Continuation] = field(default_factory=dict)


class Tickets:
    """The requests of one stream: which are open, and which became complete and were not collected yet."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}
        self._complete: list[Finished] = []
        self._next = 0

    @property
    def waiting(self) -> int:
        """Requests neither collected nor cancelled."""
        return len(self._open) + len(self._complete)

    def admit(self, requests: Sequence[GenerationRequest], sampling: Sampling, context: int) -> list[list[Row]]:
        """A ticket a request, and its rows."""
        rows = []
        for request in requests:
            ticket, self._next = self._next, self._next + 1
            most = sampling.max_new_tokens
            if request.max_new_tokens is not None:
                most = min(most, request.max_new_tokens)
            self._open[ticket] = _Open(request.n)
            rows.append(
                [
                    Row(
                        ticket=ticket,
                        sample=sample,
                        prefix=tuple(request.prefix_ids),
                        seed=derive_seed(request.seed, request.first + sample, request.offset),
                        limit=min(most, context - len(request.prefix_ids)),
                    )
                    for sample in range(request.n)
                ]
            )
        return rows

    def found(self, row: Row, reason: StopReason) -> None:
        """A row that ended; ignored where its request was cancelled."""
        state = self._open.get(row.ticket)
        if state is None:
            return
        state.found[row.sample] = row.ended(reason)
        if len(state.found) == state.n:
            del self._open[row.ticket]
            self._complete.append((row.ticket, [state.found[sample] for sample in range(state.n)]))

    def collect(self) -> list[Finished]:
        """Hand out what is complete."""
        complete, self._complete = self._complete, []
        return complete

    @property
    def incomplete(self) -> bool:
        """Whether something must still be drawn before `collect` has anything to hand out."""
        return bool(self._open) and not self._complete

    def drop(self, tickets: Iterable[int]) -> set[int]:
        """Forget requests; those that were known."""
        gone = set(tickets)
        known = {ticket for ticket in gone if self._open.pop(ticket, None) is not None}
        known |= {ticket for ticket, _ in self._complete if ticket in gone}
        self._complete = [pair for pair in self._complete if pair[0] not in gone]
        return known

    def all(self) -> list[int]:
        """Every ticket neither collected nor cancelled."""
        return [*self._open, *(ticket for ticket, _ in self._complete)]


def draw_all(stream: Stream, requests: Sequence[GenerationRequest]) -> list[list[Continuation]]:
    """Every request's continuations from a stream of its own; what is left is cancelled where drawing fails."""
    tickets = stream.submit(requests)
    done: dict[int, list[Continuation]] = {}
    try:
        while stream.waiting:
            done |= stream.collect()
    finally:
        stream.cancel(tickets)
    return [done[ticket] for ticket in tickets]
