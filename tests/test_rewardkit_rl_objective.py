"""The loss of tokens and responses: where each clip takes the gradient away, and what it leaves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_policies import Tabular, batch_of, expected_gradient, gradient_of, relative

from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.loss.batch import Batch, Prepared
from rewardkit.rl.loss.objective import policy_loss, ptx_loss, value_loss
from rewardkit.rl.settings.sections import Advantage, Clip, Critic, Kl, Masks, Ratio
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError, DataError

PPO = Clip(kind="ppo", low=0.2, high=0.2)
NAN = math.nan


def f64(rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def part_of(old: Any, advantages: Any, mask: Any = None, weights: Any = None, **more: Any) -> Prepared:
    old_BT = f64(old)
    rows = old_BT.shape[0]
    mask_BT = torch.ones(old_BT.shape, dtype=torch.bool) if mask is None else torch.tensor(mask)
    given: dict[str, Any] = {
        "mask_BT": mask_BT,
        "old_BT": old_BT,
        "sampler_BT": old_BT,
        "group_B": torch.zeros(rows, dtype=torch.long),
        "rewards_B": torch.zeros(rows, dtype=torch.float64),
        "outcome_B": torch.zeros(rows, dtype=torch.float64),
        "truncated_B": torch.zeros(rows, dtype=torch.bool),
    }
    returns = more.pop("returns_BT", None)
    return Prepared(
        batch=Batch(**(given | more)),
        advantages_BT=f64(advantages) * mask_BT,
        weights_BT=mask_BT.double() if weights is None else f64(weights),
        returns_BT=returns,
    )


def run(new: Any, part: Prepared, table: Table, **more: Any) -> tuple[float, list[list[float]], dict[str, float]]:
    """(loss, gradient by the new log-probabilities, figures)."""
    leaf = f64(new).requires_grad_()
    loss = policy_loss(leaf, part, table, **more)
    (gradient,) = torch.autograd.grad(loss.total, leaf)
    return loss.total.item(), gradient.tolist(), loss.tally.figures()


def token(ratio: float, advantage: float, clip: Clip, old: float = -1.0) -> tuple[float, float]:
    """(loss, gradient) of one token."""
    loss, gradient, _ = run([[old + math.log(ratio)]], part_of([[old]], [[advantage]]), Table(clip=clip))
    return loss, gradient[0][0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.0, -2.0, 2.0, 2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.3, 2.0, -2.4, 0.0),  # above, and it should rise: stopped
        (0.7, 2.0, -1.4, -1.4),  # below, and it should rise: pulled back
        (0.7, -2.0, 1.6, 0.0),  # below, and it should fall: stopped
        (1.3, -2.0, 2.6, 2.6),
        (9.0, -2.0, 18.0, 18.0),
    ],
)
def test_the_zones_of_ppo(ratio: float, advantage: float, loss: float, slope: float) -> None:
    assert token(ratio, advantage, PPO) == pytest.approx((loss, slope), abs=1e-12)


def test_a_higher_upper_clip_keeps_more() -> None:
    wide = Clip(kind="ppo", low=0.2, high=0.28)
    assert token(1.25, 1.0, PPO)[1] == 0
    assert token(1.25, 1.0, wide)[1] == pytest.approx(-1.25)
    assert token(1.29, 1.0, wide)[1] == 0


def test_the_dual_clip_bounds_a_negative_advantage() -> None:
    dual = Clip(kind="ppo", low=0.2, high=0.2, dual=3.0)
    assert token(9.0, -2.0, dual) == pytest.approx((6.0, 0.0), abs=1e-12)
    assert token(2.9, -2.0, dual) == pytest.approx((5.8, 5.8), abs=1e-12)
    assert token(9.0, 2.0, dual) == pytest.approx((-2.4, 0.0), abs=1e-12)
    assert token(0.5, -2.0, dual) == pytest.approx((1.6, 0.0), abs=1e-12)


@pytest.mark.parametrize(
    "clip",
    [
        PPO,
        Clip(kind="ppo", low=0.2, high=0.2, dual=3.0),
        Clip(kind="cispo", cap=5.0),
        Clip(kind="dppo", delta=0.2),
        Clip(kind="mask", low=0.2, high=0.27),
        Clip(),
    ],
    ids=lambda clip: clip.kind,
)
def test_on_policy_every_clip_is_the_plain_policy_gradient(clip: Clip) -> None:
    policy = Tabular(end=2)
    logits, rewards = policy.logits(1), policy.random(2)
    p = policy.probabilities(logits)
    wanted = -gradient_of((p * rewards).sum(), logits)
    table = Table(advantage=Advantage(kind="none", scale="none"), clip=clip)
    assert relative(expected_gradient(policy, logits, batch_of(policy, logits, rewards), table, p), wanted) < 1e-12


@settings(max_examples=60, deadline=None)
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(1.5, 6))
def test_cispo_keeps_the_gradient_that_ppo_drops(log_ratio: float, advantage: float, cap: float) -> None:
    _, slope = token(math.exp(log_ratio), advantage, Clip(kind="cispo", cap=cap))
    assert slope == pytest.approx(-min(math.exp(log_ratio), cap) * advantage, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.floats(-2, 2), st.floats(-2, 2))
def test_the_mask_is_ppo_as_a_weight(log_ratio: float, advantage: float) -> None:
    ratio = math.exp(log_ratio)
    for low, high in ((0.2, 0.27), (0.05, 1.5)):
        _, slope = token(ratio, advantage, Clip(kind="mask", low=low, high=high))
        _, wanted = token(ratio, advantage, Clip(kind="ppo", low=low, high=high))
        assert slope == pytest.approx(wanted, abs=1e-12)
    _, capped = token(ratio, advantage, Clip(kind="mask", low=0.99, high=50.0, cap=1.5))
    assert capped == pytest.approx(-min(ratio, 1.5) * advantage, abs=1e-12)


def test_the_mask_looks_at_the_old_policy_and_weighs_by_the_sampler() -> None:
    # l - o = log 1.1 stays inside the clip; l - mu = log 2 is the weight.
    part = part_of([[-1.0]], [[1.0]], sampler_BT=f64([[-1.0 + math.log(1.1) - math.log(2)]]))
    table = Table(ratio=Ratio(anchor="sampler"), clip=Clip(kind="mask", low=0.2, high=0.27))
    assert run([[-1.0 + math.log(1.1)]], part, table)[1] == [[pytest.approx(-2.0)]]
    assert run([[-1.0 + math.log(1.3)]], part, table)[1] == [[0.0]]


def test_the_sampler_as_anchor_and_a_token_it_said_nothing_about() -> None:
    part = part_of([[-9.0, -9.0]], [[1.0, 1.0]], sampler_BT=f64([[-1.0, NAN]]))
    table = Table(ratio=Ratio(anchor="sampler"), clip=PPO)
    loss, gradient, figures = run([[-1.0 + math.log(1.1), -2.0]], part, table)
    assert (loss, gradient) == (pytest.approx(-2.1), [pytest.approx([-1.1, -1.0])])
    assert figures["ratio_greatest"] == pytest.approx(1.1)


def test_dppo_drops_tokens_whose_probability_moved_too_far() -> None:
    clip = Clip(kind="dppo", delta=0.2)

    def slope(before: float, after: float, advantage: float) -> float:
        return token(after / before, advantage, clip, old=math.log(before))[1]

    assert slope(0.5, 0.75, 1.0) == 0
    assert slope(0.5, 0.65, 1.0) == pytest.approx(-1.3)
    assert slope(0.5, 0.75, -1.0) == pytest.approx(1.5)  # moved the other way
    assert slope(0.5, 0.25, -1.0) == 0
    # A large ratio of a rare token moves little probability, which PPO would drop.
    assert slope(0.001, 0.01, 1.0) == pytest.approx(-10)


def gspo(level: Any, clip: Clip = PPO) -> Table:
    return Table(ratio=Ratio(level=level), clip=clip, aggregation="sequence")


def test_the_ratio_of_a_sequence_is_a_geometric_mean() -> None:
    shift = math.log(1.1)
    part = part_of([[-1.0, -2.0, -3.0], [-1.0, -5.0, 0.0]], [[1.0] * 3] * 2, [[True] * 3, [True, True, False]])
    # Equal ratios of tokens: the same ratio for any length; padding takes no part.
    _, _, figures = run([[-1 + shift, -2 + shift, -3 + shift], [-1 + shift, -5 + shift, 99.0]], part, gspo("sequence"))
    assert figures["ratio_least"] == pytest.approx(1.1) == pytest.approx(figures["ratio_greatest"])
    loss, gradient, _ = run([[-1 + 0.03, -2 + 0.03, -3.0], [-1.0, -5.0, 0.0]], part, gspo("sequence"))
    ratio = math.exp(0.02)
    # Three tokens have the value -ratio each; a token's gradient is a third of theirs together.
    assert loss == pytest.approx(-3 * ratio - 2)
    assert gradient[0] == pytest.approx([-ratio] * 3)
    assert gradient[1] == pytest.approx([-1, -1, 0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-0.5, 0.5), min_size=6, max_size=6), st.floats(-2, 2), st.floats(-2, 2))
def test_sequence_and_token_form_agree_where_advantages_do(moves: list[float], first: float, second: float) -> None:
    old = [[-1.0, -2.0, -0.5], [-3.0, -0.1, 0.0]]
    new = [[o + m for o, m in zip(row, moves[3 * b :], strict=False)] for b, row in enumerate(old)]
    weights = [[1 / 6] * 3, [1 / 4, 1 / 4, 0.0]]
    part = part_of(old, [[first] * 3, [second] * 3], [[True] * 3, [True, True, False]], weights)
    whole, single = run(new, part, gspo("sequence")), run(new, part, gspo("sequence_token"))
    assert single[0] == pytest.approx(whole[0], abs=1e-12)
    assert torch.allclose(f64(single[1]), f64(whole[1]), atol=1e-12)


def test_the_token_form_lets_tokens_have_their_own_advantages() -> None:
    part = part_of([[-1.0, -2.0]], [[1.0, -3.0]])
    _, gradient, _ = run([[-0.98, -1.98]], part, gspo("sequence_token", Clip()))
    assert gradient == [pytest.approx([-math.exp(0.02), 3 * math.exp(0.02)])]


# --- Kimi's mirror descent --------------------------------------------------------------------------------------


def mirror_optimum(policy: Tabular, old: torch.Tensor, rewards: torch.Tensor, tau: float) -> torch.Tensor:
    """Probabilities that minimise the mirror loss on all draws of the old policy, with these advantages."""
    q = policy.probabilities(old).detach()
    table = Table(
        advantage=Advantage(kind="none", scale="none"),
        ratio=Ratio(level="none"),
        clip=Clip(kind="mirror", tau=tau),
        aggregation="sequence_sum",
    )
    batch = batch_of(policy, old, rewards)
    found = estimate(batch, table)
    logits = old.detach().clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [logits], max_iter=150, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        logits.grad = expected_gradient(policy, logits, batch, table, q, found=found)
        # The sum of squares behind that gradient, for the line search.
        gap = (policy.logprobs(logits.detach()) - batch.old_BT).sum(1)
        return (q * (rewards - tau * gap) ** 2).sum().item() / (2 * tau)

    solver.step(closure)  # type: ignore[arg-type]
    return policy.probabilities(logits).detach()


def test_mirror_descent_reaches_its_target_only_with_the_right_baseline() -> None:
    policy, tau = Tabular(end=2), 0.7
    old, rewards = policy.logits(1).detach(), policy.random(2)
    q = policy.probabilities(old)
    normaliser = (q * (rewards / tau).exp()).sum()
    target = q * (rewards / tau).exp() / normaliser
    exact = mirror_optimum(policy, old, rewards - tau * normaliser.log(), tau)
    assert (exact - target).abs().max() < 1e-6
    mean = mirror_optimum(policy, old, rewards - (q * rewards).sum(), tau)
    assert (mean - target).abs().max() > 0.02
    assert mean.sum().item() == pytest.approx(1)


# --- Masks, KL and entropy in the loss --------------------------------------------------------------------------


def test_the_off_policy_sequence_mask_has_one_case_of_four_that_drops() -> None:
    table = Table(ratio=Ratio(level="none"), masks=Masks(off_policy=0.1))
    # Rows: sign of the advantage x whether the mean of mu - l is above delta.
    old = [[-1.0, -1.0]] * 4
    sampler = f64([[-1.0, -0.9], [-1.0, -0.7], [-1.0, -0.9], [-1.0, -0.7]])
    part = part_of(old, [[1.0] * 2, [1.0] * 2, [-1.0] * 2, [-1.0] * 2], sampler_BT=sampler)
    _, gradient, figures = run(old, part, table)
    assert gradient == [[-1.0, -1.0], [-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]
    assert figures["off_policy_dropped"] == 2 / 8 and figures["tokens"] == 8  # what weights divide by stays
    # It is the new policy that counts, an unknown mu is no evidence, and advantages of tokens are looked at singly.
    assert run([[-1.0, -1.2]] * 4, part, table)[1][2] == [0.0, 0.0]
    # Surer than the sampler, however far, is no ground to drop.
    assert run([[-0.1, -0.1]] * 4, part, table)[1][2] == [1.0, 1.0]
    unknown = part_of(old[:1], [[-1.0, -1.0]], sampler_BT=f64([[NAN, -0.85]]))
    assert run(old[:1], unknown, table)[1] == [[1.0, 1.0]]
    mixed = part_of(old[:1], [[-1.0, 1.0]], sampler_BT=f64([[-0.5, -0.5]]))
    assert run(old[:1], mixed, table)[1] == [[0.0, -1.0]]


def test_the_kl_in_the_loss_is_added_and_not_masked() -> None:
    kl = Kl(target="ref", estimator="k2", place="loss", coefficient=0.5)
    table = Table(ratio=Ratio(level="none"), masks=Masks(off_policy=0.1), kl=kl)
    part = part_of([[-1.0]], [[-1.0]], sampler_BT=f64([[0.0]]), ref_BT=f64([[-3.0]]))
    loss, gradient, figures = run([[-1.0]], part, table)
    assert (loss, gradient[0][0]) == (pytest.approx(0.5 * 2.0), pytest.approx(0.5 * 2.0))
    assert figures["kl_loss"] == pytest.approx(1.0) and figures["ref_kl"] == 2
    assert run([[-1.0]], part, table, kl_coefficient=0.1)[0] == pytest.approx(0.2)


@pytest.mark.parametrize("end", [None, 2])
def test_the_entropy_bonus_is_the_gradient_of_the_entropy_at_visited_states(end: int | None) -> None:
    policy = Tabular(end=end)
    logits = policy.logits(1)
    p = policy.probabilities(logits)
    log = logits.log_softmax(-1)
    wanted = -0.3 * gradient_of(policy.over_states(logits, -(log.exp() * log).sum(-1)), logits)
    table = Table(ratio=Ratio(level="none"), entropy=0.3)
    batch = batch_of(policy, logits, torch.zeros(len(p), dtype=torch.float64))
    assert relative(expected_gradient(policy, logits, batch, table, p), wanted) < 1e-12
    with pytest.raises(ConfigError, match=r"entropy=0\.3 needs the policy's entropy at every token; got None"):
        run([[-1.0]], part_of([[-1.0]], [[1.0]]), table)


@pytest.mark.parametrize(
    ("clip", "level", "objective"),
    [
        (PPO, "token", -1.0),
        (PPO, "sequence", -1.0),
        (PPO, "sequence_token", -1.0),
        (Clip(kind="cispo", cap=5.0), "token", 1.0),
        (Clip(kind="mask", low=0.2, high=0.2), "token", 1.0),
        (Clip(kind="dppo", delta=0.2), "token", -1.0),
        (Clip(kind="mirror", tau=0.5), "none", 1.0),
        (Clip(), "none", 1.0),
    ],
)
def test_padding_may_hold_anything(clip: Clip, level: Any, objective: float) -> None:
    mask = [[True, False, False]]
    kl = Kl(target="ref", estimator="k3_is", place="loss", coefficient=0.5)
    table = Table(
        ratio=Ratio(level=level),
        clip=clip,
        kl=kl,
        entropy=0.1,
        masks=Masks(off_policy=0.1),
        aggregation="sequence_sum",
    )
    junk = f64([[-1.0, NAN, math.inf]])
    part = part_of([[-1.0, NAN, -math.inf]], [[1.0, 0.0, 0.0]], mask, sampler_BT=junk, ref_BT=junk)
    entropy = f64([[0.5, NAN, math.inf]])
    loss, gradient, figures = run([[-1.0, -math.inf, NAN]], part, table, entropy_BT=entropy)
    assert loss == pytest.approx(objective - 0.05) and gradient == [[-1.0, 0.0, 0.0]]
    assert all(math.isfinite(value) for value in figures.values())


def test_what_is_reported_is_counted_by_hand() -> None:
    ratios = [[1.5, 0.5, 1.0, 0.7]]
    part = part_of([[-1.0] * 4], [[1.0, -1.0, 1.0, 5.0]], weights=[[0.25, 0.25, 0.25, 0.0]])
    loss, _, figures = run([[-1 + math.log(r) for r in ratios[0]]], part, Table(clip=PPO))
    # The fourth token weighs nothing and is in no figure.
    assert loss == pytest.approx((-1.2 + 0.8 - 1.0) / 4) == pytest.approx(figures["objective"])
    assert figures["tokens"] == 3
    assert figures["clipped_high"] == figures["clipped_low"] == pytest.approx(1 / 3)
    assert (figures["ratio"], figures["ratio_least"], figures["ratio_greatest"]) == pytest.approx((1.0, 0.5, 1.5))
    old_kl = [r - 1 - math.log(r) for r in ratios[0][:3]]
    assert figures["old_kl"] == pytest.approx(sum(old_kl) / 3)


# --- Critic and ptx ---------------------------------------------------------------------------------------------


def critic_table(clip: float | None, coefficient: float = 1.0) -> Table:
    return Table(advantage=Advantage(kind="gae", lam=1.0), critic=Critic(coefficient=coefficient, clip=clip))


def value_run(new: float, old: float, target: float, clip: float | None, **more: Any) -> tuple[float, float]:
    part = part_of([[0.0]], [[0.0]], values_BT=f64([[old]]), returns_BT=f64([[target]]))
    leaf = f64([[new]]).requires_grad_()
    loss = value_loss(leaf, part, critic_table(clip, **more))
    (gradient,) = torch.autograd.grad(loss.total, leaf)
    return loss.total.item(), gradient.item()


def test_the_value_loss_and_its_clip() -> None:
    assert value_run(2.0, 2.0, 2.0, 0.2) == (0.0, 0.0)  # a perfect critic
    assert value_run(1.0, 0.0, 2.0, None) == pytest.approx((0.5, -1.0))
    assert value_run(1.0, 0.0, 2.0, None, coefficient=0.1) == pytest.approx((0.05, -0.1))
    # Moved further than 0.2 towards the target: the bounded one is worse and has no gradient.
    assert value_run(1.0, 0.0, 2.0, 0.2) == pytest.approx((0.5 * 1.8**2, 0.0))
    # Moved away from it: the new one is worse.
    assert value_run(-1.0, 0.0, 2.0, 0.2) == pytest.approx((4.5, -3.0))
    assert value_run(0.1, 0.0, 2.0, 0.2) == pytest.approx((0.5 * 1.9**2, -1.9))


def test_figures_of_the_critic() -> None:
    part = part_of(
        [[0.0, 0.0, 0.0]],
        [[0.0] * 3],
        [[True, True, False]],
        values_BT=f64([[0.0, 0.0, NAN]]),
        returns_BT=f64([[2.0, 1.0, NAN]]),
    )
    loss = value_loss(f64([[1.0, 0.1, NAN]]), part, critic_table(0.2))
    figures = loss.tally.figures()
    assert figures["value_error"] == pytest.approx((1.0 + 0.81) / 2)
    assert (figures["value_clipped"], figures["returns"], figures["squared_returns"]) == (0.5, 1.5, 2.5)
    assert figures["value_loss"] == pytest.approx((1.8**2 + 0.9**2) / 2)
    with pytest.raises(DataError, match="a value loss needs a table with a critic"):
        value_loss(f64([[0.0]]), part_of([[0.0]], [[0.0]]), Table())


def test_the_loss_on_plain_text_is_its_own_mean() -> None:
    leaf = f64([[-1.0, -2.0], [-4.0, NAN]]).requires_grad_()
    mask = torch.tensor([[True, True], [True, False]])
    loss = ptx_loss(leaf, mask, Table(ptx=0.5), tokens=6.0)
    (gradient,) = torch.autograd.grad(loss.total, leaf)
    assert loss.total.item() == pytest.approx(0.5 * 7 / 6)
    assert gradient.tolist() == [pytest.approx([-0.5 / 6, -0.5 / 6]), [pytest.approx(-0.5 / 6), 0.0]]
