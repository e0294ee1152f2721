"""Step rewards in a run: what the table says and what is chosen make one rule, the same as `step_credit`'s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_rewardkit_rl_training import command, data  # noqa: F401

from rewardkit.cli.rl import TrainJob
from rewardkit.rl.config import RlConfig
from rewardkit.rl.credit.guard_config import GuardConfig
from rewardkit.rl.credit.step_config import StepChoice, StepConfig
from rewardkit.rl.credit.step_rewards import step_credit
from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.rewards.scored import Scored, StepRewards
from rewardkit.rl.sampling.drawing import Group
from rewardkit.rl.settings.presets import preset
from rewardkit.rl.settings.table import Table
from rewardkit.rl.steps import Sampled, batch_of
from rewardkit.runs import plain
from verifiers.core import Problem, Response, StopReason
from verifiers.errors import ConfigError

# Two problems; the third response is cut in the middle of its last step, the fourth could not be read as steps, the
# last one has no outcome.
GROUPS = (0, 0, 0, 0, 1, 1, 1)
LENGTHS = (5, 3, 7, 2, 6, 1, 4)
OUTCOMES = (1.0, 0.0, 0.0, 1.0, 1.0, 0.0, None)
STEPS = (
    StepRewards((0.5, 0.75), (1, 4)),
    StepRewards((0.25,), (2,)),
    StepRewards((0.9, 0.1), (2, 4)),
    None,
    StepRewards((0.9, 0.3, 0.5), (0, 2, 5)),
    StepRewards((0.5,), (0,)),
    StepRewards((0.5, 0.2), (1, 3)),
)
TRUNCATED = (False, False, True, False, False, False, False)


def sampled() -> Sampled:
    groups = []
    for group in (0, 1):
        problem = Problem(id=f"p-{group}", prompt="x")
        responses = tuple(
            Response(
                problem_id=problem.id,
                text="",
                token_ids=tuple(range(LENGTHS[n])),
                logprobs=(-1.0,) * LENGTHS[n],
                stop_reason=StopReason.LENGTH if TRUNCATED[n] else StopReason.STOP,
            )
            for n in range(7)
            if GROUPS[n] == group
        )
        groups.append(Group(problem=problem, prompt_ids=(1,), responses=responses))
    scored = Scored(rewards=OUTCOMES, steps=STEPS, parts={"math": OUTCOMES}, reasons=(None,) * 7, metrics={}, extra={})
    return Sampled(groups=tuple(groups), scored=scored, outcomes=OUTCOMES)


def in_a_run(table: Table, choice: StepChoice) -> tuple[list[list[float]], StepConfig]:
    """Advantages of every response's tokens as the loop makes them."""
    config = choice.config(table, group=8)
    batch = batch_of(sampled(), table, limit=8, steps=config, device="cpu")
    made = estimate(batch, table).advantages_BT
    return [made[n, :length].tolist() for n, length in enumerate(LENGTHS)], config


CASES: Sequence[tuple[str, dict[str, Any], StepChoice]] = [
    ("prm_step", {}, StepChoice()),
    ("prm_step", {"advantage": {"lam": 0.0, "scale": "none"}}, StepChoice(start=0.25)),
    ("prm_step", {"advantage": {"lam": 0.0, "scale": "none"}}, StepChoice(start_from="scores")),
    ("prm_step", {"advantage": {"lam": 1.0, "eps": 0.5}}, StepChoice(eta=0.2)),
    ("prm_step", {}, StepChoice(anchor=False)),
    ("prm_step", {}, StepChoice(anchor=False, outcome_weight=0.0)),
    ("prm_step", {"advantage": {"lam": 1.0}}, StepChoice(rule="clip", eta=0.6)),
    ("prm_step", {"advantage": {"lam": 1.0, "scale": "none"}}, StepChoice(rule="delta", outcome_weight=0.5)),
    ("prm_step", {"advantage": {"lam": 1.0}}, StepChoice(rule="sum")),
    ("pure", {}, StepChoice()),
    ("pure", {"advantage": {"temperature": 0.7, "scale": "std"}}, StepChoice(rule="min", outcome_weight=2.0)),
]


@pytest.mark.parametrize(("name", "changes", "choice"), CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(CASES)])
def test_the_loop_gives_the_advantages_of_step_credit(name: str, changes: dict[str, Any], choice: StepChoice) -> None:
    ours, config = in_a_run(preset(name, **changes), choice)
    wanted = step_credit(config, groups=GROUPS, outcomes=OUTCOMES, steps=STEPS, lengths=LENGTHS, truncated=TRUNCATED)
    assert sum(wanted.used) in (5, 6)
    assert max(abs(value) for row in ours for value in row) > 0.1
    for n, row in enumerate(wanted.token_advantages()):
        np.testing.assert_allclose(ours[n], row, atol=2e-6, err_msg=f"response {n}")


