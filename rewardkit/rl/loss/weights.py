r"""The one weight of every token: masks x aggregation x importance weights, built once an optimiser batch.

    token         w = m / N                 N tokens of the batch                    (DAPO, arXiv 2503.14476)
    sequence      w = m / (B |y|)           B responses                              (GRPO, arXiv 2402.03300)
    sequence_sum  w = m / B                                                          (REINFORCE)
    constant      w = m / (B L)             L the length limit                       (Dr. GRPO, arXiv 2503.20783)
    group         w = m / (P n_p)           P groups, n_p tokens of the row's group

A loss is then a sum of w times a token's loss, whatever the batch is cut into: N, B and P are counted over the whole
batch, over all processes, before it is cut. Unscored responses count neither above nor below, and truncated ones where
`masks.truncated` says so. What the importance weight drops stays in N, B and P: a divisor that depended on it would
undo it.

Importance: e^(o - mu) for a sampler whose log-probabilities mu differ from the trainer's o; at token level each its
own, at sequence level their product, which without bounds makes expectations those under pi_old exactly, at geometric
level the product's root of as many tokens, which bounds compare whatever the length. `masks.reject` gives 0 to whole
responses that are far from the trainer on average a token, by

    k1  |mean of mu - o|       k2  mean of (mu - o)^2 / 2       k3  mean of e^(o - mu) - (o - mu) - 1

A mu that is unknown (NaN) is taken to equal o. Log-ratios are cut at +-20, so that nothing overflows.

Two terms may weigh less than w: tokens that `picks` takes the policy's gradient from, and those that `kl.only` leaves
without a KL. Both keep their place in N, B and P.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rewardkit.rl.loss.advantages import Estimate
from rewardkit.rl.loss.batch import Batch, Prepared
from rewardkit.rl.loss.filters import scored_rows
from rewardkit.rl.loss.groups import OverRanks, alone, group_index
from rewardkit.rl.loss.kl import held_rows
from rewardkit.rl.loss.picks import Look, by_covariance, by_entropy, clip_covariance
from rewardkit.rl.loss.tally import Tally, over
from rewardkit.rl.settings.sections import Masks
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError

LOG_BOUND = 20.0
"""Where log-ratios are cut."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the losses of an optimiser batch are divided by, over all processes."""

    tokens: float
    responses: float
    groups: float


def counted_rows(batch: Batch, table: Table) -> torch.Tensor:
    """Bool per row: scored where rewards are read, and not left out for being truncated."""
    rows_B = scored_rows(batch, table)
    return rows_B & ~batch.truncated_B if table.masks.truncated else rows_B


def count(batch: Batch, table: Table, over_ranks: OverRanks = alone) -> Totals:
    """Count the whole optimiser batch; a group must lie in one process."""
    rows_B = counted_rows(batch, table)
    tokens_B = batch.lengths_B * rows_B
    groups = len(set(batch.group_B[tokens_B > 0].tolist()))
    numbers = [float(tokens_B.sum()), float(rows_B.sum()), float(groups)]
    summed = over_ranks(torch.tensor(numbers, dtype=torch.float64, device=batch.mask_BT.device)).tolist()
    return Totals(tokens=summed[0], responses=summed[1], groups=summed[2])


def weigh(batch: Batch, table: Table, totals: Totals, *, limit: int | None = None) -> torch.Tensor:
    """The weight w of every token. `limit` is the most tokens a response may have; of aggregation constant alone."""
    counted_BT = batch.mask_BT & counted_rows(batch, table)[:, None]
    weights_BT = counted_BT.to(batch.old_BT.dtype)
    lengths_B = counted_BT.sum(1).clamp(min=1)
    responses = max(totals.responses, 1.0)
    if table.aggregation == "token":
        weights_BT = weights_BT / max(totals.tokens, 1.0)
    elif table.aggregation == "sequence":
        weights_BT = weights_BT / (responses * lengths_B[:, None])
    elif table.aggregation == "sequence_sum":
        weights_BT = weights_BT / responses
    elif table.aggregation == "constant":
        if limit is None:
            raise ConfigError("aggregation='constant' divides by the length limit; got None, pass limit")
        weights_BT = weights_BT / (responses * limit)
    else:
        of_B = group_index(batch.group_B)
        tokens_P = weights_BT.new_zeros(len(of_B)).index_add(0, of_B, weights_BT.sum(1))
        weights_BT = weights_BT / (max(totals.groups, 1.0) * tokens_P[of_B].clamp(min=1))[:, None]
    if table.masks.importance != "none" or table.masks.reject is not None:
        weights_BT = weights_BT * importance(batch, table.masks)
    return weights_BT


