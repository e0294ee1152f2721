"""Roll-outs from the steps of responses, each drawn once, judged once, and written down.

A roll-out continues a response from the end of one of its steps with the policy. The roll-outs of a step form a
stream: number k depends on (seed, problem, sample, step, k) and on nothing else, so that a stream can be drawn in any
pieces, in any batch, and again after a kill, and is always the same. `Rollouts.ask` wants the next few of a stream and
`Rollouts.collect` returns what is complete, while the engine goes on with the rest (`verifiers/streams.py`); what the
log holds already is not drawn again.

The requests of one response have nested prefixes, which an engine with a prefix cache (ours, vLLM) reads once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from verifiers.core import (
    Continuation,
    Engine,
    GenerationRequest,
    Outcome,
    Problem,
    Response,
    Sampling,
    Scorer,
    Step,
    StopReason,
    Verdict,
    derive_seed,
)
from verifiers.errors import DataError
from verifiers.jsonl import JsonlAppender
from verifiers.steps import encode_prompt, response_ids, token_steps
from verifiers.streams import open_stream

Key: TypeAlias = tuple[str, str, int]
"""Problem, response, step."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trajectory:
    """A response with its ids and steps, from whose steps roll-outs are drawn."""

    problem: Problem
    response: Response
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    steps: tuple[Step, ...]
    name: str
    """Tells the responses to a problem apart; with problem and step it names a stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One continuation and what the whole response was judged to be."""

    token_ids: tuple[int, ...]
    """The ids drawn after the step."""
    stop_reason: StopReason
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """The next `count` roll-outs from the end of step number `step`."""

    trajectory: Trajectory
    step: int
    count: int


class Log(Protocol):
    """Where drawn roll-outs are kept."""

    def known(self, key: Key) -> Sequence[Rollout]:
        """What is kept of a stream, from its beginning."""
        ...

    def add(self, found: Sequence[tuple[Key, Sequence[Rollout]]]) -> None:
        """Keep the next roll-outs of some streams."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryLog:
    """Keeps roll-outs while the process lives."""

    streams: dict[Key, list[Rollout]] = field(default_factory=dict)

    def known(self, key: Key) -> Sequence[Rollout]:
        """See `Log`."""
        return self.streams.get(key, ())

    def add(self, found: Sequence[tuple[Key, Sequence[Rollout]]]) -> None:
        """See `Log`."""
        for key, rollouts in found:
            self.streams.setdefault(key, []).extend(rollouts)


class FileLog:
    """Keeps roll-outs in a JSON Lines file that survives kill -9; what it holds on opening is known.

    One line a piece of a stream:
    {"problem_id", "response", "step", "first", "rollouts": [[outcome, stop reason, ids], ...]}.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = JsonlAppender(path, sync_seconds=1.0)
        self._memory = MemoryLog()
        for number, row in enumerate(self._file.rows, start=1):
            key = (row["problem_id"], row["response"], row["step"])
            if row["first"] != len(self._memory.known(key)):
                raise DataError(
                    f"{path}, line {number}: roll-outs from number {row['first']} follow "
                    f"{len(self._memory.known(key))} of {key}; the file is not one run's log, move it away"
                )
            self._memory.add([(key, [_rollout(*parts) for parts in row["rollouts"]])])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def known(self, key: Key) -> Sequence[Rollout]:
        """See `Log`."""
        return self._memory.known(key)

    def add(self, found: Sequence[tuple[Key, Sequence[Rollout]]]) -> None:
        """See `Log`; on return they outlive the process, a second later at most the machine."""
        self._file.append(
            *(
                {
                    "problem_id": key[0],
                    "response": key[1],
                    "step": key[2],
                    "first": len(self.known(key)),
                    "rollouts": [[r.outcome.value, r.stop_reason.value, list(r.token_ids)] for r in rollouts],
                }
                for key, rollouts in found
            )
        )
        self._memory.add(found)


