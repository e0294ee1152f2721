"""Sums over what follows: rewards to go and generalised advantages of tokens, lambda-returns and soft minima of steps.

With valid tokens t < t' < t'' ... of a response (gaps are skipped, so taking one out changes nothing),

    to go           y_t = r_t + d y_t'
    delta           delta_t = r_t + gamma V_t' - V_t,  V = 0 behind the last token
    GAE             A_t = delta_t + gamma lambda A_t',  return G_t = A_t + V_t      (Schulman et al., arXiv 1506.02438)

lambda = 0 is delta, lambda = 1 is the discounted return minus V. Steps are the pieces of a response between its step
ends; a step's reward is the sum of its tokens', and

    step            y_k = r_k + lambda y_k+1
    soft minimum    r*_k = softmax(-r / T)_k r_k, whose sum tends to the least r_k as T -> 0   (PURE, arXiv 2504.15275)

Where r_k is what a step adds to a potential, r_k is the TD error of a critic that equals the potential, so y is GAE
over steps. Carrying on over a gap, rather than taking its value for 0, follows verl; a zero there would end the
episode.

Legend: B rows, T tokens, S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


def to_go(values_BT: torch.Tensor, mask_BT: torch.Tensor, decay: float) -> torch.Tensor:
    """y, and 0 where the mask is False."""
    values_BT = torch.where(mask_BT, values_BT, 0)
    if decay == 1:
        return values_BT.flip(1).cumsum(1).flip(1) * mask_BT
    ahead_B = torch.zeros_like(values_BT[:, 0]) if values_BT.shape[1] else values_BT.sum(1)
    columns = []
    for t in range(values_BT.shape[1] - 1, -1, -1):
        ahead_B = torch.where(mask_BT[:, t], values_BT[:, t] + decay * ahead_B, ahead_B)
        columns.append(ahead_B)
    return torch.stack(columns[::-1], 1) * mask_BT if columns else values_BT


def next_values(values_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The value at the next valid token, 0 where none follows."""
    rows, width = mask_BT.shape
    columns_T = torch.arange(width, device=mask_BT.device)
    valid_BT = torch.where(mask_BT, columns_T, width)
    # The nearest valid column at or behind each, then one further on.
    nearest_BT = valid_BT.flip(1).cummin(1).values.flip(1)
    following_BT = torch.cat([nearest_BT[:, 1:], nearest_BT.new_full((rows, 1), width)], 1)
    padded = torch.cat([torch.where(mask_BT, values_BT, 0), values_BT.new_zeros(rows, 1)], 1)
    return padded.gather(1, following_BT)


def generalised_advantages(
    rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, G), both 0 where the mask is False."""
    values_BT = torch.where(mask_BT, values_BT, 0)
    delta_BT = rewards_BT + gamma * next_values(values_BT, mask_BT) - values_BT
    advantages_BT = to_go(delta_BT, mask_BT, gamma * lam)
    return advantages_BT, advantages_BT + values_BT


def at_last_token(rewards_B: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """A response's reward at its last token; nowhere for a response without tokens."""
    last_BT = mask_BT & (mask_BT.cumsum(1) == mask_BT.sum(1, keepdim=True))
    return torch.where(last_BT, rewards_B[:, None], 0)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Which step each token belongs to."""

    of_BT: torch.Tensor
    """Index of a token's step; 0 where the mask is False."""
    valid_BS: torch.Tensor
    """Which steps a row has; each has one at least."""
    mask_BT: torch.Tensor

    def sums(self, values_BT: torch.Tensor) -> torch.Tensor:
        """Sums of token values over each step."""
        made_BS = torch.zeros(self.valid_BS.shape, dtype=values_BT.dtype, device=values_BT.device)
        return made_BS.scatter_add(1, self.of_BT, torch.where(self.mask_BT, values_BT, 0))

    def spread(self, values_BS: torch.Tensor) -> torch.Tensor:
        """Every token has the value of its step; 0 where the mask is False."""
        return values_BS.gather(1, self.of_BT) * self.mask_BT

    @property
    def last_BS(self) -> torch.Tensor:
        """Each row's last step."""
        return self.valid_BS & (self.valid_BS.cumsum(1) == self.valid_BS.sum(1, keepdim=True))


def split_steps(ends_BT: torch.Tensor, mask_BT: torch.Tensor) -> Steps:
    """Steps from their last tokens. Tokens behind the last end belong to it; a row without ends is one step."""
    ends_BT = ends_BT & mask_BT
    count_B = ends_BT.sum(1).clamp(min=1)
    before_BT = ends_BT.cumsum(1) - ends_BT.long()
    of_BT = torch.minimum(before_BT, count_B[:, None] - 1) * mask_BT
    steps_S = torch.arange(int(count_B.max()) if len(count_B) else 1, device=mask_BT.device)
    return Steps(of_BT=of_BT, valid_BS=steps_S < count_B[:, None], mask_BT=mask_BT)


def soft_minimum(rewards_BS: torch.Tensor, valid_BS: torch.Tensor, temperature: float) -> torch.Tensor:
    """r*: each step's reward times its share in the soft minimum."""
    logits_BS = torch.where(valid_BS, -rewards_BS / temperature, -torch.inf)
    return logits_BS.softmax(1) * torch.where(valid_BS, rewards_BS, 0)
