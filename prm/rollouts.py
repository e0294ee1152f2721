"""Roll-outs from the steps of responses, each drawn once, judged once, and written down.

A roll-out continues a response from the end of one of its steps with the policy. The roll-outs of a step form a
stream: number k depends on (seed, problem, sample, step, k) and on nothing else, so that a stream can be drawn in any
pieces, in any batch, and again after a kill, and is always the same. `Rollouts.draw` returns the next few of each
stream that is asked for; what the log holds already is not drawn again.

The requests of one response have nested prefixes, which an engine with a prefix cache (ours, vLLM) reads once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

from verifiers.core import (
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
        self._file = JsonlAppender(path)
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
        """See `Log`; on return they are on disk."""
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


class Rollouts:
    """Draws and judges roll-outs over one engine. `drawn` counts those that were paid for here."""

    def __init__(
        self, engine: Engine, verifier: Scorer, sampling: Sampling, *, seed: int = 0, log: Log | None = None
    ) -> None:
        self.engine, self.verifier, self.sampling, self.seed = engine, verifier, sampling, seed
        self.log = log if log is not None else MemoryLog()
        self.drawn = 0
        self._read: dict[Key, int] = {}
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

    def draw(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """The next roll-outs of each stream, in one call of the engine; streams must be distinct."""
        keys = [(ask.trajectory.problem.id, ask.trajectory.name, ask.step) for ask in asks]
        assert len(set(keys)) == len(keys), "one ask a stream"
        found: list[list[Rollout]] = []
        missing: list[tuple[int, GenerationRequest]] = []
        for number, (ask, key) in enumerate(zip(asks, keys, strict=True)):
            first = self._read.get(key, 0)
            found.append(list(self.log.known(key)[first : first + ask.count]))
            self._read[key] = first + ask.count
            if len(found[-1]) < ask.count:
                missing.append((number, self._request(ask, first + len(found[-1]), ask.count - len(found[-1]))))
        drawn = self.engine.generate([request for _, request in missing], self.sampling) if missing else []
        tokenizer = self.engine.tokenizer
        pairs = [
            (ask.trajectory.problem, finish(tokenizer, ask.trajectory, ask.step, c.token_ids, c.stop_reason))
            for ask, row in zip((asks[number] for number, _ in missing), drawn, strict=True)
            for c in row
        ]
        self.drawn += len(pairs)
        outcomes = iter(self.judge(pairs))
        new: list[tuple[Key, list[Rollout]]] = []
        for (number, _), row in zip(missing, drawn, strict=True):
            pieces = [Rollout(token_ids=c.token_ids, stop_reason=c.stop_reason, outcome=next(outcomes)) for c in row]
            found[number] += pieces
            new.append((keys[number], pieces))
        if new:
            self.log.add(new)
        return found

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
