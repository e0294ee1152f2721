r"""The loss of a micro-batch: a sum over tokens of weight times loss, for every ratio and clip of the table.

With l the new log-probability, a the anchor's, A the advantage, rho the ratio and sg( ) what carries no gradient,

    token           rho = e^(l - a)
    sequence        rho = e^(mean over the response of l - a)                        GSPO, arXiv 2507.18071
    sequence_token  rho = sg(sequence's) e^(l - sg(l))                               GSPO-token

    ppo     -min(rho A, clip(rho, 1 - low, 1 + high) A), and for A < 0 at most -c A  arXiv 1707.06347; c: 1912.09729
    cispo   -sg(min(rho, cap)) A l                                                   arXiv 2506.13585
    dppo    -rho A, but 0 where e^l - e^a is more than delta in the direction of A
    mask    -sg(min(rho, cap)) A l, but 0 where ppo would clip e^(l - o)             MiniRL, arXiv 2512.01374
    mirror  -A l + tau / 2 (l - a) sum over the response of (l - a)                  Kimi k1.5, arXiv 2501.12599
    none    -rho A, or -A l without a ratio

Beside it beta KL (`kl`), - c_H H and the off-policy sequence mask, which drops policy terms with A < 0 in responses
whose mean of mu - l is above delta (mu the sampler's; DeepSeek-V3.2, arXiv 2512.02556). The critic's loss is

    V  1/2 max((V - G)^2, (clip(V, V_old - eps, V_old + eps) - G)^2)

Log-ratios are cut at +-20. A unit of mirror's terms is a row, so weights must be alike within it.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rewardkit.rl.loss.batch import Batch, Prepared
from rewardkit.rl.loss.kl import loss_terms, reference
from rewardkit.rl.loss.tally import Tally, over
from rewardkit.rl.loss.weights import LOG_BOUND
from rewardkit.rl.settings.sections import Clip
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A micro-batch's share of the loss of its optimiser batch."""

    total: torch.Tensor
    """To be added up over micro-batches and processes; a mean over processes must be multiplied by their number."""
    tally: Tally


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """The policy's term of every token."""

    loss_BT: torch.Tensor
    stopped_BT: torch.Tensor
    """Bool: tokens whose gradient the clip takes away or cuts."""


def policy_loss(
    new_BT: torch.Tensor,
    part: Prepared,
    table: Table,
    *,
    kl_coefficient: float | None = None,
    entropy_BT: torch.Tensor | None = None,
    divergence_BT: torch.Tensor | None = None,
) -> Loss:
    """The policy's loss on a micro-batch, from the new log-probabilities of its tokens.

    `kl_coefficient` is the current beta, the table's first one where it is None; `entropy_BT` the entropy of the
    policy at every token, with gradient, which the entropy bonus needs. Without it, it is not reported.
    `divergence_BT` is the KL over the whole vocabulary before every token, with gradient, which kl.estimator 'full'
    needs.
    """
    batch, weights_BT, mask_BT = part.batch, part.weights_BT, part.batch.mask_BT
    # Padding may hold anything, infinities too; nothing of it may reach a sum or a gradient.
    new_BT = torch.where(mask_BT, new_BT, 0)
    log_ratio_BT = log_ratios(new_BT, batch, table)
    ratio_BT = ratios(new_BT, log_ratio_BT, mask_BT, table.ratio.level)
    found = surrogate(new_BT, ratio_BT, log_ratio_BT, batch, part.advantages_BT, table.clip)
    policy_BT = found.loss_BT
    kept_BT = off_policy_kept(new_BT, batch, part.advantages_BT, table.masks.off_policy)
    if kept_BT is not None:
        policy_BT = torch.where(kept_BT, policy_BT, 0)
    objective = (_first(part.policy_weights_BT, weights_BT) * policy_BT).sum()
    total, totals = objective, {"objective": objective.detach()}
    beta = table.kl.coefficient if kl_coefficient is None else kl_coefficient
    if table.kl.in_loss:
        if table.kl.estimator == "full":
            if divergence_BT is None:
                raise ConfigError("kl.estimator='full' needs the divergence before every token; got None")
            terms_BT = torch.where(mask_BT, divergence_BT, 0)
        else:
            target_BT = reference(batch, table.kl.target, new_BT)
            terms_BT = loss_terms(table.kl.estimator, new_BT, target_BT, mask_BT, log_ratio_BT)
        kl = beta * (_first(part.kl_weights_BT, weights_BT) * terms_BT).sum()
        total, totals["kl_loss"] = total + kl, kl.detach()
    if table.entropy:
        if entropy_BT is None:
            raise ConfigError(f"entropy={table.entropy!r} needs the policy's entropy at every token; got None")
        bonus = table.entropy * (weights_BT * torch.where(mask_BT, entropy_BT, 0)).sum()
        total, totals["entropy_bonus"] = total - bonus, bonus.detach()
    tally = _tally(new_BT.detach(), part, ratio_BT, found, kept_BT, entropy_BT, totals, table.kl.target)
    return Loss(total=total, tally=tally)