def test_pure_in_a_run_by_hand() -> None:
    # The second problem: signed scores .8, -.4, 0 and 0, the third is unscored. T = .1 leaves -.4 nearly alone:
    # its share is 1 / (1 + e^-4 + e^-12); the other response's sum is 0 in one token, so b = 0 for the first, and
    # b = (sum of the first) / 6 for the second.
    ours, _ = in_a_run(preset("pure"), StepChoice())
    shares = np.exp([-8.0 - 4.0, 0.0, -4.0])
    soft = np.array([0.8, -0.4, 0.0]) * shares / shares.sum()
    first = [soft.sum() + 1.0, soft[1:].sum() + 1.0, soft[1:].sum() + 1.0] + [soft[2] + 1.0] * 3
    assert ours[4] == pytest.approx(first, abs=1e-6)
    assert ours[5] == pytest.approx([-soft.sum() / 6 - 1.0], abs=1e-6)
    assert ours[6] == [0.0] * 4


def test_the_outcome_counts_unless_it_is_told_not_to() -> None:
    assert StepChoice().config(preset("prm_step"), group=8).outcome_weight == 0.0  # the anchor holds it
    assert StepChoice(anchor=False).config(preset("prm_step"), group=8).outcome_weight == 1.0
    assert StepChoice().config(preset("pure"), group=8).outcome_weight == 1.0
    assert StepChoice(outcome_weight=0.0).config(preset("pure"), group=8).outcome_weight == 0.0


def test_lambda_temperature_and_scale_are_the_tables() -> None:
    table = preset("prm_step", advantage={"lam": 0.3, "eps": 0.25})
    assert StepChoice().config(table, group=8) == StepConfig(lam=0.3, eps=0.25)
    pure = preset("pure", advantage={"temperature": 0.4})
    assert StepChoice().config(pure, group=8) == StepConfig(
        rule="min", temperature=0.4, outcome_weight=1.0, scale="none"
    )


@pytest.mark.parametrize(
    ("name", "choice", "said"),
    [
        ("grpo", StepChoice(eta=0.5), "step eta=0.5 has no effect with advantage.kind='group', which credits no steps"),
        ("prm_step", StepChoice(rule="min"), "step rule='min' contradicts advantage.kind='step', .*; use preset pure"),
        ("pure", StepChoice(rule="marginal"), "rule='marginal' contradicts advantage.kind='step_min', .* prm_step"),
        ("prm_step", StepChoice(rule="sum"), "advantage.lam=0.5 would fade them out; set advantage.lam=1"),
        ("prm_step", StepChoice(outcome_weight=1.0), "would count the outcome twice"),
        ("pure", StepChoice(anchor=False), "anchor=False does not go with rule='min'"),
    ],
)
def test_what_contradicts_the_table_is_refused(name: str, choice: StepChoice, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choice.config(preset(name), group=8)


def test_the_flags_stand_in_the_run_folder_with_their_prefix(tiny_policy: Path) -> None:
    job = TrainJob(
        data="playground:train:2",
        train=RlConfig(init=str(tiny_policy), preset="pure", temperature=0.9),
        step=StepChoice(outcome_weight=0.5),
        guard=GuardConfig(drift=1.25),
    )
    said = plain(job)
    assert (said["step_outcome_weight"], said["guard_drift"], said["temperature"]) == (0.5, 1.25, 0.9)
    assert "drift" not in said and "rule" not in said


def test_a_run_with_them_can_be_run_again_from_its_folder(
    data: Path,  # noqa: F811
    tiny_policy: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rewardkit.cli import main

    mine = ("--rewards", f"{data / 'rewards.py'}:reward", "--steps", 1, "--guard-repeated", 1e-9, "--guard-recent", 3)
    assert command(data, tiny_policy, "one", *mine, "--change", "ptx=0.1", "--ptx-text", "playground:train:4") == 0
    said = capsys.readouterr().out
    assert "ptx 0.1 on 4 rows (" in said
    settings = yaml.safe_load((data / "one/config.yaml").read_text())
    assert (settings["guard_repeated"], settings["guard_recent"], settings["step_anchor"]) == (1e-9, 3, True)
    assert (settings["ptx_text"], settings["ptx_rows"]) == ("playground:train:4", 8)
    assert main(["rl", "train", "--config", str(data / "one/config.yaml"), "--out", str(data / "two")]) == 0
    assert yaml.safe_load((data / "two/config.yaml").read_text()) == settings
    one, two = ((data / name / "model/model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_step_settings_reach_the_loop(tiny_policy: Path) -> None:
    from test_rewardkit_rl_loop import PROBLEMS, rewards, settings

    from rewardkit.rl.loop import Loop

    config = settings(tiny_policy, preset="prm_step", steps=1, change=("advantage.lam=1", "advantage.scale=none"))
    moved = []
    for choice in (StepChoice(), StepChoice(rule="sum"), StepChoice(start=0.9)):
        own = Loop(config, PROBLEMS, rewards(config), outcome="even", steps=choice)
        own.run()
        moved.append(torch.cat([p.detach().flatten() for p in own.models.policy.parameters()]))
    assert not torch.equal(moved[0], moved[1]) and not torch.equal(moved[0], moved[2])
    with pytest.raises(ConfigError, match=r"has no effect with advantage.kind='group'"):
        grpo = settings(tiny_policy)
        Loop(grpo, PROBLEMS, rewards(grpo), outcome="even", steps=StepChoice(start=0.9))
