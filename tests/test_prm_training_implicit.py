"""An implicit model: its reward by hand, log 2 at the start, its reference beside it, and the outcome learned."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import special
from test_prm_training import EIGHT, ROWS

from prm.backbone import ModelCard, encode_steps
from prm.formats import StepRow
from prm.implicit_training import reference_logprobs, reference_of
from prm.step_data import StepDataset
from prm.train_config import TrainConfig
from prm.training import fit
from verifiers.errors import MissingFileError, ModelError


def tokens_of(folder: Path | str, own: StepRow) -> torch.Tensor:
    """The log-probability of every response token, by plain transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    encoded = encode_steps(AutoTokenizer.from_pretrained(folder), own.prompt, own.response)
    ids = torch.tensor([encoded.ids])
    with torch.no_grad():
        words = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return words.gather(1, ids[0, 1:, None])[encoded.prompt_length - 1 :, 0]


def train(init: Path, out: Path, data: list[StepRow] = ROWS, **settings: Any) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = []
    given = {"steps": 1, "rows": 4, "micro_rows": 2, "warmup": 0, "rate": 1e-2} | settings
    fit(data, TrainConfig(init=str(init), head="implicit", **given), out, work=out / "work", on_log=log.append)
    return log


def test_a_fit_learns_outcomes_and_leaves_its_reference_alone(tiny_policy: Path, tmp_path: Path) -> None:
    log = train(tiny_policy, tmp_path, EIGHT, steps=40, rows=8, micro_rows=4, beta=0.5)
    assert log[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)  # r = 0: nothing has been learned yet
    assert log[-1]["loss"] < 0.05
    card = ModelCard.load(tmp_path)
    assert (card.head, card.beta, card.reference) == ("implicit", 0.5, "reference")
    assert card.score.startswith("beta times the summed log-ratio")
    before, beside, after = (
        (folder / "model.safetensors").read_bytes() for folder in (tiny_policy, tmp_path / "reference", tmp_path)
    )
    assert before == beside != after
    for own in EIGHT:
        reward = 0.5 * (tokens_of(tmp_path, own) - tokens_of(tmp_path / "reference", own)).sum().item()
        assert (reward > 0) == bool(own.successes[-1])
        assert special.expit(-reward if own.successes[-1] else reward) < 0.2


@pytest.mark.parametrize(
    "settings",
    [{}, *(pytest.param(m, marks=pytest.mark.slow) for m in ({"weighting": "steps"}, {"labels": "hard"}))],
    ids=str,
)
def test_the_loss_is_the_outcome_likelihood_of_the_reward(
    settings: dict[str, Any], tiny_policy: Path, tmp_path: Path
) -> None:
    # Train once so that model and reference differ, then look at the first loss of going on.
    train(tiny_policy, tmp_path / "a", beta=0.3)
    log = train(tmp_path / "a", tmp_path / "b", beta=0.3, **settings)
    wanted = 0.0
    for own in ROWS:
        r = 0.3 * (tokens_of(tmp_path / "a", own) - tokens_of(tiny_policy, own)).sum().item()
        s, n = own.successes[-1], own.trials[-1]
        if settings.get("labels") == "hard":
            s, n = float(s > 0), 1
        scale = 15 / 4 if not settings else n  # mean trials of the four outcomes
        wanted -= (s * math.log(special.expit(r)) + (n - s) * math.log(special.expit(-r))) / scale
    assert log[0]["loss"] == pytest.approx(wanted / 4, rel=1e-4)
    assert (tmp_path / "a/reference/model.safetensors").read_bytes() == (
        tmp_path / "b/reference/model.safetensors"
    ).read_bytes()
    assert reference_of(TrainConfig(init=str(tmp_path / "b"), head="implicit")) == str(tmp_path / "b/reference")


def test_the_reference_is_read_once_a_row_whatever_the_batch(tiny_policy: Path, tiny_tokenizer: Any) -> None:
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM

    data = StepDataset(ROWS, tiny_tokenizer, TrainConfig(init="", head="implicit"), 256)
    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    for rows in (1, 3, 4):
        found = reference_logprobs(model, data.items, Accelerator(cpu=True), rows=rows)
        assert found == pytest.approx([tokens_of(tiny_policy, own).sum().item() for own in ROWS], rel=1e-5)
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.slow
def test_a_named_reference_is_compared_with_and_not_copied(tiny_policy: Path, tmp_path: Path) -> None:
    train(tiny_policy, tmp_path / "a")
    log = train(tmp_path / "a", tmp_path / "b", reference=str(tiny_policy), beta=0.2)
    card = ModelCard.load(tmp_path / "b")
    assert (card.reference, card.beta) == (str(tiny_policy.resolve()), 0.2)
    assert not (tmp_path / "b/reference").exists()
    assert log[0]["loss"] != pytest.approx(math.log(2), rel=1e-3)
    # Going on from there, the reference stays the named one.
    train(tmp_path / "b", tmp_path / "c")
    assert ModelCard.load(tmp_path / "c").reference == card.reference
    assert not (tmp_path / "c/reference").exists()


def test_training_into_the_folder_it_started_from_keeps_the_reference(tiny_policy: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_policy, tmp_path / "own")
    before = (tmp_path / "own/model.safetensors").read_bytes()
    train(tmp_path / "own", tmp_path / "own")
    assert (tmp_path / "own/reference/model.safetensors").read_bytes() == before
    assert (tmp_path / "own/model.safetensors").read_bytes() != before


def test_what_cannot_be_an_implicit_model_is_refused(tiny_policy: Path, tmp_path: Path) -> None:
    config = TrainConfig(init=str(tiny_policy), steps=1, rows=2, micro_rows=2, warmup=0)
    fit(ROWS, config, tmp_path / "prm", work=tmp_path / "work")
    with pytest.raises(ModelError, match="holds LlamaForTokenClassification, but an implicit model is a causal"):
        train(tmp_path / "prm", tmp_path / "out")
    with pytest.raises(MissingFileError, match="no checkpoint folder at /nowhere"):
        train(tiny_policy, tmp_path / "out", reference="/nowhere")
    other = tmp_path / "other"
    shutil.copytree(tiny_policy, other)
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"]["zz"] = words["model"]["vocab"].pop("!")
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ModelError, match="has another vocabulary than the model that is trained"):
        train(tiny_policy, tmp_path / "out", reference=str(other))
