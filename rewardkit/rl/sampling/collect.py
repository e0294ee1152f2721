"""A step's groups with their rewards; with a filter, groups that say nothing are drawn anew (DAPO's dynamic sampling).

Where they come from is `supply.py`'s business. With responses in pieces a step learns from the groups that have become
whole in it, however many, and draws on in the same step only while there is none; a filter's place is taken by others.

A filter looks at outcomes and not at shaped rewards: shaping must not rescue a group that failed altogether. Groups are
drawn for what is missing, at most `rounds` times; a step that is not full by then is trained on as it is, and says so.

Rewards are computed while other groups still decode (`rewards/judging.py`), or with `overlap` off of a whole round.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from rewardkit.rl.config import RlConfig
from rewardkit.rl.loss.filters import constant_rows
from rewardkit.rl.rewards.functions import RewardList
from rewardkit.rl.rewards.judging import Judging
from rewardkit.rl.rewards.scored import Scored
from rewardkit.rl.sampling.drawing import Draw, Group
from rewardkit.rl.sampling.supply import Supply
from rewardkit.rl.steps import Sampled
from verifiers.core import StopReason

ENDS = {"finished": StopReason.STOP, "truncated": StopReason.LENGTH, "repetition": StopReason.REPETITION}
"""How responses end, by the name of the figure that has their share."""


def collect(
    config: RlConfig,
    supply: Supply,
    rewards: RewardList,
    *,
    outcome: str,
    step: int,
    rank: int = 0,
    ranks: int = 1,
    note: Callable[[str], None] = lambda phase: None,
    gather: Callable[[list[Any]], list[Any]] = list,
) -> tuple[Sampled, dict[str, float]]:
    """One process's share of a step; figures of the first round's rewards and of how all that was drawn ended.

    Every process takes the same problems from the order and draws for its own part of them. What a filter keeps is
    shared out anew, in the problems' order, so that several processes learn from the same groups as one. `gather` joins
    the lists of all processes; `note` is told when a phase ends: "draw", and "score" for what was waited for then.
    Figures, of this process: draw/groups, draw/kept; the shares draw/finished (an end token), draw/truncated (the
    length limit) and draw/repetition (a loop), which add up to 1; seconds/reward_work, all workers' seconds added up;
    off policy draw/staleness, how many steps the weights that drew a token were behind, and those of `supply`.
    """
    kept: list[tuple[tuple[int, int], Sampled]] = []
    spare: list[Sampled] = []
    total = 0
    metrics: dict[str, float] = {}
    ends: Counter[StopReason] = Counter()
    drawn, work, wanted, rounds, stuck = 0, 0.0, config.prompts, 0, False
    supply.begin(step)
    note("weights")
    for number in itertools.count():
        draw = supply.again() if stuck else None
        draw = draw or supply.draw(number, wanted - total, rank=rank, ranks=ranks)
        part = None
        if draw is not None:
            part, seconds = _round(config, draw, supply, rewards, outcome, note)
            work += seconds
            if stuck := part is None:
                continue
        if part is not None:
            ends.update(response.stop_reason for group in part.groups for response in group.responses)
            metrics = metrics or dict(part.scored.metrics)
            drawn += len(part.groups)
            spare = split(part)
            kept += [((number, place * ranks + rank), one) for place, one in informative(part, config)]
            if config.segment_tokens and not rounds:
                wanted = len(part.groups)
        total = len(gather([key for key, _ in kept]))
        rounds += 1
        if total >= wanted or rounds == config.rounds:
            break
    supply.full()
    if ranks > 1 and config.table.filter != "none":
        kept = sorted(gather(kept), key=lambda one: one[0])[rank::ranks]
    # Where nothing says anything nothing will be learned, but the step counts and its figures are told.
    own = [one for _, one in kept] or spare[: 1 if total else None]
    metrics |= {"draw/groups": float(drawn), "draw/kept": float(len(own)), "seconds/reward_work": work}
    metrics |= {f"draw/{name}": ends[reason] / max(1, ends.total()) for name, reason in ENDS.items()}
    sampled = joined(own)
    if config.off_policy:
        behind = sum(group.behind(step) for group in sampled.groups)
        metrics["draw/staleness"] = behind / max(1, sum(len(row.response) for row in sampled.rows))
    return sampled, metrics | supply.figures()


def _round(
    config: RlConfig,
    draw: Draw,
    supply: Supply,
    rewards: RewardList,
    outcome: str,
    note: Callable[[str], None],
) -> tuple[Sampled | None, float]:
    """Whole groups with their rewards, and the seconds of judging; None where no group is whole."""

    def drawn(*told: Callable[..., None]) -> list[Group]:
        found = draw.collect(*told)
        supply.drawn(draw)
        if found and config.table.filter == "none":
            # No further group can be wanted: what comes next may begin while these are judged.
            supply.full()
        note("draw")
        return found

    if config.overlap:
        with Judging(rewards, [group.problem for group in draw.groups]) as judging:
            groups = drawn(judging.add, judging.leave_out)
            if not groups:
                return None, 0.0
            scored, work = judging.collect(), judging.work
    else:
        groups = drawn()
        if not groups:
            return None, 0.0
        started = time.perf_counter()
        scored = rewards.score(
            [group.problem for group in groups for _ in group.responses],
            [response for group in groups for response in group.responses],
        )
        work = time.perf_counter() - started
    note("score")
    return Sampled(groups=tuple(groups), scored=scored, outcomes=scored.parts[outcome]), work


def informative(part: Sampled, config: RlConfig) -> list[tuple[int, Sampled]]:
    """The groups that the table's filter keeps, each by itself behind its place."""
    single = list(enumerate(split(part)))
    kind = config.table.filter
    if kind == "none":
        return single
    values = part.outcomes if kind == "outcome" else part.scored.rewards
    values_B = torch.tensor([float("nan") if value is None else value for value in values])
    group_B = torch.tensor([n for n, group in enumerate(part.groups) for _ in group.responses])
    constant_B = constant_rows(values_B, group_B)
    return [(n, one) for n, one in single if not bool(constant_B[group_B == n].all())]


def split(part: Sampled) -> list[Sampled]:
    """Each group by itself."""
    found, at = [], 0
    for group in part.groups:
        rows = slice(at, at + len(group.responses))
        at = rows.stop
        found.append(Sampled(groups=(group,), scored=_rows(part.scored, rows), outcomes=part.outcomes[rows]))
    return found


def joined(parts: Sequence[Sampled]) -> Sampled:
    """Groups one after another."""
    first = parts[0].scored
    groups: tuple[Group, ...] = tuple(group for part in parts for group in part.groups)
    steps = None
    if any(part.scored.steps is not None for part in parts):
        steps = tuple(
            one
            for part in parts
            for one in (part.scored.steps if part.scored.steps is not None else (None,) * len(part.outcomes))
        )
    scored = replace(
        first,
        rewards=tuple(value for part in parts for value in part.scored.rewards),
        steps=steps,
        parts={name: tuple(value for part in parts for value in part.scored.parts[name]) for name in first.parts},
        reasons=tuple(value for part in parts for value in part.scored.reasons),
        extra={},
    )
    return Sampled(groups=groups, scored=scored, outcomes=tuple(value for part in parts for value in part.outcomes))


def _rows(scored: Scored, rows: slice) -> Scored:
    return replace(
        scored,
        rewards=scored.rewards[rows],
        steps=None if scored.steps is None else scored.steps[rows],
        parts={name: values[rows] for name, values in scored.parts.items()},
        reasons=scored.reasons[rows],
        extra={name: values[rows] for name, values in scored.extra.items()},
    )
