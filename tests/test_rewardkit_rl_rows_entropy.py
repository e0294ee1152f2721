"""Tokens treated apart: chosen once an optimiser batch, by covariance, entropy or lot; and differential smoothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_policies import in_lockstep
from test_rewardkit_rl_loop import settings as run_settings
from test_rewardkit_rl_weights import POLICY, ragged, random_batch

from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.loss.batch import Batch, Prepared
from rewardkit.rl.loss.objective import policy_loss
from rewardkit.rl.loss.picks import Look, clip_covariance, covariances, greatest, lots, number_of
from rewardkit.rl.loss.weights import prepare
from rewardkit.rl.settings.presets import preset
from rewardkit.rl.settings.sections import Masks
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError, DataError

NAN = math.nan


def f64(rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def gradient(new_BT: torch.Tensor, part: Prepared, table: Table) -> torch.Tensor:
    leaf = new_BT.clone().requires_grad_()
    (found,) = torch.autograd.grad(policy_loss(leaf, part, table).total, leaf)
    return found


# --- The threshold ------------------------------------------------------------------------------------------------

numbers = st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0]), min_size=1)


@settings(max_examples=80, deadline=None)
@given(numbers, st.integers(1, 12))
def test_the_nth_greatest_is_that_of_sorting(values: list[float], number: int) -> None:
    wanted = sorted(values, reverse=True)[number - 1] if number <= len(values) else -math.inf
    assert greatest(f64(values), number) == wanted


def test_the_nth_greatest_is_that_of_all_processes() -> None:
    values = f64([3.0, -1.0, 7.5, 2.0, 2.0, -8.0, 0.1])
    for number, wanted in ((1, 7.5), (3, 2.0), (4, 2.0), (7, -8.0), (8, -math.inf)):

        def part(rank: int, add: Any, number: int = number) -> float:
            return greatest(values[:2] if rank == 0 else values[2:], number, add)

        assert in_lockstep(2, part) == [wanted] * 2
    counted = torch.ones(3, 7, dtype=torch.bool)
    assert [number_of(counted, share) for share in (2e-4, 0.1, 0.5, 1.0)] == [1, 2, 10, 21]


def test_covariances_by_hand() -> None:
    counted = torch.tensor([[True, True, False], [True, True, True]])
    now = Look(logprobs_BT=f64([[-1.0, -3.0, NAN], [-1.0, -2.0, -3.0]]))
    advantages = f64([[2.0, 2.0, 9.0], [-1.0, -1.0, -1.0]])
    # Means over the five that count: l -2, A 0.2.
    wanted = f64([[1.8, -1.8, 0.0], [-1.2, 0.0, 1.2]])
    assert torch.allclose(covariances(now, advantages, counted), wanted, atol=1e-15)


def test_lots_hang_on_the_row_s_number_the_place_and_the_salt() -> None:
    batch = ragged([4, 4, 4], stream_B=torch.tensor([11, 5, 2**62]))
    first = lots(batch, 3)
    assert torch.equal(lots(ragged([4, 4], stream_B=torch.tensor([2**62, 11])), 3), first[[2, 0]])
    assert torch.equal(lots(ragged([2], stream_B=torch.tensor([5])), 3), first[1:2, :2])
    assert len(set(first.flatten().tolist()) | set(lots(batch, 4).flatten().tolist())) == 24
    with pytest.raises(DataError, match=r"masks.clip_cov draws tokens by Batch.stream_B; got None"):
        lots(replace(batch, stream_B=None), 0)


# --- Clip-Cov and KL-Cov -------------------------------------------------------------------------------------------


def spread_batch() -> tuple[Batch, torch.Tensor]:
    """16 responses of 5 tokens in two groups, all log-probabilities different; and the new ones."""
    generator = torch.Generator().manual_seed(5)
    old = -3 * torch.rand(16, 5, generator=generator, dtype=torch.float64)
    rewards = (torch.rand(16, generator=generator) > 0.5).double()
    batch = ragged(
        [5] * 16,
        [0] * 8 + [1] * 8,
        old_BT=old,
        sampler_BT=old,
        rewards_B=rewards,
        outcome_B=rewards,
        stream_B=torch.arange(16) * 104729,
    )
    return batch, old + 0.05 * torch.randn(16, 5, generator=generator, dtype=torch.float64)


def test_clip_cov_takes_the_gradient_of_so_many_tokens_and_leaves_the_others_as_they_are() -> None:
    batch, new = spread_batch()
    table = preset("clip_cov", masks={"clip_cov": 0.05, "cov_low": 0.2, "cov_high": 1.0})
    found = estimate(batch, table)
    cov = covariances(Look(logprobs_BT=batch.old_BT), found.advantages_BT, batch.mask_BT)
    inside = (cov > 0.2) & (cov < 1.0)
    assert 8 < inside.sum() < 60
    picks = []
    for salt in range(60):
        part = prepare(batch, found, table, salt=salt)
        assert part.policy_weights_BT is not None
        stopped = part.policy_weights_BT == 0
        assert stopped.sum() == 4 and not (stopped & ~inside).any()
        picks.append(stopped)
    # Every candidate's turn comes, each about as often.
    often = torch.stack(picks).double().sum(0)[inside]
    assert often.mean() == pytest.approx(60 * 4 / inside.sum().item()) and often.max() < 20
    part = prepare(batch, found, table, salt=7)
    grpo = gradient(new, prepare(batch, found, preset("clip_cov", masks=None)), preset("clip_cov", masks=None))
    held = gradient(new, part, table)
    assert not held[picks[7]].any() and grpo[picks[7]].abs().min() > 1e-4
    assert torch.equal(held[~picks[7]], grpo[~picks[7]])


def test_clip_cov_takes_all_candidates_where_they_are_fewer() -> None:
    batch, _ = spread_batch()
    advantages = estimate(batch, Table()).advantages_BT
    now = Look(logprobs_BT=batch.old_BT)
    cov = covariances(now, advantages, batch.mask_BT)
    top = cov.flatten().topk(3).values
    bounds = {"cov_low": float((top[1] + top[2]) / 2), "cov_high": 50.0}
    found = clip_covariance(batch, now, advantages, batch.mask_BT, Masks(clip_cov=0.5, **bounds))
    assert found.sum() == 2 and torch.equal(found, cov > bounds["cov_low"])


def test_kl_cov_holds_the_tokens_of_the_greatest_covariance() -> None:
    batch, new = spread_batch()
    table = preset("kl_cov", kl={"share": 0.1, "coefficient": 0.7})
    found = estimate(batch, table)
    part = prepare(batch, found, table)
    cov = covariances(Look(logprobs_BT=batch.old_BT), found.advantages_BT, batch.mask_BT)
    assert part.kl_weights_BT is not None
    held = part.kl_weights_BT != 0
    assert held.sum() == 8 and cov[held].min() > cov[~held].max()
    ratio = (new - batch.old_BT).exp()
    wanted = (-found.advantages_BT * ratio + 0.7 * held.double() * (new - batch.old_BT).sign()) / 80
    assert (gradient(new, part, table) - wanted).abs().max() < 1e-15
    # At the old policy it holds nothing; the loop leaves it out there, since rounding has a sign too.
    still = gradient(batch.old_BT, part, table)
    assert (still + found.advantages_BT / 80).abs().max() < 1e-15


def test_where_all_rewards_are_equal_nothing_is_held() -> None:
    batch, new = spread_batch()
    batch = replace(batch, rewards_B=torch.ones(16).double(), outcome_B=torch.ones(16).double())
    table = preset("kl_cov", kl={"share": 0.1})
    part = prepare(batch, estimate(batch, table), table)
    assert part.kl_weights_BT is not None and not part.kl_weights_BT.any()
    assert not gradient(new, part, table).any()


def test_a_look_at_the_policy_now_decides_and_not_the_old_one() -> None:
    batch, _ = spread_batch()
    table = preset("kl_cov", kl={"share": 0.1})
    found = estimate(batch, table)
    turned = batch.old_BT.flip(0)
    part = prepare(batch, found, table, look=Look(logprobs_BT=turned))
    cov = covariances(Look(logprobs_BT=turned), found.advantages_BT, batch.mask_BT)
    assert part.kl_weights_BT is not None
    held = part.kl_weights_BT != 0
    assert cov[held].min() > cov[~held].max()


def test_a_kl_to_the_old_policy_is_refused_where_the_policy_is_the_old_one(tiny_policy: Path) -> None:
    with pytest.raises(ConfigError, match=r"kl.target='old' with one update a batch holds nothing"):
        run_settings(tiny_policy, preset="kl_cov")
    assert run_settings(tiny_policy, preset="kl_cov", epochs=2).table == preset("kl_cov")


def test_entropy_moves_by_the_covariance_of_log_probability_and_advantage() -> None:
    """What the picks rest on (arXiv 2505.22617): dH = -Cov(log pi, A) for a step of the logits along A."""
    logits, advantage = POLICY.logits(3)[0].detach(), POLICY.logits(4)[0].detach()

    def entropy(z: torch.Tensor) -> float:
        return -(z.softmax(-1) * z.log_softmax(-1)).sum().item()

    p, size = logits.softmax(-1), 1e-6
    slope = (entropy(logits + size * advantage) - entropy(logits - size * advantage)) / (2 * size)
    log = logits.log_softmax(-1)
    covariance = (p * (log - (p * log).sum()) * (advantage - (p * advantage).sum())).sum().item()
    assert slope == pytest.approx(-covariance, abs=1e-8)


# --- The tokens of the highest entropy ----------------------------------------------------------------------------


def test_only_the_tokens_of_the_highest_entropy_carry_the_gradient() -> None:
    batch = ragged([5, 5], rewards_B=f64([1.0, 0.0]), outcome_B=f64([1.0, 0.0]))
    table = preset("entropy_top", masks={"entropy_top": 0.3})
    now = Look(logprobs_BT=batch.old_BT, entropies_BT=f64([[0.1, 0.9, 0.2, 0.3, 0.0], [0.8, 0.1, 0.2, 0.7, 0.6]]))
    found = estimate(batch, table)
    part = prepare(batch, found, table, look=now)
    slopes = gradient(torch.zeros(2, 5, dtype=torch.float64), part, table)
    high = torch.tensor([[False, True, False, False, False], [True, False, False, True, False]])
    # The divisor is that of all ten tokens.
    assert torch.equal(slopes, torch.where(high, -found.advantages_BT / 10, 0))
    whole = prepare(batch, found, preset("entropy_top", masks={"entropy_top": 1.0}), look=now)
    assert torch.equal(gradient(batch.old_BT, whole, table), -found.advantages_BT / 10)
    with pytest.raises(DataError, match=r"masks.entropy_top needs the policy's entropy before every token; got None"):
        prepare(batch, found, table)


# --- Differential smoothing ---------------------------------------------------------------------------------------


def test_rare_right_responses_gain_and_rare_wrong_ones_lose() -> None:
    old = f64([[-1.0, -1.0], [-2.0, -3.0], [-0.5, -0.5], [-2.0, -2.0], [-1.0, -1.0]])
    outcome = f64([1.0, 1.0, 0.0, 0.0, NAN])
    rewards = f64([1.0, 1.0, 0.0, 0.0, 0.5])
    batch = ragged([2] * 5, old_BT=old, sampler_BT=old, rewards_B=rewards, outcome_B=outcome)
    plain = estimate(batch, preset("ds_grpo", advantage={"smooth_right": None, "smooth_wrong": None}))
    found = estimate(batch, preset("ds_grpo", advantage={"smooth_right": 0.1, "smooth_wrong": 0.2}))
    change = (found.advantages_BT - plain.advantages_BT)[:, 0]
    assert change.tolist() == pytest.approx([0.2, 0.5, -0.2, -0.8, 0.0])
    nothing = preset("ds_grpo", advantage={"smooth_right": 0.0, "smooth_wrong": 0.0})
    assert torch.equal(estimate(batch, nothing).advantages_BT, plain.advantages_BT)


def test_smoothing_still_acts_where_all_are_right() -> None:
    batch, _ = random_batch()
    batch = replace(batch, token_rewards_BT=None, rewards_B=torch.ones(8).double(), outcome_B=torch.ones(8).double())
    table = preset("ds_grpo")
    wanted = -0.02 * (batch.old_BT * batch.mask_BT).sum(1, keepdim=True) * batch.mask_BT
    assert torch.allclose(estimate(batch, table).advantages_BT, wanted, atol=1e-15)
    assert not estimate(batch, Table()).advantages_BT.any()


def test_justrl_clips_at_c_10() -> None:
    batch = ragged([1, 1], old_BT=f64([[-9.0], [-9.0]]))
    table = preset("justrl")
    part = prepare(batch, estimate(batch, table), table)
    part = replace(part, advantages_BT=f64([[-1.0], [-1.0]]))
    found = gradient(f64([[-9 + math.log(9.9)], [-9 + math.log(10.1)]]), part, table)
    assert found[:, 0].tolist() == pytest.approx([9.9 / 2, 0.0])
