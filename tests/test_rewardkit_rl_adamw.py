"""The loop's AdamW against the formula, written out."""

from __future__ import annotations

import pytest
import torch

from rewardkit.rl.policy.adamw import adamw


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_follow_the_formula(decay: float) -> None:
    torch.manual_seed(0)
    start = torch.randn(7, 5, dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    still = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimiser = adamw([[parameter, still], []], rate=0.01, weight_decay=decay)
    assert len(optimiser.param_groups) == 1
    wanted, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, 8):
        gradient = torch.randn_like(start)
        parameter.grad = gradient.clone()
        optimiser.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.95 * second + 0.05 * gradient**2
        moved = (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        wanted = wanted * (1 - 0.01 * decay) - 0.01 * moved
        torch.testing.assert_close(parameter.detach(), wanted, rtol=0, atol=1e-12)
    # Without a gradient nothing moves, weight decay neither.
    assert still.detach().tolist() == [1.0] * 3
