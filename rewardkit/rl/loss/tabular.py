"""A policy small enough to enumerate: a table of logits, one row a prefix; every expectation is a sum over sequences.

Oracle for tests and benchmarks: what an objective's expected value and gradient are, without sampling and to rounding,
computed through the very functions that train (`advantages.estimate`, `objective.policy_loss`). In float64.

Legend: N sequences, T tokens, S prefixes (states), V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from rewardkit.rl.loss.advantages import Estimate, estimate
from rewardkit.rl.loss.batch import Batch, Prepared
from rewardkit.rl.loss.kl import divergence
from rewardkit.rl.loss.objective import policy_loss
from rewardkit.rl.settings.table import Table


class Tabular:
    """All sequences of `length` tokens, shorter where the token `end` comes up."""

    def __init__(self, vocabulary: int = 3, length: int = 3, end: int | None = None) -> None:
        full = itertools.product(range(vocabulary), repeat=length)
        cut = {tuple(itertools.islice(_until(row, end), length)) for row in full}
        self.sequences = sorted(cut)
        prefixes = sorted({row[:t] for row in self.sequences for t in range(len(row))})
        index = {prefix: s for s, prefix in enumerate(prefixes)}
        self.shape, self.length = (len(prefixes), vocabulary), length
        self.ids_NT = torch.zeros(len(self.sequences), length, dtype=torch.long)
        self.states_NT = torch.zeros_like(self.ids_NT)
        self.mask_NT = torch.zeros_like(self.ids_NT, dtype=torch.bool)
        for n, row in enumerate(self.sequences):
            for t, token in enumerate(row):
                self.ids_NT[n, t], self.states_NT[n, t], self.mask_NT[n, t] = token, index[row[:t]], True

    def logits(self, seed: int, scale: float = 1.0) -> torch.Tensor:
        """Random logits, a leaf that asks for gradients."""
        drawn = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (scale * drawn).requires_grad_()

    def random(self, seed: int) -> torch.Tensor:
        """A random number a sequence."""
        return torch.randn(len(self.sequences), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def logprobs(self, logits: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Of every token of every sequence, or of those in `rows`; 0 where there is none. Shape (N, T)."""
        picked = slice(None) if rows is None else rows
        table = logits.log_softmax(-1)[self.states_NT[picked]]
        found = table.gather(-1, self.ids_NT[picked][..., None])[..., 0]
        return torch.where(self.mask_NT[picked], found, 0)

    def entropies(self, logits: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Of the policy at every token's state, in nats. Shape (N, T)."""
        log = logits.log_softmax(-1)
        return -(log.exp() * log).sum(-1)[self.states_NT[slice(None) if rows is None else rows]]

    def divergences(self, logits: torch.Tensor, other: torch.Tensor, mix: float = 1.0) -> torch.Tensor:
        """The divergence of `kl.divergence` before every token."""
        return divergence(logits, other, mix)[self.states_NT]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of every sequence; they sum to 1. Shape (N,)."""
        return self.logprobs(logits).sum(1).exp()

    def over_states(self, logits: torch.Tensor, per_S: torch.Tensor) -> torch.Tensor:
        """sum_s d(s) x(s), with how often each state is visited held fixed."""
        visits = self.probabilities(logits).detach()[:, None] * self.mask_NT
        return (visits * per_S[self.states_NT]).sum()


def _until(row: tuple[int, ...], end: int | None) -> Iterator[int]:
    for token in row:
        yield token
        if token == end:
            return


def batch_of(
    policy: Tabular,
    old: torch.Tensor,
    rewards: torch.Tensor,
    *,
    rows: torch.Tensor | None = None,
    group: torch.Tensor | None = None,
    ref: torch.Tensor | None = None,
    sampler: torch.Tensor | None = None,
    **more: torch.Tensor,
) -> Batch:
    """Rows of a policy as a batch; `old`, `ref` and `sampler` are logits."""
    rows = torch.arange(len(policy.sequences)) if rows is None else rows
    old_BT = policy.logprobs(old, rows).detach()
    given: dict[str, Any] = {
        "mask_BT": policy.mask_NT[rows],
        "old_BT": old_BT,
        "sampler_BT": old_BT if sampler is None else policy.logprobs(sampler, rows).detach(),
        "ref_BT": None if ref is None else policy.logprobs(ref, rows).detach(),
        "group_B": torch.zeros(len(rows), dtype=torch.long) if group is None else group,
        "rewards_B": rewards,
        "outcome_B": rewards,
        "truncated_B": torch.zeros(len(rows), dtype=torch.bool),
    }
    return Batch(**(given | more))


def expected_gradient(
    policy: Tabular,
    logits: torch.Tensor,
    batch: Batch,
    table: Table,
    probabilities_B: torch.Tensor,
    *,
    found: Estimate | None = None,
    rows: torch.Tensor | None = None,
    divergence_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gradient of the policy loss, each response's tokens summed and weighted with how probable its draw was."""
    found = estimate(batch, table) if found is None else found
    weights = probabilities_B.detach()[:, None] * batch.mask_BT
    part = Prepared(batch=batch, advantages_BT=found.advantages_BT, weights_BT=weights)
    entropy = policy.entropies(logits, rows) if table.entropy else None
    loss = policy_loss(policy.logprobs(logits, rows), part, table, entropy_BT=entropy, divergence_BT=divergence_BT)
    (gradient,) = torch.autograd.grad(loss.total, logits)
    return gradient


def gradient_of(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The gradient of a scalar; its graph stays. Shape (S, V)."""
    (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
    return gradient


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """|found - wanted| / |wanted|."""
    return float((found - wanted).norm() / wanted.norm())


def sequence_kl(policy: Tabular, logits: torch.Tensor, ref: torch.Tensor) -> torch.Tensor:
    """KL(pi || ref) of whole sequences, with its full gradient."""
    gap = (policy.logprobs(logits) - policy.logprobs(ref).detach()).sum(1)
    return (policy.probabilities(logits) * gap).sum()


def state_kl(policy: Tabular, logits: torch.Tensor, ref: torch.Tensor, *, forward: bool = False) -> torch.Tensor:
    """KL(pi || ref), or KL(ref || pi), summed over visited states, visits held fixed."""
    own, other = logits.log_softmax(-1), ref.detach().log_softmax(-1)
    per_S = (other.exp() * (other - own)).sum(-1) if forward else (own.exp() * (own - other)).sum(-1)
    return policy.over_states(logits, per_S)
