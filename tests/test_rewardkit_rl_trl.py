"""Our update is TRL's: its own trainers, with their own losses, and ours on one batch, in value and gradient.

TRL 1.16 runs as it is, from rewards to the loss; only what it would draw is written down (`trl_fixed.py`). Log-
probabilities are those of its model, so that what is compared is what follows from them: advantages, ratios, clips, KL
and weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import trl_fixed as given
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rewardkit.rl.config import RlConfig
from rewardkit.rl.loss.advantages import Estimate, estimate
from rewardkit.rl.loss.batch import Batch
from rewardkit.rl.loss.objective import Loss, policy_loss
from rewardkit.rl.loss.weights import mismatch, prepare
from rewardkit.rl.policy.models import Models
from rewardkit.rl.settings.presets import preset
from rewardkit.rl.settings.sections import Kl
from rewardkit.rl.settings.table import Table
from rewardkit.rl.update import Updater

EXACT = 1e-10
"""Of losses and of gradients with respect to log-probabilities, which are float64."""
ROUNDED = 1e-6
"""Of gradients with respect to parameters, which pass through the float32 of TRL's head; relative."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return given.save_llama(tmp_path_factory.mktemp("llama"))


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """What TRL computed."""

    trainer: Any
    inputs: dict[str, Any]
    logprobs_BT: torch.Tensor
    loss: torch.Tensor
    kept: list[torch.Tensor]
    """All that it read, in order: old, reference, new, as far as it needs them."""

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        """With respect to the log-probabilities and to every parameter."""
        wanted = [self.logprobs_BT, *(p for p in self.trainer.model.parameters() if p.requires_grad)]
        found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]


def theirs(
    folder: Path, out: Path, *, kind: Any = GRPOTrainer, moved: float = 0.03, rewards: Any = given.REWARDS,
    sampler: Any = None, **settings: Any,
) -> Theirs:  # fmt: skip
    """TRL's advantages and loss; `moved` is how far the policy goes between drawing and the loss."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    # The policy has left the reference, which TRL loads from the folder itself.
    given.stepped(model, 0.02, seed=1)
    args = given.arguments(GRPOConfig if kind is GRPOTrainer else RLOOConfig, out, **settings)
    trainer = kind(model, given.trl_reward(rewards), args, given.data(), processing_class=given.word_tokenizer())
    given.fixed(trainer, sampler=sampler)
    if sampler is not None:
        # The one thing that needs vLLM itself is drawing, and weights that it would have to be sent.
        trainer.use_vllm, trainer._last_loaded_step = True, 0
    kept: list[torch.Tensor] = []
    read = trainer._get_per_token_logps_and_entropies

    def in_doubles(*args: Any, **kwargs: Any) -> Any:
        # TRL's head gives float32 whatever the model is; rounded so, sums of eight rows differ in the fifth digit.
        logprobs_BT, *others = read(*args, **kwargs)
        kept.append(logprobs_BT.double())
        return kept[-1], *others

    trainer._get_per_token_logps_and_entropies = in_doubles
    trainer.model.train()
    inputs = trainer._generate_and_score_completions(given.inputs())
    given.stepped(model, moved, seed=2)
    loss = trainer._compute_loss(trainer.model, inputs)
    return Theirs(trainer=trainer, inputs=inputs, logprobs_BT=kept[-1], loss=loss, kept=kept)


@dataclass(frozen=True, kw_only=True)
class Ours:
    """What we make of the same log-probabilities."""

    batch: Batch
    found: Estimate
    loss: Loss


def ours(their: Theirs, table: Table, *, rewards: Any = given.REWARDS) -> Ours:
    known = their.inputs
    old_BT = known.get("old_per_token_logps", their.logprobs_BT).detach()
    batch = given.our_batch(
        old_BT,
        rewards=rewards,
        sampler_BT=known.get("sampling_per_token_logps"),
        ref_BT=known.get("ref_per_token_logps"),
    )
    found = estimate(batch, table)
    loss = policy_loss(their.logprobs_BT, prepare(batch, found, table, limit=given.LIMIT), table)
    return Ours(batch=batch, found=found, loss=loss)


def assert_same(their: Theirs, our: torch.Tensor, *, factor: float = 1.0, value: bool = True) -> None:
    """Our loss and its gradients are `factor` times theirs; without `value`, the gradients alone."""
    if value:
        torch.testing.assert_close(our, factor * their.loss, rtol=EXACT, atol=EXACT)
    (first_BT, *first), (second_BT, *second) = their.gradients(their.loss), their.gradients(our)
    assert first_BT.abs().sum() > 1e-3
    torch.testing.assert_close(second_BT, factor * first_BT, rtol=EXACT, atol=EXACT)
    for own, other in zip(first, second, strict=True):
        assert (other - factor * own).norm() <= ROUNDED * (factor * own).norm()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One method in both languages."""

    table: Table
    settings: dict[str, Any]
    clips: bool = True
    """Whether the clip takes tokens on this batch; a case in which it should and does not would prove little."""


