"""A pool of worker processes that can be killed: seconds and memory are enforced by the operating system.

A worker is a separate interpreter that runs one module (`python -m module`) and speaks length-prefixed JSON
over its standard pipes: no pickle, nothing that could be executed. It caps its own address space (RLIMIT_AS)
and, for each task, its own processor time (RLIMIT_CPU, so that it dies even when its parent is gone); the
parent holds the deadline in wall time, kills a worker that passes it and starts a new one for the next task.
A failure is a `Reply` of kind timeout, memory or crash; it is never an exception and never an answer.

No signal handler, no alarm and no thread is used, so the pool works from any thread, from asyncio's executors
and from actors. Workers start when first needed; a forked child forgets the workers of its parent and starts
its own; `close`, garbage collection and interpreter exit end them. POSIX only (poll and rlimits).
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifiers.errors import ConfigError

MAX_MESSAGE = 8 << 20
"""Longest message either way, in bytes."""
START_SECONDS = 60.0
"""How long a worker may take to import what it needs; not counted against any task."""
_HEADER = struct.Struct(">I")
_ROOT = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What came back: `value`, or a `failure` of kind "timeout", "memory" or "crash" with its detail."""

    value: Mapping[str, Any] | None = None
    failure: str = ""
    detail: str = ""


class _Failed(Exception):
    def __init__(self, failure: str, detail: str) -> None:
        self.reply = Reply(failure=failure, detail=detail)


class _Worker:
    """One process and its pipes, used by one thread at a time."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            start_new_session=True,  # an interrupt typed at the terminal is for us to pass on
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.pipes = (self.process.stdin, self.process.stdout)
        for pipe in self.pipes:
            os.set_blocking(pipe.fileno(), False)
        self.ready = False

    def ask(self, message: bytes, timeout_s: float) -> Mapping[str, Any]:
        if not self.ready:
            self._exchange(b"", time.monotonic() + START_SECONDS, START_SECONDS)
            self.ready = True
        return self._exchange(message, time.monotonic() + timeout_s, timeout_s)

    def _exchange(self, out: bytes, deadline: float, allowed: float) -> Mapping[str, Any]:
        """Send `out` and read one message, both before the deadline."""
        into, outof = self.pipes[0].fileno(), self.pipes[1].fileno()
        received = bytearray()
        while True:
            poll = select.poll()
            poll.register(outof, select.POLLIN)
            if out:
                poll.register(into, select.POLLOUT)
            left = deadline - time.monotonic()
            events = poll.poll(max(left, 0.0) * 1000)
            if not events and left <= 0:
                raise _Failed("timeout", f"no answer within {allowed:g} s")
            for descriptor, _ in events:
                if descriptor == into:
                    try:
                        out = out[os.write(into, out[: 1 << 16]) :]
                    except BrokenPipeError:
                        out = b""  # the reason is read from the other pipe
                else:
                    chunk = os.read(outof, 1 << 16)
                    if not chunk:
                        raise self._ended()
                    received += chunk
            if len(received) >= _HEADER.size:
                (size,) = _HEADER.unpack(received[: _HEADER.size])
                if size > MAX_MESSAGE:
                    raise _Failed("crash", "the worker sent a message that is too long")
                if len(received) >= _HEADER.size + size:
                    value = json.loads(received[_HEADER.size : _HEADER.size + size])
                    if value.get("failure"):
                        raise _Failed(str(value["failure"]), str(value.get("detail", "")))
                    return dict(value)

    def _ended(self) -> _Failed:
        code = self.process.wait()
        if code == -signal.SIGXCPU:
            return _Failed("timeout", "the worker used up its processor time")
        return _Failed("crash", f"the worker ended with status {code}")

    def end(self) -> None:
        """Kill and reap; in a forked child only let go of the parent's process."""
        if os.getpid() == self.owner:
            self.process.kill()
            self.process.wait()
        else:
            self.process.returncode = 0  # not our child: Popen must neither wait nor warn
        for pipe in self.pipes:
            pipe.close()


def _end_all(workers: set[_Worker]) -> None:
    while workers:
        workers.pop().end()


