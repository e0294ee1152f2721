"""One step's responses with their rewards as the tensors that the table reads.

Rewards are the sum of the reward list plus the table's shaping; outcomes are the verifier's alone, which filters and
guards look at. Where the table credits steps, the step scores become rewards of steps (`credit/step_rewards.py`), and
the response's own reward comes on top at its end: marginal rewards that are anchored to the outcome are given without
it. For the soft minimum a step earns 2 Phi - 1 (PURE's P(good) - P(bad)). Rules that sum their rewards to the end have
the group's mean total taken from the response's reward, which every return holds. Lambda, the temperature and the scale
are the table's; both together are `step_config.StepChoice.config`, and give the advantages that `step_credit` gives.

Legend: B responses, T tokens of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rewardkit.rl.credit.step_config import StepConfig
from rewardkit.rl.credit.step_rewards import step_credit
from rewardkit.rl.loss.batch import Batch
from rewardkit.rl.loss.groups import statistics
from rewardkit.rl.loss.shaping import shape
from rewardkit.rl.policy.reader import Drawn, padded
from rewardkit.rl.rewards.functions import RewardList
from rewardkit.rl.rewards.scored import Scored
from rewardkit.rl.sampling.drawing import Group
from rewardkit.rl.settings.table import Table
from verifiers.core import Problem, StopReason, derive_seed
from verifiers.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A step's responses, group after group, and what became of them."""

    groups: tuple[Group, ...]
    scored: Scored
    outcomes: tuple[float | None, ...]

    @property
    def rows(self) -> list[Drawn]:
        """Every response with its prompt."""
        return [
            Drawn(prompt=group.prompt_ids, response=response.token_ids)
            for group in self.groups
            for response in group.responses
        ]


def outcome_of(rewards: RewardList, name: str | None) -> str:
    """The reward that says right or wrong: `name`, or the first one. Raises ConfigError for a name that is none."""
    names = [part.name for part in rewards.parts]
    if name is not None and name not in names:
        raise ConfigError(f"outcome must name one of the rewards {', '.join(names)}; got {name!r}")
    return names[0] if name is None else name


def check_problems(problems: Sequence[Problem]) -> None:
    """Raise ConfigError for what is no Problem, DataError for two that go by one id, under which responses are kept."""
    known: dict[str, Problem] = {}
    for problem in problems:
        if not isinstance(problem, Problem):
            raise ConfigError(f"problems must be verifiers.Problem; got {problem!r:.60}")
        if known.setdefault(problem.id, problem) != problem:
            raise DataError(f"two different problems have the id {problem.id!r}; give each its own")


def batch_of(sampled: Sampled, table: Table, *, limit: int, steps: StepConfig, device: torch.device | str) -> Batch:
    """The tensors of a step. `limit` is the most tokens of a response; `old` is what the sampler reported."""
    responses = [response for group in sampled.groups for response in group.responses]
    lengths = [len(response.token_ids) for response in responses]
    width = max(lengths)
    columns_T = torch.arange(width)
    mask_BT = columns_T < torch.tensor(lengths)[:, None]
    flat_N = torch.tensor([value for response in responses for value in response.logprobs])
    sampler_BT = padded(flat_N, lengths)
    group_B = torch.tensor([n for n, group in enumerate(sampled.groups) for _ in group.responses])
    outcome_B = torch.tensor([math.nan if value is None else value for value in sampled.outcomes])
    shaped = shape(
        torch.tensor(sampled.scored.with_nan()),
        table.shaping,
        lengths_B=torch.tensor(lengths),
        outcome_B=outcome_B,
        group_B=group_B,
        limit=limit,
        ids=[response.token_ids for response in responses],
    )
    truncated = [response.stop_reason is not StopReason.STOP for response in responses]
    batch = Batch(
        mask_BT=mask_BT,
        old_BT=sampler_BT,
        sampler_BT=sampler_BT,
        group_B=group_B,
        rewards_B=shaped.rewards_B,
        outcome_B=outcome_B,
        truncated_B=torch.tensor(truncated),
        stream_B=_streams(sampled) if table.masks.clip_cov is not None else None,
    )
    if table.advantage.kind in ("step", "step_min"):
        batch = _with_steps(batch, sampled, steps, lengths, truncated)
    return _to(batch, device)


def _with_steps(
    batch: Batch,
    sampled: Sampled,
    config: StepConfig,
    lengths: Sequence[int],
    truncated: Sequence[bool],
) -> Batch:
    """Step rewards at the steps' last tokens; the outcome stays in the response's own reward."""
    given = sampled.scored.steps
    if given is None:
        raise ConfigError("the table credits steps, but no reward scores them; add one, such as prm:PATH")
    credit = step_credit(
        config,
        groups=batch.group_B.tolist(),
        outcomes=sampled.outcomes,
        steps=given,
        lengths=lengths,
        truncated=truncated,
    )
    values_N = torch.tensor([value for row in credit.table_rewards() for value in row], dtype=batch.old_BT.dtype)
    ends_BT = torch.zeros_like(batch.mask_BT)
    for row, ends in enumerate(credit.ends):
        ends_BT[row, list(ends)] = True
    rewards_B = batch.rewards_B
    if not config.anchored:
        # What the outcome is to weigh beside the rule's own rewards; at 0 it need not even be known.
        weighed_B = torch.where(batch.scored_B, config.outcome_weight * rewards_B, torch.nan)
        rewards_B = weighed_B if config.outcome_weight else torch.zeros_like(rewards_B)
    rewards_B = torch.where(torch.tensor(credit.used), rewards_B, torch.nan)
    given_BT = padded(values_N, lengths)
    if config.rule in ("clip", "delta", "sum"):
        rewards_B = rewards_B - statistics(rewards_B + given_BT.sum(1), batch.group_B).mean_B
    return replace(batch, token_rewards_BT=given_BT, step_ends_BT=ends_BT, rewards_B=rewards_B)


def _streams(sampled: Sampled) -> torch.Tensor:
    """A number for every response, by what was asked and said alone."""
    return torch.tensor(
        [
            derive_seed("picks", group.problem.id, sample, *response.token_ids)
            for group in sampled.groups
            for sample, response in enumerate(group.responses)
        ]
    )


def _to(batch: Batch, device: torch.device | str) -> Batch:
    return replace(
        batch, **{name: value.to(device) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    )
