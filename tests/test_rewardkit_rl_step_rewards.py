"""Step rewards: telescoping, what the anchor guarantees, both ends of lambda, PURE, the expected policy gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardkit.rl.credit.step_rewards import StepConfig, StepCredit, lambda_returns, soft_min_weights, step_credit
from rewardkit.rl.credit.step_spans import Array, at_ends, over_tokens, tile
from rewardkit.rl.rewards.scored import StepRewards
from verifiers.errors import ConfigError

SCORES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8)


def credit(
    config: StepConfig,
    scores: Sequence[Sequence[float] | None],
    outcomes: Sequence[float | None],
    *,
    groups: Sequence[object] | None = None,
    **changes: Any,
) -> StepCredit:
    """One token a step, and all responses in one group, where nothing else is said."""
    steps = [None if row is None else StepRewards(tuple(row), tuple(range(len(row)))) for row in scores]
    given_: dict[str, Any] = {
        "groups": groups or [0] * len(scores),
        "outcomes": outcomes,
        "steps": steps,
        "lengths": [len(row or [0]) for row in scores],
        "truncated": [False] * len(scores),
    }
    return step_credit(config, **given_ | changes)


def plain(**settings: Any) -> StepConfig:
    return StepConfig(**{"scale": "none", "start": 0.25, **settings})


@given(SCORES, st.floats(-1.0, 2.0), st.floats(-1.0, 1.0))
def test_with_the_anchor_the_sum_is_the_outcome_minus_the_start(
    scores: list[float], outcome: float, start: float
) -> None:
    found = credit(plain(start=start), [scores], [outcome])
    assert math.fsum(found.rewards[0]) == pytest.approx(outcome - start, abs=1e-12)


@given(SCORES, st.floats(-1.0, 1.0))
def test_without_it_the_sum_is_the_last_score_minus_the_start(scores: list[float], start: float) -> None:
    found = credit(plain(anchor=False, start=start), [scores], [None])
    assert math.fsum(found.rewards[0]) == pytest.approx(scores[-1] - start, abs=1e-12)
    with_outcome = credit(plain(anchor=False, start=start, outcome_weight=0.5), [scores], [2.0])
    assert math.fsum(with_outcome.rewards[0]) == pytest.approx(scores[-1] - start + 1.0, abs=1e-12)


def test_marginal_rewards_by_hand() -> None:
    scores = [[0.5, 0.75, 0.25]]
    assert credit(plain(), scores, [1.0]).rewards[0].tolist() == [0.25, 0.25, 0.25]
    assert credit(plain(anchor=False), scores, [1.0]).rewards[0].tolist() == [0.25, 0.25, -0.5]
    # the start is the group's mean outcome where it is not given: 1/2
    both = credit(StepConfig(scale="none"), [[0.5, 0.75, 0.25], [0.5]], [1.0, 0.0])
    assert both.rewards[0].tolist() == [0.0, 0.25, 0.25]
    assert both.rewards[1].tolist() == [-0.5]
    capped = credit(plain(eta=0.1), scores, [1.0])
    assert capped.rewards[0].tolist() == [0.1, 0.1, 0.1]


def test_a_start_from_scores_by_hand() -> None:
    """A group that failed altogether: first steps are compared with each other, and not all praised."""
    scores = [[0.5, 0.25], [0.25, 0.5, 0.0], None]
    found = credit(StepConfig(scale="none", lam=0.0, start_from="scores"), scores, [0.0, 0.0, 0.0])
    assert [row.tolist() for row in found.advantages] == [[0.125, -0.5], [-0.125, 0.25, -0.5], [-0.375]]
    praised = credit(StepConfig(scale="none", lam=0.0), scores, [0.0, 0.0, 0.0])
    assert [row[0] for row in praised.advantages] == [0.5, 0.25, 0.0]
    # Without a single score the outcomes are what is left.
    alone = credit(StepConfig(scale="none", lam=0.0, start_from="scores"), [None, None], [1.0, 0.0])
    assert [row.tolist() for row in alone.advantages] == [[0.5], [-0.5]]
    with pytest.raises(ConfigError, match="start_from='scores' does not go with start"):
        StepConfig(start=0.5, start_from="scores")


@given(SCORES, st.floats(-1.0, 2.0))
def test_lambda_one_is_the_outcome_over_a_baseline(scores: list[float], outcome: float) -> None:
    found = credit(plain(lam=1.0), [scores], [outcome])
    before = np.array([0.25, *scores[:-1]])
    np.testing.assert_allclose(found.advantages[0], outcome - before, atol=1e-12)


@given(SCORES, st.floats(-1.0, 2.0))
def test_lambda_zero_is_the_rule_itself(scores: list[float], outcome: float) -> None:
    found = credit(plain(lam=0.0), [scores], [outcome])
    np.testing.assert_array_equal(found.advantages[0], found.rewards[0])


@given(SCORES, st.floats(0.0, 1.0))
def test_lambda_between_is_the_sum_written_out(rewards: list[float], lam: float) -> None:
    oracle = [sum(lam ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]
    np.testing.assert_allclose(lambda_returns(rewards, lam), oracle, atol=1e-12)


def test_advantages_by_hand_with_the_default_half() -> None:
    # r = [.25, .25, .25]; A_3 = .25, A_2 = .25 + .125, A_1 = .25 + .1875
    found = credit(plain(), [[0.5, 0.75, 0.25]], [1.0])
    assert found.advantages[0].tolist() == [0.4375, 0.375, 0.25]


# -- the expected gradient on a chain of three steps with two or three choices each --

CHOICES = (2, 3, 2)


class Chain:
    """A tabular softmax policy over all sequences; the last step may be left out by a stop after step two."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.prefixes = [p for depth in range(3) for p in itertools.product(*map(range, CHOICES[:depth]))]
        self.logits = {p: rng.normal(size=CHOICES[len(p)]) for p in self.prefixes}
        # choice 0 of the second step ends the response: lengths differ
        self.sequences = [y for y in itertools.product(*map(range, CHOICES)) if y[1] != 0] + [
            (a, 0) for a in range(CHOICES[0])
        ]
        self.outcome = {y: float(rng.integers(0, 2)) for y in self.sequences}
        self.phi = {y[:t]: float(rng.uniform()) for y in self.sequences for t in range(1, len(y) + 1)}

    def probability(self, y: tuple[int, ...]) -> float:
        return math.prod(float(self.chosen(y[:t])[y[t]]) for t in range(len(y)))

    def chosen(self, prefix: tuple[int, ...]) -> Array:
        chances: Array = np.exp(self.logits[prefix])
        chances /= chances.sum()
        return chances

    def gradient(self, advantages: Callable[[tuple[int, ...]], Sequence[float]]) -> Array:
        """E[sum_t A_t grad log pi(y_t | y_<t)], exactly; all logits in one vector."""
        whole = {p: np.zeros_like(self.logits[p]) for p in self.prefixes}
        for y in self.sequences:
            for t, advantage in enumerate(advantages(y)):
                score = -self.chosen(y[:t])
                score[y[t]] += 1.0
                whole[y[:t]] += self.probability(y) * advantage * score
        return np.concatenate([whole[p] for p in self.prefixes])

    def credited(self, config: StepConfig) -> Array:
        def advantages(y: tuple[int, ...]) -> Sequence[float]:
            scores = [self.phi[y[:t]] for t in range(1, len(y) + 1)]
            return list(credit(config, [scores], [self.outcome[y]]).token_advantages()[0])

        return self.gradient(advantages)


