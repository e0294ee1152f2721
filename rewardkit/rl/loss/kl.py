r"""The KL divergence to a reference or a teacher: which number is taken where, and what that makes of the objective.

With l = log pi(y_t), f = log pi_ref(y_t), o = log pi_old(y_t), rho = e^(l - o), on samples of pi (= pi_old at the first
update), expectations and gradients are, proved by enumeration in the tests:

    k1 = l - f                  in reward, rewards to go, gamma = 1     gradient of the sequence KL
    k1                          in advantage (a token's own alone)      gradient of the state KL *
    k1                          in loss                                 zero gradient: refused
    k2 = (l - f)^2 / 2          in loss, sum over tokens                gradient of the state KL *
    k2_seq = (sum_t l - f)^2/2  in loss                                 gradient of the sequence KL
    k3 = e^(f-l) - (f-l) - 1    in loss     value of the state KL, gradient of its forward form KL(pi_ref || pi)
    k3_is = rho k3              in loss, rho with gradient     value and gradient of the state KL *, off-policy too
    k3                          in reward   sequence KL minus forward state KL: refused
    full = sum_v pi (log pi - log f)   in loss     value and gradient of the state KL *, without sampling noise
    abs = |l - o|               in loss, of tokens that `picks` names: KL-Cov, arXiv 2505.22617; no gradient at l = o

    * sum over the states that were visited of KL(pi(.|s) || pi_ref(.|s)), how often each is visited held fixed

(k1, k2, k3: Schulman 2020, "Approximating KL divergence". rho k3: DeepSeek-V3.2, arXiv 2512.02556. Gradients: arXiv
2506.09477, 2512.21852.) No estimator is clamped, since a clamp takes its gradient away. k1 to a teacher in the
advantage is on-policy distillation; `full` with a share m of the target is the generalised Jensen-Shannon divergence

    m KL(f || m f + (1 - m) pi) + (1 - m) KL(pi || m f + (1 - m) pi)      arXiv 2306.13649

whose ends are given as their limits over m and 1 - m: 0 is KL(f || pi), 1 is KL(pi || f).

The coefficient is constant, falls or rises along a line, or follows the measured KL as in arXiv 1909.08593:

    beta <- beta (1 + clip(KL / aim - 1, -0.2, 0.2) n / horizon)         n: responses since the last time

Legend: B rows, T tokens, N positions, V vocabulary.
"""

from __future__ import annotations

import math

import torch

from rewardkit.rl.loss.batch import Batch
from rewardkit.rl.loss.groups import group_index
from rewardkit.rl.settings.sections import Kl
from verifiers.errors import ConfigError, DataError


def reference(batch: Batch, target: str = "ref", new_BT: torch.Tensor | None = None) -> torch.Tensor:
    """Log-probabilities under the target; DataError where the batch has none.

    A token that the sampler said nothing about has the policy's own (`new_BT`), so that its KL is 0.
    """
    if target == "old":
        return batch.old_BT
    if target == "sampler":
        assert new_BT is not None
        return torch.where(batch.sampler_BT.isnan(), new_BT.detach(), batch.sampler_BT)
    if batch.ref_BT is None:
        whose = "the teacher's" if target == "teacher" else "the reference's"
        raise DataError(f"kl.target={target!r} needs Batch.ref_BT; got None, compute {whose} log-probabilities")
    return batch.ref_BT


def penalty(batch: Batch, coefficient: float, kl: Kl | None = None) -> torch.Tensor:
    """The term beta (o - f) of every token, taken from its reward or advantage; 0 where the mask is False.

    With `kl`, 0 too in responses that it leaves alone.
    """
    taken_BT = coefficient * torch.where(batch.mask_BT, batch.old_BT - reference(batch, kl.target if kl else "ref"), 0)
    rows_B = held_rows(batch, kl) if kl is not None else None
    return taken_BT if rows_B is None else taken_BT * rows_B[:, None]


def held_rows(batch: Batch, kl: Kl) -> torch.Tensor | None:
    """Bool per row: responses that `kl.only` names; None where it leaves none out. Right is an outcome above 1/2."""
    right_B = batch.outcome_B > 0.5
    if kl.only == "wrong":
        return ~right_B
    if kl.only == "failed":
        of_B = group_index(batch.group_B)
        return torch.zeros(len(of_B), device=of_B.device).index_add(0, of_B, right_B.float())[of_B] == 0
    return None


def divergence(own_NV: torch.Tensor, other_NV: torch.Tensor, mix: float = 1.0) -> torch.Tensor:
    """`full` at every position, in nats, from both models' logits; the target's carry no gradient. Shape (N,)."""
    p_NV, q_NV = own_NV.log_softmax(-1), other_NV.detach().log_softmax(-1)
    if mix == 1:
        # d/dz sum p (log p - log q) = p (gap - KL): the gap's own gradient adds nothing, and without it rounding does
        # not either, so that a target that is the policy itself moves it not at all.
        return (p_NV.exp() * (p_NV - q_NV).detach()).sum(-1)
    if mix == 0:
        return (q_NV.exp() * (q_NV - p_NV)).sum(-1)
    between_NV = torch.logaddexp(q_NV + math.log(mix), p_NV + math.log(1 - mix))
    to_target_N = (q_NV.exp() * (q_NV - between_NV)).sum(-1)
    return mix * to_target_N + (1 - mix) * (p_NV.exp() * (p_NV - between_NV)).sum(-1)


def loss_terms(
    estimator: str,
    new_BT: torch.Tensor,
    ref_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    log_ratio_BT: torch.Tensor,
) -> torch.Tensor:
    """Each token's term of the loss, without its coefficient; `log_ratio_BT` is l - o with gradient, for k3_is.

    The terms of k2_seq are those of one row's square shared out: sum_t (l - f)_t S = S^2.
    """
    gap_BT = torch.where(mask_BT, new_BT - ref_BT, 0)
    if estimator == "k2":
        return gap_BT**2 / 2
    if estimator == "abs":
        return gap_BT.abs()
    if estimator == "k2_seq":
        return gap_BT * gap_BT.sum(1, keepdim=True) / 2
    k3_BT = torch.expm1(-gap_BT) + gap_BT
    return k3_BT if estimator == "k3" else log_ratio_BT.exp() * k3_BT


def measured(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of o - f, number of tokens): the KL a token that the adaptive coefficient follows is their quotient."""
    return penalty(batch, 1.0).sum(), batch.mask_BT.sum()


def next_coefficient(
    kl: Kl, current: float, *, step: int, measured: float | None = None, responses: int | None = None
) -> float:
    """The coefficient for the optimiser step `step` (from 0), given the last one's.

    `measured` is the KL a token since the last call, `responses` how many it was measured on; of adaptive alone.
    """
    if kl.schedule == "constant":
        return kl.coefficient
    if kl.schedule == "linear":
        assert kl.final is not None and kl.steps is not None
        return kl.coefficient + (kl.final - kl.coefficient) * min(step / kl.steps, 1.0)
    if step == 0:
        return kl.coefficient
    if measured is None or responses is None:
        raise ConfigError("kl.schedule='adaptive' needs the measured KL and its number of responses after step 0")
    assert kl.aim is not None and kl.horizon is not None
    error = min(max(measured / kl.aim - 1.0, -0.2), 0.2)
    return current * max(1.0 + error * responses / kl.horizon, 0.0)
