"""Rows that have nothing to tell: groups to draw again, and rows whose passes can be left out exactly.

A group is constant when all its known OUTCOMES are equal, or fewer than two are known (dynamic sampling, DAPO, arXiv
2503.14476). It is the outcome and not the reward that decides: shaping would make an all-wrong group look as if it had
something to learn from, and train on nothing but the shaping.

A row moves no weight when all its tokens weigh 0, or when its advantages are 0 and no other term reads the policy at
its tokens (a KL in the loss, the entropy bonus, the mirror's square). Leaving such rows out changes no gradient, since
what losses are divided by was counted before.

Legend: B rows.
"""

from __future__ import annotations

import torch

from rewardkit.rl.loss.batch import Batch, Prepared
from rewardkit.rl.loss.groups import statistics
from rewardkit.rl.settings.table import Table


def constant_rows(values_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """Bool per row: its group is constant in these values (NaN: unknown, looked past)."""
    return statistics(values_B, group_B).constant_B


def kept_rows(batch: Batch, table: Table) -> torch.Tensor:
    """Bool per row: what the table's filter leaves; all rows without one."""
    if table.filter == "none":
        return torch.ones_like(batch.truncated_B)
    return ~constant_rows(batch.outcome_B if table.filter == "outcome" else batch.rewards_B, batch.group_B)


def scored_rows(batch: Batch, table: Table) -> torch.Tensor:
    """Bool per row: rows that have the reward that the table learns from; all where it reads none."""
    return batch.scored_B if table.reads_rewards else torch.ones_like(batch.truncated_B)


def policy_rows(prepared: Prepared, table: Table, *, kl_coefficient: float | None = None) -> torch.Tensor:
    """Bool per row: rows that the policy must see; the others change neither the loss's gradient nor its value.

    Figures of skipped rows (entropy, clip share) are not measured.
    """
    beta = table.kl.coefficient if kl_coefficient is None else kl_coefficient
    if table.entropy or table.clip.kind == "mirror":
        return value_rows(prepared)
    own_BT = prepared.weights_BT if prepared.policy_weights_BT is None else prepared.policy_weights_BT
    needed_BT = (own_BT != 0) & (prepared.advantages_BT != 0)
    if table.kl.in_loss and beta != 0:
        needed_BT = needed_BT | (
            (prepared.weights_BT if prepared.kl_weights_BT is None else prepared.kl_weights_BT) != 0
        )
    return needed_BT.any(1)


def value_rows(prepared: Prepared) -> torch.Tensor:
    """Bool per row: rows that the critic must see, and the policy too where it shares the critic's trunk."""
    return (prepared.weights_BT != 0).any(1)