@pytest.mark.parametrize("seed", range(3))
def test_expected_gradient_is_that_of_the_outcome_with_lambda_one(seed: int) -> None:
    chain = Chain(seed)
    assert sum(map(chain.probability, chain.sequences)) == pytest.approx(1.0, abs=1e-12)
    outcome_alone = chain.gradient(lambda y: [chain.outcome[y]] * len(y))
    last_score = chain.gradient(lambda y: [chain.phi[y]] * len(y))
    shaped = chain.credited(plain(lam=1.0))
    assert np.abs(shaped - outcome_alone).max() <= 1e-10
    # the plain rule follows the last score of the step scorer instead, and lambda = 0 trusts it as a value
    hacked = chain.credited(plain(lam=1.0, anchor=False))
    assert np.abs(hacked - last_score).max() <= 1e-10
    size = np.linalg.norm(outcome_alone)
    assert np.linalg.norm(hacked - outcome_alone) > 0.1 * size
    assert np.linalg.norm(chain.credited(plain(lam=0.0)) - outcome_alone) > 0.1 * size


def test_expected_gradient_with_the_true_values_is_unbiased_at_any_lambda() -> None:
    chain = Chain(7)
    for prefix in chain.phi:
        below = [y for y in chain.sequences if y[: len(prefix)] == prefix]
        mass = sum(map(chain.probability, below))
        chain.phi[prefix] = sum(chain.probability(y) * chain.outcome[y] for y in below) / mass
    outcome_alone = chain.gradient(lambda y: [chain.outcome[y]] * len(y))
    for lam in (0.0, 0.5, 1.0):
        assert np.abs(chain.credited(plain(lam=lam)) - outcome_alone).max() <= 1e-10


