"""What is added to the reward of a response for its length and its repeats; the outcome stays as it is.

    overlong    0 up to L - c; (L - c - |y|) / c up to L; -1 beyond      (DAPO, arXiv 2503.14476, eq. 13)
    length      lambda = 1/2 - (|y| - min) / (max - min) over the group; right ones get lambda, wrong ones
                min(0, lambda), all 0 where lengths are equal             (Kimi k1.5, arXiv 2501.12599)
    repetition  -(1 - different n-grams / n-grams)                        (Yeo et al., arXiv 2502.03373)

These are `verifiers.SoftOverlong`, `GroupLength` and `NgramPenalty` on what a loop has at hand: numbers of tokens,
outcomes and ids. L is the sampler's length limit, c a share of it. Right is an outcome above 1/2; an undecided response
gets no length reward, though its length counts in its group. An unscored response stays unscored.

Legend: B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rewardkit.rl.loss.groups import group_index
from rewardkit.rl.settings.sections import Shaping
from verifiers.core import Problem, Response
from verifiers.errors import ConfigError
from verifiers.repetition import NgramPenalty


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """Rewards with what was added."""

    rewards_B: torch.Tensor
    parts: dict[str, torch.Tensor]
    """Each term by name, weighted, per row."""


def soft_overlong(lengths_B: torch.Tensor, *, limit: int, margin: float) -> torch.Tensor:
    """DAPO's punishment in [-1, 0]; `margin` is c in tokens."""
    if not 0 < margin <= limit:
        raise ConfigError(f"the margin of soft overlong must be above 0 and at most the limit {limit}; got {margin!r}")
    return ((limit - margin - lengths_B) / margin).clamp(-1.0, 0.0)


def group_length(lengths_B: torch.Tensor, outcome_B: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """Kimi's length term in [-1/2, 1/2]; 0 for an undecided response."""
    of_B = group_index(group_B)
    lengths_B = lengths_B.to(outcome_B.dtype)
    filled_P = lengths_B.new_zeros(len(lengths_B))
    least_B = filled_P.scatter_reduce(0, of_B, lengths_B, "amin", include_self=False)[of_B]
    most_B = filled_P.scatter_reduce(0, of_B, lengths_B, "amax", include_self=False)[of_B]
    term_B = 0.5 - (lengths_B - least_B) / (most_B - least_B).clamp(min=1)
    term_B = torch.where(outcome_B > 0.5, term_B, term_B.clamp(max=0.0))
    return torch.where((most_B == least_B) | outcome_B.isnan(), 0, term_B)


def repetition(ids: Sequence[Sequence[int]], *, ngram: int) -> list[float]:
    """-(share of n-grams that came before), in (-1, 0], for each response's token ids."""
    penalty = NgramPenalty(size=ngram, max_penalty=-1.0)
    responses = [Response(problem_id="", text="", token_ids=tuple(row)) for row in ids]
    verdicts = penalty.judge([Problem(id="", prompt="")] * len(responses), responses)
    return [float(verdict.score or 0.0) for verdict in verdicts]


def shape(
    rewards_B: torch.Tensor,
    shaping: Shaping,
    *,
    lengths_B: torch.Tensor,
    outcome_B: torch.Tensor,
    group_B: torch.Tensor,
    limit: int,
    ids: Sequence[Sequence[int]] | None = None,
) -> Shaped:
    """Rewards plus the table's terms. `ids` are the responses' tokens, which repetition reads."""
    parts: dict[str, torch.Tensor] = {}
    if shaping.overlong is not None:
        margin = (0.2 if shaping.cache is None else shaping.cache) * limit
        parts["overlong"] = shaping.overlong * soft_overlong(lengths_B, limit=limit, margin=margin)
    if shaping.length is not None:
        parts["length"] = shaping.length * group_length(lengths_B, outcome_B, group_B)
    if shaping.repetition is not None:
        if ids is None:
            raise ConfigError("shaping.repetition counts n-grams of token ids; got None, pass ids")
        found = repetition(ids, ngram=shaping.ngram or 3)
        parts["repetition"] = shaping.repetition * rewards_B.new_tensor(found)
    for part_B in parts.values():
        rewards_B = rewards_B + part_B.to(rewards_B)
    return Shaped(rewards_B=rewards_B, parts=parts)
