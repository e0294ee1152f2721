"""A fit learns what it is told; how its batches are cut, stopped or shared out changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from outcome_rows import JUDGED, PAIRS, settings
from two_processes import in_two

from rewardkit.outcome.config import OutcomeConfig
from rewardkit.outcome.model import OutcomeModel
from rewardkit.outcome.starting import as_sequence_classifier, start
from rewardkit.outcome.training import OutcomeReport, fit_outcome
from verifiers.errors import ConfigError


class Interrupted(Exception):
    pass


def rows_of(config: OutcomeConfig) -> Any:
    return PAIRS if config.objective == "pairs" else JUDGED


def run(
    config: OutcomeConfig, folder: Path, log: list[dict[str, Any]] | None = None, *, until: int = 999, **more: Any
) -> OutcomeReport:
    def note(entry: dict[str, Any]) -> None:
        if entry["step"] > until:
            raise Interrupted
        if log is not None:
            log.append(entry)

    return fit_outcome(rows_of(config), config, folder / "orm", work=folder / "work", on_log=note, **more)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(folder / "orm" / "model.safetensors")
    return found


def distance(first: Path, second: Path) -> float:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return max((value - other[name]).abs().max().item() for name, value in one.items())


def test_pairs_are_learned_and_the_card_knows_zero_and_scale(tiny_policy: Path, tmp_path: Path) -> None:
    log: list[dict[str, Any]] = []
    report = run(settings(tiny_policy, steps=30, tie_threshold=0.2), tmp_path, log, provenance={"data": "PAIRS"})
    assert (report.rows, report.ties, report.cut_rows, report.dropped_rows) == (8, 1, 0, 0)
    assert log[-1]["objective"] < 0.3 < 0.6 < log[0]["objective"]
    assert log[-1]["accuracy"] > log[0]["accuracy"]
    assert log[-1]["difference"] > 1.0
    found = OutcomeModel.load(tmp_path / "orm")
    won = [row for row in PAIRS if not row.tie]
    chosen = found.score_rows([(row.problem, row.chosen, "") for row in won])
    rejected = found.score_rows([(row.problem, row.rejected, "") for row in won])
    assert all(a > b for a, b in zip(chosen, rejected, strict=True))
    scores = torch.tensor(
        found.score_rows([(row.problem, one, "") for row in PAIRS for one in (row.chosen, row.rejected)])
    )
    assert found.card.mean == pytest.approx(scores.mean().item(), abs=1e-5)
    assert found.card.deviation == pytest.approx(scores.std().item(), abs=1e-5)
    assert found.card.provenance["data"] == "PAIRS"
    assert found.card.provenance["steps"] == 30


def test_centring_keeps_scores_around_zero(tiny_policy: Path, tmp_path: Path) -> None:
    means = []
    for centre in (0.0, 5.0):
        config = settings(tiny_policy, steps=20, centre=centre)
        folder = tmp_path / str(centre)
        run(config, folder)
        means.append(abs(OutcomeModel.load(folder / "orm").card.mean))
    assert means[1] < min(0.1, means[0] / 3)


def test_labels_are_learned_as_probabilities(tiny_policy: Path, tmp_path: Path) -> None:
    log: list[dict[str, Any]] = []
    run(settings(tiny_policy, objective="labels", steps=40, rate=1e-2), tmp_path, log)
    found = OutcomeModel.load(tmp_path / "orm")
    assert found.card.objective == "labels"
    graded = found.graded(found.score_rows([(row.problem, row.response, row.evidence) for row in JUDGED]))
    right = [value for value, row in zip(graded, JUDGED, strict=True) if row.label == 1]
    wrong = [value for value, row in zip(graded, JUDGED, strict=True) if row.label == 0.25]
    assert sum(right) / len(right) == pytest.approx(1.0, abs=0.2)
    assert sum(wrong) / len(wrong) == pytest.approx(0.25, abs=0.2)
    assert log[-1]["accuracy"] > 0.9


@pytest.mark.parametrize("objective", ["pairs", "labels"])
def test_neither_micro_batches_nor_the_shared_prompt_change_the_fit(
    objective: str, tiny_policy: Path, tmp_path: Path
) -> None:
    fits: dict[str, dict[str, Any]] = {f"micro {n}": {"micro_rows": n} for n in (1, 2, 4)}
    if objective == "pairs":
        fits["two rows"] = {"micro_rows": 4, "shared_prompt": False}
    logs: dict[str, list[dict[str, Any]]] = {}
    for name, more in fits.items():
        logs[name] = []
        config = settings(tiny_policy, objective=objective, steps=5, rate=1e-3, **more)
        run(config, tmp_path / name, logs[name])
    for name in fits:
        assert distance(tmp_path / name, tmp_path / "micro 1") < 2e-5, name
        for one, other in zip(logs[name], logs["micro 1"], strict=True):
            for key in ("objective", "accuracy", "grad_norm"):
                assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-5), (name, key)


@pytest.mark.parametrize("more", [{}, {"lora_rank": 2}, {"objective": "labels"}], ids=["pairs", "lora", "labels"])
def test_an_interrupted_fit_ends_bit_for_bit_as_if_it_had_not_been(
    more: dict[str, Any], tiny_policy: Path, tmp_path: Path
) -> None:
    config = settings(tiny_policy, save_steps=4, **more)
    whole: list[dict[str, Any]] = []
    run(config, tmp_path / "whole", whole)
    with pytest.raises(Interrupted):
        run(config, tmp_path / "cut", until=6)
    rest: list[dict[str, Any]] = []
    assert run(config, tmp_path / "cut", rest, resume=True).resumed_at == 4
    assert rest == whole
    assert distance(tmp_path / "whole", tmp_path / "cut") == 0.0
    with pytest.raises(ConfigError, match=r"cannot be resumed: rate was 0\.01 and is 0\.5 now"):
        run(settings(tiny_policy, save_steps=4, rate=0.5, **more), tmp_path / "cut", resume=True)


def test_adapters_are_merged_and_leave_nothing_behind(tiny_policy: Path, tmp_path: Path) -> None:
    report = run(settings(tiny_policy, steps=20, lora_rank=2), tmp_path)
    begun, tokenizer = start(tiny_policy)
    assert report.trained_parameters < sum(p.numel() for p in begun.parameters()) / 3
    found, plain = OutcomeModel.load(tmp_path / "orm"), OutcomeModel(as_sequence_classifier(begun), tokenizer)
    assert weights(tmp_path).keys() == plain.model.state_dict().keys()
    changed = [
        n for n, value in found.model.state_dict().items() if not torch.equal(value, plain.model.state_dict()[n])
    ]
    assert any("q_proj" in name for name in changed)
    assert not any("embed" in name or "norm" in name for name in changed)


def test_bf16_and_checkpointing_reach_about_the_same(tiny_policy: Path, tmp_path: Path) -> None:
    found = {}
    for name, more in (("plain", {}), ("bf16", {"bf16": True}), ("checkpointing", {"gradient_checkpointing": True})):
        found[name] = run(settings(tiny_policy, steps=5, rate=1e-3, **more), tmp_path / name).final_loss
    assert found["checkpointing"] == pytest.approx(found["plain"], abs=1e-5)
    assert found["bf16"] == pytest.approx(found["plain"], abs=0.05)
    assert distance(tmp_path / "plain", tmp_path / "checkpointing") < 1e-5
    assert weights(tmp_path / "bf16")["score.weight"].dtype == torch.float32


SCRIPT = """
import json, os, sys
from pathlib import Path
from outcome_rows import PAIRS, settings
from rewardkit.outcome.training import fit_outcome
folder, log = Path(sys.argv[1]), []
config = settings(sys.argv[2], steps=5, rate=1e-3, micro_rows=2)
report = fit_outcome(PAIRS, config, folder / "orm", work=folder / "work", on_log=log.append)
assert report.processes == 2
if os.environ["RANK"] == "0":
    (folder / "log.json").write_text(json.dumps(log))
else:
    assert not log
"""


@pytest.mark.slow
def test_two_processes_fit_as_one(tiny_policy: Path, tmp_path: Path) -> None:
    done = in_two(SCRIPT, tmp_path, tmp_path, tiny_policy)
    assert done.returncode == 0, done.stderr
    log: list[dict[str, Any]] = []
    run(settings(tiny_policy, steps=5, rate=1e-3, micro_rows=4), tmp_path / "one", log)
    assert distance(tmp_path, tmp_path / "one") < 1e-5
    for two, one in zip(json.loads((tmp_path / "log.json").read_text()), log, strict=True):
        for key in ("loss", "objective", "accuracy", "difference"):
            assert two[key] == pytest.approx(one[key], abs=1e-5), key
