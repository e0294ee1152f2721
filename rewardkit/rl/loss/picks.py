r"""Tokens that an optimiser batch treats apart, chosen once from all of it: by covariance, by entropy, at random.

With l the log-probability of a token, A its advantage, means over all counted tokens of all processes, and N their
number,

    covariance    c_t = (A_t - mean A) (l_t - mean l): how much a step at t sharpens the policy (arXiv 2505.22617)
    Clip-Cov      of the tokens with low < c_t < high, max(1, floor(r N)) drawn at random lose the policy gradient
    KL-Cov        the max(1, floor(r N)) tokens of the greatest c_t, where it is above 0, get a KL to the old policy
    entropy top   the max(1, floor(q N)) tokens of the highest entropy alone carry the policy gradient; what losses are
                  divided by stays (arXiv 2506.01939)

The papers' code chooses in every micro-batch, at least one each, so how a batch is cut changes the objective. Here the
threshold is the n-th greatest number over all processes, found by bisection on counts, which only need to be added up;
tokens that are equal to it are all taken (so without the bound at 0 a batch of equal rewards, all of whose c_t are 0,
would be held whole). Random numbers hang on a row's `stream_B`, the token's place and a salt, not
on the order of rows. l and the entropy are those of the policy at the beginning of the optimiser batch (`Look`): the
old ones before the first update of a step, read anew before a later one. Tokens that PPO's clip stops are not set
apart first, which matters only after the first update.

Legend: B rows, T tokens, N values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rewardkit.rl.loss.batch import Batch
from rewardkit.rl.loss.groups import OverRanks, alone, moments
from rewardkit.rl.settings.sections import Masks
from search.engines.randomness import uniforms
from verifiers.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Look:
    """The policy on an optimiser batch before it is updated, without gradient."""

    logprobs_BT: torch.Tensor
    entropies_BT: torch.Tensor | None = None


@torch.no_grad()
def covariances(
    now: Look, advantages_BT: torch.Tensor, counted_BT: torch.Tensor, over_ranks: OverRanks = alone
) -> torch.Tensor:
    """The covariance c of every counted token; 0 elsewhere."""
    logprobs_BT = torch.where(counted_BT, now.logprobs_BT, 0)
    mean_logprob = moments(logprobs_BT[counted_BT], over_ranks)[0]
    mean_advantage = moments(advantages_BT[counted_BT], over_ranks)[0]
    return torch.where(counted_BT, (advantages_BT - mean_advantage) * (logprobs_BT - mean_logprob), 0)


@torch.no_grad()
def by_covariance(
    now: Look,
    advantages_BT: torch.Tensor,
    counted_BT: torch.Tensor,
    share: float,
    *,
    over_ranks: OverRanks = alone,
) -> torch.Tensor:
    """Bool: the share of counted tokens with the greatest covariance, as far as it is above 0."""
    found_BT = covariances(now, advantages_BT, counted_BT, over_ranks)
    least = greatest(found_BT[counted_BT], number_of(counted_BT, share, over_ranks), over_ranks)
    return counted_BT & (found_BT >= least) & (found_BT > 0)


@torch.no_grad()
def clip_covariance(
    batch: Batch,
    now: Look,
    advantages_BT: torch.Tensor,
    counted_BT: torch.Tensor,
    masks: Masks,
    *,
    over_ranks: OverRanks = alone,
    salt: int = 0,
) -> torch.Tensor:
    """Bool: tokens drawn from those whose covariance is inside the bounds."""
    assert masks.clip_cov is not None
    found_BT = covariances(now, advantages_BT, counted_BT, over_ranks)
    low, high = masks.cov_bounds
    inside_BT = counted_BT & (found_BT > low) & (found_BT < high)
    lots_BT = lots(batch, salt)
    wanted = number_of(counted_BT, masks.clip_cov, over_ranks)
    return inside_BT & (lots_BT >= greatest(lots_BT[inside_BT], wanted, over_ranks))


@torch.no_grad()
def by_entropy(now: Look, counted_BT: torch.Tensor, share: float, over_ranks: OverRanks = alone) -> torch.Tensor:
    """Bool: the share of counted tokens with the highest entropy."""
    if now.entropies_BT is None:
        raise DataError("masks.entropy_top needs the policy's entropy before every token; got None, read it first")
    entropies_BT = now.entropies_BT
    wanted = number_of(counted_BT, share, over_ranks)
    return counted_BT & (entropies_BT >= greatest(entropies_BT[counted_BT], wanted, over_ranks))


def number_of(counted_BT: torch.Tensor, share: float, over_ranks: OverRanks = alone) -> int:
    """How many tokens a share is: at least 1."""
    total = int(over_ranks(counted_BT.sum().double()))
    return max(1, int(share * total))


def greatest(values_N: torch.Tensor, number: int, over_ranks: OverRanks = alone) -> float:
    """The `number`-th greatest value over all processes, exactly; minus infinity where there are fewer."""
    # Doubles in the order of their bits: 64 halvings find the last place that enough values reach.
    bits_N = (values_N.double() + 0.0).view(torch.int64)
    keys_N = torch.where(bits_N < 0, bits_N ^ (2**63 - 1), bits_N)

    def reached(least: int) -> bool:
        return bool(over_ranks((keys_N >= least).sum().double()) >= number)

    low, high = -(2**63), 2**63 - 1
    if not reached(low):
        return -torch.inf
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if reached(middle) else (low, middle - 1)
    return float(torch.tensor(low if low >= 0 else low ^ (2**63 - 1)).view(torch.float64))


def lots(batch: Batch, salt: int) -> torch.Tensor:
    """A number in [0, 1) for every token, by its row's stream, its place and the salt. Shape (B, T), float64."""
    if batch.stream_B is None:
        raise DataError("masks.clip_cov draws tokens by Batch.stream_B; got None, give each row a number")
    rows, width = batch.mask_BT.shape
    seeds = batch.stream_B.cpu().numpy().astype(np.uint64)
    places = np.arange(width, dtype=np.uint64) + np.uint64((salt % 2**31) << 32)
    drawn = uniforms(np.repeat(seeds, width), np.tile(places, rows))
    return torch.from_numpy(drawn).to(batch.mask_BT.device).view(rows, width)
