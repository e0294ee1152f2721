"""Two processes give the losses and weights of one, write once, and go on after being killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_prm_training import EIGHT, ROWS
from two_processes import in_two

from prm.backbone import start_from
from prm.train_config import TrainConfig
from prm.training import fit

SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from prm.formats import read_stepwise
from prm.train_config import TrainConfig
from prm.training import fit
from verifiers.errors import RewardkitError

def main(folder, names, kill_at, resume):
    rows = read_stepwise(folder / "rows.jsonl")
    for name in names:
        log = []
        def note(row):
            if row["step"] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            assert os.environ["RANK"] == "0"
            log.append(row)
        settings = json.loads((folder / f"{name}.json").read_text())
        rank = os.environ["RANK"]
        try:
            report = fit(rows, TrainConfig(**settings), folder / name, work=folder / f"{name}-work", on_log=note,
                         provenance={"rank": rank}, resume=resume)
        except RewardkitError as error:
            (folder / f"{name}-{rank}.error").write_text(str(error))
            continue
        found = {"log": log, "loss": report.final_loss, "processes": report.processes, "at": report.resumed_at}
        (folder / f"{name}-{rank}.found").write_text(json.dumps(found))

main(Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]), sys.argv[4] == "resume")
"""
KINDS: dict[str, dict[str, Any]] = {
    "counts": {"lm_weight": 0.2},
    # Heads that look back have slopes near 0, which Adam blows up to the size of the rate: a smaller one.
    "helpers": {"extra_layers": 2, "freeze_init": True, "surprisal_weight": 0.5, "rate": 2e-4},
    "ranking": {"loss": "pqm", "labels": "hard", "gradient_checkpointing": True},
    "scalar": {"head": "scalar", "weighting": "steps", "lora_rank": 2},
    "implicit": {"head": "implicit", "beta": 0.5},
}


@pytest.fixture(scope="module")
def folder(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of ten responses, and starting points without dropout."""
    found = tmp_path_factory.mktemp("processes")
    rows = [*ROWS, *EIGHT[:6]]
    (found / "rows.jsonl").write_text("".join(json.dumps(own.to_json()) + "\n" for own in rows))
    for head, labels in (("two-label", 2), ("scalar", 1)):
        model, tokenizer, _ = start_from(tiny_policy, labels=labels)
        model.config.classifier_dropout = 0.0
        for part in (model, tokenizer):
            part.save_pretrained(found / f"init-{head}")
    return found


def settings_of(folder: Path, tiny_policy: Path, more: dict[str, Any]) -> dict[str, Any]:
    head = more.get("head", "two-label")
    init = tiny_policy if head == "implicit" else folder / f"init-{head}"
    return {"init": str(init), "steps": 6, "rows": 4, "micro_rows": 1, "rate": 1e-3, "warmup": 0, **more}


def torchrun(folder: Path, names: list[str], *, kill_at: int = 0, resume: bool = False) -> int:
    done = in_two(SCRIPT, folder, folder, ",".join(names), kill_at, "resume" if resume else "")
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    return done.returncode


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


@pytest.mark.slow
def test_two_processes_give_the_losses_and_weights_of_one(folder: Path, tiny_policy: Path, tmp_path: Path) -> None:
    from prm.formats import read_stepwise

    for name, more in KINDS.items():
        (folder / f"{name}.json").write_text(json.dumps(settings_of(folder, tiny_policy, more)))
    uneven = settings_of(folder, tiny_policy, {"rows": 6, "micro_rows": 2})
    (folder / "uneven.json").write_text(json.dumps(uneven))
    assert torchrun(folder, [*KINDS, "uneven"]) == 0, (folder / "said.txt").read_text()
    rows = read_stepwise(folder / "rows.jsonl")
    worst = {"loss": 0.0, "weight": 0.0}
    for name, more in KINDS.items():
        config = TrainConfig(**settings_of(folder, tiny_policy, more) | {"micro_rows": 4})
        log: list[dict[str, Any]] = []
        report = fit(rows, config, tmp_path / name, work=tmp_path / "work", on_log=log.append)
        first, second = (json.loads((folder / f"{name}-{rank}.found").read_text()) for rank in (0, 1))
        assert (first["processes"], second["log"]) == (2, [])
        assert first["loss"] == second["loss"] == pytest.approx(report.final_loss, abs=1e-5)
        assert len(first["log"]) == len(log) == 6
        for one, two in zip(log, first["log"], strict=True):
            for key in ("loss", "step_loss", "grad_norm"):
                assert two[key] == pytest.approx(one[key], abs=1e-5, rel=1e-5), (name, key)
            worst["loss"] = max(worst["loss"], abs(one["loss"] - two["loss"]))
        alone, shared, start = (weights(place) for place in (tmp_path / name, folder / name, Path(config.init)))
        assert alone.keys() == shared.keys()
        for key, value in alone.items():
            worst["weight"] = max(worst["weight"], (value - shared[key]).abs().max().item())
        assert any(not torch.equal(value, alone[key]) for key, value in start.items())
        card = json.loads((folder / name / "rewardkit.json").read_text())
        assert card["provenance"]["rank"] == "0"
    assert worst["loss"] < 1e-5
    assert worst["weight"] < 1e-5
    said = "rows=6 a step cannot be shared out over 2 processes of micro_rows=2"
    assert all((folder / f"uneven-{rank}.error").read_text().startswith(said) for rank in (0, 1))


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on(folder: Path, tiny_policy: Path, tmp_path: Path) -> None:
    more = {"head": "implicit", "save_steps": 2}
    for name in ("killed", "whole"):
        (folder / f"{name}.json").write_text(json.dumps(settings_of(folder, tiny_policy, more)))
    assert torchrun(folder, ["killed"], kill_at=5) != 0
    assert not (folder / "killed").exists()
    assert torchrun(folder, ["killed", "whole"], resume=True) == 0, (folder / "said.txt").read_text()
    killed, whole = (json.loads((folder / f"{name}-0.found").read_text()) for name in ("killed", "whole"))
    assert (killed["at"], whole["at"]) == (4, 0)
    assert killed["log"] == whole["log"]
    one, other = weights(folder / "killed"), weights(folder / "whole")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