def _rollout(outcome: str, stop_reason: str, token_ids: list[int]) -> Rollout:
    return Rollout(outcome=Outcome(outcome), stop_reason=StopReason(stop_reason), token_ids=tuple(token_ids))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An ask that the engine works on, and what the log had of it."""

    ticket: int
    ask: Ask
    key: Key
    known: list[Rollout]


class Rollouts:
    """Draws and judges roll-outs over one engine. `drawn` counts those that were paid for here."""

    def __init__(
        self, engine: Engine, verifier: Scorer, sampling: Sampling, *, seed: int = 0, log: Log | None = None
    ) -> None:
        self.engine, self.verifier, self.sampling, self.seed = engine, verifier, sampling, seed
        self.log = log if log is not None else MemoryLog()
        self.drawn = 0
        self._read: dict[Key, int] = {}
        self._tickets = 0
        self._busy: set[Key] = set()
        self._ready: list[tuple[int, list[Rollout]]] = []
        self._wanted: list[tuple[_Wanted, GenerationRequest]] = []
        self._drawing: dict[int, _Wanted] = {}
        self._stream = open_stream(engine, sampling)
        self._verdicts: dict[tuple[str, str, StopReason], Verdict] = {}

    def trajectory(self, problem: Problem, response: Response, *, name: str = "") -> Trajectory:
        """A response made ready; `name` is its sample number unless given."""
        ids = response_ids(self.engine.tokenizer, response)
        return Trajectory(
            problem=problem,
            response=response,
            prompt_ids=encode_prompt(self.engine.tokenizer, problem.prompt),
            ids=ids,
            steps=tuple(token_steps(self.engine.tokenizer, response, ids)),
            name=name or str(response.sample),
        )

    def ask(self, asks: Sequence[Ask]) -> list[int]:
        """Want the next roll-outs of some streams; a ticket each. One ask a stream at a time."""
        tickets = list(range(self._tickets, self._tickets + len(asks)))
        self._tickets += len(asks)
        for ticket, ask in zip(tickets, asks, strict=True):
            key = (ask.trajectory.problem.id, ask.trajectory.name, ask.step)
            assert key not in self._busy, "one ask a stream at a time"
            first = self._read.get(key, 0)
            known = list(self.log.known(key)[first : first + ask.count])
            self._read[key] = first + ask.count
            if len(known) == ask.count:
                self._ready.append((ticket, known))
                continue
            self._busy.add(key)
            request = self._request(ask, first + len(known), ask.count - len(known))
            self._wanted.append((_Wanted(ticket, ask, key, known), request))
        return tickets

    def collect(self) -> list[tuple[int, list[Rollout]]]:
        """Asks that are complete, each with its roll-outs, judged and logged; empty only when nothing is asked."""
        if self._wanted:
            submitted, self._wanted = self._wanted, []
            tickets = self._stream.submit([request for _, request in submitted])
            self._drawing |= dict(zip(tickets, (wanted for wanted, _ in submitted), strict=True))
        done, self._ready = self._ready, []
        if not done:
            drawn = [(self._drawing.pop(ticket), row) for ticket, row in self._stream.collect()]
            pairs = [(wanted.ask.trajectory.problem, self._finish(wanted.ask, c)) for wanted, row in drawn for c in row]
            self.drawn += len(pairs)
            outcomes = iter(self.judge(pairs))
            new: list[tuple[Key, list[Rollout]]] = []
            for wanted, row in drawn:
                new.append(
                    (
                        wanted.key,
                        [
                            Rollout(token_ids=c.token_ids, stop_reason=c.stop_reason, outcome=next(outcomes))
                            for c in row
                        ],
                    )
                )
                self._busy.remove(wanted.key)
                done.append((wanted.ticket, [*wanted.known, *new[-1][1]]))
            if new:
                self.log.add(new)
        return done

    def _finish(self, ask: Ask, drawn: Continuation) -> Response:
        return finish(self.engine.tokenizer, ask.trajectory, ask.step, drawn.token_ids, drawn.stop_reason)

    def _request(self, ask: Ask, first: int, count: int) -> GenerationRequest:
        at = ask.trajectory
        parts: list[Any] = [at.name if not at.name.isdigit() else int(at.name), ask.step]
        prefix = (*at.prompt_ids, *at.ids[: at.steps[ask.step].token_end])
        seed = derive_seed(self.seed, "label", at.problem.id, *parts)
        return GenerationRequest(prefix_ids=prefix, n=count, seed=seed, first=first)

    def judge(self, pairs: Sequence[tuple[Problem, Response]]) -> list[Outcome]:
        """Outcomes of finished responses; every distinct one is judged once."""
        keys = [(problem.id, response.text, response.stop_reason) for problem, response in pairs]
        new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in self._verdicts}
        if new:
            verdicts = self.verifier.judge([p for p, _ in new.values()], [r for _, r in new.values()])
            self._verdicts |= dict(zip(new, verdicts, strict=True))
        return [self._verdicts[key].outcome for key in keys]


def finish(
    tokenizer: Any, trajectory: Trajectory, step: int, new_ids: tuple[int, ...], stop_reason: StopReason
) -> Response:
    """The whole response that a roll-out from the end of `step` amounts to."""
    ids = (*trajectory.ids[: trajectory.steps[step].token_end], *new_ids)
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Response(
        problem_id=trajectory.problem.id,
        text=text,
        token_ids=ids,
        stop_reason=stop_reason,
        sample=trajectory.response.sample,
    )
