"""One loop over all problems of a run, which keeps the engine's batch full.

Every problem runs a plan (`search/plans.py`), a plan wants draws, and all draws of all problems go to one stream of
the engine (`verifiers/streams.py`): a row that ends, whatever its problem decides about it, gives its place to the
next draw of any problem at once. New problems are started while fewer rows are in work than the engine has room for.
Steps that want scores wait until there are many of them, or until the engine would run short of rows; then the scorer
reads them in one call. Equal steps behind one node are one node and are scored once.

A draw ends where its step or response does; a longer piece is drawn in parts of `PIECE` tokens, and a text that
repeats itself (`verifiers/repetition.py`) is ended there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from search.plans import Candidate, Draw, Plan, Search, Strategy
from search.stepping import grow, step_stops
from search.tree import Kind, Node, Tree
from verifiers.core import (
    Continuation,
    Engine,
    GenerationRequest,
    Problem,
    Sampling,
    StepScorer,
    StopReason,
    Usage,
    derive_seed,
)
from verifiers.errors import ConfigError, EngineError, RewardError
from verifiers.repetition import find_loop
from verifiers.steps import encode_prompt
from verifiers.streams import open_stream

PIECE = 256
"""Tokens after which a draw that has not ended is looked at for loops."""
SCORED_AT_ONCE = 64
"""Steps that wait for their scores while the engine has other work."""
ROWS = 256
"""Rows to keep in work for an engine that does not say how many it can decode at once."""


@dataclass(slots=True, eq=False)
class _Task:
    """A plan that runs, and what its wishes have come to."""

    plan: Plan
    of: _Run
    above: _Task | None = None
    place: int = 0
    results: list[Any] = field(default_factory=list)
    missing: int = 0


@dataclass(slots=True, eq=False)
class _Run:
    """A problem in work."""

    number: int
    search: Search


@dataclass(slots=True, eq=False)
class _Flight:
    """A draw in the engine: the wish it answers and what was drawn so far."""

    task: _Task
    place: int
    draw: Draw
    node: Node
    most: int
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A problem's search that is over."""

    number: int
    search: Search
    candidates: tuple[Candidate, ...]


