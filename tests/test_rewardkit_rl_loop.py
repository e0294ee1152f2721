"""The loop: every preset takes steps, cuts change nothing, a stopped run goes on bit for bit, and it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from two_processes import in_two

from rewardkit.rl.config import RlConfig
from rewardkit.rl.loop import Loop, StepReport
from rewardkit.rl.rewards.functions import RewardList, as_part
from rewardkit.rl.settings.presets import PRESETS
from verifiers.core import Problem, Response, Verdict
from verifiers.errors import ConfigError, DataError, EngineError

PROBLEMS = [Problem(id=f"p-{n}", prompt=f"One apple and {n} apples: ", answer=str(n)) for n in range(6)]


class Even:
    """Right is a response whose ids are mostly even: a rule that the tiny model can learn."""

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        share = [sum(i % 2 == 0 for i in r.token_ids) / max(1, len(r.token_ids)) for r in responses]
        return [Verdict.correct("even") if s > 0.5 else Verdict.incorrect("odd") for s in share]


class Halves:
    """A step scorer: the share of even ids so far."""

    def score_steps(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        from verifiers.steps import split_steps

        return [tuple((len(step.text) % 7) / 7 for step in split_steps(r.text)) for r in responses]


def rewards(config: RlConfig) -> RewardList:
    parts = [as_part("even", Even())]
    if config.table.advantage.kind in ("step", "step_min"):
        from verifiers.checkpoints import load_tokenizer

        parts.append(as_part("halves", Halves(), tokenizer=load_tokenizer(config.init)))
    return RewardList(parts)


def settings(init: Path | str, **more: Any) -> RlConfig:
    given = {"steps": 2, "prompts": 4, "group": 4, "rate": 1e-3, "max_new_tokens": 8, "seed": 3} | more
    return RlConfig(init=str(init), **given)


def loop(config: RlConfig) -> Loop:
    return Loop(config, PROBLEMS, rewards(config), outcome="even")


def weights(found: Loop) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in found.models.policy.state_dict().items()}


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((value - second[name]).abs().max().item() for name, value in first.items())


SPECIAL: dict[str, dict[str, Any]] = {
    "kl_cov": {"updates": 2},  # at the old policy its KL has no gradient, and it is refused
    "bupo": {"change": ("layer=0",)},
}


def special(name: str, tiny_policy: Path, tiny_teacher: Path) -> dict[str, Any]:
    """What a preset needs beside its name."""
    teacher = {"teacher": str(tiny_teacher)} if PRESETS[name].table.kl.target == "teacher" else {}
    return SPECIAL.get(name, {}) | teacher


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_moves_the_policy(name: str, tiny_policy: Path, tiny_teacher: Path) -> None:
    own = loop(settings(tiny_policy, preset=name, steps=1, **special(name, tiny_policy, tiny_teacher)))
    begun = weights(own)
    reports: list[StepReport] = []
    own.run(on_step=reports.append)
    assert distance(begun, weights(own)) > 1e-5
    assert 0 < reports[0].metrics["sampler/gap"] < 1e-5
    logprobs = [value for group in reports[0].sampled.groups for one in group.responses for value in one.logprobs]
    assert reports[0].metrics["entropy/drawn"] == pytest.approx(-sum(logprobs) / len(logprobs), rel=1e-5)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tiny_policy: Path, tmp_path: Path) -> None:
    config = settings(tiny_policy, preset="ppo", steps=5, save_steps=1, updates=2, epochs=2)
    whole: list[dict[str, float]] = []
    straight = loop(config)
    straight.run(on_step=lambda report: whole.append(report.metrics))
    parts: list[dict[str, float]] = []

    class Stopped(Exception):
        pass

    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise Stopped
        parts.append(report.metrics)

    with pytest.raises(Stopped):
        loop(config).run(work=tmp_path, on_step=stop)
    torch.manual_seed(99)
    again = loop(config)
    again.run(work=tmp_path, resume=True, on_step=lambda report: parts.append(report.metrics))
    assert distance(weights(straight), weights(again)) == 0.0
    timeless = [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in whole]
    assert [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in parts] == timeless
    old, new = straight.updater.optimiser.state_dict(), again.updater.optimiser.state_dict()
    for key, value in old["state"].items():
        assert torch.equal(value["exp_avg_sq"], new["state"][key]["exp_avg_sq"])


@pytest.mark.slow
def test_what_is_rewarded_becomes_likely(tiny_policy: Path) -> None:
    shares: list[float] = []
    own = loop(settings(tiny_policy, preset="grpo", change=("kl=null",), steps=25, group=8, rate=5e-3))
    own.run(on_step=lambda report: shares.append(report.metrics["outcome/mean"]))
    assert sum(shares[:3]) / 3 < 0.75
    assert sum(shares[-3:]) / 3 > 0.95


def test_groups_that_say_nothing_are_drawn_anew(tiny_policy: Path) -> None:
    own = loop(settings(tiny_policy, preset="dapo", steps=1, group=2, rounds=8))
    reports: list[StepReport] = []
    own.run(on_step=reports.append)
    (report,) = reports
    assert report.metrics["draw/kept"] >= 4 < report.metrics["draw/groups"]
    for number in range(4):
        assert len(set(report.sampled.outcomes[2 * number : 2 * number + 2])) == 2


def test_adapters_alone_are_moved_and_the_reference_is_without_them(tiny_policy: Path) -> None:
    own = loop(settings(tiny_policy, preset="grpo", lora_rank=2, steps=3, rate=1e-2))
    begun = weights(own)
    kl: list[float] = []
    own.run(on_step=lambda report: kl.append(report.metrics["update/ref_kl"]))
    moved = [name for name, value in weights(own).items() if not torch.equal(value, begun[name])]
    assert moved and all("lora" in name for name in moved)
    assert abs(kl[0]) < 1e-6 < abs(kl[-1])


def test_settings_that_do_not_fit_are_refused(tiny_policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for more, said in (
        ({"prompts": 5, "updates": 2}, "updates must divide prompts"),
        ({"preset": "nothing"}, "preset must be one of reinforce"),
        ({"change": ("clip.high",)}, "a change is section.setting=value"),
        ({"value_model": "shared"}, "has no effect with preset 'grpo', which has no critic"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"steps": "3"}, "steps must be a whole number; got '3'"),
        ({"group": True}, "group must be a whole number; got True"),
        ({"rate": "fast"}, "rate must be above 0; got 'fast'"),
        ({"change": ("entropy=0.1", "entropy=0.2")}, "entropy is changed twice, by entropy=0.1 and by entropy=0.2"),
        ({"change": ("masks.truncated=no",)}, "masks.truncated must be true or false; got 'no'"),
        ({"change": ("shaping.length=1", "shaping.length_after=2.5")}, "length_after must be a whole number; got 2.5"),
        ({"change": ("masks.importance=truncate",)}, "needs masks.level; got None, set it"),
        ({"rounds": 9}, "rounds=9 has no effect with filter='none'"),
        ({"eval_samples": 9}, "eval_samples=9 has no effect with eval_every=0"),
        ({"change": ("ptx=0.1",)}, "ptx needs text"),
    ):
        with pytest.raises(ConfigError, match=said):
            settings(tiny_policy, **more)
    config = settings(tiny_policy)
    monkeypatch.setattr("accelerate.Accelerator.distributed_type", property(lambda self: DistributedType.FSDP))
    with pytest.raises(ConfigError, match="launch it without FSDP"):
        loop(config)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="outcome must name one of the rewards even; got 'math'"):
        Loop(config, PROBLEMS, rewards(config), outcome="math")
    assert Loop(config, PROBLEMS, rewards(config)).outcome == "even"
    twin = replace(PROBLEMS[0], prompt="another")
    with pytest.raises(DataError, match="two different problems have the id"):
        Loop(config, [*PROBLEMS, twin], rewards(config))
    with pytest.raises(ConfigError, match=r"problems must be verifiers.Problem; got \{'id': 'p'\}"):
        Loop(config, [{"id": "p"}], rewards(config))  # type: ignore[list-item]


SCRIPT = """
import sys, torch
from test_rewardkit_rl_loop import loop, settings
own = loop(settings(sys.argv[2], preset=sys.argv[3], steps=2))
own.run()
if own.accelerator.is_main_process:
    torch.save(own.models.policy.state_dict(), sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "reinforce_pp", "entropy_top", "prime"])
