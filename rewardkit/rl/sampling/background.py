"""A second process that draws while this one learns, seen from this one (`drawing_process.py` is the other end).

It is started with the first weights it gets. `publish` copies weights into shared memory, once a version; a stream is
one job, drawn with a version that was published. Whoever waits for a message is told at once, in one sentence, when
the process has died. It ends with this one, and at `close`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeAlias

import torch
from torch import multiprocessing

from rewardkit.rl.config import RlConfig
from rewardkit.rl.sampling.drawing_process import Broke, Copied, Ended, Found, Job, SharedWeights, run
from rewardkit.rl.sampling.sampler_gap import Gap
from verifiers.core import GenerationRequest
from verifiers.errors import EngineError
from verifiers.streams import Finished


class Process(Protocol):
    """A process as far as it is looked at from here."""

    @property
    def sentinel(self) -> int:
        """What becomes ready when it ends."""
        ...

    @property
    def exitcode(self) -> int | None:
        """Minus a signal's number where one ended it."""
        ...

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


Start: TypeAlias = Callable[[Connection, SharedWeights, RlConfig, str], Process]
"""Starts what draws on a device at the other end of a connection, which it closes here."""


class DrawingEnded(EngineError):
    """The process that draws is gone."""

    usage = False


def spawned(connection: Connection, weights: SharedWeights, config: RlConfig, device: str) -> Process:
    """A new Python process; a script may start one only under `if __name__ == "__main__"`."""
    process: Any = multiprocessing.get_context("spawn").Process(
        target=run, args=(connection, weights, config, device), name="rewardkit-sampler", daemon=True
    )
    process.start()
    connection.close()
    return process  # type: ignore[no-any-return]


class RemoteStream:
    """Implements `verifiers.streams.Stream` for the requests of one job."""

    def __init__(self, background: Background, *, version: int, urgent: bool) -> None:
        self._background, self.version, self._urgent = background, version, urgent
        self._open: set[int] = set()
        self._ready: list[Finished] = []
        self._gap: Gap | None = None
        self.copied = False
        """Whether its weights are in the process's own model."""

    def submit(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """See `Stream`; once a stream."""
        assert not self._open
        self._open = set(range(len(requests)))
        self._background.send(self, requests, urgent=self._urgent)
        return list(range(len(requests)))

    def collect(self) -> list[Finished]:
        """See `Stream`. Raises EngineError where the process has died."""
        while not self._ready and self._open:
            self._background.receive()
        ready, self._ready = self._ready, []
        self._open -= {ticket for ticket, _ in ready}
        return ready

    def cancel(self, tickets: Sequence[int]) -> None:
        """See `Stream`; it is drawn all the same, and thrown away."""
        self._open -= set(tickets)
        self._ready = [one for one in self._ready if one[0] in self._open]

    @property
    def waiting(self) -> int:
        """See `Stream`."""
        return len(self._open)

    def gap(self) -> Gap:
        """The gap at the weights that drew; waits for the end of the job."""
        while self._gap is None:
            self._background.receive()
        return self._gap

    def take(self, message: Copied | Found | Ended) -> None:
        """What came for this job."""
        if isinstance(message, Copied):
            self.copied = True
        elif isinstance(message, Ended):
            self._gap = message.gap
        elif message.place in self._open:
            self._ready.append((message.place, message.continuations))


class Background:
    """The other process, from its first weights on."""

    def __init__(self, config: RlConfig, *, places: int, device: str = "cpu", start: Start = spawned) -> None:
        """`places`: how many versions may be waited for at the same time."""
        self._config, self._places, self._device, self._start = config, places, device, start
        self.process: Process | None = None
        self._connection: Connection | None = None
        self._weights: SharedWeights | None = None
        self._published: dict[int, int] = {}
        """Place -> the version in it."""
        self._streams: dict[int, RemoteStream] = {}
        self._jobs = 0
        self._heard = False
        """Whether it ever said anything."""

    def publish(self, version: int, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Make weights known as a version; waits until no job needs what lies in their place."""
        if self._published.get(version % self._places) == version:
            return
        if self._weights is None:
            given = dict(weights)
            self._weights, weights = SharedWeights(given, places=self._places), given.items()
        while any(not one.copied and one.version % self._places == version % self._places for one in self._needing()):
            self.receive()
        place = self._weights.at(version)
        with torch.no_grad():
            for name, value in weights:
                place[name].copy_(value)
        self._published[version % self._places] = version
        if self.process is None:
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            self._connection = ours
            self.process = self._start(theirs, self._weights, self._config, self._device)
            weakref.finalize(self, _end, self.process, ours)

    def stream(self, version: int, *, urgent: bool = False) -> RemoteStream:
        """For one job, with the weights of the last version that was published in its place."""
        assert self._published[version % self._places] == version
        return RemoteStream(self, version=version, urgent=urgent)

    def send(self, stream: RemoteStream, requests: Sequence[GenerationRequest], *, urgent: bool) -> None:
        """Have a stream's requests drawn."""
        assert self._connection is not None
        self._jobs += 1
        self._streams[self._jobs] = stream
        job = Job(number=self._jobs, version=stream.version, requests=tuple(requests), urgent=urgent)
        try:
            self._connection.send(job)
        except OSError as error:
            raise self._died() from error

    def receive(self) -> None:
        """Wait for a message and hand it on. Raises EngineError where the process has died."""
        assert self._connection is not None and self.process is not None
        if self._connection not in wait([self._connection, self.process.sentinel]):
            raise self._died()
        try:
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        self._heard = True
        if isinstance(message, Broke):
            self.close()
            raise DrawingEnded(f"the process that draws could not go on: {message.why}")
        self._streams[message.job].take(message)
        if isinstance(message, Ended):
            del self._streams[message.job]

    def close(self) -> None:
        """End the process; what it has not sent is lost. `publish` starts another one."""
        if self.process is not None and self._connection is not None:
            _end(self.process, self._connection)
        self.process = self._connection = None
        self._streams, self._published = {}, {}

    def _needing(self) -> list[RemoteStream]:
        return list(self._streams.values())

    def _died(self) -> DrawingEnded:
        assert self.process is not None
        self.process.join(5)
        code = self.process.exitcode
        self.close()
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        if not self._heard:
            return DrawingEnded(
                f"the process that draws has ended before it began ({how}); a script must start a run under "
                'if __name__ == "__main__", because that process reads the script again'
            )
        return DrawingEnded(
            f"the process that draws has ended ({how}), and with it the run; if memory ran out, lower engine_rows, "
            "and go on from the last checkpoint with resume"
        )


def _end(process: Process, connection: Connection) -> None:
    connection.close()
    process.kill()
    process.join(5)