OFF: dict[str, Any] = {"num_iterations": 2}
"""Makes TRL keep old log-probabilities, since it means to take a second update from them."""
DAPO = preset("dapo", filter="none", shaping=None)
CASES = {
    "grpo": Case(table=preset("grpo", kl=None), settings={"loss_type": "grpo"}),
    "grpo_kl": Case(table=preset("grpo"), settings={"loss_type": "grpo", "beta": 0.04}),
    "grpo_k3": Case(
        table=preset("grpo", kl=Kl(target="ref", estimator="k3", place="loss", coefficient=0.5)),
        settings={"loss_type": "grpo", "beta": 0.5, "use_bias_correction_kl": False},
    ),
    "grpo_dual": Case(
        table=preset("grpo", kl=None, clip={"dual": 1.3}), settings={"loss_type": "grpo", "delta": 1.3}
    ),
    "grpo_off_policy_mask": Case(
        table=preset("grpo", kl=None, masks={"off_policy": 0.05}),
        settings={"loss_type": "grpo", "off_policy_mask_threshold": 0.05},
    ),
    "dapo": Case(table=DAPO, settings={"loss_type": "dapo", "epsilon_high": 0.28}),
    "dapo_without_truncated": Case(
        table=preset("dapo", filter="none", shaping=None, masks={"truncated": True}),
        settings={"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True},
    ),
    "dr_grpo": Case(table=preset("dr_grpo"), settings={"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "gspo": Case(
        table=preset("gspo"),
        settings={
            "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4,
        },
    ),
    "gspo_wide": Case(
        table=preset("gspo", clip={"low": 0.2, "high": 0.2}),
        settings={"loss_type": "grpo", "importance_sampling_level": "sequence"},
    ),
    "cispo": Case(table=preset("cispo"), settings={"loss_type": "cispo", "epsilon_high": 5.0}, clips=False),
    "cispo_capped": Case(
        table=preset("cispo", clip={"cap": 1.05}), settings={"loss_type": "cispo", "epsilon_high": 1.05}
    ),
    "batch_deviation": Case(
        table=preset("dapo", filter="none", shaping=None, advantage={"kind": "batch"}),
        settings={"loss_type": "dapo", "epsilon_high": 0.28, "scale_rewards": "batch"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_trl(name: str, folder: Path, tmp_path: Path) -> None:
    case = CASES[name]
    with given.doubles():
        their = theirs(folder, tmp_path, **OFF, **case.settings)
        our = ours(their, case.table)
        assert_same(their, our.loss.total)
    torch.testing.assert_close(
        our.found.advantages_BT, their.inputs["advantages"][:, None] * our.batch.mask_BT, rtol=1e-12, atol=1e-12
    )
    # The policy has moved, so that this is more than a comparison at ratio 1; and where a clip should act, it does.
    figures = our.loss.tally.figures()
    assert max(figures["ratio_greatest"] - 1, 1 - figures["ratio_least"]) > 0.02
    assert (figures["clipped_high"] + figures["clipped_low"] > 0) is case.clips


# Two of them are unknown; the others are off by up to a factor of five.
SAMPLER = tuple(
    tuple(None if (row + 2 * t) % 13 == 5 else -2.7 + 1.6 * ((3 * row + 5 * t) % 7 - 3) / 3 for t in range(len(ids)))
    for row, ids in enumerate(given.RESPONSES)
)
IMPORTANCE = {
    "token_truncate": {"importance": "truncate", "level": "token", "low": 0.5, "high": 2.0},
    "token_mask": {"importance": "mask", "level": "token", "low": 0.5, "high": 2.0},
    "sequence_truncate": {"importance": "truncate", "level": "sequence", "low": 0.5, "high": 2.0},
    "sequence_mask": {"importance": "mask", "level": "sequence", "low": 0.5, "high": 2.0},
}


@pytest.mark.parametrize("mode", IMPORTANCE)
def test_importance_weights_against_the_sampler_are_those_of_trl(mode: str, folder: Path, tmp_path: Path) -> None:
    table = preset("dapo", filter="none", shaping=None, masks=IMPORTANCE[mode])
    bounds = {"vllm_importance_sampling_clip_min": 0.5, "vllm_importance_sampling_clip_max": 2.0}
    with given.doubles():
        their = theirs(
            folder, tmp_path, **OFF, sampler=SAMPLER, vllm_importance_sampling_mode=mode, epsilon_high=0.28, **bounds
        )
        our = ours(their, table)
        assert_same(their, our.loss.total)
        figures = mismatch(our.batch, table).figures()
    # Some weights are cut, others not, and two tokens are unknown.
    assert 0 < figures["importance_bounded"] < 1
    assert figures["sampler_unknown"] == pytest.approx(2 / 36)


def test_a_kl_beside_importance_weights_is_not_weighed_by_trl(folder: Path, tmp_path: Path) -> None:
    kl = Kl(target="ref", estimator="k3_is", place="loss", coefficient=0.3)
    masks = IMPORTANCE["token_truncate"]
    with given.doubles():
        their = theirs(
            folder, tmp_path, **OFF, sampler=SAMPLER, beta=0.3, epsilon_high=0.28,
            vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_min=0.5,
            vllm_importance_sampling_clip_max=2.0,
        )  # fmt: skip
        weighed, plain, both = (
            ours(their, preset("dapo", filter="none", shaping=None, **changes)).loss
            for changes in ({"masks": masks}, {"kl": kl}, {"masks": masks, "kl": kl})
        )
    torch.testing.assert_close(weighed.total + plain.tally.totals["kl_loss"], their.loss, rtol=EXACT, atol=EXACT)
    assert abs(float(both.tally.totals["kl_loss"] / plain.tally.totals["kl_loss"]) - 1) > 0.01


@pytest.mark.parametrize("loss_type", ["dapo", "dr_grpo"])
def test_unscored_responses_are_left_out_of_the_groups_numbers_as_in_trl(
    loss_type: str, folder: Path, tmp_path: Path
) -> None:
    rewards = (1.0, None, 0.25, 0.5, None, None, 2.0, None)  # the second group has one, and nothing to compare it with
    case = CASES[loss_type]
    with given.doubles():
        their = theirs(folder, tmp_path, rewards=rewards, **OFF, **case.settings)
        our = ours(their, case.table, rewards=rewards)
        expected_BT = their.inputs["advantages"][:, None] * our.batch.mask_BT
        torch.testing.assert_close(our.found.advantages_BT, expected_BT, rtol=1e-12, atol=1e-12)
        assert our.found.advantages_BT.abs().sum(1).nonzero()[:, 0].tolist() == [0, 2, 3]
        # TRL goes on dividing by all 36 tokens or 8 responses; we divide by the 19 and 4 that have a reward.
        assert_same(their, our.loss.total, factor={"dapo": 36 / 19, "dr_grpo": 8 / 4}[loss_type])


def test_a_response_mean_without_truncated_rows_divides_by_the_rows_that_are_left(folder: Path, tmp_path: Path) -> None:
    # TRL's mean over responses goes on dividing by all eight; two of them are cut off.
    with given.doubles():
        their = theirs(folder, tmp_path, loss_type="grpo", mask_truncated_completions=True, **OFF)
        our = ours(their, preset("grpo", kl=None, masks={"truncated": True}))
        assert_same(their, our.loss.total, factor=8 / 6)


def test_cispo_with_trl_s_default_bound_is_a_fifth_of_dapo(folder: Path, tmp_path: Path) -> None:
    # What `clip.cap` refuses: TRL cuts the ratio itself at epsilon_high, 0.2 unless told.
    with given.doubles():
        their = theirs(folder, tmp_path, loss_type="cispo", moved=0.0)
        assert_same(their, ours(their, DAPO).loss.total, factor=5, value=False)


# -- RLOO --


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_rloo_s_advantages_and_gradient_are_those_of_trl(beta: float, folder: Path, tmp_path: Path) -> None:
    table = preset("rloo", kl={"coefficient": beta}) if beta else preset("rloo", kl=None)
    with given.doubles():
        their = theirs(folder, tmp_path, kind=RLOOTrainer, beta=beta, moved=0.0)
        advantages_B = their.inputs["advantages"]
        ref_BT = their.kept[1].detach() if beta else None
        batch = given.our_batch(their.logprobs_BT.detach(), ref_BT=ref_BT)
        found = estimate(batch, table)
        loss = policy_loss(their.logprobs_BT, prepare(batch, found, table), table)
        expected_BT = advantages_B[:, None] * batch.mask_BT
        torch.testing.assert_close(found.advantages_BT, expected_BT, rtol=EXACT, atol=EXACT)
        assert_same(their, loss.total, value=False)
        # The values are of two functions with one gradient: ours is -A log p, TRL's -A times the ratio, which is 1.
        torch.testing.assert_close(their.loss, -advantages_B.mean(), rtol=EXACT, atol=EXACT)
        of_rows_B = (their.logprobs_BT * batch.mask_BT).sum(1)
        torch.testing.assert_close(loss.total, -(advantages_B * of_rows_B).mean(), rtol=EXACT, atol=EXACT)


# -- a whole optimiser step, each with its own reading of the model --

STEPS = {
    "dapo": (
        ["filter=none", "shaping.overlong=null", "shaping.cache=null"],
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "grpo": (["kl=null"], {"loss_type": "grpo"}),
}


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("name", STEPS)
def test_an_optimiser_step_moves_the_parameters_as_trl_s_does(
    name: str, optimiser: str, folder: Path, tmp_path: Path
) -> None:
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM

    changes, settings = STEPS[name]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rate = 1.0 if optimiser == "sgd" else 1e-2
    args = given.arguments(
        GRPOConfig,
        tmp_path,
        learning_rate=rate,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **settings,
    )
    sgd = optimiser == "sgd"
    trainer = GRPOTrainer(
        model, given.trl_reward(), args, given.data(), processing_class=given.word_tokenizer(),
        optimizers=(torch.optim.SGD(model.parameters(), lr=rate), None) if sgd else (None, None),
    )  # fmt: skip
    given.fixed(trainer).train()
    config = RlConfig(
        init=str(folder), preset=name, change=tuple(changes), rate=rate, micro_rows=3, max_new_tokens=given.LIMIT
    )
    models = Models(config)
    before = {key: value.clone() for key, value in models.policy.state_dict().items()}
    updater = Updater(config, models, Accelerator(cpu=True))
    if sgd:
        updater.optimiser = torch.optim.SGD(models.trained(), lr=rate)  # type: ignore[assignment]
    batch = given.our_batch(models.reader.read(given.rows()).logprobs.detach())
    updater.run(batch, given.rows(), estimate(batch, config.table), config.table, beta=0.0)
    for key, value in models.policy.state_dict().items():
        other, start = model.state_dict()[key], before[key]
        # AdamW divides by the size of a gradient, and so lets the rounding of the smallest ones through.
        scale = (other - start).norm() if sgd else start.norm()
        assert (other - start).norm() > 1e-4, key
        assert (value - other).norm() <= 1e-5 * scale, key
