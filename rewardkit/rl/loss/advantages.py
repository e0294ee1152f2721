r"""From rewards to the advantage of every token, for each kind of the table.

R is the reward of a response, n the number of scored responses of its group, s a deviation (n - 1), and every row of a
response's tokens has its number where a formula has none for tokens:

    group     (R - mean of group) / (s of group + eps)             GRPO, arXiv 2402.03300; without scale Dr. GRPO's
    rloo      R - mean of the group's others                       arXiv 2402.14740
    mean      R - mean of batch, over s of batch with scale
    batch     (R - mean of group) / (s of batch + eps)
    soft      R - T log mean of group e^(R / T)                    Kimi k1.5's exact baseline, arXiv 2501.12599
    zero      0: nothing but the KL                                on-policy distillation
    global    (G_t - mean of all tokens) / (s of all tokens + eps) REINFORCE++, arXiv 2501.03262
    gae       A_t with a critic, whitened like global with scale   arXiv 1506.02438
    none      G_t
    step      lambda-return over steps, of the step that a token is in, / (s of group's sums of rewards + eps)
    step_min  sum over this and later steps of soft-minimum rewards, plus R; scaled likewise
    implicit  R - mean of the others' R + sum over t' >= t of gamma^(t'-t) (r_t' - b), whitened like global with scale,
              b the mean over the others of a response's mean token reward        PRIME, arXiv 2502.01456

G_t are rewards to go, of tokens and at the last one R. Step rewards come in Batch.token_rewards_BT: Phi_k - Phi_k-1 at
the last token of step k. R is always added at the end, so for steps anchored to the verifier (R in place of the last
Phi) the last one is -Phi_K-1, which is R's TD error; for steps that end in Phi_K it is Phi_K - Phi_K-1, and R is what
comes on top. With baseline "others", what the tokens of the other responses have on average is subtracted, one number
a response, which moves no expectation. PURE's baseline "tokens" (of step_min, as in `credit/step_rewards.py`) is

    A_t = sum_{k >= t} r*_k - b n_t + R - mean of the others' R        b = sum of the others' r* / their tokens

with n_t the tokens from step t's first one on. It follows the authors' code: a baseline a step would pay for few steps.
Since n_t hangs on what is still to come, it is no baseline in the strict sense but a price b on every token, which
cancels only where lengths are equal. A response that is alone in its group gets 0. Step rewards are normalised after
they are summed: before, a constant would be a reward for length.

Decisions where papers are silent: a deviation of 0 gives advantage 0; a response whose group has no other scored one
has nothing to be compared with and gets 0 in group kinds (verl gives its raw reward); unscored responses (NaN) are in
no mean, and get 0. The KL in the reward is inside the returns of global, gae and none; for the others its sum to go is
taken from the finished advantage, so that no deviation blows it up, or, with credit "sequence", the sum is part of R.

Differential smoothing (arXiv 2511.19942) adds to the finished advantage, by what the outcome and not the reward says is
right, with o the old policy,

    right    - gamma_p sum_t log o(y_t)        wrong    + gamma_n sum_t log o(y_t)        undecided    nothing

PRIME's b is taken from every token, as in the paper, and is thus a price on length, the same for all tokens of a group.

Legend: B rows, T tokens, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rewardkit.rl.loss.batch import Batch, check_values
from rewardkit.rl.loss.filters import scored_rows
from rewardkit.rl.loss.groups import GroupStatistics, OverRanks, alone, group_index, moments, statistics
from rewardkit.rl.loss.kl import penalty
from rewardkit.rl.loss.returns import at_last_token, generalised_advantages, soft_minimum, split_steps, to_go
from rewardkit.rl.loss.tally import Tally, over
from rewardkit.rl.settings.sections import Advantage
from rewardkit.rl.settings.table import Table
from verifiers.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Advantages of a batch."""

    advantages_BT: torch.Tensor
    """0 where the mask is False and in unscored rows."""
    returns_BT: torch.Tensor | None
    """A + V before whitening; of gae alone."""
    tally: Tally
    """Counts: responses, unscored, lone (scored, but no other of the group is), constant (in a group of equal rewards),
    truncated; and squared advantages a token."""


