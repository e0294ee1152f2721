"""A named, weighted list of rewards of any kind, added up for a batch.

    reward(y) = sum_i w_i s_i(y)    over the parts that score responses (verifiers, functions, outcome models)
    steps(y)  = w Phi(y, <= t)      of the one part that scores steps, which adds nothing to the reward

A part that leaves a response unscored leaves the whole response unscored, because a sum that lacks a part is another
quantity; an optional part is left out of that response's sum instead. A response whose optional parts are all that
there is, and none of them scored it, is unscored. Where no part but the one with steps is there, the last step's value
is the reward. Everything left unscored is counted by part and kind; the run goes on while `min_scored` of a batch has a
reward.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prm.credit import REDUCTIONS, Reduction
from rewardkit.rl.rewards.scored import (
    PartValues,
    Scored,
    StepRewards,
    Unscored,
    Value,
    require_no_failure,
    require_scored,
)
from rewardkit.rl.rewards.sources import FunctionSource, Later, OutcomeSource, ScorerSource, Source, step_source
from rewardkit.rl.rewards.specs import OnError, RewardConfig, RewardSpec, check_names, check_weight
from rewardkit.rl.rewards.workers import RewardWorkers
from verifiers.compose import is_group_relative
from verifiers.core import Problem, Response, Scorer, StepScorer
from verifiers.errors import ConfigError, DataError, RewardError


@dataclass(frozen=True, kw_only=True)
class RewardPart:
    """One reward of the list."""

    name: str
    """What metrics and reasons call it."""
    source: Source
    """Who judges."""
    weight: float = 1.0
    """Its factor."""
    optional: bool = False
    """A response that it leaves unscored keeps the sum of the others."""

    def __post_init__(self) -> None:
        check_weight(self.name, self.weight)


@dataclass(frozen=True, kw_only=True)
class PendingRewards:
    """A batch that is being judged."""

    rewards: RewardList
    later: tuple[Later, ...]

    def collect(self) -> Scored:
        """Wait, and add up. RewardError for too few rewards, or with on_error "raise" for a reward that broke."""
        return self.rewards.add_up([wait() for wait in self.later])


class RewardList:
    """Rewards of any kind, added up."""

    def __init__(self, parts: Sequence[RewardPart], *, min_scored: float = 0.5, on_error: OnError = "unscored") -> None:
        """`min_scored` is the share of a batch that must get a reward; `on_error` what a reward that breaks means."""
        if not parts:
            raise ConfigError("a reward list needs at least one reward; got none")
        check_names([part.name for part in parts])
        if sum(part.source.steps for part in parts) > 1:
            raise ConfigError(
                "two rewards score steps, but a response has one list of step scores; let one of them give one score"
            )
        self.parts = tuple(parts)
        self.min_scored = min_scored
        self.on_error = on_error

    @property
    def has_steps(self) -> bool:
        """Whether a part is known to score steps; a function may turn out to."""
        return any(part.source.steps for part in self.parts)

    @property
    def about(self) -> str:
        """One line for the start of a run: 1 x math + 0.1 x length; how functions are run."""
        whole = " + ".join(f"{part.weight:g} x {part.name}{' (steps)' * part.source.steps}" for part in self.parts)
        how = [part.source.workers.about for part in self.parts if isinstance(part.source, FunctionSource)]
        return "; ".join([whole, *how])

    def check(self, problems: Sequence[Problem], *, group: int) -> None:
        """Whether a run can ask for these rewards, before it draws for them.

        Raises DataError for a problem without the reference answer that a verifier needs, ConfigError for one that
        compares the responses to a problem where there is one alone.
        """
        for part in self.parts:
            scorer = part.source.scorer if isinstance(part.source, ScorerSource) else None
            if group == 1 and is_group_relative(scorer):
                raise ConfigError(
                    f"group=1 leaves the reward {part.name} nothing to compare a response with; make group larger, or "
                    "leave the reward out"
                )
            for problem in problems if getattr(scorer, "needs_answer", False) else ():
                if problem.answer is None:
                    raise DataError(
                        f"problem {problem.id!r} has no reference answer, which the reward {part.name} needs; give it "
                        "one, or leave the problem out"
                    )

    def start(self) -> None:
        """Load every reward function in its workers. RewardError where one cannot be loaded."""
        for part in self.parts:
            if isinstance(part.source, FunctionSource):
                part.source.workers.start()

    def submit(self, problems: Sequence[Problem], responses: Sequence[Response]) -> PendingRewards:
        """Begin to judge; responses to one problem stand side by side. Functions begin now, others at collect."""
        if len(problems) != len(responses):
            raise ConfigError(
                f"rewards need one problem a response; got {len(problems)} problems and {len(responses)} responses"
            )
        later = tuple(part.source.submit(problems, responses) for part in self.parts)
        return PendingRewards(rewards=self, later=later)

    def score(self, problems: Sequence[Problem], responses: Sequence[Response]) -> Scored:
        """`submit` and `collect`."""
        return self.submit(problems, responses).collect()

    def close(self) -> None:
        """End all workers; the list can be used again."""
        for part in self.parts:
            part.source.close()

    def add_up(self, found: Sequence[PartValues]) -> Scored:
        """The sums of what the parts say."""
        if self.on_error == "raise":
            for one in found:
                require_no_failure(one.values)
        columns = [one.values for one in found]
        rows = list(zip(*columns, strict=True))
        rewards, steps, reasons = [], [], []
        for row in rows:
            reward, reason = self._sum(row)
            rewards.append(reward)
            reasons.append(reason)
            steps.append(self._steps(row))
        require_scored(reasons, share=self.min_scored)
        counts = Counter(
            f"{part.name}/{value.kind}"
            for part, values in zip(self.parts, columns, strict=True)
            for value in values
            if isinstance(value, Unscored)
        )
        numbers = {part.name: tuple(map(_number, values)) for part, values in zip(self.parts, columns, strict=True)}
        return Scored(
            rewards=tuple(rewards),
            steps=tuple(steps) if self.has_steps or any(steps) else None,
            parts=numbers,
            reasons=tuple(reasons),
            counts=dict(counts),
            metrics=self._metrics(rewards, numbers, counts, found),
            extra={f"{p.name}/{k}": v for p, one in zip(self.parts, found, strict=True) for k, v in one.extra.items()},
        )

    def _sum(self, row: Sequence[Value]) -> tuple[float | None, Unscored | None]:
        """The reward of one response, or why it has none."""
        terms, stepped, missing = [], [], []
        for part, value in zip(self.parts, row, strict=True):
            if isinstance(value, Unscored):
                # Steps add nothing to the sum, so the sum does not lack them; the loop sees that they are not there.
                counted = not part.source.steps or len(self.parts) == 1
                if counted:
                    missing.append((part, value))
            elif isinstance(value, StepRewards):
                stepped.append((part, value))
            else:
                terms.append(part.weight * value)
        needed = [value for part, value in missing if not part.optional]
        if needed:
            return None, needed[0]
        if terms:
            return math.fsum(terms), None
        if missing:
            return None, missing[0][1]
        last = [part.weight * value.values[-1] for part, value in stepped if value.values]
        if last:
            return last[0], None
        name = stepped[0][0].name if stepped else self.parts[0].name
        return None, Unscored(kind="no_steps", detail=f"reward {name} found no step in a response")

    def _steps(self, row: Sequence[Value]) -> StepRewards | None:
        """The steps of one response, weighted."""
        found = [(p, value) for p, value in zip(self.parts, row, strict=True) if isinstance(value, StepRewards)]
        if not found:
            return None
        if len(found) > 1:
            names = " and ".join(repr(part.name) for part, _ in found)
            raise RewardError(
                f"the rewards {names} both scored the steps of one response; let one of them give one score"
            )
        ((part, value),) = found
        return StepRewards(tuple(part.weight * one for one in value.values), value.ends)

    def _metrics(
        self,
        rewards: Sequence[float | None],
        numbers: dict[str, tuple[float | None, ...]],
        counts: Counter[str],
        found: Sequence[PartValues],
    ) -> dict[str, float]:
        """Means, population deviations and unscored shares of the sum and of each part; counts; what was logged."""
        metrics = _spread("reward", rewards)
        for name, values in numbers.items():
            metrics |= _spread(f"reward/{name}", values)
        metrics |= {f"reward/{name}": float(count) for name, count in counts.items()}
        for part, one in zip(self.parts, found, strict=True):
            metrics |= {f"reward/{part.name}/{name}": value for name, value in one.metrics.items()}
        return metrics


def _number(value: Value) -> float | None:
    if isinstance(value, StepRewards):
        return value.values[-1] if value.values else None
    return None if isinstance(value, Unscored) else value


def _spread(name: str, values: Sequence[float | None]) -> dict[str, float]:
    """Figures of what is scored; no mean where nothing is."""
    known = [value for value in values if value is not None]
    figures = {f"{name}/unscored": 1.0 - len(known) / len(values) if values else 0.0}
    if known:
        mean = math.fsum(known) / len(known)
        figures[f"{name}/mean"] = mean
        figures[f"{name}/std"] = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / len(known))
    return figures


def reward_list(config: RewardConfig, *, tokenizer: Any, device: str | None = None) -> RewardList:
    """The rewards of a config; `tokenizer` is the policy's. Raises ConfigError, ModelError or MissingFileError."""
    shared: dict[str, Any] = {}
    parts = [
        RewardPart(
            name=spec.name,
            source=_source(spec, config, tokenizer=tokenizer, device=device, shared=shared),
            weight=spec.weight,
            optional=spec.optional,
        )
        for spec in config.specs
    ]
    return RewardList(parts, min_scored=config.min_scored, on_error=config.on_error)


