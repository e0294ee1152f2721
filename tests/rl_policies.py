"""The enumerable policy (`rewardkit/rl/loss/tabular.py`) under its name in tests, and processes that are threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from rewardkit.rl.loss.tabular import (
    Tabular,
    batch_of,
    expected_gradient,
    gradient_of,
    relative,
    sequence_kl,
    state_kl,
)

__all__ = [
    "Tabular",
    "batch_of",
    "expected_gradient",
    "gradient_of",
    "in_lockstep",
    "relative",
    "sequence_kl",
    "state_kl",
]


def in_lockstep(processes: int, work: Callable[[int, Callable[[torch.Tensor], torch.Tensor]], Any]) -> list[Any]:
    """Results of work(rank, over_ranks) in as many threads, whose sums are really added up over them."""
    barrier, given = threading.Barrier(processes), [torch.zeros(0)] * processes
    results: list[Any] = [None] * processes

    def run(rank: int) -> None:
        def over_ranks(own: torch.Tensor) -> torch.Tensor:
            given[rank] = own
            barrier.wait(20)
            total = sum(given[1:], start=given[0])
            barrier.wait(20)
            return total

        results[rank] = work(rank, over_ranks)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
