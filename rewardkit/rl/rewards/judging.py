"""Rewards of groups that are whole, while others still decode.

What a verifier or a function says of a response depends on the responses to its problem at most, so a problem's
responses are judged as soon as all of them are there: functions in their own worker processes, verifiers one after
another in a thread of their own. Models score all responses together at the end, in the batches that they would have
had, because they share the device with the sampler and because sums in another batch differ in the last bits. Values
are put back into the order of the batch before they are added up: the result is that of `RewardList.score`, for every
function that looks at one problem at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from rewardkit.rl.rewards.functions import RewardList, RewardPart
from rewardkit.rl.rewards.scored import PartValues, Scored
from rewardkit.rl.rewards.sources import FunctionSource, ScorerSource, Source
from rewardkit.rl.rewards.workers import PendingValues
from rewardkit.rl.sampling.drawing import Group
from verifiers.core import Problem, Response


class Judging:
    """The rewards of one batch of groups; a context that ends its threads."""

    def __init__(self, rewards: RewardList, problems: Sequence[Problem]) -> None:
        """`problems` are those of the groups to come; one may be there several times."""
        self._rewards, self._problems = rewards, list(problems)
        self._groups: dict[int, Group] = {}
        self._missing: dict[str, set[int]] = {}
        for number, problem in enumerate(problems):
            self._missing.setdefault(problem.id, set()).add(number)
        self._begun: list[tuple[int, ...]] = []
        self._calls: dict[str, list[Future[PartValues]]] = {}
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._work: list[float] = []
        scorers = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward-verifiers")
        for part in rewards.parts:
            if isinstance(part.source, FunctionSource):
                many = part.source.workers.workers
                self._threads[part.name] = ThreadPoolExecutor(many, thread_name_prefix=f"reward-{part.name}")
            elif isinstance(part.source, ScorerSource):
                # One thread for all of them: two that need the same verdicts ask for them in turn (`Shared`).
                self._threads[part.name] = scorers
            self._calls[part.name] = []

    def __enter__(self) -> Judging:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    @property
    def work(self) -> float:
        """Seconds of judging so far, wherever it ran; those of several workers are added up."""
        return sum(self._work)

    def add(self, number: int, group: Group) -> None:
        """A group that is whole, and its number; judged once all groups of its problem are there."""
        self._groups[number] = group
        self._missing[group.problem.id].discard(number)
        self._begin(group.problem.id)

    def _begin(self, name: str) -> None:
        same = tuple(n for n, problem in enumerate(self._problems) if problem.id == name and n in self._groups)
        if self._missing[name] or not same:
            return
        self._begun.append(same)
        problems, responses = self._batch(same)
        for part in self._rewards.parts:
            if part.name in self._threads:
                call = self._threads[part.name].submit(self._judge, part.source, problems, responses)
                self._calls[part.name].append(call)

    def leave_out(self, number: int) -> None:
        """A group that does not come; the others of its problem are judged without it."""
        problem = self._problems[number]
        self._missing[problem.id].discard(number)
        self._begin(problem.id)

    def collect(self) -> Scored:
        """Wait for what came. RewardError for too few rewards, or with on_error "raise" for a reward that broke."""
        problems, responses = self._batch(sorted(self._groups))
        # Models first: they work here, while the others go on.
        late = {
            part.name: self._judge(part.source, problems, responses)
            for part in self._rewards.parts
            if part.name not in self._threads
        }
        return self._rewards.add_up([late.get(part.name) or self._in_order(part) for part in self._rewards.parts])

    def _judge(self, source: Source, problems: Sequence[Problem], responses: Sequence[Response]) -> PartValues:
        started = time.perf_counter()
        try:
            return source.submit(problems, responses)()
        finally:
            self._work.append(time.perf_counter() - started)

    def _batch(self, numbers: Sequence[int]) -> tuple[list[Problem], list[Response]]:
        groups = [self._groups[number] for number in numbers]
        responses = [response for group in groups for response in group.responses]
        return [group.problem for group in groups for _ in group.responses], responses

    def _in_order(self, part: RewardPart) -> PartValues:
        """What the part said of all responses, in the order of the batch."""
        at, rows = 0, {}
        for number in sorted(self._groups):
            rows[number] = range(at, at := at + len(self._groups[number].responses))
        calls = sorted(zip(self._begun, self._calls[part.name], strict=True), key=lambda pair: pair[0])
        found = PendingValues(calls=tuple(call for _, call in calls)).collect()
        order = [row for numbers, _ in calls for number in numbers for row in rows[number]]
        places = sorted(range(len(order)), key=order.__getitem__)
        return PartValues(
            values=tuple(found.values[place] for place in places),
            metrics=found.metrics,
            extra={name: tuple(texts[place] for place in places) for name, texts in found.extra.items()},
        )
