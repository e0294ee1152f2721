"""The tensors of an optimiser batch, before and after its advantages and weights are known, and how it is cut.

Legend: B responses (rows), T tokens of responses, right-padded. Tokens that are no tokens of the response (padding,
text of a tool) are False in the mask; those inside a response are gaps that returns are carried over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch

from verifiers.errors import DataError

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What sampling and scoring gave. What stands where the mask is False is never read."""

    mask_BT: torch.Tensor
    """Bool: tokens that the policy drew."""
    old_BT: torch.Tensor
    """Log-probabilities under the policy before the updates of this batch."""
    sampler_BT: torch.Tensor
    """Log-probabilities that the sampler reported; NaN where it did not."""
    group_B: torch.Tensor
    """Integers: rows of one prompt share one."""
    rewards_B: torch.Tensor
    """Reward of the response, shaping included; NaN: unscored."""
    outcome_B: torch.Tensor
    """The verifier's outcome alone, which filters look at; NaN: undecided."""
    truncated_B: torch.Tensor
    """Bool: cut off at the length limit."""
    ref_BT: torch.Tensor | None = None
    """Log-probabilities under the model that the KL is taken to: the reference policy or the teacher."""
    token_rewards_BT: torch.Tensor | None = None
    """Rewards of tokens beside the response's, such as a step's at its last token; 0 elsewhere. A response's reward
    comes on top at its last token."""
    step_ends_BT: torch.Tensor | None = None
    """Bool: last token of each step. Tokens behind the last one belong to the last step."""
    values_BT: torch.Tensor | None = None
    """The critic's value of the state before each token."""
    stream_B: torch.Tensor | None = None
    """Integers that name each row's random draws (`picks`), the same however rows are shared out."""

    def __post_init__(self) -> None:
        rows, width = self.mask_BT.shape
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = (rows, width) if field.name.endswith("_BT") else (rows,)
            if value is not None and tuple(value.shape) != wanted:
                raise DataError(
                    f"Batch.{field.name} must have the shape {wanted} of its mask; got {tuple(value.shape)}"
                )
        for name in ("mask_BT", "truncated_B", "step_ends_BT"):
            value = getattr(self, name)
            if value is not None and value.dtype != torch.bool:
                raise DataError(f"Batch.{name} must be of dtype bool; got {value.dtype}")
        if self.group_B.is_floating_point():
            raise DataError(f"Batch.group_B must hold integers; got {self.group_B.dtype}")

    @property
    def lengths_B(self) -> torch.Tensor:
        """Tokens of each response."""
        return self.mask_BT.sum(1)

    @property
    def scored_B(self) -> torch.Tensor:
        """Rows that have a reward."""
        return ~self.rewards_B.isnan()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A batch with all that its loss needs but the new log-probabilities; micro-batches are cut from it."""

    batch: Batch
    advantages_BT: torch.Tensor
    """0 where the mask is False."""
    weights_BT: torch.Tensor
    """w: what a token's loss is multiplied by; 0 where it does not count."""
    returns_BT: torch.Tensor | None = None
    """What values are fitted to; of gae alone."""
    policy_weights_BT: torch.Tensor | None = None
    """w of the policy's own term, where it is 0 for some tokens that still count elsewhere."""
    kl_weights_BT: torch.Tensor | None = None
    """w of the KL in the loss, where only some tokens have one."""


def check_values(batch: Batch) -> None:
    """Raise DataError for numbers that would spoil a loss silently; reads the tensors, so call it once a batch."""
    mask = batch.mask_BT
    for name in ("old_BT", "ref_BT", "token_rewards_BT", "values_BT"):
        value = getattr(batch, name)
        if value is not None and not value[mask].isfinite().all():
            where = (~value.isfinite() & mask).nonzero()[0].tolist()
            raise DataError(f"Batch.{name} must be finite on every token of a response; row, token {where} is not")
    for name in ("sampler_BT", "rewards_B", "outcome_B"):
        if getattr(batch, name).isinf().logical_and(mask if name.endswith("_BT") else torch.tensor(True)).any():
            raise DataError(f"Batch.{name} must be finite, or NaN where it is unknown; got infinity")
    if batch.token_rewards_BT is not None and batch.token_rewards_BT[~mask].count_nonzero():
        where = ((batch.token_rewards_BT != 0) & ~mask).nonzero()[0].tolist()
        raise DataError(
            f"Batch.token_rewards_BT must be 0 off the response's tokens; row, token {where} is not: give the reward "
            "to the last token that the policy drew before it"
        )
    if batch.step_ends_BT is not None and (batch.step_ends_BT & ~mask).any():
        where = (batch.step_ends_BT & ~mask).nonzero()[0].tolist()
        raise DataError(f"Batch.step_ends_BT must lie on tokens of the response; row, token {where} does not")


def take(item: Item, rows_N: torch.Tensor, *, width: int | None = None) -> Item:
    """Rows of a Batch, a Prepared or any dataclass of such tensors, in the order given; of tokens the first `width`."""
    if not is_dataclass(item) or isinstance(item, type):
        raise TypeError(f"take cuts dataclasses of tensors; got {type(item).__name__}")
    made: dict[str, Any] = {}
    for field in fields(item):
        value = getattr(item, field.name)
        if isinstance(value, torch.Tensor):
            made[field.name] = value[rows_N] if value.dim() == 1 else value[rows_N, :width]
        elif is_dataclass(value):
            made[field.name] = take(value, rows_N, width=width)
    return replace(item, **made)


def widths(mask_BT: torch.Tensor) -> list[int]:
    """Columns up to each row's last token."""
    columns_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    return [int(width) for width in (mask_BT * columns_T).amax(1)] if mask_BT.shape[1] else [0] * len(mask_BT)


def micro_batches(
    item: Prepared, rows: int, *, order: Sequence[int] | None = None
) -> Iterator[tuple[torch.Tensor, Prepared]]:
    """(row numbers, their part of the batch) in pieces of `rows` rows, each as wide as its longest row.

    `order` are the rows to take, all in their order where it is None; rows that a loss does not need can be left out of
    it (`filters`), and rows of like length put beside each other.
    """
    device, needed = item.weights_BT.device, widths(item.batch.mask_BT)
    chosen = range(len(needed)) if order is None else order
    for start in range(0, len(chosen), rows):
        part = list(chosen[start : start + rows])
        index_N = torch.tensor(part, dtype=torch.long, device=device)
        yield index_N, take(item, index_N, width=max(1, max(needed[row] for row in part)))