def _first(special_BT: torch.Tensor | None, weights_BT: torch.Tensor) -> torch.Tensor:
    return weights_BT if special_BT is None else special_BT


def log_ratios(new_BT: torch.Tensor, batch: Batch, table: Table) -> torch.Tensor:
    """The log-ratio l - a, cut at +-20; 0 where the mask is False and where the sampler reported nothing."""
    anchor_BT = batch.old_BT
    if table.ratio.anchor == "sampler":
        anchor_BT = torch.where(batch.sampler_BT.isnan(), new_BT.detach(), batch.sampler_BT)
    return torch.where(batch.mask_BT, new_BT - anchor_BT, 0).clamp(-LOG_BOUND, LOG_BOUND)


def ratios(new_BT: torch.Tensor, log_ratio_BT: torch.Tensor, mask_BT: torch.Tensor, level: str) -> torch.Tensor:
    """The ratio rho a token; 1 without a ratio."""
    if level == "none":
        return torch.ones_like(new_BT)
    if level == "token":
        return log_ratio_BT.exp()
    mean_B1 = log_ratio_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    if level == "sequence":
        return mean_B1.exp().expand_as(new_BT)
    return mean_B1.detach().exp() * (new_BT - new_BT.detach()).exp()


def surrogate(
    new_BT: torch.Tensor,
    ratio_BT: torch.Tensor,
    log_ratio_BT: torch.Tensor,
    batch: Batch,
    advantages_BT: torch.Tensor,
    clip: Clip,
) -> Surrogate:
    """The clip's loss of every token, before weights."""
    rho_BT = ratio_BT.detach()
    nothing_BT = torch.zeros_like(batch.mask_BT)
    if clip.kind == "ppo":
        assert clip.low is not None and clip.high is not None
        bounded_BT = ratio_BT.clamp(1 - clip.low, 1 + clip.high)
        loss_BT = -torch.minimum(ratio_BT * advantages_BT, bounded_BT * advantages_BT)
        stopped_BT = _outside(rho_BT, advantages_BT, clip)
        if clip.dual is not None:
            loss_BT = torch.where(advantages_BT < 0, torch.minimum(loss_BT, -clip.dual * advantages_BT), loss_BT)
            stopped_BT = stopped_BT | ((advantages_BT < 0) & (rho_BT > clip.dual))
        return Surrogate(loss_BT=loss_BT, stopped_BT=stopped_BT)
    if clip.kind == "cispo":
        assert clip.cap is not None
        return Surrogate(loss_BT=-rho_BT.clamp(max=clip.cap) * advantages_BT * new_BT, stopped_BT=rho_BT > clip.cap)
    if clip.kind == "dppo":
        assert clip.delta is not None
        moved_BT = new_BT.detach().exp() - (new_BT.detach() - log_ratio_BT.detach()).exp()
        stopped_BT = moved_BT * advantages_BT.sign() > clip.delta
        return Surrogate(loss_BT=torch.where(stopped_BT, 0, -ratio_BT * advantages_BT), stopped_BT=stopped_BT)
    if clip.kind == "mask":
        drift_BT = torch.where(batch.mask_BT, new_BT.detach() - batch.old_BT, 0).clamp(-LOG_BOUND, LOG_BOUND).exp()
        stopped_BT = _outside(drift_BT, advantages_BT, clip)
        capped_BT = rho_BT if clip.cap is None else rho_BT.clamp(max=clip.cap)
        loss_BT = -capped_BT * advantages_BT * new_BT
        return Surrogate(loss_BT=torch.where(stopped_BT, 0, loss_BT), stopped_BT=stopped_BT)
    if clip.kind == "mirror":
        assert clip.tau is not None
        square_BT = clip.tau / 2 * log_ratio_BT * log_ratio_BT.sum(1, keepdim=True)
        return Surrogate(loss_BT=-advantages_BT * new_BT + square_BT, stopped_BT=nothing_BT)
    plain = not ratio_BT.requires_grad and new_BT.requires_grad
    return Surrogate(loss_BT=-advantages_BT * (new_BT if plain else ratio_BT), stopped_BT=nothing_BT)


def _outside(rho_BT: torch.Tensor, advantages_BT: torch.Tensor, clip: Clip) -> torch.Tensor:
    assert clip.low is not None and clip.high is not None
    too_high_BT = (advantages_BT > 0) & (rho_BT > 1 + clip.high)
    return too_high_BT | ((advantages_BT < 0) & (rho_BT < 1 - clip.low))


