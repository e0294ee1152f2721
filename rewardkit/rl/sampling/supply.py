"""Where a step's groups come from: the model as it is, or a second process that draws some steps ahead.

    staleness 0   a step's groups are drawn when it begins, with the weights that will learn from them
    staleness S   the groups of step t are drawn with the weights that t - S steps had learned from (those of the
                  beginning for the first S), in the background, while steps t - S to t - 1 score and learn. Groups
                  that a filter wants besides are drawn with the weights as they are. So which weights draw what does
                  not depend on how long anything takes, and two runs are the same bit for bit

Responses that go on in pieces (`segment_tokens`) are put away here after each draw, and go on in the next one that is
begun. What a step would learn from more than so many steps behind the weights that began it is dropped and counted.
What is drawn and not learned from yet is the state of a checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from rewardkit.rl.config import RlConfig
from rewardkit.rl.policy.models import Models
from rewardkit.rl.sampling.background import Background, RemoteStream, Start, spawned
from rewardkit.rl.sampling.drawing import Draw, Limits, OpenGroup, Order, open_groups
from rewardkit.rl.sampling.sampler import Sampler, module_weights
from rewardkit.rl.sampling.sampler_gap import Gap, measure
from verifiers.core import Engine, Problem
from verifiers.errors import ConfigError
from verifiers.streams import open_stream


class Supply:
    """Draws a step's groups when it begins."""

    def __init__(
        self,
        config: RlConfig,
        order: Order[Problem],
        sampler: Sampler,
        *,
        models: Models | None = None,
    ) -> None:
        """`models` are those that the sampler draws from; needed where responses come in pieces."""
        self.config, self.order = config, order
        self.sampler, self._models = sampler, models
        self._engine: Engine | None = None
        self._left: list[OpenGroup] = []
        self._step, self._dropped, self._away, self._gap = 0, 0, 0, Gap()
        self.limits = Limits(most=config.max_new_tokens, piece=config.segment_tokens, repetition=config.repetition_rule)

    @property
    def engine(self) -> Engine:
        """With the tokenizer of the responses, and their context."""
        assert self._engine is not None
        return self._engine

    def begin(self, step: int) -> None:
        """A step begins; the weights stay as they are until it has all its groups."""
        self._engine = self.sampler.engine()
        self._step = step

    def draw(self, number: int, lacking: int, *, rank: int = 0, ranks: int = 1) -> Draw | None:
        """Draw number `number` of the step, of as many new groups as are lacking; None: no one's share is here."""
        groups = self._taken(self._step, number, lacking, rank, ranks)
        if not number:
            groups = self._going_on(self._step) + groups
        return self._begun(groups) if groups else None

    def again(self) -> Draw | None:
        """Go on with all that was put away, in the same step; None where that is nothing."""
        self._away = 0
        groups = self._going_on(self._step)
        return self._begun(groups) if groups else None

    def drawn(self, draw: Draw) -> None:
        """A draw of this step is over."""
        self._put_away(draw)
        if self.config.segment_tokens:
            assert self._models is not None
            self._gap += measure(self._models.reader, draw.sample, autocast=self._models.autocast)

    def full(self) -> None:
        """The step has all its groups."""

    def figures(self) -> dict[str, float]:
        """Since the last call, of what was drawn off policy: responses dropped and put away, and the sampler's gap."""
        if not self.config.off_policy:
            return {}
        found = {"draw/stale_dropped": float(self._dropped), "sampler/gap": self._gap.mean}
        if self.config.segment_tokens:
            found["draw/put_away"] = float(self._away)
        self._dropped, self._away, self._gap = 0, 0, Gap()
        return found

    def to_state(self) -> dict[str, Any]:
        """What is drawn and not learned from, as plain JSON-able values."""
        return {"left": self._states(self._left)}

    def from_state(self, state: Mapping[str, Any]) -> None:
        """What `to_state` gave, for the same problems."""
        self._left = self._groups(state["left"])

    def close(self) -> None:
        """End what works in the background."""

    def _taken(self, step: int, number: int, lacking: int, rank: int = 0, ranks: int = 1) -> list[OpenGroup]:
        # As many as a whole step, so that the order's position does not depend on what is lacking.
        problems = self.order.take(self.config.prompts)[:lacking][rank::ranks]
        stream = f"step {step} round {number}"
        return open_groups(self.engine, problems, n=self.config.group, seed=self.config.seed, stream=stream)

    def _going_on(self, step: int) -> list[OpenGroup]:
        """What was put away and is not too old for this step; the rest is dropped."""
        groups, self._left = self._left, []
        return self._fresh(groups, step)

    def _put_away(self, draw: Draw) -> None:
        self._left += draw.left
        self._away += sum(one.stop_reason is None for group in draw.left for one in group.rollouts)

    def _fresh(self, groups: Sequence[OpenGroup], step: int) -> list[OpenGroup]:
        fresh = [one for one in groups if one.oldest is None or step - one.oldest <= self.config.oldest_piece]
        self._dropped += (len(groups) - len(fresh)) * self.config.group
        return fresh

    def _begun(self, groups: Sequence[OpenGroup]) -> Draw:
        """A draw with the weights as they are."""
        stream = open_stream(self.engine, self.config.sampling)
        return Draw(groups, engine=self.engine, stream=stream, limits=self.limits, version=self._step)

    def _states(self, groups: Sequence[OpenGroup]) -> list[dict[str, Any]]:
        places = {id(problem): place for place, problem in enumerate(self.order.problems)}
        return [{"place": places[id(group.problem)], **group.to_state()} for group in groups]

    def _groups(self, states: Sequence[Mapping[str, Any]]) -> list[OpenGroup]:
        return [OpenGroup.from_state(state, self.order.problems[state["place"]]) for state in states]