def as_part(
    name: str,
    reward: Any,
    *,
    weight: float = 1.0,
    optional: bool = False,
    tokenizer: Any = None,
    reduction: Reduction | None = None,
) -> RewardPart:
    """A part from an object: a `verifiers` scorer, an outcome model, a process model, `RewardWorkers`, a function.

    A bare function goes into `RewardWorkers`, where it can be killed. `tokenizer` is the policy's; a process model
    gives its steps, or with a `reduction` one score a response.
    """
    if reduction is not None and (hasattr(reward, "score_rows") or not hasattr(reward, "score_steps")):
        raise ConfigError(f"reduction={reduction!r} has no effect on reward {name!r}, which scores no steps")
    source: Source
    if isinstance(reward, RewardWorkers):
        source = FunctionSource(workers=reward)
    elif hasattr(reward, "score_rows"):
        source = OutcomeSource(name=name, model=reward, tokenizer=tokenizer)
    elif isinstance(reward, Scorer):
        source = ScorerSource(name=name, scorer=reward)
    elif isinstance(reward, StepScorer):
        if tokenizer is None:
            raise ConfigError(f"reward {name!r} scores steps and needs the policy's tokenizer; pass tokenizer=...")
        source = step_source(name, reward, tokenizer, reduction)
    elif callable(reward) or isinstance(reward, str):
        source = FunctionSource(workers=RewardWorkers(reward, name=name))
    else:
        raise ConfigError(
            f"reward {name!r} is a {type(reward).__name__}, which is no function, scorer, outcome model or step scorer"
        )
    return RewardPart(name=name, source=source, weight=weight, optional=optional)