@torch.no_grad()
def estimate(
    batch: Batch, table: Table, *, kl_coefficient: float | None = None, over_ranks: OverRanks = alone
) -> Estimate:
    """Advantages of all rows that were sampled together; whole groups, before they are cut into optimiser batches.

    `kl_coefficient` is the current beta, the table's first one where it is None; `over_ranks` adds tensors up over
    processes. Raises DataError for tensors that the table needs and the batch has not, or that it cannot use.
    """
    check_values(batch)
    settings, mask_BT, scored_B = table.advantage, batch.mask_BT, scored_rows(batch, table)
    _check_needs(batch, settings)
    rewards_B = batch.rewards_B.to(batch.old_BT.dtype)
    beta = table.kl.coefficient if kl_coefficient is None else kl_coefficient
    taken_BT = penalty(batch, beta, table.kl) if table.kl.target != "none" and not table.kl.in_loss else None
    in_reward_BT = taken_BT if table.kl.place == "reward" else None
    returns_BT = None
    if not settings.by_token:
        if in_reward_BT is not None and table.kl.credit == "sequence":
            rewards_B, in_reward_BT = rewards_B - in_reward_BT.sum(1), None
        found_BT = _of_responses(rewards_B, batch, settings, over_ranks)[:, None] * mask_BT
    elif settings.kind in ("step", "step_min"):
        found_BT = _of_steps(rewards_B, batch, settings)
    elif settings.kind == "implicit":
        found_BT = _of_implicit(rewards_B, batch, settings, over_ranks)
    else:
        if settings.baseline == "group":
            rewards_B = rewards_B - statistics(rewards_B, batch.group_B).mean_B
        tokens_BT = at_last_token(torch.where(scored_B, rewards_B, 0), mask_BT)
        for further_BT, sign in ((batch.token_rewards_BT, 1), (in_reward_BT, -1)):
            tokens_BT = tokens_BT if further_BT is None else tokens_BT + sign * further_BT
        in_reward_BT = None
        if settings.kind == "gae":
            assert batch.values_BT is not None and settings.lam is not None
            found_BT, returns_BT = generalised_advantages(
                tokens_BT, batch.values_BT, mask_BT, gamma=settings.discount, lam=settings.lam
            )
        else:
            found_BT = to_go(tokens_BT, mask_BT, settings.discount)
        if settings.scale == "std":
            found_BT = whiten(found_BT, mask_BT & scored_B[:, None], eps=settings.eps, over_ranks=over_ranks)
    if settings.smooths:
        found_BT = found_BT + smoothing(batch, settings)[:, None] * mask_BT
    if in_reward_BT is not None:
        found_BT = found_BT - to_go(in_reward_BT, mask_BT, settings.discount)
    if taken_BT is not None and table.kl.place == "advantage":
        found_BT = found_BT - taken_BT
    found_BT = torch.where(mask_BT & scored_B[:, None], found_BT, 0)
    return Estimate(advantages_BT=found_BT, returns_BT=returns_BT, tally=_counts(batch, found_BT))


def smoothing(batch: Batch, settings: Advantage) -> torch.Tensor:
    """What differential smoothing adds to each response's advantage. Shape (B,)."""
    logprob_B = torch.where(batch.mask_BT, batch.old_BT, 0).sum(1)
    right_B, wrong_B = batch.outcome_B > 0.5, batch.outcome_B <= 0.5
    return ((settings.smooth_wrong or 0.0) * wrong_B - (settings.smooth_right or 0.0) * right_B) * logprob_B


@torch.no_grad()
def whiten(
    values_BT: torch.Tensor, counted_BT: torch.Tensor, *, eps: float, over_ranks: OverRanks = alone
) -> torch.Tensor:
    """(x - mean) / (s + eps) over all counted tokens of all processes; 0 elsewhere."""
    mean, deviation = moments(values_BT[counted_BT], over_ranks)
    return torch.where(counted_BT, (values_BT - mean) / (deviation + eps), 0)


def _check_needs(batch: Batch, settings: Advantage) -> None:
    if settings.kind == "gae" and batch.values_BT is None:
        raise DataError("advantage.kind='gae' needs Batch.values_BT; got None, run the critic over the batch")
    if settings.kind == "implicit" and batch.token_rewards_BT is None:
        raise DataError("advantage.kind='implicit' needs Batch.token_rewards_BT of an implicit reward model; got None")
    if settings.kind in ("step", "step_min") and (batch.token_rewards_BT is None or batch.step_ends_BT is None):
        raise DataError(
            f"advantage.kind={settings.kind!r} needs Batch.token_rewards_BT and Batch.step_ends_BT; got None, give "
            "step rewards, or use a kind that reads responses alone, such as 'group'"
        )
    if not settings.by_token and batch.token_rewards_BT is not None:
        raise DataError(
            f"advantage.kind={settings.kind!r} reads one reward a response and would ignore Batch.token_rewards_BT; "
            "use kind 'step', or add the rewards up into Batch.rewards_B"
        )


def _of_responses(rewards_B: torch.Tensor, batch: Batch, settings: Advantage, over_ranks: OverRanks) -> torch.Tensor:
    if settings.kind == "zero":
        return torch.zeros_like(rewards_B)
    of_group = statistics(rewards_B, batch.group_B)
    if settings.kind == "soft":
        assert settings.temperature is not None
        return rewards_B - _soft_mean(rewards_B, batch.group_B, settings.temperature)
    if settings.kind == "rloo":
        centred_B = rewards_B - of_group.others_B
    elif settings.kind == "mean":
        mean, deviation = moments(rewards_B[batch.scored_B], over_ranks)
        centred_B = rewards_B - mean
        return centred_B / (deviation + settings.eps) if settings.scale == "std" else centred_B
    else:
        centred_B = rewards_B - of_group.mean_B
    if settings.kind == "batch":
        centred_B = centred_B / (moments(rewards_B[batch.scored_B], over_ranks)[1] + settings.eps)
    elif settings.scale == "std":
        centred_B = centred_B / (of_group.deviation_B + settings.eps)
    return torch.where(of_group.constant_B, 0, centred_B)


