"""Numbers, means and deviations of a group's rows and of the whole batch's; unscored rows are left out.

Deviations are those of a sample (n - 1). A group in which all values are equal has deviation 0 exactly, whatever
rounding says. Sums over the batch go through `over_ranks`, which adds a tensor up over processes, so that a mean is
that of all rows wherever they lie; the rows of one group lie in one process.

Legend: B rows, P groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

OverRanks: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


def alone(sums: torch.Tensor) -> torch.Tensor:
    """`over_ranks` of a single process."""
    return sums


def group_index(group_B: torch.Tensor) -> torch.Tensor:
    """Each row's group as a number from 0."""
    return group_B.unique(return_inverse=True)[1]  # type: ignore[no-untyped-call, no-any-return]


@dataclass(frozen=True, kw_only=True)
class GroupStatistics:
    """Statistics of its group for every row, over rows that have a value."""

    number_B: torch.Tensor
    mean_B: torch.Tensor
    others_B: torch.Tensor
    """Mean of the others; 0 where there are none."""
    deviation_B: torch.Tensor
    constant_B: torch.Tensor
    """Bool: no two values of the group differ; groups without or with one value are."""


def statistics(values_B: torch.Tensor, group_B: torch.Tensor) -> GroupStatistics:
    """Statistics of values, NaN where a row has none."""
    known_B = ~values_B.isnan()
    filled_B = torch.where(known_B, values_B, 0)
    of_B = group_index(group_B)
    groups = int(of_B.max()) + 1 if len(of_B) else 0

    def summed(per_B: torch.Tensor) -> torch.Tensor:
        return per_B.new_zeros(groups).index_add(0, of_B, per_B)[of_B]

    def extreme(which: str, empty: float) -> torch.Tensor:
        start_P = values_B.new_full((groups,), empty)
        return start_P.scatter_reduce(0, of_B, torch.where(known_B, values_B, empty), which)[of_B]

    number_B = summed(known_B.to(values_B.dtype))
    total_B = summed(filled_B)
    mean_B = total_B / number_B.clamp(min=1)
    spread_B = summed(torch.where(known_B, (filled_B - mean_B) ** 2, 0))
    least_B, most_B = extreme("amin", torch.inf), extreme("amax", -torch.inf)
    # Sums that telescope to the same number differ by rounding, which a deviation must not blow up.
    rounding = 32 * torch.finfo(values_B.dtype).eps
    constant_B = ~(most_B - least_B > rounding * torch.maximum(most_B.abs(), least_B.abs()).clamp(min=1))
    return GroupStatistics(
        number_B=number_B,
        mean_B=mean_B,
        others_B=(total_B - filled_B) / (number_B - 1).clamp(min=1) * (number_B > 1),
        deviation_B=torch.where(constant_B, 0, (spread_B / (number_B - 1).clamp(min=1)).sqrt()),
        constant_B=constant_B,
    )


def moments(values_N: torch.Tensor, over_ranks: OverRanks = alone) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, deviation) of all values of all processes, in two passes; deviation 0 for fewer than two."""
    number, total = over_ranks(torch.stack([values_N.new_tensor(float(values_N.numel())), values_N.sum()]))
    mean = total / number.clamp(min=1)
    spread = over_ranks(((values_N - mean) ** 2).sum())
    return mean, (spread / (number - 1).clamp(min=1)).sqrt()
