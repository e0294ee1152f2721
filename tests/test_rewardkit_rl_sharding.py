"""Weights cut over two processes learn, save and go on as whole ones do; gradients of all presets: `..._cuts.py`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_rewardkit_rl_loop import PROBLEMS, distance, loop, rewards, settings
from test_rewardkit_rl_routing import made
from two_processes import in_two

from rewardkit.rl.config import RlConfig
from rewardkit.rl.policy.models import load_language_model
from rewardkit.rl.policy.sharding import clip_gradients
from rewardkit.rl.training import train
from verifiers.core import Problem, Response, Verdict
from verifiers.errors import ConfigError

HELD_OUT = [Problem(id="held-out", prompt="Two apples: ", answer="2")]
KINDS: dict[str, dict[str, Any]] = {
    "grpo": {"preset": "grpo", "micro_rows": 3},
    "lora": {"preset": "grpo", "lora_rank": 2, "rate": 1e-2},
    "critic": {"preset": "ppo", "value_model": "shared", "micro_rows": 3},
}
AS_TWO_WHOLE: dict[str, dict[str, Any]] = {
    "bf16": {"preset": "grpo", "micro_rows": 3, "bf16": True},
    "routing": {"preset": "grpo", "micro_rows": 3, "updates": 2, "change": ("masks.keep_routing=true",)},
}
"""Compared with two processes of whole weights: bfloat16 rounds otherwise where micro-batches are cut otherwise."""


class Never:
    """A verifier that is sure of one thing."""

    def judge(self, problems: Any, responses: list[Response]) -> list[Verdict]:
        return [Verdict.incorrect("never") for _ in responses]


def learn(config: RlConfig, folder: Path) -> Any:
    """A whole run."""
    about = {"outcome": "even", "held_out": HELD_OUT, "verifier": Never()}
    return train(config, PROBLEMS, rewards(config), out=folder / "model", work=folder / "work", **about)


def run_kind(kind: str, init: str, folder: Path, **more: Any) -> None:
    config = settings(init, eval_every=1, eval_samples=2, **(KINDS | AS_TWO_WHOLE)[kind], **more)
    report = learn(config, folder)
    assert report.held_out_last == 0.0


def stop_and_go_on(init: str, folder: Path) -> None:
    """Three steps at once, and two and one: the same weights and moments bit for bit."""
    common = {**KINDS["critic"], "save_steps": 1, "shard": True}
    whole = loop(settings(init, steps=3, **common))
    whole.run()
    loop(settings(init, steps=2, **common)).run(work=folder)
    again = loop(settings(init, steps=3, **common))
    again.run(work=folder, resume=True)
    assert again.done == 3
    one, other = whole.tensors(), again.tensors()
    assert distance(one["policy"], other["policy"]) == 0.0
    for place, moments in one["optimiser"]["state"].items():
        assert all(torch.equal(value, other["optimiser"]["state"][place][name]) for name, value in moments.items())
    own = [p for p in whole.models.policy.parameters() if p.requires_grad]
    held, full = sum(p.to_local().numel() for p in own), sum(p.numel() for p in own)
    assert held <= 0.51 * full, (held, full)


SCRIPT = """
import sys
from pathlib import Path
from test_rewardkit_rl_sharding import KINDS, run_kind, stop_and_go_on
for kind in KINDS:
    run_kind(kind, sys.argv[1], Path(sys.argv[2], kind), shard=True)
stop_and_go_on(sys.argv[1], Path(sys.argv[2], "stopped"))
"""


BOTH = """
import sys
from pathlib import Path
from test_rewardkit_rl_sharding import run_kind
for cut in (False, True):
    run_kind(sys.argv[1], sys.argv[2], Path(sys.argv[3], "cut" if cut else "whole"), shard=cut)
"""


def learned(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model that was saved."""
    return dict(load_language_model(str(folder)).state_dict())


@pytest.mark.slow
def test_cut_weights_learn_save_and_go_on_as_whole_ones(tiny_policy: Path, tmp_path: Path) -> None:
    done = in_two(SCRIPT, tmp_path, tiny_policy, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    for kind in KINDS:
        run_kind(kind, str(tiny_policy), tmp_path / "one" / kind)
        two, one = (learned(tmp_path / count / kind / "model") for count in ("two", "one"))
        assert distance(one, learned(tiny_policy)) > 1e-3
        assert distance(one, two) < 1e-4, kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", AS_TWO_WHOLE)
def test_two_processes_learn_the_same_with_cut_and_with_whole_weights(
    kind: str, tiny_policy: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    init = tiny_policy
    if kind == "routing":
        init = tmp_path / "mixture"
        made("Mixtral", len(tiny_tokenizer), num_local_experts=6, num_experts_per_tok=2).save_pretrained(init)
        tiny_tokenizer.save_pretrained(init)
    done = in_two(BOTH, tmp_path, kind, init, tmp_path)
    assert done.returncode == 0, done.stderr
    cut, whole = (learned(tmp_path / way / "model") for way in ("cut", "whole"))
    assert distance(whole, learned(init)) > 1e-3
    assert distance(cut, whole) < 1e-5


def test_one_process_has_nothing_to_cut(tiny_policy: Path) -> None:
    with pytest.raises(ConfigError, match="shard cuts weights over several processes, and this is the only one"):
        loop(settings(tiny_policy, shard=True))


def test_gradients_that_are_whole_are_clipped_as_ever() -> None:
    one, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    one.grad = torch.tensor([3.0, 4.0])
    assert float(clip_gradients([one, other], 1.0)) == 5.0
    assert torch.allclose(one.grad, torch.tensor([0.6, 0.8]), atol=1e-6) and other.grad is None
    assert float(clip_gradients([one], 2.0)) == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(one.grad, torch.tensor([0.6, 0.8]), atol=1e-6)


def test_a_gradient_that_no_process_has_stays_none(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that says nothing must not be a gradient of 0 to the optimiser, whose moments would go on moving."""
    updater = loop(settings(tiny_policy)).updater
    monkeypatch.setattr(updater, "accelerator", SimpleNamespace(num_processes=2))
    # The other process has a gradient where this one has, and of the second parameter too.
    others = torch.zeros(len(updater.trained))
    others[1] = 1.0
    monkeypatch.setattr(
        updater, "over_ranks", lambda value: value + others if value.shape == others.shape else 2 * value
    )
    updater.trained[0].grad = torch.ones_like(updater.trained[0])
    updater._add_up()
    first, second, third = (parameter.grad for parameter in updater.trained[:3])
    assert first is not None and torch.equal(first, torch.full_like(first, 2.0))
    assert second is not None and not second.any()
    assert third is None


@pytest.mark.parametrize(("kind", "asked"), [("own", 1), ("shared", 2)])
def test_only_passes_over_the_policy_wait_for_each_other(
    kind: str, asked: int, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a critic of its own the other process may be in no pass over the policy at all."""
    own = loop(settings(tiny_policy, preset="a2c", value_model=kind, steps=1))
    idle: list[int] = []
    monkeypatch.setattr(own.models, "passes", lambda passes: passes + 1)
    monkeypatch.setattr(own.models, "idle_pass", lambda row, layer=None: idle.append(len(row.response)))
    own.run()
    assert len(idle) == asked and min(idle) > 0
