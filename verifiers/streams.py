"""Generation whose requests come and go while others decode.

`Engine.generate` answers a fixed list and returns with its slowest row. Labelling and search learn from each row what
to ask next, so they open a stream: requests are submitted at any time, `collect` decodes until at least one of them
is complete, and a row that ends gives its place to a waiting one at once. What a request draws depends on its seed
alone, so nothing of this changes a result.

An engine that cannot do this needs only `generate`: `open_stream` then answers in rounds, all waiting requests in one
call, which is slower and otherwise the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from verifiers.core import Continuation, Engine, GenerationRequest, Sampling

Finished: TypeAlias = tuple[int, list[Continuation]]
"""A request's ticket and its continuations, in the order of their sample numbers."""


class Stream(Protocol):
    """Requests in flight, all under one sampling."""

    def submit(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """Add requests; a ticket each. Raises like `Engine.generate`, and then adds none of them."""
        ...

    def collect(self) -> list[Finished]:
        """Decode until a request is complete; empty only when none is left."""
        ...

    def cancel(self, tickets: Sequence[int]) -> None:
        """Forget requests: their rows are freed and never collected. Unknown and collected tickets are ignored."""
        ...

    @property
    def waiting(self) -> int:
        """Requests that were submitted and neither collected nor cancelled."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine with streams of its own."""

    def stream(self, sampling: Sampling, *, keep: bool = False) -> Stream:
        """`keep`: a text that a stop sequence or a limit ended is likely to be gone on with; keep what speeds it up."""
        ...


class Rounds:
    """A `Stream` over any engine: every `collect` is one call of `generate` with all that waits."""

    def __init__(self, engine: Engine, sampling: Sampling) -> None:
        self._engine, self._sampling = engine, sampling
        self._requests: dict[int, GenerationRequest] = {}
        self._tickets = 0

    def submit(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """See `Stream`; what the engine has against a request is raised by `collect`."""
        tickets = list(range(self._tickets, self._tickets + len(requests)))
        self._tickets += len(requests)
        self._requests |= dict(zip(tickets, requests, strict=True))
        return tickets

    def collect(self) -> list[Finished]:
        """See `Stream`."""
        asked, self._requests = self._requests, {}
        if not asked:
            return []
        return list(zip(asked, self._engine.generate(list(asked.values()), self._sampling), strict=True))

    def cancel(self, tickets: Sequence[int]) -> None:
        """See `Stream`."""
        for ticket in tickets:
            self._requests.pop(ticket, None)

    @property
    def waiting(self) -> int:
        """See `Stream`."""
        return len(self._requests)


def open_stream(engine: Engine, sampling: Sampling, *, keep: bool = False) -> Stream:
    """The engine's own stream, or rounds of `generate` where it has none."""
    return engine.stream(sampling, keep=keep) if isinstance(engine, StreamingEngine) else Rounds(engine, sampling)