# -- what can be hacked, and what cannot --


@given(SCORES, st.integers(0, 7), st.sampled_from([0.0, 1.0]))
def test_repeating_a_step_does_not_raise_a_marginal_total(scores: list[float], at: int, outcome: float) -> None:
    at = min(at, len(scores) - 1)
    longer = [*scores[: at + 1], scores[at], *scores[at + 1 :]]

    def total(config: StepConfig, row: list[float]) -> float:
        return math.fsum(credit(config, [row], [outcome]).rewards[0])

    for config in (plain(), plain(anchor=False), StepConfig(rule="delta", scale="none")):
        assert total(config, longer) == pytest.approx(total(config, scores), abs=1e-12)
    assert total(StepConfig(rule="clip", eta=0.5, scale="none"), longer) <= total(
        StepConfig(rule="clip", eta=0.5, scale="none"), scores
    )
    summed = StepConfig(rule="sum", scale="none")
    assert total(summed, longer) == pytest.approx(total(summed, scores) + scores[at], abs=1e-12)


def test_clip_and_delta_by_hand() -> None:
    rows = [[0.9, 0.4, 0.6]]
    assert credit(StepConfig(rule="clip", eta=0.5, scale="none"), rows, [None]).rewards[0] == pytest.approx(
        [0.0, -0.1, 0.0]
    )
    delta = credit(StepConfig(rule="delta", scale="none"), rows, [None])
    assert delta.rewards[0] == pytest.approx([0.5, -0.2, 0.6])
    # what follows from step t on is Phi_t; the group's mean total, here its own, is taken off
    assert lambda_returns(delta.rewards[0], 1.0) == pytest.approx([0.9, 0.4, 0.6])
    assert delta.advantages[0] == pytest.approx([0.0, -0.5, -0.3])
    outcome = credit(StepConfig(rule="delta", scale="none", outcome_weight=2.0), rows, [1.0])
    assert outcome.rewards[0] == pytest.approx([0.5, -0.2, 2.6])


def test_one_factor_a_group_keeps_the_order_that_normalising_per_index_breaks() -> None:
    """LightRFT issue 53: .66 .75 .77 .77 1.0 of one response, z-scored step index by step index."""
    group = [[0.66, 0.75, 0.77, 0.77, 1.0], [0.80, 0.60, 0.80, 0.76, 0.90], [0.90, 0.66, 0.84, 0.78, 0.95]]
    outcomes = [1.0, 0.0, 0.0]
    scores_GS = np.array(group)
    per_index = ((scores_GS - scores_GS.mean(0)) / scores_GS.std(0))[0]
    assert per_index[1] > per_index[2] and group[0][1] < group[0][2]  # the order is turned around
    assert per_index[0] < 0 < per_index[1]
    raw = credit(StepConfig(scale="none"), group, outcomes)
    scaled = credit(StepConfig(), group, outcomes)
    factor = 1.0 / (np.std([2 / 3, -1 / 3, -1 / 3], ddof=1) + 1e-4)
    for one, other in zip(raw.advantages, scaled.advantages, strict=True):
        np.testing.assert_allclose(other, one * factor, rtol=1e-12)
    # A_t - A_{t+1} is what step t earned, and its order is that of the raw scores
    earned = -np.diff(credit(StepConfig(rule="sum"), group, outcomes).advantages[0])
    assert earned[0] < earned[1] < earned[2] == pytest.approx(earned[3], rel=1e-12)


def test_a_constant_scorer_gives_the_advantages_of_grpo() -> None:
    outcomes = [1.0, 0.0, 0.0, 0.0]
    found = credit(StepConfig(lam=1.0, eps=0.0), [[0.25] * 3] * 4, outcomes)
    for row, advantage in zip(found.advantages, [1.5, -0.5, -0.5, -0.5], strict=True):
        np.testing.assert_allclose(row, [advantage] * 3, rtol=1e-12)


