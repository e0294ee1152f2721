"""A checkpoint gives back everything, bit for bit, and a kill in the middle of a save leaves the one before."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rewardkit.rl import checkpoint
from rewardkit.rl.checkpoint import load_last, save, steps
from verifiers.errors import ModelError

ROOT = Path(__file__).parents[1]


def draws() -> list[float]:
    return [float(torch.rand(1)), float(np.random.rand()), float(np.random.randn()), random.random()]


def test_everything_comes_back(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    torch.manual_seed(7)
    np.random.seed(8)
    random.seed(9)
    draws()
    tensors = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    save(tmp_path, 12, tensors=tensors, state={"position": 5, "alarm": None})
    wanted = draws()
    found = load_last(tmp_path)
    assert found is not None
    assert draws() == wanted
    assert (found.step, found.state) == (12, {"position": 5, "alarm": None})
    assert all(torch.equal(value, found.tensors["model"][name]) for name, value in model.state_dict().items())
    again = torch.optim.AdamW(torch.nn.Linear(3, 2).parameters(), lr=0.5)
    again.load_state_dict(found.tensors["optimiser"])
    assert again.state_dict()["param_groups"][0]["lr"] == 0.1
    kept = again.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(kept, optimiser.state_dict()["state"][0]["exp_avg"])


def test_the_last_two_stay(tmp_path: Path) -> None:
    assert load_last(tmp_path / "nowhere") is None
    for step in (1, 2, 3, 10):
        save(tmp_path, step, tensors={}, state={})
    assert steps(tmp_path) == [3, 10]
    save(tmp_path, 10, tensors={"x": torch.ones(1)}, state={})
    found = load_last(tmp_path)
    assert found is not None and found.step == 10 and "x" in found.tensors


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    place = save(tmp_path, 4, tensors={}, state={})
    for name, content in (("tensors.pt", ""), ("state.json", "{")):
        (place / name).write_text(content)
        with pytest.raises(ModelError, match=r"step-000004 cannot be read \(\w+: .*; delete it to go on from the one"):
            load_last(tmp_path)


SCRIPT = """
import sys, torch
from rewardkit.rl.checkpoint import save
for step in range(1, 10_000):
    save(sys.argv[1], step, tensors={"x": torch.full((200_000,), float(step))}, state={"x": step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_9_while_saving_leaves_a_whole_one(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for turn in range(4):
        folder = tmp_path / str(turn)
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            for _ in range(3 + turn):
                said = int(running.stdout.readline())
            time.sleep(0.003 * turn)  # somewhere in the next save
            running.send_signal(signal.SIGKILL)
        found = load_last(folder)
        assert found is not None
        assert found.step >= said
        assert found.state == {"x": found.step}
        assert torch.equal(found.tensors["x"], torch.full((200_000,), float(found.step)))
        assert len(steps(folder)) <= checkpoint.KEPT + 1
