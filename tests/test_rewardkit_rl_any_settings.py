"""Settings that nobody tried together are refused when they are made, or they run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings, strategies
from test_rewardkit_rl_background import loop
from test_rewardkit_rl_loop import settings as rl_settings

from rewardkit.rl.loop import StepReport
from rewardkit.rl.settings.presets import PRESETS
from verifiers.errors import ConfigError

MAY: dict[str, tuple[Any, ...]] = {
    "epochs": (2,),
    "updates": (2, 4),
    "micro_rows": (1, 3),
    "row_tokens": (0, 20),
    "group": (1, 2),
    "max_new_tokens": (1, 12),
    "max_grad_norm": (0.01,),
    "warmup": (3,),
    "weight_decay": (0.1,),
    "temperature": (0.7, 1.5),
    "top_p": (0.8,),
    "top_k": (5,),
    "rounds": (1,),
    "engine_rows": (3,),
    "staleness": (1, 2),
    "segment_tokens": (3,),
    "repetition": (3,),
    "overlap": (False,),
    "value_model": ("shared",),
    "lora_rank": (2,),
    "bf16": (True,),
}
CHANGES = (
    *(f"aggregation={kind}" for kind in ("token", "sequence", "constant")),
    *(f"filter={kind}" for kind in ("outcome", "reward")),
    *(f"kl.{one}" for one in ("target=ref", "coefficient=0.02", "place=loss", "place=reward", "place=advantage")),
    *(f"kl.estimator={kind}" for kind in ("k1", "k2", "k3", "k3_is")),
    *(f"masks.{one}" for one in ("keep_sampling=true", "truncated=true", "entropy_top=0.2", "off_policy=0.01")),
    *("clip.kind=ppo", "clip.dual=3", "critic.clip=0.2", "ratio.level=sequence", "ratio.anchor=sampler"),
    *("advantage.scale=none", "entropy=0.01", "shaping.overlong=1.0"),
)
SPECIAL: dict[str, tuple[str, ...]] = {"bupo": ("layer=0",)}


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    preset=strategies.sampled_from(sorted(PRESETS)),
    more=strategies.fixed_dictionaries(
        {}, optional={name: strategies.sampled_from(values) for name, values in MAY.items()}
    ),
    change=strategies.lists(strategies.sampled_from(CHANGES), max_size=2, unique_by=lambda one: one.split("=")[0]),
)
def test_settings_are_refused_at_once_or_run(
    preset: str, more: dict[str, Any], change: list[str], tiny_policy: Path, tiny_teacher: Path
) -> None:
    if preset in ("opd", "kdrl"):
        more = {**more, "teacher": str(tiny_teacher)}
    try:
        config = rl_settings(tiny_policy, preset=preset, change=(*SPECIAL.get(preset, ()), *change), **more)
    except ConfigError as error:
        event("refused")
        assert "; " in str(error) and "\n" not in str(error), "it says what to do, in one sentence"
        return
    event("ran")
    own = loop(config)
    reports: list[StepReport] = []
    own.run(on_step=reports.append)
    assert len(reports) == config.steps
    for report in reports:
        assert all(math.isfinite(value) for value in report.metrics.values()), report.metrics
    assert all(bool(torch.isfinite(tensor).all()) for tensor in own.models.policy.state_dict().values())