def test_a_group_of_equal_totals_tells_nothing() -> None:
    # The scorer sees differences, but no response failed less than another: no phantom gradient.
    found = credit(StepConfig(), [[0.9, 0.1], [0.2, 0.3]], [0.0, 0.0])
    assert [row.tolist() for row in found.advantages] == [[0.0, 0.0]] * 2
    assert found.counts == {"constant": 2}
    assert any(credit(StepConfig(scale="none"), [[0.9, 0.1], [0.2, 0.3]], [0.0, 0.0]).advantages[0])


def test_groups_are_apart() -> None:
    one = credit(StepConfig(), [[0.9, 0.1], [0.2, 0.3]], [1.0, 0.0])
    mixed = credit(
        StepConfig(), [[0.9, 0.1], [0.5], [0.2, 0.3], [0.6]], [1.0, 7.0, 0.0, 1.0], groups=["a", "b", "a", "b"]
    )
    np.testing.assert_array_equal(mixed.advantages[0], one.advantages[0])
    np.testing.assert_array_equal(mixed.advantages[2], one.advantages[1])


# -- PURE --


@given(SCORES, st.floats(0.01, 10.0))
def test_soft_min_weights_sum_to_one_and_prefer_the_least(rewards: list[float], temperature: float) -> None:
    weights = soft_min_weights(rewards, temperature)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    least = int(np.argmin(rewards))
    assert weights[least] == weights.max()


@given(SCORES)
def test_the_soft_minimum_goes_to_the_minimum(rewards: list[float]) -> None:
    assert soft_min_weights(rewards, 1e-6) @ np.array(rewards) == pytest.approx(min(rewards), abs=1e-5)
    assert soft_min_weights(rewards, 1e6) @ np.array(rewards) == pytest.approx(np.mean(rewards), abs=1e-5)
    assert soft_min_weights([], 0.1).tolist() == []


def test_pure_against_a_second_reckoning() -> None:
    scores = [[0.9, 0.2], [0.6, 0.7, 0.5], [0.8]]
    outcomes = [1.0, 0.0, 1.0]
    ends = [(2, 5), (0, 3, 9), (3,)]
    config = StepConfig(rule="min", scale="none", outcome_weight=0.5)
    found = step_credit(
        config,
        groups=["p"] * 3,
        outcomes=outcomes,
        steps=[StepRewards(tuple(s), e) for s, e in zip(scores, ends, strict=True)],
        lengths=[6, 10, 4],
        truncated=[False] * 3,
    )
    weighted = []
    for row in scores:
        signed = [2 * score - 1 for score in row]
        raised = [math.exp(-value / 0.1) for value in signed]
        weighted.append([value * one / sum(raised) for value, one in zip(signed, raised, strict=True)])
    for n, own in enumerate(weighted):
        others = [k for k in range(3) if k != n]
        rate = sum(sum(weighted[k]) for k in others) / sum((6, 10, 4)[k] for k in others)
        verdict = 0.5 * (outcomes[n] - sum(outcomes[k] for k in others) / 2)
        starts = [0, *(end + 1 for end in ends[n][:-1])]
        expected = [sum(own[t:]) - rate * ((6, 10, 4)[n] - starts[t]) + verdict for t in range(len(own))]
        assert found.advantages[n] == pytest.approx(expected, abs=1e-12)


def test_pure_alone_in_its_group_has_no_baseline() -> None:
    found = credit(StepConfig(rule="min", scale="none"), [[0.9, 0.2]], [1.0])
    assert found.advantages[0].tolist() == [0.0, 0.0]
    assert found.counts == {"alone": 1}


# -- tokens, and everything that is not a plain response --


def test_tokens_share_their_steps_advantage_and_rewards_stand_at_ends() -> None:
    steps = StepRewards((0.5, 0.75), (1, 3))
    found = step_credit(plain(), groups=[0], outcomes=[1.0], steps=[steps], lengths=[5], truncated=[False])
    # the end mark at index 4 belongs to the last step
    assert found.ends == ((1, 4),)
    assert found.token_rewards()[0].tolist() == [0.0, 0.25, 0.0, 0.0, 0.5]
    assert found.token_advantages()[0].tolist() == [0.5, 0.5, 0.5, 0.5, 0.5]
    assert over_tokens(np.array([1.0, 2.0]), (0, 2), 3).tolist() == [1.0, 2.0, 2.0]
    assert at_ends(np.array([1.0, 2.0]), (0, 2), 3).tolist() == [1.0, 0.0, 2.0]


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.booleans())
def test_steps_tile_every_response(marks: list[bool], truncated: bool) -> None:
    ends = tuple(n for n, mark in enumerate(marks) if mark)
    values, tiled = tile(StepRewards((0.5,) * len(ends), ends), len(marks), truncated=truncated)
    assert len(values) == len(tiled) and tiled[-1] == len(marks) - 1
    assert over_tokens(np.arange(len(tiled), dtype=float), tiled, len(marks)).shape == (len(marks),)