def importance(batch: Batch, masks: Masks) -> torch.Tensor:
    """e^(o - mu), bounded, masked and rejected as the table says; 1 where the mask is False."""
    weights_BT = torch.ones_like(batch.old_BT)
    if masks.importance != "none":
        weights_BT = _unbounded(batch, masks)
        low, high = masks.low or 0.0, torch.inf if masks.high is None else masks.high
        if masks.importance == "truncate":
            weights_BT = weights_BT.clamp(low, high)
        else:
            weights_BT = torch.where((weights_BT >= low) & (weights_BT <= high), weights_BT, 0)
    if masks.reject is not None:
        assert masks.reject_above is not None
        near_B = distance(batch, masks.reject) <= masks.reject_above
        weights_BT = weights_BT * near_B[:, None]
    return weights_BT


def _unbounded(batch: Batch, masks: Masks) -> torch.Tensor:
    log_BT = gap(batch)
    if masks.level != "token":
        log_B1 = log_BT.sum(1, keepdim=True)
        if masks.level == "geometric":
            log_B1 = log_B1 / batch.lengths_B.clamp(min=1)[:, None]
        log_BT = log_B1.expand_as(log_BT)
    return log_BT.clamp(-LOG_BOUND, LOG_BOUND).exp()


def distance(batch: Batch, estimator: str) -> torch.Tensor:
    """How far sampler and trainer are apart, a mean over the tokens of every response. Shape (B,)."""
    gap_BT = gap(batch)
    if estimator == "k2":
        terms_BT = gap_BT**2 / 2
    elif estimator == "k3":
        gap_BT = gap_BT.clamp(-LOG_BOUND, LOG_BOUND)
        terms_BT = torch.expm1(gap_BT) - gap_BT
    else:
        terms_BT = -gap_BT
    return (terms_BT.sum(1) / batch.lengths_B.clamp(min=1)).abs()


def gap(batch: Batch) -> torch.Tensor:
    """The gap o - mu; 0 where mu is unknown and where the mask is False."""
    known_BT = batch.mask_BT & ~batch.sampler_BT.isnan()
    return torch.where(known_BT, batch.old_BT - batch.sampler_BT, 0)


def mismatch(batch: Batch, table: Table) -> Tally:
    """How far sampler and trainer are apart, and how many tokens the importance weights cut or drop."""
    gap_BT, mask_BT = gap(batch), batch.mask_BT
    sums = {
        "sampler_gap": gap_BT.abs().sum(),
        "sampler_unknown": (mask_BT & batch.sampler_BT.isnan()).sum(),
    }
    masks = table.masks
    if masks.importance != "none" or masks.reject is not None:
        found_BT = importance(batch, masks)
        free_BT = _unbounded(batch, masks) if masks.importance != "none" else torch.ones_like(found_BT)
        sums["importance"] = (found_BT * mask_BT).sum()
        sums["importance_bounded"] = (mask_BT & (found_BT != free_BT)).sum()
    greatest = {"sampler_gap": gap_BT.abs().max()} if gap_BT.numel() else {}
    return Tally(sums=over(mask_BT.sum(), sums), greatest=greatest)


def prepare(
    batch: Batch,
    found: Estimate,
    table: Table,
    *,
    limit: int | None = None,
    over_ranks: OverRanks = alone,
    look: Look | None = None,
    salt: int = 0,
) -> Prepared:
    """An optimiser batch with its weights, ready to be cut; `found` has the same rows.

    `look` is the policy as it is now on these rows (`picks`), the old one's log-probabilities where it is None; `salt`
    makes random picks differ from one optimiser batch to the next.
    """
    weights_BT = weigh(batch, table, count(batch, table, over_ranks), limit=limit)
    counted_BT = weights_BT != 0
    now = look or Look(logprobs_BT=batch.old_BT)
    policy_weights_BT = kl_weights_BT = None
    if table.masks.entropy_top is not None:
        policy_weights_BT = weights_BT * by_entropy(now, counted_BT, table.masks.entropy_top, over_ranks)
    if table.masks.clip_cov is not None:
        stopped_BT = clip_covariance(
            batch, now, found.advantages_BT, counted_BT, table.masks, over_ranks=over_ranks, salt=salt
        )
        policy_weights_BT = torch.where(stopped_BT, 0, weights_BT if policy_weights_BT is None else policy_weights_BT)
    if table.kl.in_loss and table.kl.only == "covariance":
        assert table.kl.share is not None
        kl_weights_BT = weights_BT * by_covariance(
            now, found.advantages_BT, counted_BT, table.kl.share, over_ranks=over_ranks
        )
    elif table.kl.in_loss and (rows_B := held_rows(batch, table.kl)) is not None:
        kl_weights_BT = weights_BT * rows_B[:, None]
    return Prepared(
        batch=batch,
        advantages_BT=found.advantages_BT,
        returns_BT=found.returns_BT,
        weights_BT=weights_BT,
        policy_weights_BT=policy_weights_BT,
        kl_weights_BT=kl_weights_BT,
    )
