"""Two processes give the losses and weights of one, for imitation of packed rows and for preferences."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import in_two

SFT: dict[str, Any] = {"steps": 3, "rows": 4, "rate": 1e-3, "warmup": 0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "packed": ("sft", {**SFT, "pack_tokens": 48, "rows": 2, "lora_rank": 2}),
    "dpo": ("dpo", {**SFT, "beta": 0.5, "sft_weight": 0.2}),
}
SCRIPT = """
import sys
from test_rewardkit_offline_processes import fit_all
from pathlib import Path
fit_all(Path(sys.argv[1]), sys.argv[2], micro_rows=1)
"""


def fit_all(folder: Path, init: str, *, micro_rows: int = 0) -> None:
    """Every kind, each with its log and report in a file; the whole batch at once with micro_rows=0."""
    from dataclasses import asdict

    from test_rewardkit_offline_dpo import ROWS as PAIRS
    from test_rewardkit_offline_sft import ROWS

    from rewardkit.offline.dpo import fit_dpo
    from rewardkit.offline.dpo_config import DpoConfig
    from rewardkit.offline.sft import fit_sft
    from rewardkit.offline.sft_config import SftConfig

    for name, (method, settings) in KINDS.items():
        given = {**settings, "init": init, "micro_rows": micro_rows or settings["rows"]}
        log: list[dict[str, Any]] = []
        places: dict[str, Any] = {"work": folder / f"{name}-work", "on_log": log.append}
        report = (
            fit_sft(ROWS, SftConfig(**given), folder / name, **places)
            if method == "sft"
            else fit_dpo(PAIRS, DpoConfig(**given), folder / name, **places)
        )
        rank = os.environ.get("RANK", "0")
        (folder / f"{name}-{rank}.json").write_text(json.dumps({"log": log, "report": asdict(report)}))


@pytest.mark.slow
def test_two_processes_give_the_losses_and_weights_of_one(tiny_policy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    shared, alone = tmp_path / "shared", tmp_path / "alone"
    shared.mkdir()
    alone.mkdir()
    done = in_two(SCRIPT, shared, shared, tiny_policy)
    assert done.returncode == 0, done.stdout + done.stderr
    fit_all(alone, str(tiny_policy))
    for name in KINDS:
        one = json.loads((alone / f"{name}-0.json").read_text())
        first, second = (json.loads((shared / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
        assert (one["report"]["processes"], first["report"]["processes"], second["log"]) == (1, 2, [])
        assert len(one["log"]) == len(first["log"]) == 3
        for row, other in zip(one["log"], first["log"], strict=True):
            for key in set(row) - {"accuracy"}:
                assert other[key] == pytest.approx(row[key], abs=2e-5, rel=2e-5), (name, key)
        weights, others = (load_file(place / name / "model.safetensors") for place in (alone, shared))
        for key, value in weights.items():
            torch.testing.assert_close(others[key], value, atol=5e-5, rtol=0, msg=f"{name} {key}")