def test_a_response_cut_in_the_middle_of_a_step_has_an_open_step() -> None:
    steps = [StepRewards((0.5, 0.75), (1, 3))]
    cut: dict[str, Any] = {"groups": [0], "outcomes": [0.0], "steps": steps, "lengths": [6], "truncated": [True]}
    anchored = step_credit(plain(), **cut)
    assert anchored.ends == ((1, 3, 5),)
    assert anchored.rewards[0].tolist() == [0.25, 0.25, -0.75]  # the anchor is the open step's to bear
    assert anchored.counts == {"open_step": 1}
    assert step_credit(plain(anchor=False), **cut).rewards[0].tolist() == [0.25, 0.25, 0.0]
    summed = step_credit(StepConfig(rule="sum", scale="none"), **cut)
    assert summed.rewards[0].tolist() == [0.5, 0.75, 0.0]
    soft = step_credit(StepConfig(rule="min", scale="none"), **cut)
    assert soft.rewards[0][2] == 0.0 and soft.rewards[0][0] == 0.0 and soft.rewards[0][1] > 0.0


def test_one_step_and_none() -> None:
    one = credit(plain(), [[0.9]], [1.0])
    assert one.rewards[0].tolist() == one.advantages[0].tolist() == [0.75]
    none = step_credit(plain(), groups=[0], outcomes=[1.0], steps=[StepRewards((), ())], lengths=[2], truncated=[False])
    assert none.ends == ((1,),) and none.token_advantages()[0].tolist() == [0.75, 0.75]
    kept = step_credit(
        plain(anchor=False), groups=[0], outcomes=[1.0], steps=[StepRewards((), ())], lengths=[2], truncated=[False]
    )
    assert kept.rewards[0].tolist() == [0.0]  # nothing was scored, so Phi stays where it was


def test_what_was_not_scored_is_left_out_and_moves_nobody() -> None:
    rows = [[0.5, 0.6], [0.4, 0.3], [0.9, 0.9]]
    without = credit(StepConfig(), rows[:2], [1.0, 0.0])
    for missing in (None, math.nan):
        found = credit(StepConfig(), rows, [1.0, 0.0, missing])
        assert found.used == (True, True, False)
        assert found.advantages[2].tolist() == [0.0, 0.0] and found.rewards[2].tolist() == [0.0, 0.0]
        assert found.counts == {"unscored": 1}
        for n in (0, 1):
            np.testing.assert_array_equal(found.advantages[n], without.advantages[n])
    nobody = credit(StepConfig(anchor=False, start_from="outcomes"), rows, [None] * 3)
    assert nobody.counts == {"unscored": 3} and not any(nobody.used)
    # Without the anchor nothing hangs on outcomes, unless Phi is to begin at their mean.
    everyone = credit(StepConfig(anchor=False, scale="none", lam=1.0), rows, [None] * 3)
    assert all(everyone.used)
    assert [row[0] for row in everyone.advantages] == pytest.approx([0.0, -0.3, 0.3])


def test_without_steps_an_anchored_rule_has_the_outcome_alone() -> None:
    rows: list[list[float] | None] = [[0.5, 0.6], None]
    found = credit(StepConfig(scale="none"), rows, [1.0, 0.0])
    assert found.advantages[1].tolist() == [-0.5] and found.counts == {"outcome_only": 1}
    other = credit(StepConfig(rule="sum", scale="none"), rows, [1.0, 0.0])
    assert other.used == (True, False) and other.counts == {"without_steps": 1}


