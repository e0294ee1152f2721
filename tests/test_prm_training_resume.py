"""A fit that was interrupted ends with the very weights and log it would have had; other runs are not mixed in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_prm_training import EIGHT

from prm.train_config import TrainConfig
from prm.training import FitReport, fit
from verifiers.errors import ConfigError, ExistingRunError

KINDS: dict[str, dict[str, Any]] = {
    "dropout": {},  # the head drops out at 0.1: random states matter
    "helpers": {"extra_layers": 2, "freeze_init": True, "surprisal_weight": 0.5, "lm_weight": 0.1},
    "adapters": {"lora_rank": 2, "head": "scalar"},
    "implicit": {"head": "implicit"},
    "ranking": {"loss": "pqm", "labels": "hard"},
}


class Interrupted(Exception):
    pass


def settings(init: Path, **more: Any) -> TrainConfig:
    given = {"steps": 9, "rows": 4, "micro_rows": 2, "rate": 1e-2, "warmup": 2, "save_steps": 4} | more
    return TrainConfig(init=str(init), **given)


def run(
    config: TrainConfig, folder: Path, log: list[dict[str, Any]], *, until: int = 999, resume: bool = False
) -> FitReport:
    def note(entry: dict[str, Any]) -> None:
        if entry["step"] > until:
            raise Interrupted
        log.append(entry)

    return fit(EIGHT, config, folder / "prm", work=folder / "work", on_log=note, resume=resume)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(folder / "prm" / "model.safetensors")
    return found


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "kind", [name if name == "dropout" else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_an_interrupted_fit_ends_bit_for_bit_as_if_it_had_not_been(
    kind: str, tiny_policy: Path, tmp_path: Path
) -> None:
    config = settings(tiny_policy, **KINDS[kind])
    whole: list[dict[str, Any]] = []
    once = run(config, tmp_path / "whole", whole)
    assert [entry["step"] for entry in whole] == list(range(1, 10))
    with pytest.raises(Interrupted):
        run(config, tmp_path / "cut", [], until=6)
    assert not (tmp_path / "cut/prm").exists()
    rest: list[dict[str, Any]] = []
    report = run(config, tmp_path / "cut", rest, resume=True)
    assert report.resumed_at == 4
    assert rest == whole
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert report.final_loss == once.final_loss
    assert (once.resumed_at, once.processes) == (0, 1)


@pytest.mark.slow
def test_means_over_several_steps_survive_an_interruption(tiny_policy: Path, tmp_path: Path) -> None:
    # 120 steps are logged every second one; a checkpoint after an odd number closes its mean early.
    config = settings(tiny_policy, steps=120, rows=2, save_steps=5)
    whole: list[dict[str, Any]] = []
    run(config, tmp_path / "whole", whole)
    assert [entry["step"] for entry in whole][:6] == [2, 4, 5, 6, 8, 10]
    with pytest.raises(Interrupted):
        run(config, tmp_path / "cut", [], until=17)
    rest: list[dict[str, Any]] = []
    assert run(config, tmp_path / "cut", rest, resume=True).resumed_at == 15
    assert rest == whole
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_checkpoint_that_was_not_finished_is_passed_over(tiny_policy: Path, tmp_path: Path) -> None:
    config = settings(tiny_policy, save_steps=2)
    whole: list[dict[str, Any]] = []
    run(config, tmp_path / "whole", whole)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "cut", [], until=6)
    work = tmp_path / "cut/work"
    assert sorted(path.name for path in work.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    state = work / "checkpoint-6/trainer_state.json"
    state.write_text(state.read_text()[:40])  # killed while it was written
    rest: list[dict[str, Any]] = []
    assert run(config, tmp_path / "cut", rest, resume=True).resumed_at == 4
    assert rest == whole
    assert same(tmp_path / "whole", tmp_path / "cut")
    # A finished fit can be asked again: nothing is trained, the same is written and said.
    again: list[dict[str, Any]] = []
    shutil.rmtree(tmp_path / "cut/prm")
    assert run(config, tmp_path / "cut", again, resume=True).resumed_at == 9
    assert again == whole
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_interrupted_before_the_first_checkpoint_it_starts_again(tiny_policy: Path, tmp_path: Path) -> None:
    config = settings(tiny_policy)
    run(config, tmp_path / "whole", [])
    with pytest.raises(Interrupted):
        run(config, tmp_path / "cut", [], until=2)
    assert run(config, tmp_path / "cut", [], resume=True).resumed_at == 0
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_runs_are_not_mixed(tiny_policy: Path, tmp_path: Path) -> None:
    config = settings(tiny_policy, steps=4, save_steps=2)
    run(config, tmp_path, [])
    with pytest.raises(ExistingRunError, match="holds 2 checkpoints of an earlier fit, checkpoint-4 the last; resume"):
        run(config, tmp_path, [])
    with pytest.raises(ConfigError, match=r"cannot be resumed: rate was 0.01 and is 0.02 now; give what it was"):
        run(settings(tiny_policy, steps=4, save_steps=2, rate=0.02), tmp_path, [], resume=True)
    with pytest.raises(ConfigError, match="cannot be resumed: data was"):
        fit(EIGHT[:6], config, tmp_path / "prm", work=tmp_path / "work", resume=True)
    note = json.loads((tmp_path / "work/fit.json").read_text())
    (tmp_path / "work/fit.json").write_text(json.dumps(note | {"processes": 2}))
    with pytest.raises(ConfigError, match="processes was 2 and is 1 now"):
        run(config, tmp_path, [], resume=True)
    (tmp_path / "work/fit.json").unlink()
    with pytest.raises(ExistingRunError, match=r"without fit.json; give an empty folder"):
        run(config, tmp_path, [], resume=True)
    with pytest.raises(ConfigError, match="resume has no effect without checkpoints; set save_steps"):
        run(settings(tiny_policy, save_steps=0), tmp_path, [], resume=True)
