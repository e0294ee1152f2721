"""One response a problem: refused where it teaches nothing, and only there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_rewardkit_rl_weights import TABLES, fitting, random_batch

from rewardkit.rl.config import RlConfig
from rewardkit.rl.credit.step_config import StepChoice
from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.settings.lone import refuse_lone
from rewardkit.rl.settings.presets import preset
from verifiers.errors import ConfigError


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_is_refused_where_rewards_of_lone_responses_change_nothing(name: str) -> None:
    table = TABLES[name]
    batch = fitting(random_batch()[0], table)
    batch = replace(batch, group_B=torch.arange(8))
    rewards_B = torch.arange(8.0, dtype=torch.float64)
    one, other = (
        estimate(replace(batch, rewards_B=own), table).advantages_BT for own in (rewards_B, rewards_B.flip(0))
    )
    if table.advantage.kind != "zero" and torch.equal(one, other):
        with pytest.raises(ConfigError, match="; make group larger, or "):
            refuse_lone(table)
    elif table.filter == "none" and table.shaping.length is None and table.advantage.baseline is None:
        refuse_lone(table)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("grpo", (), "advantage.kind='group' nothing to learn from"),
        ("prime", (), "advantage.kind='implicit' nothing to learn from"),
        ("prm_step", (), "no deviation for advantage.scale='std'"),
        ("pure", (), "no other responses for advantage.baseline='tokens'"),
        ("reinforce_pp", ("filter=outcome",), "filter='outcome' no response"),
        ("reinforce_pp", ("shaping.length=0.1",), "no other lengths for shaping.length"),
    ],
)
def test_a_run_of_lone_responses_says_why_it_cannot_be(name: str, change: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=f"group=1 .*{said}.*; make group larger, or "):
        RlConfig(init="policy", preset=name, change=change, group=1)
    assert RlConfig(init="policy", preset=name, change=change, group=2).group == 2


@pytest.mark.parametrize(
    ("choice", "lam", "said"),
    [
        (StepChoice(), 0.5, "no mean of a group for Phi_0.*; set a step start"),
        (StepChoice(start_from="scores"), 0.5, "no mean of a group for Phi_0.*; set a step start"),
        (StepChoice(rule="sum"), 1.0, "rule='sum' has the group's mean total taken away.*; make group larger"),
    ],
)
def test_steps_of_lone_responses_need_a_start(choice: StepChoice, lam: float, said: str) -> None:
    table = preset("prm_step", advantage={"lam": lam, "scale": "none"})
    with pytest.raises(ConfigError, match=said):
        choice.config(table, group=1)
    assert choice.config(table, group=2).lam == (lam if choice.rule is None else 0.5)
    assert StepChoice(start=0.47).config(table, group=1).start == 0.47