def test_an_empty_response_is_left_out() -> None:
    found = step_credit(StepConfig(), groups=[0], outcomes=[0.0], steps=[None], lengths=[0], truncated=[True])
    assert found.counts == {"empty": 1} and found.token_advantages()[0].shape == (0,)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "sum", "lam": 1.0}, "lam=1.0 does not go with rule='sum'"),
        ({"rule": "min", "anchor": False}, "anchor=False does not go with rule='min'"),
        ({"rule": "clip"}, "rule='clip' needs a threshold"),
        ({"rule": "delta", "eta": 0.1}, "eta=0.1 does not go with rule='delta'"),
        ({"temperature": 0.5}, "temperature=0.5 does not go with rule='marginal'"),
        ({"outcome_weight": 1.0}, "would count the outcome twice"),
        ({"lam": 1.5}, "lam must lie between 0 and 1; got 1.5"),
        ({"rule": "best"}, "rule must be 'marginal' or"),
        ({"scale": "none", "eps": 0.1}, "eps=0.1 does not go with scale='none'"),
        ({"start": math.inf}, "must be finite; got inf"),
        ({"rule": "min", "temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        StepConfig(**settings)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ConfigError, match="got 2, 1, 2, 2 and 2"):
        credit(StepConfig(), [[0.5], [0.5]], [1.0])
    with pytest.raises(ConfigError, match="the end 3 in a response of 3 tokens"):
        credit(StepConfig(), [[0.5, 0.5, 0.5, 0.5]], [1.0], lengths=[3])


# -- what is handed to the table of algorithms --


def of_table(advantage: Any, found: StepCredit, outcomes: Sequence[float]) -> list[Array]:
    """Advantages by `rewardkit/rl/loss/advantages.py`, in float64."""
    import torch

    from rewardkit.rl.loss.advantages import estimate
    from rewardkit.rl.loss.batch import Batch
    from rewardkit.rl.settings.table import Table

    shape = (len(found.lengths), max(found.lengths))
    mask_BT, ends_BT = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    rewards_BT = torch.zeros(shape, dtype=torch.float64)
    for n, row in enumerate(found.table_rewards()):
        mask_BT[n, : len(row)] = True
        ends_BT[n, list(found.ends[n])] = True
        rewards_BT[n, : len(row)] = torch.tensor(row)
    batch = Batch(
        mask_BT=mask_BT,
        old_BT=torch.zeros(shape, dtype=torch.float64),
        sampler_BT=torch.zeros(shape, dtype=torch.float64),
        group_B=torch.tensor([0, 0, 0, 1, 1]),
        rewards_B=torch.tensor(outcomes, dtype=torch.float64),
        outcome_B=torch.tensor(outcomes, dtype=torch.float64),
        truncated_B=torch.tensor([False] * 5),
        token_rewards_BT=rewards_BT,
        step_ends_BT=ends_BT,
    )
    made = estimate(batch, Table(advantage=advantage)).advantages_BT
    return [made[n, :length].numpy() for n, length in enumerate(found.lengths)]


def test_the_table_makes_the_same_advantages_of_them() -> None:
    from rewardkit.rl.settings.sections import Advantage

    outcomes = [1.0, 0.0, 1.0, 0.0, 1.0]
    given_: dict[str, Any] = {
        "groups": ["a", "a", "a", "b", "b"],
        "outcomes": outcomes,
        "steps": [
            StepRewards((0.5, 0.75), (1, 3)),
            StepRewards((0.25,), (2,)),
            StepRewards((), ()),
            StepRewards((0.9, 0.3, 0.5), (0, 2, 4)),
            StepRewards((0.5,), (0,)),
        ],
        "lengths": [5, 3, 2, 6, 1],
        "truncated": [False] * 5,
    }
    for lam, scale in ((0.5, "std"), (0.0, "none"), (1.0, "std")):
        config = StepConfig(lam=lam) if scale == "std" else StepConfig(lam=lam, scale="none")
        found = step_credit(config, **given_)
        theirs = of_table(Advantage(kind="step", lam=lam, scale=scale), found, outcomes)  # type: ignore[arg-type]
        for ours, other in zip(found.token_advantages(), theirs, strict=True):
            np.testing.assert_allclose(other, ours, atol=1e-12)
    config = StepConfig(rule="min", scale="none", outcome_weight=1.0, temperature=0.2)
    found = step_credit(config, **given_)
    theirs = of_table(Advantage(kind="step_min", temperature=0.2, scale="none"), found, outcomes)
    for n, other in enumerate(theirs):
        sums = over_tokens(lambda_returns(found.rewards[n], 1.0), found.ends[n], found.lengths[n])
        np.testing.assert_allclose(other, sums, atol=1e-12)
