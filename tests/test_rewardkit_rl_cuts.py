"""However an optimiser batch is cut, in micro-batches or over processes, its gradient is the same; for every preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rewardkit_rl_loop import loop, settings, special
from two_processes import in_two

from rewardkit.rl.policy.sharding import gathered
from rewardkit.rl.settings.presets import PRESETS


def gradients(**more: Any) -> dict[str, torch.Tensor]:
    """What the last optimiser step of a loop's first step went along, of all that is trained."""
    own = loop(settings(**{"steps": 1, **more}))
    own.run()
    parts = {f"{part}.{name}": p for part, one in own.models.parts.items() for name, p in one.named_parameters()}
    return {name: gathered(p.grad).clone() for name, p in parts.items() if p.grad is not None}


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm."""
    assert one.keys() == other.keys() and one
    apart = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)
    return (apart / sum(float(value.double().square().sum()) for value in one.values())) ** 0.5


def options(name: str, tiny_policy: Path, tiny_teacher: Path) -> dict[str, Any]:
    return {"init": str(tiny_policy), "preset": name, **special(name, tiny_policy, tiny_teacher)}


@pytest.fixture(scope="module")
def alone(tiny_policy: Path, tiny_teacher: Path) -> dict[str, dict[str, torch.Tensor]]:
    """One process's gradient of every preset."""
    return {name: gradients(**options(name, tiny_policy, tiny_teacher)) for name in PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_micro_batches_add_up_to_the_same_gradient(name: str, tiny_policy: Path, tiny_teacher: Path) -> None:
    given = options(name, tiny_policy, tiny_teacher)
    whole = gradients(micro_rows=16, **given)
    for rows in (1, 4, 8):
        assert gap(whole, gradients(micro_rows=rows, **given)) < 1e-5
    assert gap(whole, gradients(micro_rows=4, row_tokens=0, **given)) < 1e-5


SCRIPT = """
import json, sys, torch
from test_rewardkit_rl_cuts import gradients
found = {name: gradients(**given) for name, given in json.loads(sys.argv[1]).items()}
if torch.distributed.get_rank() == 0:
    torch.save(found, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["whole", "cut"])
def test_two_processes_add_up_to_the_same_gradient(
    shard: bool,
    alone: dict[str, dict[str, torch.Tensor]],
    tiny_policy: Path,
    tiny_teacher: Path,
    tmp_path: Path,
) -> None:
    """Whether each has all weights, or half of them."""
    given = {name: options(name, tiny_policy, tiny_teacher) for name in PRESETS}
    # Few rows a pass, so that one process has more passes than the other where it has more to learn from.
    asked = {name: {**one, "shard": shard, "micro_rows": 3} for name, one in given.items()}
    done = in_two(SCRIPT, tmp_path, json.dumps(asked), tmp_path / "two.pt")
    assert done.returncode == 0, done.stderr
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert two.keys() == given.keys()
    far = {name: gap(alone[name], two[name]) for name in given}
    assert max(far.values()) < 1e-5, far