class WorkerPool:
    """Up to `workers` processes that run `module`; `ask` blocks until one is free."""

    def __init__(
        self,
        module: str,
        *,
        timeout_s: float = 2.0,
        memory_mb: int = 1024,
        workers: int = 1,
        path: Iterable[str] = (),
    ) -> None:
        """`timeout_s` in wall seconds a task, `memory_mb` in MiB a worker, `path` is put on its sys.path."""
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s must be more than 0 seconds; got {timeout_s!r}")
        if memory_mb < 128:
            raise ConfigError(f"memory_mb must be 128 or more (an interpreter needs that); got {memory_mb!r}")
        if workers < 1:
            raise ConfigError(f"workers must be 1 or more; got {workers!r}")
        self.timeout_s = timeout_s
        self.workers = workers
        self._command = [sys.executable, "-P", "-m", module, str(memory_mb), str(timeout_s)]
        self._path = [*path, _ROOT]
        self._fresh()
        _pools.add(self)

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(self.workers)
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._finalizer = weakref.finalize(self, _end_all, self._all)

    def ask(self, request: Mapping[str, Any]) -> Reply:
        """The worker's reply to one JSON-able request; a failed worker is replaced at the next call."""
        body = json.dumps(request, separators=(",", ":")).encode()
        if len(body) > MAX_MESSAGE:
            return Reply(failure="memory", detail=f"the request has more than {MAX_MESSAGE} bytes")
        with self._free:
            worker = self._obtain()
            try:
                value = worker.ask(_HEADER.pack(len(body)) + body, self.timeout_s)
            except _Failed as failed:
                self._discard(worker)
                with self._lock:
                    self._idle.append(self._start())  # it gets ready while nobody waits
                return failed.reply
            except BaseException:  # an interrupt leaves the pipe in an unknown state
                self._discard(worker)
                raise
            with self._lock:
                self._idle.append(worker)
            return Reply(value=value)

    def _obtain(self) -> _Worker:
        with self._lock:
            return self._idle.pop() if self._idle else self._start()

    def _start(self) -> _Worker:
        """A new worker; it loads what it needs while the caller goes on. The lock is held."""
        worker = _Worker(self._command, self._environment())
        self._all.add(worker)
        return worker

    def _environment(self) -> dict[str, str]:
        known = os.environ.get("PYTHONPATH", "")
        return {**os.environ, "PYTHONPATH": os.pathsep.join([*self._path, *([known] if known else [])])}

    def _discard(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.end()

    def close(self) -> None:
        """End all workers; the pool can still be used and starts new ones."""
        with self._lock:
            self._idle.clear()
            _end_all(self._all)

    def _after_fork(self) -> None:
        # The lock may have been held by a thread that does not exist here; nothing of it is kept.
        self._finalizer.detach()
        inherited = self._all
        self._fresh()
        _end_all(inherited)

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value for key, value in self.__dict__.items() if key in ("timeout_s", "workers", "_command", "_path")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()
        _pools.add(self)


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork)


def serve(handler: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """The worker's side: answer requests from standard input until it closes.

    Called by a worker module's main part, after its imports; `sys.argv` holds the memory cap in MiB and the
    seconds a task. Prints of judged code cannot reach the pipe: descriptor 1 is pointed elsewhere.
    """
    import resource

    memory = int(sys.argv[1]) << 20
    seconds = float(sys.argv[2])
    reading, writing = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    _send(writing, {"ready": True})
    while (body := _receive(reading)) is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime + seconds) + 2, hard))
        try:
            _send(writing, handler(json.loads(body)))
        except MemoryError:
            _send(writing, {"failure": "memory", "detail": f"more than {memory >> 20} MiB"})
        except RecursionError as error:
            _send(writing, {"failure": "crash", "detail": f"RecursionError: {error}"[:200]})


def _send(descriptor: int, value: Mapping[str, Any]) -> None:
    body = json.dumps(value).encode()
    view = memoryview(_HEADER.pack(len(body)) + body)
    while view:
        view = view[os.write(descriptor, view) :]


def _receive(descriptor: int) -> bytes | None:
    header = _read(descriptor, _HEADER.size)
    return None if header is None else _read(descriptor, _HEADER.unpack(header)[0])


def _read(descriptor: int, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        chunk = os.read(descriptor, size - len(parts))
        if not chunk:
            return None
        parts += chunk
    return bytes(parts)