def _soft_mean(rewards_B: torch.Tensor, group_B: torch.Tensor, temperature: float) -> torch.Tensor:
    # Against the group's greatest reward, so that nothing overflows.
    of_B = group_index(group_B)
    known_B = ~rewards_B.isnan()
    filled_B = torch.where(known_B, rewards_B, -torch.inf)
    most_B = filled_B.new_full((len(of_B),), -torch.inf).scatter_reduce(0, of_B, filled_B, "amax")[of_B]
    mean_B = statistics(((rewards_B - most_B) / temperature).exp(), group_B).mean_B
    return most_B + temperature * mean_B.log()


def _of_implicit(rewards_B: torch.Tensor, batch: Batch, settings: Advantage, over_ranks: OverRanks) -> torch.Tensor:
    assert batch.token_rewards_BT is not None
    mask_BT, scored_B = batch.mask_BT, batch.scored_B
    average_B = (batch.token_rewards_BT * mask_BT).sum(1) / batch.lengths_B.clamp(min=1)
    of_tokens = statistics(torch.where(scored_B, average_B, torch.nan), batch.group_B)
    of_rewards = statistics(rewards_B, batch.group_B)
    compared_B = of_rewards.number_B > 1
    returns_BT = to_go(batch.token_rewards_BT - of_tokens.others_B[:, None], mask_BT, settings.discount)
    found_BT = returns_BT + (rewards_B.nan_to_num(0.0) - of_rewards.others_B)[:, None]
    counted_BT = mask_BT & (scored_B & compared_B)[:, None]
    if settings.scale == "std":
        return whiten(found_BT, counted_BT, eps=settings.eps, over_ranks=over_ranks)
    return torch.where(counted_BT, found_BT, 0)


def _of_steps(rewards_B: torch.Tensor, batch: Batch, settings: Advantage) -> torch.Tensor:
    assert batch.token_rewards_BT is not None and batch.step_ends_BT is not None
    steps = split_steps(batch.step_ends_BT, batch.mask_BT)
    steps_BS = steps.sums(batch.token_rewards_BT)
    if settings.kind == "step_min":
        assert settings.temperature is not None
        steps_BS = soft_minimum(steps_BS, steps.valid_BS, settings.temperature)
    soft_B = steps_BS.sum(1)
    steps_BS = steps_BS + torch.where(steps.last_BS, rewards_B.nan_to_num(0.0)[:, None], 0)
    found_BS = to_go(steps_BS, steps.valid_BS, 1.0 if settings.lam is None else settings.lam)
    found_BT = steps.spread(found_BS)

    def in_group(values_B: torch.Tensor) -> GroupStatistics:
        return statistics(torch.where(batch.scored_B, values_B, torch.nan), batch.group_B)

    if settings.baseline == "others":
        average_B = found_BT.sum(1) / batch.lengths_B.clamp(min=1)
        found_BT = found_BT - in_group(average_B).others_B[:, None]
    if settings.baseline == "tokens":
        tokens_B = in_group(batch.lengths_B.to(rewards_B.dtype)).others_B
        rate_B = in_group(soft_B).others_B / tokens_B.clamp(min=1)
        ahead_BS = to_go(steps.sums(batch.mask_BT.to(rewards_B.dtype)), steps.valid_BS, 1.0)
        of_rewards = in_group(rewards_B)
        found_BT = found_BT - rate_B[:, None] * steps.spread(ahead_BS) - of_rewards.others_B[:, None]
        found_BT = torch.where((of_rewards.number_B > 1)[:, None], found_BT, 0)
    if settings.scale == "std":
        of_group = in_group(steps_BS.sum(1))
        scaled_BT = found_BT / (of_group.deviation_B + settings.eps)[:, None]
        found_BT = torch.where(of_group.constant_B[:, None], 0, scaled_BT)
    return found_BT


def _counts(batch: Batch, advantages_BT: torch.Tensor) -> Tally:
    of_group = statistics(batch.rewards_B, batch.group_B)
    scored_B = batch.scored_B
    return Tally(
        totals={
            "responses": scored_B.new_ones(len(scored_B)).sum(),
            "unscored": (~scored_B).sum(),
            "lone": (scored_B & (of_group.number_B == 1)).sum(),
            "constant": (scored_B & (of_group.number_B > 1) & of_group.constant_B).sum(),
            "truncated": batch.truncated_B.sum(),
        },
        sums=over(batch.mask_BT.sum(), {"squared_advantages": (advantages_BT**2).sum()}),
    )
