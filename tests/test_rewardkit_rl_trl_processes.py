"""Two processes that share a group take the step of one, with step rewards inside TRL's trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import trl_fixed as given
from two_processes import in_two

SCRIPT = """
import sys
from pathlib import Path
from test_rewardkit_rl_trl_processes import train_once
train_once(Path(sys.argv[1]), Path(sys.argv[2]), rows=4)
"""


def train_once(folder: Path, out: Path, *, rows: int) -> None:
    """One step on one prompt with eight responses, `rows` of them in each process."""
    from test_rewardkit_rl_trl_trainer import rewards, trainer_of

    trainer = trainer_of(
        folder, out / "work", rewards(), learning_rate=1.0, per_device_train_batch_size=rows, num_generations=8,
        logging_strategy="steps", logging_steps=1,
        optim="sgd", further={"train_dataset": given.data().select([0])},
    )  # fmt: skip
    given.fixed(trainer).train()
    if trainer.accelerator.is_main_process:
        torch.save(trainer.model.state_dict(), out / "weights.pt")
        (out / "log.json").write_text(json.dumps(trainer.state.log_history[0]))


@pytest.mark.slow
def test_two_processes_with_half_a_group_each_take_the_step_of_one(tmp_path: Path) -> None:
    folder, shared, alone = given.save_llama(tmp_path / "llama"), tmp_path / "shared", tmp_path / "alone"
    shared.mkdir()
    alone.mkdir()
    done = in_two(SCRIPT, shared, folder, shared)
    assert done.returncode == 0, done.stdout + done.stderr
    train_once(folder, alone, rows=8)
    one, both = (json.loads((place / "log.json").read_text()) for place in (alone, shared))
    for name in ("reward", "total/undecided", "steps/number", "steps/unscored", "reward/unscored", "grad_norm"):
        assert both[name] == pytest.approx(one[name], rel=1e-5), name
    assert one["steps/unscored"] == 1 / 8
    before = torch.load(alone / "weights.pt")
    for name, value in torch.load(shared / "weights.pt").items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-5, msg=name)
