"""What a loss reports: sums, least and greatest values, which add up over micro-batches and processes.

A mean over tokens is a sum over tokens divided by their number, once at the end; means of means would depend on how the
batch was cut. Every sum goes with its own number, since not every figure is over the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Figures of a part of a batch, on the device they were made on."""

    sums: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """(sum, how many it is over) of each mean. Shape (2,)."""
    totals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Which stand as they are: counts, and sums that carry the weights of the batch."""
    least: Mapping[str, torch.Tensor] = field(default_factory=dict)
    greatest: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        """Both parts together."""
        return Tally(
            sums=_merged(self.sums, other.sums, torch.add),
            totals=_merged(self.totals, other.totals, torch.add),
            least=_merged(self.least, other.least, torch.minimum),
            greatest=_merged(self.greatest, other.greatest, torch.maximum),
        )

    def cpu(self) -> Tally:
        """The same in main memory."""
        return Tally(**{name: {key: value.cpu() for key, value in kept.items()} for name, kept in vars(self).items()})

    def figures(self) -> dict[str, float]:
        """Numbers, means in place of sums."""
        pairs = {name: value.tolist() for name, value in self.sums.items()}
        found: dict[str, float] = {name: total / max(count, 1.0) for name, (total, count) in pairs.items()}
        found |= {name: float(value) for name, value in self.totals.items()}
        found |= {f"{name}_least": float(value) for name, value in self.least.items()}
        return found | {f"{name}_greatest": float(value) for name, value in self.greatest.items()}


def over(count: torch.Tensor, sums: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sums over `count` tokens or responses, as a Tally holds them."""
    return {name: torch.stack([value.double(), count.double()]) for name, value in sums.items()}


Join: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _merged(
    first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor], join: Join
) -> dict[str, torch.Tensor]:
    both = {name: join(value, second[name]) for name, value in first.items() if name in second}
    return {**first, **second, **both}
