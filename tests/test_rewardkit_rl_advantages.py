"""Advantages by hand, their laws, and the gradients they give on a policy that can be enumerated."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_policies import Tabular, batch_of, expected_gradient, gradient_of, in_lockstep, relative

from rewardkit.rl.loss.advantages import estimate, whiten
from rewardkit.rl.loss.batch import Batch, take
from rewardkit.rl.loss.groups import statistics
from rewardkit.rl.loss.returns import at_last_token, generalised_advantages, soft_minimum, split_steps, to_go
from rewardkit.rl.settings.presets import preset
from rewardkit.rl.settings.sections import Advantage, Critic, Kl, Ratio
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError, DataError

NAN = math.nan
PLAIN = Ratio(level="none")


def f64(rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def flat(rewards: list[float], group: list[int] | None = None, width: int = 1, **more: Any) -> Batch:
    """Responses of `width` tokens with these rewards."""
    shape = (len(rewards), width)
    given: dict[str, Any] = {
        "mask_BT": torch.ones(shape, dtype=torch.bool),
        "old_BT": torch.zeros(shape, dtype=torch.float64),
        "sampler_BT": torch.zeros(shape, dtype=torch.float64),
        "group_B": torch.tensor(group or [0] * len(rewards)),
        "rewards_B": f64(rewards),
        "outcome_B": f64(rewards),
        "truncated_B": torch.zeros(len(rewards), dtype=torch.bool),
    }
    return Batch(**(given | more))


def first_tokens(batch: Batch, **settings: Any) -> list[float]:
    critic = Critic() if settings.get("kind") == "gae" else None
    found = estimate(batch, Table(advantage=Advantage(**settings), critic=critic))
    return found.advantages_BT[:, 0].tolist()


def test_grpo_by_hand() -> None:
    # Mean 1/4, deviation (n - 1) sqrt((9/16 + 3/16) / 3) = 1/2.
    rewards = [1.0, 0.0, 0.0, 0.0]
    assert first_tokens(flat(rewards), eps=1e-15) == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-12)
    assert first_tokens(flat(rewards)) == pytest.approx([0.75 / 0.5001] + [-0.25 / 0.5001] * 3, abs=1e-12)
    assert first_tokens(flat(rewards), scale="none") == [0.75, -0.25, -0.25, -0.25]


def test_equal_rewards_have_nothing_to_tell_whatever_rounding_says() -> None:
    # The mean of three times 0.1 is not 0.1 in binary; over eps it would be an advantage.
    assert sum([0.1] * 3) / 3 != 0.1
    assert first_tokens(flat([0.1] * 3), eps=1e-20) == [0.0] * 3
    assert statistics(f64([0.1] * 3), torch.tensor([4, 4, 4])).deviation_B.tolist() == [0.0] * 3
    found = estimate(flat([0.1] * 3 + [1.0, 0.0], [0, 0, 0, 1, 1]), Table())
    assert found.tally.figures()["constant"] == 3
    assert found.advantages_BT[3:, 0].tolist() == pytest.approx([0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4)])


def test_the_other_kinds_by_hand() -> None:
    batch = flat([1.0, 0.0, 2.0, 5.0, 5.0, 8.0], [7, 7, 7, 2, 2, 2])
    assert first_tokens(batch, kind="rloo", scale="none") == [0.0, -1.5, 1.5, -1.5, -1.5, 3.0]
    mean = 21 / 6
    assert first_tokens(batch, kind="mean", scale="none") == pytest.approx([x - mean for x in (1, 0, 2, 5, 5, 8)])
    deviation = math.sqrt(sum((x - mean) ** 2 for x in (1, 0, 2, 5, 5, 8)) / 5)
    assert first_tokens(batch, kind="mean", eps=1e-15) == pytest.approx(
        [(x - mean) / deviation for x in (1, 0, 2, 5, 5, 8)]
    )
    centred = [0.0, -1.0, 1.0, -1.0, -1.0, 2.0]
    assert first_tokens(batch, kind="batch", eps=1e-15) == pytest.approx([x / deviation for x in centred])
    assert first_tokens(batch, kind="none", scale="none") == [1.0, 0.0, 2.0, 5.0, 5.0, 8.0]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(-8, 8), min_size=2, max_size=8).filter(lambda row: len(set(row)) > 1),
    st.integers(-5, 5),
    st.integers(1, 6),
)
def test_group_advantages_see_neither_shift_nor_scale(rewards: list[int], shift: int, scale: int) -> None:
    plain = first_tokens(flat([float(r) for r in rewards]), eps=1e-15)
    moved = first_tokens(flat([float(scale * r + shift) for r in rewards]), eps=1e-15)
    assert moved == pytest.approx(plain, abs=1e-9)
    assert math.fsum(plain) == pytest.approx(0, abs=1e-9)
    assert math.fsum(x * x for x in plain) == pytest.approx(len(plain) - 1, abs=1e-9)
    # Leave-one-out is n / (n - 1) times the distance to the mean.
    mean, n = sum(rewards) / len(rewards), len(rewards)
    others = first_tokens(flat([float(r) for r in rewards]), kind="rloo", scale="none")
    assert others == pytest.approx([n / (n - 1) * (r - mean) for r in rewards])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": "none"},
        {"kind": "rloo", "scale": "none"},
        {"kind": "mean", "scale": "none"},
        {"kind": "mean"},
        {"kind": "batch"},
        {"kind": "global"},
        {"kind": "global", "baseline": "group"},
        {"kind": "none", "scale": "none"},
    ],
    ids=str,
)
def test_an_unscored_response_changes_nothing_for_the_others(options: dict[str, Any]) -> None:
    with_it = first_tokens(flat([1.0, NAN, 0.0, 2.0, 4.0, NAN], [0, 0, 0, 1, 1, 1]), **options)
    without = first_tokens(flat([1.0, 0.0, 2.0, 4.0], [0, 0, 1, 1]), **options)
    assert [with_it[i] for i in (0, 2, 3, 4)] == pytest.approx(without, abs=1e-12)
    assert with_it[1] == with_it[5] == 0


@pytest.mark.parametrize("options", [{}, {"scale": "none"}, {"kind": "rloo", "scale": "none"}, {"kind": "batch"}])
def test_alone_in_its_group_a_response_says_nothing(options: dict[str, Any]) -> None:
    batch = flat([1.0, NAN, 3.0, 1.0, 0.0], [0, 0, 1, 2, 2])
    advantages = first_tokens(batch, **options)
    assert advantages[:3] == [0.0, 0.0, 0.0] and advantages[3] > 0 > advantages[4]
    figures = estimate(batch, Table()).tally.figures()
    assert (figures["lone"], figures["unscored"], figures["responses"], figures["constant"]) == (2, 1, 5, 0)


# --- Gradients by enumeration -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [None, 2])
def test_reinforce_is_the_gradient_of_the_expected_reward_and_a_constant_changes_nothing(end: int | None) -> None:
    policy = Tabular(end=end)
    assert len(policy.sequences) == (27 if end is None else 15)
    logits, rewards = policy.logits(1), policy.random(2)
    p = policy.probabilities(logits)
    assert p.sum().item() == pytest.approx(1, abs=1e-14)
    wanted = -gradient_of((p * rewards).sum(), logits)
    table = Table(advantage=Advantage(kind="none", scale="none"), ratio=PLAIN, aggregation="sequence_sum")
    for baseline in (0.0, 3.7):
        batch = batch_of(policy, logits, rewards - baseline)
        assert relative(expected_gradient(policy, logits, batch, table, p), wanted) < 1e-12
    # A ratio is 1 on policy and changes nothing; off policy it makes the same of draws of the old one.
    old = policy.logits(3)
    ratio = Table(advantage=table.advantage, ratio=Ratio(level="token"), aggregation="sequence_sum")
    on_policy = batch_of(policy, logits, rewards)
    assert relative(expected_gradient(policy, logits, on_policy, ratio, p), wanted) < 1e-12
    # Single tokens' ratios are only a first-order correction.
    assert (
        relative(
            expected_gradient(policy, logits, batch_of(policy, old, rewards), ratio, policy.probabilities(old)), wanted
        )
        > 0.01
    )


def groups_of(policy: Tabular, probabilities: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """(rows, group, probability of a row's group over the size) of all possible groups."""
    count = len(policy.sequences)
    rows = torch.tensor(list(itertools.product(range(count), repeat=size)))
    chance = probabilities.detach()[rows].prod(1)
    group = torch.arange(len(rows)).repeat_interleave(size)
    return rows.flatten(), group, chance.repeat_interleave(size) / size


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_unbiased_and_the_group_mean_shrinks_by_n(size: int) -> None:
    policy = Tabular(end=2)
    logits, rewards = policy.logits(4), policy.random(5)
    p = policy.probabilities(logits)
    wanted = -gradient_of((p * rewards).sum(), logits)
    rows, group, chance = groups_of(policy, p, size)
    batch = batch_of(policy, logits, rewards[rows], rows=rows, group=group)

    def found(**options: Any) -> torch.Tensor:
        table = Table(advantage=Advantage(**options), ratio=PLAIN, aggregation="sequence_sum")
        return expected_gradient(policy, logits, batch, table, chance, rows=rows)

    assert relative(found(kind="rloo", scale="none"), wanted) < 1e-12
    assert relative(found(kind="group", scale="none"), wanted * (size - 1) / size) < 1e-12
    # Divided by the group's deviation it is another direction, not only another size.
    scaled = found(kind="group")
    cosine = torch.cosine_similarity(scaled.flatten(), wanted.flatten(), 0).item()
    assert 0.5 < cosine < 1 - 1e-3


def test_the_kl_inside_the_leave_one_out_reward_is_unbiased_too() -> None:
    policy = Tabular(end=2)
    logits, ref, rewards = policy.logits(4), policy.logits(6), policy.random(5)
    p = policy.probabilities(logits)
    kl = (p * (policy.logprobs(logits) - policy.logprobs(ref).detach()).sum(1)).sum()
    wanted = -gradient_of((p * rewards).sum() - 0.3 * kl, logits)
    rows, group, chance = groups_of(policy, p, 2)
    batch = batch_of(policy, logits, rewards[rows], rows=rows, group=group, ref=ref)
    for credit in ("sequence", "to_go"):
        table = preset("rloo", kl={"coefficient": 0.3, "credit": credit})
        assert relative(expected_gradient(policy, logits, batch, table, chance, rows=rows), wanted) < 1e-12


# --- Tokens -----------------------------------------------------------------------------------------------------

ROWS = st.integers(1, 3)


@st.composite
def episodes(draw: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rewards, values, mask) of up to three rows of seven tokens with gaps."""
    rows = draw(ROWS)
    number = st.integers(-4, 4).map(lambda n: n / 2)
    tensor = lambda items: f64(draw(st.lists(items, min_size=7 * rows, max_size=7 * rows))).reshape(rows, 7)  # noqa: E731
    mask = tensor(st.integers(0, 3)) > 0
    return tensor(number) * mask, tensor(number), mask


@settings(max_examples=60, deadline=None)
@given(episodes(), st.sampled_from([1.0, 0.9, 0.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_generalised_advantages_against_their_definition(
    episode: tuple[torch.Tensor, torch.Tensor, torch.Tensor], gamma: float, lam: float
) -> None:
    rewards, values, mask = episode
    advantages, returns = generalised_advantages(rewards, values, mask, gamma=gamma, lam=lam)
    for b in range(len(mask)):
        # Gaps taken out, the definition: A_t = sum_k (gamma lambda)^k delta_t+k.
        r, v = rewards[b][mask[b]].tolist(), [*values[b][mask[b]].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
        wanted = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(r))) for t in range(len(r))]
        assert advantages[b][mask[b]].tolist() == pytest.approx(wanted, abs=1e-12)
        assert returns[b][mask[b]].tolist() == pytest.approx(
            [a + w for a, w in zip(wanted, v, strict=False)], abs=1e-12
        )
        discounted = [sum(gamma ** (k - t) * r[k] for k in range(t, len(r))) for t in range(len(r))]
        if lam == 1:
            assert wanted == pytest.approx([g - w for g, w in zip(discounted, v, strict=False)], abs=1e-12)
        if lam == 0:
            assert wanted == pytest.approx(delta, abs=1e-12)
        assert to_go(rewards, mask, gamma)[b][mask[b]].tolist() == pytest.approx(discounted, abs=1e-12)
    assert not advantages[~mask].count_nonzero() and not returns[~mask].count_nonzero()


def test_a_gap_or_padding_taken_out_changes_no_advantage() -> None:
    mask = torch.tensor([[True, False, True, True, False]])
    values, more = f64([[0.5, 9.0, -1.0, 2.0, 7.0]]), {"gamma": 0.9, "lam": 0.7}
    rewards = f64([[0.0, 0.0, 1.0, 3.0, 0.0]])
    long = generalised_advantages(rewards, values, mask, **more)[0][mask]
    short = generalised_advantages(rewards[:, [0, 2, 3]], values[:, [0, 2, 3]], mask[:, [0, 2, 3]], **more)[0][0]
    assert torch.equal(long, short)
    assert at_last_token(f64([5.0]), mask).tolist() == [[0, 0, 0, 5.0, 0]]


@pytest.mark.parametrize("end", [None, 2])
def test_a_right_critic_takes_variance_alone(end: int | None) -> None:
    policy = Tabular(end=end)
    logits, rewards = policy.logits(1), policy.random(2)
    p = policy.probabilities(logits)
    wanted = -gradient_of((p * rewards).sum(), logits)
    weight = (p.detach()[:, None] * policy.mask_NT).double()
    index = policy.states_NT
    reach = torch.zeros(policy.shape[0], dtype=torch.float64).index_put((index,), weight, accumulate=True)
    # Padding has state 0 and weight 0; the value of a state is the mean reward of what passes through it.
    value_S = torch.zeros_like(reach).index_put((index,), weight * rewards[:, None], accumulate=True) / reach

    def found(values: torch.Tensor, lam: float, kind: str = "gae") -> torch.Tensor:
        table = Table(
            advantage=Advantage(kind="gae", scale="none", lam=lam),
            ratio=PLAIN,
            aggregation="sequence_sum",
            critic=Critic(),
        )
        return expected_gradient(policy, logits, batch_of(policy, logits, rewards, values_BT=values), table, p)

    for lam in (0.0, 0.5, 1.0):
        assert relative(found(value_S[index], lam), wanted) < 1e-12
    # A wrong critic is a baseline at lambda 1 and a bias below.
    wrong = policy.logits(9).detach()[:, 0][index]
    assert relative(found(wrong, 1.0), wanted) < 1e-12
    assert relative(found(wrong, 0.0), wanted) > 0.1


def test_returns_are_advantages_plus_values_before_whitening() -> None:
    values = f64([[0.5, 0.25], [0.0, -1.0]])
    batch = flat([1.0, 0.0], width=2, values_BT=values)
    table = preset("ppo", kl=None)
    found = estimate(batch, table)
    raw, returns = generalised_advantages(
        at_last_token(batch.rewards_B, batch.mask_BT), values, batch.mask_BT, gamma=1.0, lam=0.95
    )
    assert found.returns_BT is not None and torch.equal(found.returns_BT, returns)
    assert torch.allclose(returns, raw + values, atol=1e-14)
    deviation = raw.std()
    assert torch.allclose(found.advantages_BT, (raw - raw.mean()) / (deviation + 1e-4), atol=1e-14)


def test_whitened_over_all_tokens_and_over_any_number_of_processes() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(8, 5, generator=generator, dtype=torch.float64) * 3 + 1
    counted = torch.rand(8, 5, generator=generator) < 0.7
    whole = whiten(values, counted, eps=1e-15)
    inside = whole[counted]
    assert inside.mean().item() == pytest.approx(0, abs=1e-12)
    assert inside.var().item() == pytest.approx(1, abs=1e-12)
    assert not whole[~counted].count_nonzero()
    rows = torch.arange(8).chunk(4)
    parts = in_lockstep(4, lambda r, add: whiten(values[rows[r]], counted[rows[r]], eps=1e-15, over_ranks=add))
    assert torch.allclose(torch.cat(parts), whole, atol=1e-13)


@pytest.mark.parametrize("kind", ["mean", "batch", "global", "gae"])
def test_estimates_are_those_of_one_process(kind: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    batch = flat([1.0, 0.0, NAN, 2.0, 4.0, 4.0, 0.0, 7.0], [0, 0, 1, 1, 2, 2, 3, 3], width=3, values_BT=values)
    gae = kind == "gae"
    table = Table(advantage=Advantage(kind=kind, lam=0.9 if gae else None), critic=Critic() if gae else None)
    whole = estimate(batch, table).advantages_BT
    rows = torch.arange(8).chunk(4)
    parts = in_lockstep(4, lambda r, add: estimate(take(batch, rows[r]), table, over_ranks=add).advantages_BT)
    assert torch.allclose(torch.cat(parts), whole, atol=1e-13)
    assert whole.abs().sum() > 1


# --- Steps ------------------------------------------------------------------------------------------------------


def stepped(
    rewards: list[list[float]], ends: list[list[int]], outcome: list[float], group: list[int] | None = None, **more: Any
) -> Batch:
    token_rewards = f64(rewards)
    marks = torch.zeros(token_rewards.shape, dtype=torch.bool)
    for b, row in enumerate(ends):
        marks[b, row] = True
    shape = token_rewards.shape[1]
    return flat(outcome, group, width=shape, token_rewards_BT=token_rewards, step_ends_BT=marks, **more)


def test_steps_tile_a_response() -> None:
    mask = torch.tensor([[True] * 6, [True, True, False, True, False, False], [True, True, True, False, False, False]])
    mask = torch.cat([mask, mask[2:]])
    ends = torch.zeros_like(mask)
    ends[0, [1, 4]] = True
    ends[1, [1, 3]] = True
    ends[3, 0] = True
    steps = split_steps(ends, mask)
    # The token behind the last end belongs to it; a row without ends is one step; gaps have none.
    assert steps.of_BT.tolist() == [[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0] * 6, [0] * 6]
    assert steps.valid_BS.tolist() == [[True, True]] * 2 + [[True, False]] * 2
    assert steps.last_BS.tolist() == [[False, True]] * 2 + [[True, False]] * 2
    ones = torch.ones(4, 6)
    assert steps.sums(ones).tolist() == [[2, 4], [2, 1], [3, 0], [3, 0]]
    assert steps.spread(f64([[1, 2], [3, 4], [5, 6], [7, 8]])).tolist() == [
        [1, 1, 2, 2, 2, 2],
        [3, 3, 0, 4, 0, 0],
        [5, 5, 5, 0, 0, 0],
        [7, 7, 7, 0, 0, 0],
    ]


PHI = [0.3, 0.5, 0.9, 0.2]
"""Phi_0 and the scores after three steps, the last one's at token 4 of 5."""


@pytest.mark.parametrize("lam", [1.0, 0.0, 0.5])
def test_marginal_rewards_telescope_and_lambda_has_two_ends(lam: float) -> None:
    outcome = 1.0
    # Anchored: the verifier stands for the last score, so the last step earns R - Phi_2; R is added by the estimate.
    rewards = [[0.0, PHI[1] - PHI[0], PHI[2] - PHI[1], 0.0, -PHI[2]]]
    found = first_all(stepped(rewards, [[1, 2, 4]], [outcome]), lam)
    marginal = [PHI[1] - PHI[0], PHI[2] - PHI[1], outcome - PHI[2]]
    wanted = [sum(lam ** (k - t) * marginal[k] for k in range(t, 3)) for t in range(3)]
    assert found == pytest.approx([wanted[0], wanted[0], wanted[1], wanted[2], wanted[2]], abs=1e-12)
    if lam == 1:
        assert wanted == pytest.approx([outcome - PHI[0], outcome - PHI[1], outcome - PHI[2]])
    if lam == 0:
        assert wanted == pytest.approx(marginal)
    # The plain rule ends in Phi_3, and R comes on top.
    plain = [[0.0, PHI[1] - PHI[0], PHI[2] - PHI[1], 0.0, PHI[3] - PHI[2]]]
    first = first_all(stepped(plain, [[1, 2, 4]], [0.0]), 1.0)
    assert first == pytest.approx([PHI[3] - PHI[0]] * 2 + [PHI[3] - PHI[1]] + [PHI[3] - PHI[2]] * 2, abs=1e-12)


def first_all(batch: Batch, lam: float) -> list[float]:
    table = Table(advantage=Advantage(kind="step", scale="none", lam=lam))
    return estimate(batch, table).advantages_BT[0].tolist()


def test_a_step_that_adds_nothing_earns_nothing() -> None:
    once = [[PHI[1] - PHI[0], PHI[2] - PHI[1], -PHI[2], 0.0]]
    twice = [[PHI[1] - PHI[0], PHI[2] - PHI[1], 0.0, -PHI[2]]]
    short = first_all(stepped(once, [[0, 1, 2]], [1.0]), 1.0)
    long = first_all(stepped(twice, [[0, 1, 2, 3]], [1.0]), 1.0)
    assert long[:2] == pytest.approx(short[:2]) and long[2] == pytest.approx(short[2]) == pytest.approx(long[3])


def potentials(policy: Tabular, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(marginal rewards, ends) of a random potential of prefixes, 0 at the end, each token a step."""
    phi_S = torch.randn(policy.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = phi_S[policy.states_NT]
    after = torch.cat([before[:, 1:], torch.zeros_like(before[:, :1])], 1)
    more = torch.cat([policy.mask_NT[:, 1:], torch.zeros_like(policy.mask_NT[:, :1])], 1)
    return torch.where(policy.mask_NT, torch.where(more, after, 0) - before, 0), policy.mask_NT.clone()


@pytest.mark.parametrize("end", [None, 2])
def test_shaping_by_any_potential_keeps_the_gradient_at_lambda_one(end: int | None) -> None:
    policy = Tabular(end=end)
    logits, outcome = policy.logits(1), policy.random(2)
    p = policy.probabilities(logits)
    wanted = -gradient_of((p * outcome).sum(), logits)
    rewards, ends = potentials(policy, 7)
    batch = batch_of(policy, logits, outcome, token_rewards_BT=rewards, step_ends_BT=ends)

    def found(lam: float, batch: Batch = batch) -> torch.Tensor:
        table = Table(advantage=Advantage(kind="step", scale="none", lam=lam), ratio=PLAIN, aggregation="sequence_sum")
        return expected_gradient(policy, logits, batch, table, p)

    assert relative(found(1.0), wanted) < 1e-12
    assert relative(found(0.0), wanted) > 0.3  # a random scorer, believed
    # Centred before they are summed, the same rewards pay for length.
    mean = rewards.sum() / policy.mask_NT.sum()
    centred = batch_of(policy, logits, outcome, token_rewards_BT=(rewards - mean) * policy.mask_NT, step_ends_BT=ends)
    off = relative(found(1.0, centred), wanted)
    assert off < 1e-12 if end is None else off > 0.005


def test_the_leave_one_out_baseline_of_steps_changes_no_expectation() -> None:
    policy = Tabular(end=2)
    logits, outcome = policy.logits(4), policy.random(5)
    p = policy.probabilities(logits)
    wanted = -gradient_of((p * outcome).sum(), logits)
    rewards, ends = potentials(policy, 8)
    rows, group, chance = groups_of(policy, p, 2)
    batch = batch_of(
        policy,
        logits,
        outcome[rows],
        rows=rows,
        group=group,
        token_rewards_BT=rewards[rows],
        step_ends_BT=ends[rows],
    )
    table = Table(
        advantage=Advantage(kind="step", scale="none", lam=1.0, baseline="others"),
        ratio=PLAIN,
        aggregation="sequence_sum",
    )
    assert relative(expected_gradient(policy, logits, batch, table, chance, rows=rows), wanted) < 1e-12
    plain = Table(advantage=Advantage(kind="step", scale="none", lam=1.0), ratio=PLAIN, aggregation="sequence_sum")
    with_it, without = estimate(batch, table).advantages_BT, estimate(batch, plain).advantages_BT
    assert not torch.allclose(with_it, without)


def test_steps_are_scaled_once_a_group_by_the_deviation_of_their_sums() -> None:
    # Sums 1, 0 and 3 with deviation sqrt(7/3); the second group's sums are equal: nothing to tell.
    rewards = [[0.5, 0.5], [0.25, -0.25], [1.0, 1.0], [0.5, -0.5], [0.0, 0.0]]
    batch = stepped(rewards, [[0, 1]] * 5, [0.0, 0.0, 1.0, 0.0, 0.0], [0, 0, 0, 1, 1])
    table = Table(advantage=Advantage(kind="step", lam=0.5, eps=1e-15))
    found = estimate(batch, table).advantages_BT
    deviation = math.sqrt(7 / 3)
    wanted = [[0.75, 0.5], [0.125, -0.25], [2.0, 2.0]]
    for b in range(3):
        assert (found[b] * deviation).tolist() == pytest.approx(wanted[b], abs=1e-12)
    assert not found[3:].count_nonzero()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=6), st.floats(0.05, 2))
def test_soft_minimum(rewards: list[float], temperature: float) -> None:
    valid = torch.tensor([[True] * len(rewards) + [False]])
    row = f64([[*rewards, -5.0]])
    found = soft_minimum(row, valid, temperature)[0]
    shares = [math.exp(-(r - min(rewards)) / temperature) for r in rewards]
    wanted = [share / sum(shares) * r for share, r in zip(shares, rewards, strict=True)]
    assert found.tolist() == pytest.approx([*wanted, 0.0], abs=1e-12)
    assert soft_minimum(row, valid, 1e-6).sum().item() == pytest.approx(min(rewards), abs=1e-4)
    assert min(rewards) - 1e-9 <= found.sum().item() <= sum(rewards) / len(rewards) + 1e-9


def test_pure_by_hand() -> None:
    # Two answers of two steps; the worst step comes first and then second. T -> 0 leaves the least reward alone.
    rewards = [[-0.5, 0.5, 0.0], [0.2, 0.0, -0.8]]
    batch = stepped(rewards, [[0, 1], [0, 2]], [1.0, 0.0])
    table = Table(advantage=Advantage(kind="step_min", scale="none", temperature=1e-3))
    found = estimate(batch, table).advantages_BT
    assert found[0].tolist() == pytest.approx([0.5, 1.0, 1.0], abs=1e-12)
    assert found[1].tolist() == pytest.approx([-0.8, -0.8, -0.8], abs=1e-12)
    # Leave-one-out: the other's step rewards a token (-0.8 / 3 and -0.5 / 3) for each of 3, 2, 2 and 3, 2, 2 tokens to
    # go from the step's first one on, and the other's reward (0 and 1).
    centred = Table(advantage=Advantage(kind="step_min", scale="none", temperature=1e-3, baseline="tokens"))
    found = estimate(batch, centred).advantages_BT
    assert found[0].tolist() == pytest.approx([0.5 + 0.8, 1.0 + 1.6 / 3, 1.0 + 1.6 / 3], abs=1e-12)
    assert found[1].tolist() == pytest.approx([-0.8 + 0.5 - 1.0, *[-0.8 + 1.0 / 3 - 1.0] * 2], abs=1e-12)
    # Alone in its group a response has nothing to be compared with.
    alone = stepped(rewards[:1], [[0, 1]], [1.0], [0])
    assert not estimate(alone, centred).advantages_BT.count_nonzero()
    with pytest.raises(ConfigError, match="kind='step_min' must be None or 'tokens'; got 'others'"):
        Advantage(kind="step_min", scale="none", temperature=0.1, baseline="others")


def test_step_kinds_leave_unscored_rows_out_of_baseline_and_deviation() -> None:
    rewards, ends = [[0.5, 0.5], [7.0, -3.0], [0.25, -0.25]], [[0, 1]] * 3
    advantage = Advantage(kind="step", lam=0.5, baseline="others")
    found = estimate(stepped(rewards, ends, [0.0, NAN, 0.0]), Table(advantage=advantage)).advantages_BT
    pair = estimate(stepped(rewards[::2], ends[::2], [0.0, 0.0]), Table(advantage=advantage)).advantages_BT
    assert torch.allclose(found[[0, 2]], pair, atol=1e-14) and not found[1].count_nonzero()


# --- KL among the rewards ---------------------------------------------------------------------------------------


def test_where_the_kl_goes_in_an_all_correct_group() -> None:
    # Equal rewards: the deviation is 0, and what is left is the KL by itself, not blown up.
    gap = f64([[0.01, -0.02], [0.03, 0.0]])
    batch = flat([1.0, 1.0], width=2, ref_BT=-gap)
    table = Table(kl=Kl(target="ref", coefficient=0.1))
    found = estimate(batch, table).advantages_BT
    assert torch.allclose(found, -0.1 * f64([[-0.01, -0.02], [0.03, 0.0]]), atol=1e-15)
    # The current coefficient counts where one is given; a token's own alone in "advantage".
    assert torch.allclose(estimate(batch, table, kl_coefficient=0.2).advantages_BT, 2 * found, atol=1e-15)
    own = Table(kl=Kl(target="ref", coefficient=0.1, place="advantage"))
    assert torch.allclose(estimate(batch, own).advantages_BT, -0.1 * gap, atol=1e-15)


def test_discounted_returns_hold_token_rewards_and_kl() -> None:
    batch = flat([2.0], width=3, ref_BT=f64([[-1.0, 0.0, 1.0]]), token_rewards_BT=f64([[0.0, 0.5, 0.0]]))
    table = Table(advantage=Advantage(kind="none", scale="none", gamma=0.5), kl=Kl(target="ref", coefficient=0.1))
    # Rewards of tokens: -0.1, 0.5, 2 + 0.1.
    assert estimate(batch, table).advantages_BT.tolist() == [pytest.approx([0.675, 1.55, 2.1], abs=1e-12)]


# --- What is refused --------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_refused() -> None:
    ones = torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(DataError, match=r"needs Batch.values_BT; got None, run the critic"):
        first_tokens(flat([1.0]), kind="gae", lam=1.0)
    with pytest.raises(DataError, match=r"'step' needs Batch.token_rewards_BT and Batch.step_ends_BT"):
        first_tokens(flat([1.0]), kind="step", lam=1.0)
    with pytest.raises(DataError, match="'group' reads one reward a response and would ignore"):
        first_tokens(flat([1.0], width=2, token_rewards_BT=ones))
    with pytest.raises(DataError, match=r"kl.target='ref' needs Batch.ref_BT; got None"):
        estimate(flat([1.0]), Table(kl=Kl(target="ref", coefficient=0.1)))
    mask = torch.tensor([[True, False]])
    with pytest.raises(DataError, match=r"must be 0 off the response's tokens; row, token \[0, 1\] is not"):
        first_tokens(flat([1.0], width=2, mask_BT=mask, token_rewards_BT=ones), kind="none", scale="none")
    with pytest.raises(DataError, match=r"step_ends_BT must lie on tokens of the response; row, token \[0, 1\]"):
        first_tokens(
            flat([1.0], width=2, mask_BT=mask, token_rewards_BT=ones * mask, step_ends_BT=~mask), kind="step", lam=1.0
        )
    with pytest.raises(DataError, match=r"Batch.old_BT must be finite .*; row, token \[0, 1\] is not"):
        first_tokens(flat([1.0], width=2, old_BT=f64([[0.0, NAN]])))
    with pytest.raises(DataError, match=r"Batch.rewards_B must be finite, or NaN where it is unknown"):
        first_tokens(flat([math.inf]))
    with pytest.raises(DataError, match=r"Batch.ref_BT must have the shape \(1, 2\) of its mask; got \(1, 3\)"):
        flat([1.0], width=2, ref_BT=torch.zeros(1, 3))
    with pytest.raises(DataError, match=r"Batch.truncated_B must be of dtype bool; got torch.int64"):
        flat([1.0], truncated_B=torch.tensor([0]))
    with pytest.raises(DataError, match=r"Batch.group_B must hold integers; got torch.float64"):
        flat([1.0], group_B=f64([0.0]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([NAN, 0.0, 1.0, 2.5])), min_size=1, max_size=9))
def test_group_statistics_against_a_loop(rows: list[tuple[int, float]]) -> None:
    group, values = torch.tensor([g * 11 for g, _ in rows]), f64([x for _, x in rows])
    found = statistics(values, group)
    for b, (own, value) in enumerate(rows):
        known = [x for g, x in rows if g == own and not math.isnan(x)]
        assert found.number_B[b] == len(known)
        assert found.constant_B[b] == (len(set(known)) < 2)
        if known:
            assert found.mean_B[b] == pytest.approx(sum(known) / len(known))
        if len(known) > 1:
            assert found.deviation_B[b] == pytest.approx(torch.tensor(known, dtype=torch.float64).std().item())
            if not math.isnan(value):
                assert found.others_B[b] == pytest.approx((sum(known) - value) / (len(known) - 1))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_sums_that_differ_by_rounding_alone_are_equal(precision: torch.dtype) -> None:
    telescoped = torch.tensor([0.1, 0.7], dtype=precision).sum() - torch.tensor(0.8, dtype=precision)
    values_B = torch.stack([telescoped, torch.zeros((), dtype=precision), torch.tensor(1e-3, dtype=precision)])
    close = statistics(values_B[:2] + torch.tensor([0.0, torch.finfo(precision).eps]), torch.tensor([4, 4]))
    assert close.constant_B.all()
    assert not close.deviation_B.any()
    apart = statistics(values_B, torch.tensor([4, 4, 4]))
    assert not apart.constant_B.any()
