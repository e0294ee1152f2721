"""User reward functions in worker processes that can be killed: `submit` a batch, go on decoding, `collect` it.

A thread cannot be stopped, so a reward function that hangs would hold up a run for ever (verl#2507, verl#6673, trl
itself). Here it runs in processes of its own (`verifiers/sandbox.py`) with a deadline in wall time and a cap on memory;
one that passes them is killed with all that it started, and replaced. What went wrong becomes an `Unscored` with one
sentence, never a number; whether that ends the run is decided by who adds up the rewards.

A batch is cut into calls between problems, so that a function always sees all responses to a problem that it is asked
about; with one worker and no limit on rows, it sees the whole batch. Batches travel as pickles that this process wrote
to a temporary file, answers come back as JSON: nothing that a worker says is executed.

A callable that cannot be pickled may run in the caller's own process where that is asked for. It then cannot be killed,
has no deadline, and holds up the run while it works.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rewardkit.rl.rewards.calling import VARIABLE, call, load_function, split_spec
from rewardkit.rl.rewards.scored import ABSTAINED, LARGEST, PartValues, StepRewards, Unscored, Value
from verifiers.core import Problem, Prompt, Response
from verifiers.errors import ConfigError, RewardError, RewardkitError
from verifiers.sandbox import START_SECONDS, WorkerPool

_ADVICE = {
    "raised": "mend it, or let it return None where it cannot tell",
    "wrong_length": "it must return one number, None or StepRewards a completion",
    "wrong_type": "it must return a list with one number, None or StepRewards a completion",
    "not_a_number": f"return a finite number up to {LARGEST:g}, or None to leave it unscored",
    "bad_steps": "give one value and one end a step, ends rising and inside the response",
}


class _Pool(WorkerPool):
    """Workers that are told what to load, and whose children end with them."""

    def __init__(self, told: Mapping[str, Any], *, timeout_s: float, memory_mb: int, workers: int) -> None:
        super().__init__("rewardkit.rl.rewards.calling", timeout_s=timeout_s, memory_mb=memory_mb, workers=workers)
        # The cap on processor time is for workers without a parent; a function may use every core until the deadline.
        self._command[-1] = str(timeout_s * (os.cpu_count() or 1))
        self._told = json.dumps(told)

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), VARIABLE: self._told}

    def _discard(self, worker: Any) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)  # a session of its own: what the function started, too
        super()._discard(worker)


@dataclass(frozen=True, kw_only=True)
class PendingValues:
    """A batch that is being judged."""

    calls: tuple[Future[PartValues], ...]

    @property
    def done(self) -> bool:
        """Whether `collect` would return at once."""
        return all(future.done() for future in self.calls)

    def collect(self) -> PartValues:
        """Wait for the values, in the order of the responses. RewardError where the function cannot be loaded."""
        found = [future.result() for future in self.calls]
        values = tuple(value for one in found for value in one.values)
        metrics: dict[str, float] = {}
        for name in dict.fromkeys(name for one in found for name in one.metrics):
            # The mean over rows, as if the whole batch had been one call that logged a mean.
            logged = [(one.metrics[name], len(one.values)) for one in found if name in one.metrics]
            metrics[name] = sum(value * rows for value, rows in logged) / sum(rows for _, rows in logged)
        extra = {
            name: tuple(text for one in found for text in one.extra.get(name, ("",) * len(one.values)))
            for name in dict.fromkeys(name for one in found for name in one.extra)
        }
        return PartValues(values=values, metrics=metrics, extra=extra)


class RewardWorkers:
    """A reward function in TRL's signature, judged by killable workers."""

    def __init__(
        self,
        function: str | Callable[..., Any],
        *,
        name: str | None = None,
        workers: int = 1,
        timeout_s: float = 60.0,
        memory_mb: int = 8192,
        rows: int = 0,
        in_process: bool = False,
    ) -> None:
        """`function` is file.py:name, package.module:name or a callable; nothing is started yet.

        `timeout_s` is for one call, `memory_mb` for the address space of one worker, `rows` the most responses a call
        gets (0: the batch is spread evenly over the workers; the responses to one problem always stay together).
        `in_process` calls it in this process, where it cannot be killed. Raises ConfigError, MissingFileError.
        """
        spec = function if isinstance(function, str) else ""
        if not spec and not callable(function):
            raise ConfigError(f"a reward function must be callable or named; got {type(function).__name__}")
        label = spec.rpartition(":")[2] if spec else str(getattr(function, "__name__", type(function).__name__))
        self.name = name or label
        if rows < 0:
            raise ConfigError(f"rows of reward {self.name} must be 0 (no limit) or more; got {rows!r}")
        if in_process and workers != 1:
            raise ConfigError(f"reward {self.name} has in_process, so workers={workers!r} would have no effect")
        if spec:
            split_spec(spec)
        self.timeout_s, self.memory_mb, self.workers, self.rows = timeout_s, memory_mb, workers, rows
        self.killable = not in_process
        """Whether it can be stopped."""
        self._function: Callable[..., Any] | None = None
        self._pool: _Pool | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._folder = tempfile.mkdtemp(prefix="rewardkit-reward-")
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._numbers = count()
        if in_process:
            self._function = self._here(function)
        else:
            path = [os.getcwd(), *sys.path]
            told = {"spec": str(Path(spec).absolute()) if ".py:" in spec else spec, "path": path}
            if not isinstance(function, str):
                told = {"pickle": self._pickled(function), "path": path}
            self._pool = _Pool(told, timeout_s=timeout_s, memory_mb=memory_mb, workers=workers)
            self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix=f"reward-{self.name}")

    @property
    def about(self) -> str:
        """One line for the start of a run."""
        if not self.killable:
            return f"{self.name}: called in this process, where it cannot be killed and has no deadline"
        many = f"{self.workers} processes" if self.workers > 1 else "1 process"
        return f"{self.name}: {many}, killed after {self.timeout_s:g} s or at {self.memory_mb} MiB"

    def start(self) -> None:
        """Start all workers and wait until they have loaded the function. RewardError where one cannot."""
        if self._pool is None or self._threads is None:
            return
        pool = self._pool
        for reply in list(self._threads.map(lambda _: pool.ask({}), range(self.workers))):
            if reply.failure:
                raise RewardError(
                    f"a worker for reward function {self.name} did not start ({reply.detail}); importing it must "
                    f"take less than {START_SECONDS:g} s and leave the process alive"
                )
            self._refuse_unloaded(reply.value or {})

    def submit(self, problems: Sequence[Problem], responses: Sequence[Response]) -> PendingValues:
        """Begin to judge; `problems[i]` is what `responses[i]` answers, those of one problem side by side."""
        if len(problems) != len(responses):
            raise ConfigError(
                f"reward {self.name} needs one problem a response; got {len(problems)} problems and "
                f"{len(responses)} responses"
            )
        calls = []
        for start, end in pieces([problem.id for problem in problems], self.workers, self.rows):
            columns = trl_columns(problems[start:end], responses[start:end])
            if self._threads is None:
                done: Future[PartValues] = Future()
                done.set_result(self._judge_here(columns))
                calls.append(done)
            else:
                calls.append(self._threads.submit(self._judge, self._written(columns), end - start))
        return PendingValues(calls=tuple(calls))

    def score(self, problems: Sequence[Problem], responses: Sequence[Response]) -> PartValues:
        """`submit` and `collect`."""
        return self.submit(problems, responses).collect()

    def close(self) -> None:
        """End the workers; the object can be used again and starts new ones."""
        if self._pool is not None:
            self._pool.close()

    def _judge(self, path: Path, rows: int) -> PartValues:
        assert self._pool is not None
        try:
            reply = self._pool.ask({"file": str(path)})
            value, failure, detail = reply.value, reply.failure, reply.detail
        except ValueError as error:  # the worker wrote something else than JSON into its pipe
            value, failure, detail = None, "crash", f"its answer cannot be read: {error}"
        finally:
            path.unlink(missing_ok=True)
        if value is None:
            return self._all(rows, failure, self._stopped(failure, detail))
        return self._read(value, rows)

    def _judge_here(self, columns: Mapping[str, Any]) -> PartValues:
        assert self._function is not None
        rows = len(columns["completions"])
        try:
            return self._read(call(self._function, columns), rows)
        except MemoryError:
            return self._all(rows, "memory", f"reward function {self.name} ran out of memory; ask less of it")

    def _stopped(self, failure: str, detail: str) -> str:
        said = f"reward function {self.name}"
        if failure == "timeout":
            return (
                f"{said} did not return within {self.timeout_s:g} s and was killed; make it faster, or raise "
                "timeout_s (--reward-timeout)"
            )
        if failure == "memory":
            return (
                f"{said} needed more than {self.memory_mb} MiB; let it use less, or raise memory_mb (--reward-memory)"
            )
        return f"{said} ended its process ({detail}); it must return, not exit or crash"

    def _all(self, rows: int, kind: str, detail: str) -> PartValues:
        return PartValues(values=(Unscored(kind=kind, detail=detail, failed=True),) * rows)

    def _read(self, reply: Mapping[str, Any], rows: int) -> PartValues:
        self._refuse_unloaded(reply)
        if "entries" not in reply:
            return self._all(rows, reply["kind"], self._detail(reply))
        extra = {name: tuple(texts) for name, texts in reply["extra"].items()}
        values = tuple(map(self._value, reply["entries"]))
        return PartValues(values=values, metrics=reply["metrics"], extra=extra)

    def _value(self, entry: Any) -> Value:
        if entry is None:
            return Unscored(kind=ABSTAINED, detail=f"reward function {self.name} returned None")
        if isinstance(entry, Mapping):
            if "kind" in entry:
                return Unscored(kind=entry["kind"], detail=self._detail(entry), failed=True)
            return StepRewards(tuple(entry["values"]), tuple(entry["ends"]))
        return float(entry)

    def _detail(self, reply: Mapping[str, Any]) -> str:
        return f"reward function {self.name} {reply['detail']}; {_ADVICE[reply['kind']]}"

    def _refuse_unloaded(self, reply: Mapping[str, Any]) -> None:
        if reply.get("kind") == "not_loaded":
            raise RewardError(f"reward function {self.name} cannot be loaded: {reply['detail']}; mend the import")

    def _here(self, function: str | Callable[..., Any]) -> Callable[..., Any]:
        if not isinstance(function, str):
            return function
        try:
            return load_function(function)
        except RewardkitError:
            raise
        except Exception as error:
            raise RewardError(f"reward function {self.name} cannot be loaded: {error}; mend the import") from error

    def _pickled(self, function: Callable[..., Any]) -> str:
        path = Path(self._folder, "function.pkl")
        remedy = "put it into a file and name it file.py:function, or pass in_process=True, where it cannot be killed"
        if getattr(function, "__module__", "") == "__main__":
            raise ConfigError(
                f"reward {self.name} is defined in the main script, which a worker cannot import; {remedy}"
            )
        try:
            path.write_bytes(pickle.dumps(function))
        except Exception as error:
            raise ConfigError(f"reward {self.name} cannot be sent to a worker process ({error}); {remedy}") from error
        return str(path)

    def _written(self, columns: Mapping[str, Any]) -> Path:
        path = Path(self._folder, f"batch-{next(self._numbers)}.pkl")
        try:
            path.write_bytes(pickle.dumps(columns))
        except Exception as error:
            raise ConfigError(
                f"the columns of the data set cannot be sent to reward {self.name}'s worker process ({error}); "
                "keep plain values in them"
            ) from error
        return path


