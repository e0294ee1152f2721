"""Samplers that differ from the trainer, steps away from the old policy: MiniRL, DPPO, rejection, Kimi k1.5, V3.2."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from rl_policies import Tabular, batch_of, expected_gradient, gradient_of, relative
from test_rewardkit_rl_weights import ragged, random_batch, weights_of

from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.loss.objective import policy_loss
from rewardkit.rl.loss.weights import distance, mismatch, prepare
from rewardkit.rl.settings.presets import preset
from rewardkit.rl.settings.sections import Advantage, Clip, Masks, Ratio
from rewardkit.rl.settings.table import Table

NAN = math.nan
RETURNS = Advantage(kind="none", scale="none")


def f64(rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# --- Weights of whole responses ------------------------------------------------------------------------------------


def far_apart() -> Any:
    """Gaps o - mu: a response at 0, 0; one at log 4, 0; one at log 2, log 2; one whose sampler said little."""
    gap = f64([[0.0, 0.0], [math.log(4), 0.0], [math.log(2), math.log(2)], [NAN, math.log(4)]])
    return ragged([2] * 4, sampler_BT=-gap)


def test_the_geometric_mean_of_a_response_by_hand() -> None:
    masks = Masks(importance="truncate", level="geometric")
    found = weights_of(far_apart(), Table(aggregation="sequence_sum", masks=masks)) * 4
    assert found[:, 0].tolist() == pytest.approx([1, 2, 2, 2])
    assert torch.equal(found[:, 0], found[:, 1])
    masked = Masks(importance="mask", level="geometric", high=1.9)
    assert weights_of(far_apart(), Table(masks=masked))[:, 0].tolist() == pytest.approx([1 / 8, 0, 0, 0])
    # Twice as long with the same gaps: the same weight, where the product is squared.
    double = ragged([4], sampler_BT=-math.log(1.5) * torch.ones(1, 4, dtype=torch.float64))
    half = ragged([2], sampler_BT=-math.log(1.5) * torch.ones(1, 2, dtype=torch.float64))
    for level, power in (("geometric", 1), ("sequence", 2)):
        table = Table(aggregation="sequence_sum", masks=Masks(importance="truncate", level=level))  # type: ignore[arg-type]
        short, long = weights_of(half, table)[0, 0].item(), weights_of(double, table)[0, 0].item()
        assert long == pytest.approx(short**power)


@pytest.mark.parametrize(
    ("estimator", "wanted"),
    [
        ("k1", [0, math.log(4) / 2, math.log(2), math.log(4) / 2]),
        ("k2", [0, math.log(4) ** 2 / 4, math.log(2) ** 2 / 2, math.log(4) ** 2 / 4]),
        ("k3", [0, (3 - math.log(4)) / 2, 1 - math.log(2), (3 - math.log(4)) / 2]),
    ],
)
def test_responses_far_from_the_trainer_are_dropped_whole(estimator: Any, wanted: list[float]) -> None:
    batch = far_apart()
    assert distance(batch, estimator).tolist() == pytest.approx(wanted, abs=1e-15)
    middle = sorted(set(wanted))[1]
    masks = Masks(reject=estimator, reject_above=middle + 1e-9)
    kept = [1 / 8 if one <= middle + 1e-9 else 0 for one in wanted]
    table = Table(masks=masks)
    assert weights_of(batch, table)[:, 1].tolist() == pytest.approx(kept)  # divisors keep what is dropped
    figures = mismatch(batch, table).figures()
    assert figures["importance_bounded"] == sum(one == 0 for one in kept) / 4
    # The sign does not matter to k1; beside importance both act.
    turned = replace(batch, sampler_BT=-batch.sampler_BT)
    assert distance(turned, "k1").tolist() == pytest.approx(distance(batch, "k1").tolist())
    both = Table(
        masks=Masks(importance="truncate", level="token", high=1.5, reject=estimator, reject_above=middle + 1e-9)
    )
    assert weights_of(batch, both)[:, 1].tolist() == pytest.approx(
        [k * w for k, w in zip(kept, [1, 1, 1.5, 1.5], strict=True)]
    )


def test_a_sampler_that_agrees_loses_no_bit_at_any_level() -> None:
    batch, _ = random_batch()
    equal = replace(batch, sampler_BT=batch.old_BT)
    for masks in (
        Masks(importance="truncate", level="geometric", low=0.99, high=1.01),
        Masks(importance="mask", level="geometric", low=0.99, high=1.01, reject="k3", reject_above=0.0),
        Masks(reject="k1", reject_above=0.0),
        Masks(reject="k2", reject_above=0.0),
    ):
        assert torch.equal(weights_of(equal, Table(masks=masks)), weights_of(equal, Table()))


# --- MiniRL ---------------------------------------------------------------------------------------------------------


def test_minirl_is_a_first_order_repair_of_the_sampler() -> None:
    policy = Tabular(end=2)
    logits, rewards = policy.logits(1), policy.random(3)
    wanted = -gradient_of((policy.probabilities(logits) * rewards).sum(), logits)
    table = preset("minirl", advantage=RETURNS)

    def error(size: float) -> float:
        sampler = (logits + size * policy.logits(2)).detach()
        drawn = policy.probabilities(sampler)
        batch = batch_of(policy, logits, rewards, sampler=sampler)
        return relative(expected_gradient(policy, logits, batch, table, drawn), wanted)

    assert error(0.0) < 1e-12
    assert 1.9 < error(0.02) / error(0.01) < 2.1


def test_minirl_weighs_by_the_sampler_and_masks_by_the_old_policy() -> None:
    table = preset("minirl")
    # (l - mu, l - o, advantage) -> gradient by l
    cases = [
        (math.log(2), 0.0, 1.0, -2.0),
        (math.log(9), 0.0, 1.0, -5.0),  # capped
        (0.0, math.log(1.26), 1.0, -1.0),
        (0.0, math.log(1.28), 1.0, 0.0),  # PPO would clip
        (0.0, math.log(0.79), -1.0, 0.0),
        (0.0, math.log(1.28), -1.0, 1.0),
    ]
    for to_sampler, to_old, advantage, wanted in cases:
        batch = ragged([1], old_BT=f64([[-1.0 - to_old]]), sampler_BT=f64([[-1.0 - to_sampler]]))
        part = replace(prepare(batch, estimate(batch, table), table), advantages_BT=f64([[advantage]]))
        leaf = f64([[-1.0]]).requires_grad_()
        (found,) = torch.autograd.grad(policy_loss(leaf, part, table).total, leaf)
        assert found.item() == pytest.approx(wanted, abs=1e-12)


# --- DPPO with the squared log-ratio ------------------------------------------------------------------------------


def test_dppo_is_the_published_loss() -> None:
    """Against its formula written out: -A pi/mu on tokens that moved at most 0.2, plus 1e-3 log(pi/mu)^2 on all."""
    policy = Tabular(end=2)
    sampler = policy.logits(1).detach()
    logits = (sampler + 1.5 * policy.logits(2)).detach().requires_grad_()
    batch = batch_of(policy, policy.logits(9), policy.random(3), sampler=sampler)  # the old policy is not looked at
    table = preset("dppo")
    prepared = prepare(batch, estimate(batch, table), table)
    found = gradient_of(policy_loss(policy.logprobs(logits), prepared, table).total, logits)
    new, mu, mask = policy.logprobs(logits), policy.logprobs(sampler), policy.mask_NT
    advantage = (batch.rewards_B - batch.rewards_B.mean())[:, None]
    moved = (new.exp() - mu.exp()).detach()
    kept = torch.where(advantage > 0, moved <= 0.2, moved >= -0.2)
    loss = -advantage * (new - mu).exp() * kept + 1e-3 * (new - mu) ** 2
    wanted = gradient_of((loss * mask).sum() / mask.sum(), logits)
    dropped = (~kept & mask).sum() / mask.sum()
    assert 0.05 < dropped < 0.6
    assert relative(found, wanted) < 1e-12
    # A token that the sampler said nothing about has no ratio to it and no square.
    unknown = replace(batch, sampler_BT=torch.full_like(batch.sampler_BT, NAN))
    prepared = prepare(unknown, estimate(unknown, table), table)
    plain = gradient_of(policy_loss(policy.logprobs(logits), prepared, table).total, logits)
    assert (
        relative(plain, gradient_of(-(advantage * policy.logprobs(logits) * mask).sum() / mask.sum(), logits)) < 1e-12
    )


# --- Kimi k1.5 ----------------------------------------------------------------------------------------------------


def test_kimi_k15_is_the_published_gradient() -> None:
    policy = Tabular(end=2)
    old = policy.logits(1).detach()
    logits = (old + 0.3 * policy.logits(2)).detach().requires_grad_()
    batch = batch_of(policy, old, policy.random(3))
    table = preset("kimi_k15", clip={"tau": 0.7})
    prepared = prepare(batch, estimate(batch, table), table)
    found = gradient_of(policy_loss(policy.logprobs(logits), prepared, table).total, logits)
    sums = policy.logprobs(logits).sum(1)
    centred = batch.rewards_B - batch.rewards_B.mean()
    square = (sums - policy.logprobs(old).sum(1)) ** 2
    wanted = gradient_of((-centred * sums + 0.35 * square).mean(), logits)
    assert relative(found, wanted) < 1e-12


def test_kimi_k15_reaches_its_target_with_the_soft_mean_and_not_with_the_mean() -> None:
    # From a uniform policy all sequences are one group, and the group's mean is the expectation.
    policy, tau = Tabular(), 0.7
    old, rewards = torch.zeros(policy.shape, dtype=torch.float64), policy.random(2)
    batch = batch_of(policy, old, rewards)
    target = (rewards / tau).softmax(0)

    def optimum(advantage: Advantage) -> torch.Tensor:
        table = preset("kimi_k15", advantage=advantage, clip={"tau": tau}, shaping=None)
        prepared = prepare(batch, estimate(batch, table), table)
        logits = old.clone().requires_grad_()
        solver = torch.optim.LBFGS(
            [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            solver.zero_grad()
            loss = policy_loss(policy.logprobs(logits), prepared, table).total
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        solver.step(closure)  # type: ignore[arg-type]
        return policy.probabilities(logits).detach()

    exact = Advantage(kind="soft", scale="none", temperature=tau)
    assert (optimum(exact) - target).abs().max() < 1e-6  # what the line search reaches
    assert (optimum(Advantage(scale="none")) - target).abs().max() > 0.02


def test_the_soft_mean_by_hand_and_without_overflow() -> None:
    table = Table(advantage=Advantage(kind="soft", scale="none", temperature=0.5))
    batch = ragged([1] * 5, [1, 1, 2, 2, 2], rewards_B=f64([1.0, 0.0, NAN, 1000.0, 0.0]))
    found = estimate(batch, table).advantages_BT[:, 0].tolist()
    first = 0.5 * math.log((math.exp(2) + 1) / 2)
    assert found == pytest.approx([1 - first, -first, 0, 0.5 * math.log(2), -1000 + 0.5 * math.log(2)])
    # Its limits: the mean as T grows, the greatest as T falls.
    for temperature, wanted in ((1e6, 0.5), (1e-3, 1.0)):
        near = Table(advantage=Advantage(kind="soft", scale="none", temperature=temperature))
        assert 1 - estimate(batch, near).advantages_BT[0, 0].item() == pytest.approx(wanted, abs=1e-3)


# --- DeepSeek-V3.2 ------------------------------------------------------------------------------------------------


def test_deepseek_v32_is_a_policy_gradient_plus_the_kl_at_the_old_policy_s_states() -> None:
    policy = Tabular(end=2)
    old, ref = policy.logits(1).detach(), policy.logits(4).detach()
    logits = (old + 0.01 * policy.logits(2)).detach().requires_grad_()  # inside the clip
    drawn = policy.probabilities(old)
    batch = batch_of(policy, old, policy.random(3), ref=ref)
    table = preset("deepseek_v32", masks={"off_policy": None})
    found = expected_gradient(policy, logits, batch, table, drawn)
    centred = (batch.rewards_B - batch.rewards_B.mean())[:, None]
    ratio = (policy.logprobs(logits) - policy.logprobs(old)).exp()
    assert ratio.max() < 1.2 and ratio.min() > 0.8
    surrogate = -(drawn[:, None] * ratio * centred * policy.mask_NT).sum()
    own, other = logits.log_softmax(-1), ref.log_softmax(-1)
    per_state = (own.exp() * (own - other)).sum(-1)
    kl = (drawn[:, None] * policy.mask_NT * per_state[policy.states_NT]).sum()
    # Off policy a token's KL is weighted by its own ratio alone: states are the old policy's.
    assert relative(found, gradient_of(surrogate + 1e-3 * kl, logits)) < 1e-10


def test_plain_clips_do_not_read_the_sampler() -> None:
    policy = Tabular(end=2)
    batch = batch_of(policy, policy.logits(1), policy.random(2), sampler=policy.logits(5))
    other = replace(batch, sampler_BT=batch.old_BT)
    table = Table(ratio=Ratio(), clip=Clip(kind="dppo", delta=0.2))
    logits = policy.logits(3)
    first, second = (
        gradient_of(policy_loss(policy.logprobs(logits), prepare(b, estimate(b, table), table), table).total, logits)
        for b in (batch, other)
    )
    assert torch.equal(first, second)
