"""Which problems a step gets, and the responses that the policy draws to them.

Problems come in shuffled rounds of all of them; the order depends on the seed alone, and a position in it is all that a
run needs to go on. Response j of a group is drawn from a stream that (seed, step, problem id, j) name, whatever else is
in the batch. All groups decode together, and each is handed out as soon as its last response ended.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from search.strategies.best_of_n import request_for, responses_of
from verifiers.core import Engine, Problem, Response, Sampling, derive_seed
from verifiers.errors import ConfigError
from verifiers.streams import open_stream

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Group:
    """A problem and the responses drawn to it, with their log-probabilities."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    responses: tuple[Response, ...]


class Order(Generic[Item]):
    """The problems (or rows of another kind), one after another, in shuffled rounds."""

    def __init__(self, problems: Sequence[Item], *, seed: int, position: int = 0) -> None:
        if not problems:
            raise ConfigError("there must be at least one problem to learn from; got none")
        self.problems, self.seed, self.position = list(problems), seed, position
        self._round, self._places = -1, [0]

    def take(self, count: int) -> list[Item]:
        """The next problems; a problem comes again after all others."""
        found = []
        for _ in range(count):
            number, place = divmod(self.position, len(self.problems))
            if number != self._round:
                self._places = list(range(len(self.problems)))
                random.Random(derive_seed(self.seed, "order", number)).shuffle(self._places)
                self._round = number
            found.append(self.problems[self._places[place]])
            self.position += 1
        return found


def draw_groups(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    n: int,
    sampling: Sampling,
    seed: int,
    stream: str,
    on_group: Callable[[int, Group], None] = lambda number, group: None,
) -> list[Group]:
    """`n` responses to every problem; `stream` names the random streams beside the seed and the problem's id.

    A problem that comes several times in one call is drawn each time from another stream. `on_group` is told a
    problem's number and its group while others still decode. Raises EngineError naming a problem whose prompt is too
    long.
    """
    times: Counter[str] = Counter()
    requests = []
    for problem in problems:
        requests.append(request_for(engine, problem, n=n, seed=derive_seed(seed, stream, times[problem.id])))
        times[problem.id] += 1
    found: dict[int, Group] = {}
    flow = open_stream(engine, sampling)
    places = {ticket: number for number, ticket in enumerate(flow.submit(requests))}
    try:
        while flow.waiting:
            for ticket, drawn in flow.collect():
                number = places[ticket]
                problem = problems[number]
                responses = responses_of(engine, problem, drawn)
                found[number] = Group(problem=problem, prompt_ids=requests[number].prefix_ids, responses=responses)
                on_group(number, found[number])
    finally:
        flow.cancel(list(places))
    return [found[number] for number in range(len(problems))]