def test_two_processes_learn_as_one(name: str, tiny_policy: Path, tmp_path: Path) -> None:
    done = in_two(SCRIPT, tmp_path, tmp_path / "two.pt", tiny_policy, name)
    assert done.returncode == 0, done.stderr
    one = loop(settings(tiny_policy, preset=name, steps=2))
    one.run()
    assert distance(torch.load(tmp_path / "two.pt", weights_only=True), weights(one)) < 1e-4


def test_bfloat16_changes_what_is_computed_and_not_what_is_kept(tiny_policy: Path) -> None:
    found: dict[bool, tuple[StepReport, dict[str, torch.Tensor]]] = {}
    for bf16 in (False, True):
        own = loop(settings(tiny_policy, preset="grpo", steps=1, bf16=bf16))
        reports: list[StepReport] = []
        own.run(on_step=reports.append)
        found[bf16] = reports[0], weights(own)
        assert all(value.dtype == torch.float32 for value in found[bf16][1].values())
    # Eight bits of mantissa: log-probabilities of about 5 are off by about a hundredth.
    assert found[False][0].metrics["sampler/gap"] < 1e-5 < 1e-4 < found[True][0].metrics["sampler/gap"] < 0.05
    assert 0 < distance(found[False][1], found[True][1]) < 5e-3
    with pytest.raises(EngineError, match="gap"):
        loop(settings(tiny_policy, preset="grpo", steps=1, bf16=True, gap=1e-5)).run()