class Scheduler:
    """Runs a strategy over problems; `run` yields each problem's end as it comes."""

    def __init__(
        self,
        engine: Engine,
        strategy: Strategy,
        *,
        scorer: StepScorer | None = None,
        sampling: Sampling | None = None,
        seed: int = 0,
        rows: int | None = None,
    ) -> None:
        if strategy.needs_scores and scorer is None:
            raise ConfigError(f"{type(strategy).__name__} decides by step scores; give a scorer")
        self.engine, self.strategy, self.scorer, self.seed = engine, strategy, scorer, seed
        self.sampling = sampling or Sampling()
        self.rows: int = getattr(engine, "max_rows", ROWS) if rows is None else rows
        own = self.sampling
        if strategy.stepwise:
            own = replace(own, stop_sequences=(*own.stop_sequences, *step_stops(engine.tokenizer)))
        self._step_stops = set(own.stop_sequences) - set(self.sampling.stop_sequences)
        self.stream = open_stream(engine, own, keep=True)
        self._flights: dict[int, _Flight] = {}
        self._unscored: dict[tuple[int, int], list[tuple[_Task, int]]] = {}
        self._to_score: list[tuple[_Run, Node]] = []
        self._ready: deque[tuple[_Task, list[Any] | None]] = deque()
        self._over: list[Ended] = []
        self.scorer_usage = Usage()
        self.scorer_seconds = 0.0
        self.scorer_calls = 0

    def run(self, problems: Sequence[Problem], *, budgets: Sequence[int | None] | None = None) -> Iterator[Ended]:
        """Search all problems, `budgets[i]` tokens for `problems[i]`; ends come as they fall, not in order."""
        limits = budgets if budgets is not None else [None] * len(problems)
        waiting = deque(enumerate(zip(problems, limits, strict=True)))
        running = 0
        while waiting or running:
            while waiting and len(self._flights) + len(self._to_score) < self.rows + SCORED_AT_ONCE:
                number, (problem, budget) = waiting.popleft()
                self._start(number, problem, budget)
                running += 1
                self._settle()
            if self._to_score and (
                len(self._to_score) >= SCORED_AT_ONCE or 8 * len(self._flights) < 7 * self.rows or not self._flights
            ):
                self._score()
            elif self._flights:
                for ticket, drawn in self.stream.collect():
                    self._drawn(self._flights.pop(ticket), drawn[0])
            self._settle()
            over, self._over = self._over, []
            running -= len(over)
            yield from over

    def _start(self, number: int, problem: Problem, budget: int | None) -> None:
        prompt_ids = encode_prompt(self.engine.tokenizer, problem.prompt)
        room = self.engine.context_length - len(prompt_ids)
        if room < 1:
            raise EngineError(
                f"the prompt of problem {problem.id!r} has {len(prompt_ids)} tokens, but the model's context holds "
                f"{self.engine.context_length}; shorten the prompt or use a model with a longer context"
            )
        search = Search(
            tree=Tree(problem),
            prompt_ids=prompt_ids,
            sampling=self.sampling,
            seed=derive_seed(self.seed, problem.id),
            budget=budget,
            limit=min(self.sampling.max_new_tokens, room),
        )
        self._ready.append((_Task(self.strategy.plan(search), _Run(number, search)), None))

    def _settle(self) -> None:
        """Let every plan go on that has what it wished for, and hand the engine what they want next."""
        wanted: list[_Flight] = []
        while self._ready:
            task, results = self._ready.popleft()
            try:
                wishes = next(task.plan) if results is None else task.plan.send(results)
            except StopIteration as end:
                self._finish(task, end.value)
                continue
            task.results, task.missing = [None] * len(wishes), len(wishes)
            if not wishes:
                self._ready.append((task, []))
            for place, wish in enumerate(wishes):
                if isinstance(wish, Draw):
                    wanted += self._flight(task, place, wish)
                else:
                    self._ready.append((_Task(wish, task.of, task, place), None))
        self._submit(wanted)

    def _finish(self, task: _Task, value: Any) -> None:
        if task.above is None:
            self._over.append(Ended(number=task.of.number, search=task.of.search, candidates=tuple(value)))
        else:
            self._deliver(task.above, task.place, value)

    def _deliver(self, task: _Task, place: int, value: Any) -> None:
        task.results[place] = value
        task.missing -= 1
        if not task.missing:
            self._ready.append((task, task.results))

    def _flight(self, task: _Task, place: int, draw: Draw) -> list[_Flight]:
        """The draw as a flight; a node that nothing may follow is the result itself."""
        most = task.of.search.limit - draw.node.length
        if draw.most is not None:
            most = min(most, draw.most)
        assert draw.node.ended is None, "nothing follows a response that ended"
        if most < 1:
            self._deliver(task, place, draw.node)
            return []
        return [_Flight(task, place, draw, draw.node, most)]

    def _submit(self, flights: Sequence[_Flight]) -> None:
        requests = []
        for flight in flights:
            search, name = flight.task.of.search, flight.draw.name
            requests.append(
                GenerationRequest(
                    prefix_ids=(*search.prompt_ids, *flight.node.ids, *flight.ids),
                    seed=search.request_seed(name),
                    first=name[0],
                    offset=flight.node.length + len(flight.ids),
                    max_new_tokens=min(flight.most, PIECE),
                )
            )
        self._flights |= dict(zip(self.stream.submit(requests), flights, strict=True))

    def _drawn(self, flight: _Flight, piece: Continuation) -> None:
        """A piece came back: go on with it, or make its nodes and have them scored."""
        search, ids = flight.task.of.search, piece.token_ids
        search.spent += len(ids)
        flight.ids += ids
        flight.most -= len(ids)
        length = flight.node.length + len(flight.ids)
        paused = piece.stop_reason is StopReason.STOP and self._at_step(flight.ids)
        looped = find_loop((*flight.node.ids, *flight.ids))
        ended: StopReason | None = None
        if piece.stop_reason is StopReason.STOP and not paused:
            ended = StopReason.STOP
        elif looped is not None:
            ended = StopReason.REPETITION
        elif length >= search.limit:
            ended = StopReason.LENGTH
        over = ended is not None or flight.most < 1
        if not over and not paused:
            self._submit([flight])
            return
        node = grow(search.tree, self.engine.tokenizer, flight.node, flight.ids, ended=ended)[-1]
        if looped is not None and ended is StopReason.REPETITION:
            search.tree.note(Kind.LOOP, node, f"{looped.repeats} repeats of the same {looped.period} tokens")
        if not over and flight.draw.until == "end":
            self._submit([_Flight(flight.task, flight.place, flight.draw, node, flight.most)])
            return
        if self.scorer is None or not flight.draw.score or not node.steps or node.key in search.tree.scores:
            self._deliver(flight.task, flight.place, node)
            return
        key = (flight.task.of.number, node.key)
        if key not in self._unscored:
            self._to_score.append((flight.task.of, node))
        self._unscored.setdefault(key, []).append((flight.task, flight.place))

    def _at_step(self, ids: tuple[int, ...]) -> bool:
        return any(ids[-size:] in self._step_stops for size in (1, 2))

    def _score(self) -> None:
        """Have the waiting nodes scored in one call and hand them out."""
        assert self.scorer is not None
        asked, self._to_score = self._to_score, []
        started, before = time.perf_counter(), getattr(self.scorer, "usage", Usage())
        problems = [run.search.problem for run, _ in asked]
        found = self.scorer.score_steps(problems, [run.search.tree.response(node) for run, node in asked])
        self.scorer_usage += getattr(self.scorer, "usage", Usage()) - before
        self.scorer_seconds += time.perf_counter() - started
        self.scorer_calls += 1
        if len(found) != len(asked):
            raise RewardError(
                f"a step scorer must return one tuple of scores a response; got {len(found)} for {len(asked)} "
                "responses; mend the scorer"
            )
        for (run, node), scores in zip(asked, found, strict=True):
            if len(scores) != node.steps:
                raise RewardError(
                    f"a step scorer must return one score a step; got {len(scores)} for {node.steps} steps of a "
                    f"response to problem {run.search.problem.id!r}; mend the scorer"
                )
            run.search.tree.score(node, tuple(scores))
            for task, place in self._unscored.pop((run.number, node.key)):
                self._deliver(task, place, node)
