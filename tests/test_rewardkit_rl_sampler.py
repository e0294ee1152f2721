"""Whoever samples, the weights are the trainer's: copied whole, adapters multiplied out; stale ones are found out."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_rewardkit_rl_loop import PROBLEMS, distance, rewards, settings, weights

from rewardkit.rl.loop import Loop, StepReport
from rewardkit.rl.policy.models import Models, load_language_model
from rewardkit.rl.sampling.sampler import OwnSampler, VllmSampler, plain_weights, sampler_for
from search.engines.transformers_engine import TransformersEngine
from verifiers.core import GenerationRequest, Sampling, StopReason
from verifiers.errors import ConfigError, EngineError


class Copied(TransformersEngine):
    """An engine with weights of its own that are set from outside, as vLLM's are."""

    def __init__(self, init: str, tokenizer: Any, *, deaf_after: int = 99) -> None:
        super().__init__(load_language_model(init), tokenizer)
        self.times, self.deaf_after = 0, deaf_after

    def set_weights(self, given: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take all of them, at most `deaf_after` times."""
        self.times += 1
        if self.times <= self.deaf_after:
            missing, strange = self.model.load_state_dict(dict(given), strict=False)
            assert strange == [] and set(missing) <= set(self.model.all_tied_weights_keys)
        self.forget()


def run(config: Any, **engine: Any) -> tuple[Loop, Copied | None, list[StepReport]]:
    """Two steps; with `engine`, from a copy of the weights."""
    own = Loop(config, PROBLEMS, rewards(config), outcome="even")
    copied = None
    if engine:
        copied = Copied(config.init, own.models.tokenizer, **engine)
        own.supply.sampler = VllmSampler(copied, own.models.policy)  # type: ignore[arg-type]
    reports: list[StepReport] = []
    own.run(on_step=reports.append)
    return own, copied, reports


def test_a_copy_that_gets_the_weights_draws_what_the_model_itself_draws(tiny_policy: Path) -> None:
    config = settings(tiny_policy, steps=3, rate=1e-2, change=("kl=null",))
    straight, _, wanted = run(config)
    other, copied, reports = run(config, deaf_after=99)
    assert copied is not None and copied.times == 3
    assert distance(weights(straight), weights(other)) == 0.0
    for one, two in zip(wanted, reports, strict=True):
        assert [g.responses for g in one.sampled.groups] == [g.responses for g in two.sampled.groups]
        assert two.metrics["sampler/gap"] < 1e-5


def test_stale_weights_end_a_run(tiny_policy: Path) -> None:
    config = settings(tiny_policy, steps=3, rate=1e-2)
    with pytest.raises(EngineError, match=r"log-probabilities are .* from the trainer's on average in step 2"):
        run(config, deaf_after=1)


def adapted(init: Path) -> Models:
    """A policy with adapters that say something."""
    models = Models(settings(init, lora_rank=2, lora_alpha=3.0))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in models.policy.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return models


def test_the_weights_are_those_that_a_checkpoint_would_hold(tiny_policy: Path, tmp_path: Path) -> None:
    models = adapted(tiny_policy)
    before = copy.deepcopy(models.policy.state_dict())
    given = dict(plain_weights(models.policy))
    assert all(torch.equal(value, before[name]) for name, value in models.policy.state_dict().items())
    copy.deepcopy(models.policy).merge_and_unload().save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert given.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in given.items())
    begun = load_file(tiny_policy / "model.safetensors")
    moved = {name for name, value in given.items() if not torch.equal(value, begun[name])}
    assert moved == {name for name in begun if "_proj.weight" in name}
    plain = dict(plain_weights(load_language_model(str(tiny_policy))))
    assert plain.keys() == begun.keys() and all(torch.equal(value, begun[name]) for name, value in plain.items())


def test_adapters_are_drawn_with(tiny_policy: Path) -> None:
    models = adapted(tiny_policy)
    copied = Copied(str(tiny_policy), models.tokenizer)
    asked, sampling = [GenerationRequest(prefix_ids=(5, 6, 7), n=4, seed=1)], Sampling(max_new_tokens=12)
    stale = copied.generate(asked, sampling)[0]
    own = OwnSampler(settings(tiny_policy), models).engine().generate(asked, sampling)[0]
    set_ = VllmSampler(copied, models.policy).engine().generate(asked, sampling)[0]  # type: ignore[arg-type]
    assert [c.token_ids for c in set_] == [c.token_ids for c in own] != [c.token_ids for c in stale]
    for one, two in zip(set_, own, strict=True):
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)


def test_loops_are_cut_off_and_counted_apart(tiny_policy: Path) -> None:
    settled = {"temperature": 0.3, "max_new_tokens": 40, "steps": 1, "change": ("kl=null",)}
    free = run(settings(tiny_policy, **settled))[2][0]
    assert free.metrics["draw/repetition"] == 0.0
    own = Loop(
        config := settings(tiny_policy, **settled, repetition=6, repetition_times=3),
        PROBLEMS,
        rewards(config),
        outcome="even",
    )
    seen: list[torch.Tensor] = []
    real = own.updater.run
    own.updater.run = lambda batch, *a, **k: seen.append(batch.truncated_B) or real(batch, *a, **k)  # type: ignore
    report = own.step()
    responses = [r for group in report.sampled.groups for r in group.responses]
    ends = [r.stop_reason for r in responses]
    for name, reason in (
        ("finished", StopReason.STOP),
        ("truncated", StopReason.LENGTH),
        ("repetition", StopReason.REPETITION),
    ):
        assert report.metrics[f"draw/{name}"] == ends.count(reason) / 16
    assert StopReason.REPETITION in ends and len(set(ends)) > 1
    assert seen[0].tolist() == [reason is not StopReason.STOP for reason in ends]
    whole = [r for group in free.sampled.groups for r in group.responses]
    for cut, long in zip(responses, whole, strict=True):
        assert cut.token_ids == long.token_ids[: len(cut.token_ids)]
        looping = any(cut.token_ids[-3 * p :] == cut.token_ids[-p:] * 3 for p in range(1, 7))
        assert looping is (cut.stop_reason is StopReason.REPETITION)


def test_settings_of_the_sampler_that_do_not_fit_are_refused(tiny_policy: Path) -> None:
    for more, said in (
        ({"engine": "sglang"}, "engine must be 'transformers' or 'vllm'; got 'sglang'"),
        ({"vllm_memory": 0.5}, "vllm_memory=0.5 does not go with engine='transformers': it is vLLM's"),
        ({"vllm_eager": True}, "vllm_eager=True does not go with engine='transformers'"),
        ({"engine": "vllm", "vllm_memory": 1.5}, "vllm_memory is a share of the device's memory, at most 1; got 1.5"),
        ({"engine": "vllm", "temperature": 2.5}, "vLLM draws at temperature 0 or from 0.01 to 2"),
        ({"engine_rows": 0}, "engine_rows must be above 0; got 0"),
        ({"repetition_times": 3}, "repetition_times=3 has no effect without repetition"),
        ({"repetition": 4, "repetition_times": 1}, "times must be 2 or more; got 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            settings(tiny_policy, **more)
    config = settings(tiny_policy, engine="vllm")
    with pytest.raises(ConfigError, match="engine='vllm' draws in one process so far; got 2"):
        sampler_for(config, Models(config), processes=2)
