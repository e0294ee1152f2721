"""A second process that draws while this one learns, with its own copy of the policy and its own threads.

Weights come to it through shared memory. There are as many places in it as versions may wait to be used: version v
lies in place v mod S, and is written there by one copy once no job needs what lay there any more. A job is requests and
the version to draw them with; the process copies those weights into its own model, says so, draws with a new engine
(so that a job's continuations depend on its requests and weights alone), sends each request's continuations as they
end, and at last its gap between sampler and trainer at these weights (`sampler_gap.py`).

Neither side waits for the other to read: each end has a thread that reads and the process one that writes. If it dies,
whoever waits for it is told at once; if this process ends, however that may be, the pipe breaks and the other one
ends with it. A key press that interrupts is for this process alone, which ends the other.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch
from torch import multiprocessing

from rewardkit.rl.config import RlConfig
from rewardkit.rl.sampler_gap import Gap
from verifiers.core import Continuation, GenerationRequest
from verifiers.errors import EngineError
from verifiers.streams import Finished

ALIGNED = 64
"""Bytes at multiples of which a tensor begins."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be drawn."""

    number: int
    version: int
    requests: tuple[GenerationRequest, ...]
    urgent: bool
    """Before all jobs that wait."""


@dataclass(frozen=True, kw_only=True)
class Copied:
    """A job's weights are in the process's own model."""

    job: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """A request of a job is complete."""

    job: int
    place: int
    continuations: list[Continuation]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A job is complete."""

    job: int
    gap: Gap


@dataclass(frozen=True, kw_only=True)
class Broke:
    """The process can do no more."""

    why: str


class SharedWeights:
    """Places for weights of the same names and shapes in memory that two processes have."""

    def __init__(self, like: Mapping[str, torch.Tensor], places: int) -> None:
        self._layout: dict[str, tuple[int, int, torch.dtype, torch.Size]] = {}
        end = 0
        for name, value in like.items():
            size = value.numel() * value.element_size()
            self._layout[name] = end, size, value.dtype, value.shape
            end += -(-size // ALIGNED) * ALIGNED
        self._bytes = torch.empty(places, end, dtype=torch.uint8).share_memory_()
        self.places = places

    def at(self, version: int) -> dict[str, torch.Tensor]:
        """The tensors of a version's place."""
        row = self._bytes[version % self.places]
        return {
            name: row[start : start + size].view(dtype).view(shape)
            for name, (start, size, dtype, shape) in self._layout.items()
        }


class Process(Protocol):
    """A process as far as it is looked at from here."""

    sentinel: int
    exitcode: int | None

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


Start = Callable[[Connection, SharedWeights, RlConfig, str], Process]
"""Starts what draws at the other end of a connection, on a device."""


def spawned(connection: Connection, weights: SharedWeights, config: RlConfig, device: str) -> Process:
    """A new Python process. A script that starts one must do so under `if __name__ == "__main__"`."""
    process = multiprocessing.get_context("spawn").Process(
        target=run, args=(connection, weights, config, device), name="rewardkit-sampler", daemon=True
    )
    process.start()
    connection.close()
    return process  # type: ignore[no-any-return]


class RemoteStream:
    """Implements `verifiers.streams.Stream` for the requests of one job."""

    def __init__(self, background: Background, version: int, *, urgent: bool) -> None:
        self._background, self._version, self._urgent = background, version, urgent
        self._open: set[int] = set()
        self._ready: list[Finished] = []
        self._gap: Gap | None = None
        self.sent = self.copied = False

    def submit(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """See `Stream`; once a stream."""
        assert not self.sent
        self.sent = True
        self._open = set(range(len(requests)))
        self._background.send(self, self._version, requests, urgent=self._urgent)
        return list(range(len(requests)))

    def collect(self) -> list[Finished]:
        """See `Stream`. Raises EngineError where the process has died."""
        while not self._ready and self._open:
            self._background.receive()
        ready, self._ready = self._ready, []
        self._open -= {ticket for ticket, _ in ready}
        return ready

    def cancel(self, tickets: Sequence[int]) -> None:
        """See `Stream`; what is drawn for them is thrown away."""
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


@dataclass(kw_only=True)
class _Running:
    connection: Connection
    process: Process
    weights: SharedWeights
    last: dict[int, int] = field(default_factory=dict)
    """Place -> the version in it."""


class Background:
    """The other process, started when it first gets weights."""

    def __init__(self, config: RlConfig, *, device: str, start: Start = spawned) -> None:
        self._config, self._device, self._start = config, device, start
        self._running: _Running | None = None
        self._streams: dict[int, RemoteStream] = {}
        self._versions: dict[int, int] = {}
        """Job -> its version, while its weights are not copied."""
        self._number = 0

    @property
    def process(self) -> Process | None:
        """What was started, while it runs."""
        return None if self._running is None else self._running.process

    def publish(self, version: int, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Make weights known as a version; waits until nothing needs what lies in their place."""
        if self._running is None:
            self._running = self._begin(dict(weights))
            weights = ()
            self._running.last[version % self._running.weights.places] = version
            for name, value in self._first.items():
                self._running.weights.at(version)[name].copy_(value)
            del self._first
            return
        places = self._running.weights
        there = self._running.last.get(version % places.places)
        if there == version:
            return
        while there in self._versions.values():
            self.receive()
        own = places.at(version)
        for name, value in weights:
            own[name].copy_(value)
        self._running.last[version % places.places] = version

    def stream(self, version: int, *, urgent: bool = False) -> RemoteStream:
        """For one job, with the weights of a version that was published and not written over."""
        return RemoteStream(self, version, urgent=urgent)

    def send(self, stream: RemoteStream, version: int, requests: Sequence[GenerationRequest], *, urgent: bool) -> None:
        """A stream's requests, as a job."""
        ...

    def receive(self) -> None:
        """Wait for a message and hand it on. Raises EngineError where the process has died."""
        ...
