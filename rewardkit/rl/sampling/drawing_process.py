"""What draws in a process of its own: the other end of `background.py`, its messages, and the weights both share.

Places in shared memory hold the versions of the weights that may be waited for: version v lies in place v mod S. A job
is requests and the version to draw them with. The process copies those weights into its own model and says so, draws
with a new engine, so that what a job gives depends on its weights and requests alone, sends each request's
continuations as they end, and at last its gap between sampler and trainer at these weights (`sampler_gap.py`).

A thread reads what comes and another writes what goes, so neither end waits for the other one to listen. When the pipe
breaks because the process at its other end is gone, however it ended, this one ends too. A key press that interrupts
is not for it: the other one ends it.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from rewardkit.rl.config import RlConfig
from rewardkit.rl.policy.models import load_language_model
from rewardkit.rl.policy.reader import TokenReader
from rewardkit.rl.sampling.sampler import engine_over
from rewardkit.rl.sampling.sampler_gap import Gap, measure
from verifiers.checkpoints import load_tokenizer
from verifiers.core import Continuation, GenerationRequest
from verifiers.errors import RewardkitError

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
    """Places for weights of the same names and shapes, in memory that two processes have."""

    def __init__(self, like: Mapping[str, torch.Tensor], *, places: int) -> None:
        self._layout: dict[str, tuple[int, int, torch.dtype, torch.Size]] = {}
        self.places, end = places, 0
        for name, value in like.items():
            size = value.numel() * value.element_size()
            self._layout[name] = end, size, value.dtype, value.shape
            end += -(-size // ALIGNED) * ALIGNED
        self._bytes = torch.zeros(places, end, dtype=torch.uint8)
        self._bytes.share_memory_()  # type: ignore[no-untyped-call]

    def at(self, version: int) -> dict[str, torch.Tensor]:
        """The tensors of a version's place."""
        row = self._bytes[version % self.places]
        return {
            name: row[start : start + size].view(dtype).view(shape)
            for name, (start, size, dtype, shape) in self._layout.items()
        }


class Jobs:
    """What waits to be drawn; the urgent first, otherwise in the order in which it came."""

    def __init__(self) -> None:
        self._came: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._waiting: list[Job] = []

    def put(self, job: Job | None) -> None:
        """A job, or None for the end."""
        self._came.put(job)

    def next(self) -> Job | None:
        """Waits for one; None at the end."""
        while not self._waiting or not self._came.empty():
            job = self._came.get()
            if job is None:
                return None
            self._waiting.append(job)
        first = min(self._waiting, key=lambda job: (not job.urgent, job.number))
        self._waiting.remove(first)
        return first


class Drawer:
    """A copy of the policy that draws jobs."""

    def __init__(self, config: RlConfig, weights: SharedWeights, device: str) -> None:
        self._config, self._weights = config, weights
        self._tokenizer = load_tokenizer(config.init)
        self._model = load_language_model(config.init).to(device)
        self._reader = TokenReader(self._model, temperature=config.temperature, row_tokens=config.row_tokens)
        self._own = self._model.state_dict()
        self._version: int | None = None
        missing = set(self._own) - set(weights.at(0))
        assert missing <= set(getattr(self._model, "all_tied_weights_keys", None) or ()), missing

    def draw(self, job: Job, send: Callable[[Any], None]) -> None:
        """Draw a job and send what is to be known of it."""
        if job.version != self._version:
            with torch.no_grad():
                for name, value in self._weights.at(job.version).items():
                    self._own[name].copy_(value)
            self._version = job.version
        send(Copied(job=job.number))
        own = self._config
        engine = engine_over(self._model, self._tokenizer, max_rows=own.engine_rows, repetition=own.repetition_rule)
        flow = engine.stream(own.sampling)
        places = {ticket: place for place, ticket in enumerate(flow.submit(job.requests))}
        drawn = []
        while flow.waiting:
            for ticket, continuations in flow.collect():
                place = places[ticket]
                send(Found(job=job.number, place=place, continuations=continuations))
                drawn += [(job.requests[place].prefix_ids, one) for one in continuations]
        send(Ended(job=job.number, gap=measure(self._reader, drawn, autocast=self._autocast)))

    def _autocast(self) -> torch.autocast:
        # As the trainer reads (`Models.autocast`).
        return torch.autocast(self._model.device.type, dtype=torch.bfloat16, enabled=self._config.bf16)


def serve(
    connection: Connection,
    weights: SharedWeights,
    config: RlConfig,
    device: str,
    *,
    gone: Callable[[], None] = lambda: None,
) -> None:
    """Draw the jobs that come over a connection until it breaks; `gone` is called when it does."""
    jobs, going = Jobs(), queue.SimpleQueue[Any]()

    def read() -> None:
        try:
            while True:
                jobs.put(connection.recv())
        except (EOFError, OSError):
            gone()
            jobs.put(None)

    def write() -> None:
        try:
            while (message := going.get()) is not None:
                connection.send(message)
        except OSError:
            gone()

    reader = threading.Thread(target=read, daemon=True, name="rewardkit-sampler-in")
    writer = threading.Thread(target=write, daemon=True, name="rewardkit-sampler-out")
    reader.start()
    writer.start()
    try:
        drawer = Drawer(config, weights, device)
        while (job := jobs.next()) is not None:
            drawer.draw(job, going.put)
    except Exception as error:
        # One of ours is a sentence already; of others the kind says most.
        told = str(error) if isinstance(error, RewardkitError) else f"{type(error).__name__}: {error}"
        going.put(Broke(why=told))
    going.put(None)
    writer.join()


def run(connection: Connection, weights: SharedWeights, config: RlConfig, device: str) -> None:
    """`serve` as a whole process, which ends at once when the one that started it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(config.sampler_threads)
    serve(connection, weights, config, device, gone=lambda: os._exit(0))