def pieces(names: Sequence[str], workers: int, rows: int) -> list[tuple[int, int]]:
    """[start, end) of each call: as even as equal neighbours in `names` allow, of at most `rows` where they can be."""
    most = -(-len(names) // workers)
    most = min(most, rows) if rows else most
    starts = [0] + [n for n in range(1, len(names)) if names[n] != names[n - 1]]
    found: list[tuple[int, int]] = []
    for start, end in zip(starts, [*starts[1:], len(names)], strict=True) if names else ():
        if found and end - found[-1][0] <= most:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def trl_columns(problems: Sequence[Problem], responses: Sequence[Response]) -> dict[str, Any]:
    """A batch as TRL's keyword arguments: a column of the data set that a problem lacks is None there."""
    names = dict.fromkeys(key for problem in problems for key in problem.metadata)
    return {
        **{key: [problem.metadata.get(key) for problem in problems] for key in names},
        "id": [problem.id for problem in problems],
        "answer": [problem.answer for problem in problems],
        "prompts": [_plain(problem.prompt) for problem in problems],
        "completions": [
            response.text if isinstance(problem.prompt, str) else [{"role": "assistant", "content": response.text}]
            for problem, response in zip(problems, responses, strict=True)
        ],
        "completion_ids": [list(response.token_ids) for response in responses],
    }


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