def off_policy_kept(
    new_BT: torch.Tensor, batch: Batch, advantages_BT: torch.Tensor, delta: float | None
) -> torch.Tensor | None:
    """Bool: tokens that the off-policy sequence mask keeps; None without it. An unknown mu is no evidence."""
    if delta is None:
        return None
    known_BT = batch.mask_BT & ~batch.sampler_BT.isnan()
    drift_BT = torch.where(known_BT, batch.sampler_BT - new_BT.detach(), 0)
    mean_B1 = drift_BT.sum(1, keepdim=True) / batch.mask_BT.sum(1, keepdim=True).clamp(min=1)
    return (advantages_BT >= 0) | (mean_B1 <= delta)


def value_loss(values_BT: torch.Tensor, part: Prepared, table: Table) -> Loss:
    """The critic's loss on a micro-batch, from the new values of its tokens; coefficient and weights included."""
    batch, critic = part.batch, table.critic
    if critic is None or part.returns_BT is None or batch.values_BT is None:
        raise DataError(
            "a value loss needs a table with a critic, returns and the values they were made with; got None"
        )
    mask_BT = batch.mask_BT
    error_BT = torch.where(mask_BT, values_BT - part.returns_BT, 0)
    square_BT, stopped_BT = error_BT**2, torch.zeros_like(mask_BT)
    if critic.clip is not None:
        near_BT = batch.values_BT + (values_BT - batch.values_BT).clamp(-critic.clip, critic.clip)
        near_square_BT = torch.where(mask_BT, near_BT - part.returns_BT, 0) ** 2
        stopped_BT = near_square_BT > square_BT
        square_BT = torch.maximum(square_BT, near_square_BT)
    total = critic.coefficient * (part.weights_BT * square_BT).sum() / 2
    counted_BT = part.weights_BT != 0
    returns_BT = torch.where(counted_BT, part.returns_BT, 0)
    sums = {
        "value_error": (error_BT.detach() ** 2 * counted_BT).sum(),
        "value_clipped": (stopped_BT & counted_BT).sum(),
        "returns": returns_BT.sum(),
        "squared_returns": (returns_BT**2).sum(),
    }
    return Loss(total=total, tally=Tally(sums=over(counted_BT.sum(), sums), totals={"value_loss": total.detach()}))


def ptx_loss(logprobs_BT: torch.Tensor, mask_BT: torch.Tensor, table: Table, *, tokens: float) -> Loss:
    """Next-token loss on text of the pretraining kind; `tokens` is the number of its tokens in the whole step."""
    total = -table.ptx * torch.where(mask_BT, logprobs_BT, 0).sum() / max(tokens, 1.0)
    return Loss(total=total, tally=Tally(totals={"ptx_loss": total.detach()}))


def _tally(
    new_BT: torch.Tensor,
    part: Prepared,
    ratio_BT: torch.Tensor,
    found: Surrogate,
    kept_BT: torch.Tensor | None,
    entropy_BT: torch.Tensor | None,
    totals: dict[str, torch.Tensor],
    target: str,
) -> Tally:
    batch, counted_BT, rho_BT = part.batch, part.weights_BT != 0, ratio_BT.detach()
    moved_BT = torch.where(counted_BT, new_BT - batch.old_BT, 0).clamp(-LOG_BOUND, LOG_BOUND)
    sums = {
        "clipped_high": (found.stopped_BT & counted_BT & (rho_BT >= 1)).sum(),
        "clipped_low": (found.stopped_BT & counted_BT & (rho_BT < 1)).sum(),
        "ratio": (rho_BT * counted_BT).sum(),
        "old_kl": (torch.expm1(moved_BT) - moved_BT).sum(),
    }
    if batch.ref_BT is not None:
        sums["teacher_kl" if target == "teacher" else "ref_kl"] = torch.where(
            counted_BT, new_BT - batch.ref_BT, 0
        ).sum()
    if part.policy_weights_BT is not None:
        sums["without_gradient"] = (counted_BT & (part.policy_weights_BT == 0)).sum()
    if part.kl_weights_BT is not None:
        sums["with_kl"] = (counted_BT & (part.kl_weights_BT != 0)).sum()
    if kept_BT is not None:
        sums["off_policy_dropped"] = (~kept_BT & counted_BT).sum()
    if entropy_BT is not None:
        sums["entropy"] = torch.where(counted_BT, entropy_BT.detach(), 0).sum()
    return Tally(
        sums=over(counted_BT.sum(), sums),
        totals={"tokens": counted_BT.sum(), **totals},
        least={"ratio": torch.where(counted_BT, rho_BT, torch.inf).amin()},
        greatest={"ratio": torch.where(counted_BT, rho_BT, 0).amax()},
    )
