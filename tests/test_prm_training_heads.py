"""Scalar head, ranking, adapters, recomputed activations: each learns, and none depends on how a batch is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_prm_training import EIGHT, ROWS, row

from prm.backbone import ModelCard, encode_steps, load_backbone, start_from
from prm.objectives import margins, pqm_loss, step_loss
from prm.train_config import TrainConfig
from prm.training import fit
from verifiers.errors import ConfigError, ModelError


@pytest.fixture(scope="module")
def calm(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Starting points without dropout: token classifiers of 2 and 1 labels, and the language model itself."""
    found = {"implicit": tiny_policy}
    for head, labels in (("two-label", 2), ("scalar", 1)):
        model, tokenizer, _ = start_from(tiny_policy, labels=labels)
        model.config.classifier_dropout = 0.0
        found[head] = tmp_path_factory.mktemp(head)
        model.save_pretrained(found[head])
        tokenizer.save_pretrained(found[head])
    return found


def margins_of(folder: Path, rows: list[Any]) -> list[torch.Tensor]:
    """Margins at step ends, by plain transformers."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for own in rows:
        encoded = encode_steps(tokenizer, own.prompt, own.response)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([encoded.ids])).logits
        found.append(margins(logits)[0, list(encoded.ends)])
    return found


LOSSES: dict[str, dict[str, Any]] = {
    "counts": {},
    "shares": {"weighting": "steps"},
    "hard": {"labels": "hard"},
    "scalar": {"head": "scalar"},
    "pqm": {"loss": "pqm", "labels": "hard"},
    "stop": {"stop_at_first_error": True},
    "implicit": {"head": "implicit", "beta": 0.5},
    "lm": {"lm_weight": 0.2},
}


QUICK = ("scalar", "pqm", "implicit")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES]
)
def test_a_step_is_the_same_however_its_batch_is_cut(name: str, calm: dict[str, Path], tmp_path: Path) -> None:
    settings = LOSSES[name]
    init = str(calm[settings.get("head", "two-label")])
    logs: dict[int, list[dict[str, Any]]] = {4: [], 2: [], 1: []}
    for micro, log in logs.items():
        config = TrainConfig(init=init, steps=2, rows=4, micro_rows=micro, warmup=0, rate=1e-2, **settings)
        fit(ROWS, config, tmp_path / f"{micro}", work=tmp_path / "work", on_log=log.append)
    for micro in (2, 1):
        for whole, cut in zip(logs[4], logs[micro], strict=True):
            for key in ("loss", "step_loss", "grad_norm"):
                assert cut[key] == pytest.approx(whole[key], rel=1e-4), key
    assert all(entry["grad_norm"] > 1e-3 for entry in logs[4])


def test_the_logged_loss_is_per_step_and_per_row(calm: dict[str, Path], tmp_path: Path) -> None:
    start = margins_of(calm["scalar"], ROWS)
    successes = [torch.tensor(own.successes) for own in ROWS]
    trials = [torch.tensor([float(n) for n in own.trials]) for own in ROWS]
    steps = sum(step_loss(z, s, n, 47 / 9) for z, s, n in zip(start, successes, trials, strict=True)) / 9
    ranks = [
        pqm_loss(z[None], (s > 0).float()[None], (n > 0).float()[None], 4.0)
        for z, s, n in zip(start, successes, trials, strict=True)
    ]
    for wanted, settings in ((steps, {}), (sum(ranks) / 4, {"loss": "pqm", "labels": "hard"})):
        log: list[dict[str, Any]] = []
        config = TrainConfig(
            init=str(calm["scalar"]), steps=1, rows=4, micro_rows=2, warmup=0, head="scalar", **settings
        )
        fit(ROWS, config, tmp_path / "prm", work=tmp_path / "work", on_log=log.append)
        assert log[0]["step_loss"] == pytest.approx(float(wanted), rel=1e-5)
        assert log[0]["loss"] == pytest.approx(log[0]["step_loss"], rel=1e-6)


def test_a_scalar_head_learns_eight_rows_by_heart(tiny_policy: Path, tmp_path: Path) -> None:
    config = TrainConfig(init=str(tiny_policy), head="scalar", steps=60, rows=8, micro_rows=8, rate=1e-2, warmup=5)
    losses: list[float] = []
    report = fit(EIGHT, config, tmp_path / "prm", work=tmp_path / "work", on_log=lambda r: losses.append(r["loss"]))
    assert report.final_loss < 0.1 * losses[0]
    card = ModelCard.load(tmp_path / "prm")
    assert (card.head, card.beta, card.reference) == ("scalar", 0.0, "")
    assert card.score == "sigmoid of the logit at the last token of each step"
    for own, z in zip(EIGHT, margins_of(tmp_path / "prm", EIGHT), strict=True):
        assert ((z > 0) == torch.tensor([s > 0 for s in own.successes])).all()
    from transformers import AutoConfig

    saved = AutoConfig.from_pretrained(tmp_path / "prm")
    assert (saved.num_labels, saved.id2label) == (1, {0: "good"})
    # Going on needs the same head.
    fit(EIGHT, TrainConfig(init=str(tmp_path / "prm"), head="scalar", steps=1), tmp_path / "on", work=tmp_path / "work")
    with pytest.raises(ModelError, match="has a head of 1 labels and 2 are wanted; set the head to 'scalar'"):
        fit(EIGHT, TrainConfig(init=str(tmp_path / "prm"), steps=1), tmp_path / "no", work=tmp_path / "work")


RANKED = [
    row(("1 + 1 = 2.", 1, 1), ("So 2 apples.", 1, 1), ("Then 3.", 0, 1), ("\\boxed{3}", 0, 1)),
    row(("2 + 2 = 4.", 1, 1), ("So 4 apples.", 1, 1), ("\\boxed{4}", 1, 1)),
    row(("2 + 2 = 5.", 0, 1), ("\\boxed{5}", 0, 1)),
]


@pytest.mark.parametrize("head", [pytest.param("two-label", marks=pytest.mark.slow), "scalar"])
def test_a_ranking_orders_the_steps_of_each_response(head: Any, tiny_policy: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        init=str(tiny_policy), head=head, loss="pqm", labels="hard", steps=60, rows=3, micro_rows=3, rate=1e-2, warmup=5
    )
    losses: list[float] = []
    report = fit(RANKED, config, tmp_path / "prm", work=tmp_path / "work", on_log=lambda r: losses.append(r["loss"]))
    assert report.final_loss < 0.3 * losses[0]
    first, second, third = margins_of(tmp_path / "prm", RANKED)
    assert 0 < first[0] < first[1]
    assert first[2:].max() < -4.0
    assert 0 < second[0] < second[1] < second[2]
    assert third.max() < -4.0
    assert ModelCard.load(tmp_path / "prm").score.endswith("trained to rank and not to be a probability")


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "scalar", "lora_targets": ("q_proj", "down_proj")},
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in (
                {},
                {"loss": "pqm", "labels": "hard"},
                {"head": "implicit", "beta": 0.5},
                {"lm_weight": 0.1},
            )
        ),
    ],
    ids=str,
)
def test_adapters_are_merged_into_a_plain_checkpoint(
    settings: dict[str, Any], tiny_policy: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    config = TrainConfig(
        init=str(tiny_policy), steps=40, rows=8, micro_rows=4, rate=3e-2, warmup=0, lora_rank=4, **settings
    )
    losses: list[float] = []
    report = fit(
        EIGHT, config, tmp_path / "prm", work=tmp_path / "work", on_log=lambda r: losses.append(r["step_loss"])
    )
    assert report.final_loss < 0.5 * losses[0]
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_policy, tmp_path / "prm"))
    assert not [name for name in after if "lora" in name or "base_layer" in name or "modules_to_save" in name]
    heads = {name for name in after if name.startswith("score.")}
    assert after.keys() - heads == before.keys()
    assert bool(heads) == (config.head != "implicit")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    wanted = ("q_proj", "down_proj") if "lora_targets" in settings else ("_proj",)
    assert moved == {name for name in before if any(f"{w}.weight" in name for w in wanted)}
    for name in moved:  # the change has the rank of the adapters
        values = torch.linalg.svdvals((after[name] - before[name]).double())
        assert values[4:].max() < 1e-5 * values[0]
    targets = {"q_proj": (32, 32), "down_proj": (64, 32)}
    if "lora_targets" in settings:
        assert report.trained_parameters == 2 * 4 * sum(a + b for a, b in targets.values()) + 33


def test_adapters_that_fit_nothing_are_refused(tiny_policy: Path, tmp_path: Path) -> None:
    config = TrainConfig(init=str(tiny_policy), steps=1, lora_rank=2, lora_targets=("nowhere",))
    with pytest.raises(ConfigError, match=r"lora_targets=\('nowhere',\) does not fit .*name linear layers"):
        fit(EIGHT, config, tmp_path / "prm", work=tmp_path / "work")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in (
                {"head": "implicit", "beta": 0.5},
                {"lora_rank": 2},
                {"extra_layers": 2, "freeze_init": True, "surprisal_weight": 0.5, "lm_weight": 0.1},
            )
        ),
    ],
    ids=str,
)
def test_recomputed_activations_give_the_same_fit(settings: dict[str, Any], tiny_policy: Path, tmp_path: Path) -> None:
    logs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for again, log in logs.items():
        config = TrainConfig(
            init=str(tiny_policy), steps=3, rows=4, micro_rows=2, rate=1e-2, warmup=0,
            gradient_checkpointing=again, **settings,
        )  # fmt: skip
        fit(ROWS, config, tmp_path / f"{again}", work=tmp_path / "work", on_log=log.append)
    for plain, again in zip(logs[False], logs[True], strict=True):
        for key in ("loss", "grad_norm"):
            assert again[key] == pytest.approx(plain[key], rel=1e-5)


def test_bfloat16_stays_near_and_weights_stay_in_float32(calm: dict[str, Path], tmp_path: Path) -> None:
    logs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for bf16, log in logs.items():
        config = TrainConfig(init=str(calm["two-label"]), steps=2, rows=4, micro_rows=4, warmup=0, bf16=bf16)
        fit(ROWS, config, tmp_path / f"{bf16}", work=tmp_path / "work", on_log=log.append)
    assert logs[True][0]["loss"] != logs[False][0]["loss"]
    assert logs[True][0]["loss"] == pytest.approx(logs[False][0]["loss"], rel=0.02)
    model = load_backbone(tmp_path / "True", device="cpu")[0]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