def _source(
    spec: RewardSpec, config: RewardConfig, *, tokenizer: Any, device: str | None, shared: dict[str, Any]
) -> Source:
    if spec.kind == "function":
        return FunctionSource(
            workers=RewardWorkers(
                spec.target,
                name=spec.name,
                workers=config.reward_workers,
                timeout_s=config.reward_timeout,
                memory_mb=config.reward_memory,
                rows=config.reward_rows,
            )
        )
    if spec.kind.startswith("orm"):
        from rewardkit.outcome.model import OutcomeModel

        model = OutcomeModel.load(spec.target, device=device)
        return OutcomeSource(name=spec.name, model=model, graded=spec.kind == "orm", tokenizer=tokenizer)
    if spec.kind.startswith("prm"):
        from prm.model import ProcessModel

        found = spec.kind.removeprefix("prm").removeprefix("-")
        reduction: Reduction | None = next((one for one in REDUCTIONS if one == found), None)
        return step_source(spec.name, ProcessModel.load(spec.target, device=device), tokenizer, reduction)
    return ScorerSource(name=spec.name, scorer=_verifier(spec.kind, shared))


def _verifier(kind: str, shared: dict[str, Any]) -> Scorer:
    """A built-in verifier; what two of them need is judged once."""
    from verifiers.compose import Shared
    from verifiers.layout import OneBox
    from verifiers.length import GroupLength
    from verifiers.maths import MathVerifier
    from verifiers.repetition import NgramPenalty

    if kind == "box":
        return OneBox()
    if kind == "repetition":
        return NgramPenalty()
    right: Scorer = shared.setdefault("math", Shared(scorer=MathVerifier()))
    return right if kind == "math" else GroupLength(correctness=right)