@dataclass(kw_only=True)
class _Ahead:
    """A draw for a step to come."""

    step: int
    draw: Draw
    stream: RemoteStream | None = None
    known: Gap | None = None

    def gap(self) -> Gap:
        """Of its weights; waits for the end of the job."""
        if self.stream is not None:
            self.known = self.stream.gap()
        assert self.known is not None
        return self.known


class SupplyAhead(Supply):
    """Has groups drawn by a second process, `config.staleness` steps ahead."""

    def __init__(
        self,
        config: RlConfig,
        order: Order[Problem],
        sampler: Sampler,
        *,
        models: Models,
        device: str = "cpu",
        start: Start = spawned,
    ) -> None:
        super().__init__(config, order, sampler, models=models)
        self.background = Background(config, places=config.staleness, device=device, start=start)
        self._policy = models.policy
        self._queue: deque[_Ahead] = deque()
        self._current: list[_Ahead] = []
        """What was drawn for this step."""
        self._next = 0
        """The first step that nothing is drawn for yet."""

    def begin(self, step: int) -> None:
        """See `Supply`; weights that something will be drawn with are copied."""
        super().begin(step)
        self._current, self._next = [], max(self._next, step)
        if self._next < self.config.steps:
            self._publish()
        self._fill(step + self.config.staleness - 1)

    def draw(self, number: int, lacking: int, *, rank: int = 0, ranks: int = 1) -> Draw | None:
        """See `Supply`; the first draw of a step is the one that was begun for it."""
        if number:
            return super().draw(number, lacking, rank=rank, ranks=ranks)
        ahead = self._queue.popleft()
        assert ahead.step == self._step
        if not ahead.draw.groups:
            return self._begun(self._taken(self._step, number, lacking))
        self._current.append(ahead)
        return ahead.draw

    def drawn(self, draw: Draw) -> None:
        """See `Supply`."""
        self._put_away(draw)

    def figures(self) -> dict[str, float]:
        """See `Supply`."""
        self._gap = reduce(add, (ahead.gap() for ahead in self._current), Gap())
        return super().figures()

    def full(self) -> None:
        """See `Supply`; what comes next is begun."""
        self._fill(self._step + self.config.staleness)

    def to_state(self) -> dict[str, Any]:
        """See `Supply`; waits for all that is being drawn."""
        for ahead in self._queue:
            ahead.draw.settle()
        queue = [
            {
                "step": ahead.step,
                "version": ahead.draw.version,
                "gap": [ahead.gap().total, ahead.gap().tokens],
                "groups": self._states(ahead.draw.groups),
            }
            for ahead in self._queue
        ]
        return {**super().to_state(), "queue": queue}

    def from_state(self, state: Mapping[str, Any]) -> None:
        """See `Supply`."""
        super().from_state(state)
        self._engine = self.sampler.engine()
        for one in state.get("queue", ()):
            groups = self._fresh(self._groups(one["groups"]), one["step"])
            draw = Draw(groups, engine=self.engine, stream=None, limits=self.limits, version=one["version"])
            total, tokens = one["gap"]
            self._queue.append(_Ahead(step=one["step"], draw=draw, known=Gap(total=total, tokens=tokens)))
            self._next = one["step"] + 1

    def close(self) -> None:
        """See `Supply`; what is being drawn is lost."""
        self.background.close()
        self._queue.clear()
        self._next = 0

    def _fill(self, last: int) -> None:
        """Begin what is to be drawn for steps up to `last`, with the weights as they are."""
        for step in range(self._next, min(last, self.config.steps - 1) + 1):
            groups = self._going_on(step) + self._taken(step, 0, self.config.prompts)
            self._queue.append(self._ahead(step, groups, urgent=False))
            self._next = step + 1

    def _begun(self, groups: Sequence[OpenGroup]) -> Draw:
        self._publish()
        ahead = self._ahead(self._step, groups, urgent=True)
        self._current.append(ahead)
        return ahead.draw

    def _ahead(self, step: int, groups: Sequence[OpenGroup], *, urgent: bool) -> _Ahead:
        stream = self.background.stream(self._step, urgent=urgent)
        draw = Draw(groups, engine=self.engine, stream=stream, limits=self.limits, version=self._step)
        return _Ahead(step=step, draw=draw, stream=stream)

    def _publish(self) -> None:
        self.background.publish(self._step, module_weights(self._policy))


def supply_for(
    config: RlConfig,
    order: Order[Problem],
    sampler: Sampler,
    models: Models,
    *,
    processes: int,
) -> Supply:
    """What the config asks for. Raises ConfigError for drawing ahead or in pieces with several trainer processes."""
    if config.off_policy and processes > 1:
        name = "staleness" if config.staleness else "segment_tokens"
        raise ConfigError(
            f"{name}={getattr(config, name)} works with one trainer process so far; got {processes}; start one, or set "
            "it to 0"
        )
    if config.staleness:
        return SupplyAhead(config, order, sampler, models=models, device=str(models.policy.device))
    return Supply(config, order, sampler, models=models)
