"""Estimator x place: the value and the gradient of each row of `kl`, exact by enumeration, the wrong ones' size too."""

from __future__ import annotations

import pytest
import torch
from rl_policies import (
    Tabular,
    batch_of,
    expected_gradient,
    gradient_of,
    relative,
    sequence_kl,
    state_kl,
)

from rewardkit.rl.loss.kl import loss_terms, measured, next_coefficient
from rewardkit.rl.settings.sections import Advantage, Kl, Ratio
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError

POLICIES = pytest.mark.parametrize("end", [None, 2])
PLAIN = Ratio(level="none")
RETURNS = Advantage(kind="none", scale="none")


def table_of(estimator: str, place: str, *, gamma: float | None = None, coefficient: float = 1.0) -> Table:
    kl = Kl(target="ref", estimator=estimator, place=place, coefficient=coefficient)  # type: ignore[arg-type]
    advantage = Advantage(kind="none", scale="none", gamma=gamma)
    return Table(advantage=advantage, ratio=PLAIN, kl=kl, aggregation="sequence_sum")


class Case:
    """A policy, a reference and what their divergences' gradients are."""

    def __init__(self, end: int | None) -> None:
        self.policy = Tabular(end=end)
        self.logits, self.ref = self.policy.logits(11), self.policy.logits(12)
        self.p = self.policy.probabilities(self.logits)
        self.batch = batch_of(self.policy, self.logits, torch.zeros(len(self.p), dtype=torch.float64), ref=self.ref)
        self.sequence = gradient_of(sequence_kl(self.policy, self.logits, self.ref), self.logits)
        self.state = gradient_of(state_kl(self.policy, self.logits, self.ref), self.logits)
        self.forward = gradient_of(state_kl(self.policy, self.logits, self.ref, forward=True), self.logits)

    def found(self, table: Table) -> torch.Tensor:
        return expected_gradient(self.policy, self.logits, self.batch, table, self.p)

    def value(self, estimator: str) -> float:
        new = self.policy.logprobs(self.logits)
        assert self.batch.ref_BT is not None
        terms = loss_terms(estimator, new, self.batch.ref_BT, self.batch.mask_BT, new - new.detach())
        return (self.p[:, None] * terms * self.batch.mask_BT).sum().item()


@POLICIES
def test_the_three_objectives_are_really_different(end: int | None) -> None:
    case = Case(end)
    of_sequences, of_states = (kl(case.policy, case.logits, case.ref).item() for kl in (sequence_kl, state_kl))
    assert of_sequences == pytest.approx(of_states, abs=1e-12)  # one value, two gradients
    assert relative(case.state, case.sequence) > 0.1
    assert relative(case.forward, case.state) > 0.3


@POLICIES
def test_k1_in_the_reward_is_the_sequence_kl(end: int | None) -> None:
    case = Case(end)
    assert relative(case.found(table_of("k1", "reward")), case.sequence) < 1e-12
    # And its coefficient is one; discounted, it is another objective.
    assert relative(case.found(table_of("k1", "reward", coefficient=0.3)), 0.3 * case.sequence) < 1e-12
    assert relative(case.found(table_of("k1", "reward", gamma=0.5)), case.sequence) > 0.05
    assert relative(case.found(table_of("k1", "reward", gamma=0.0)), case.state) < 1e-12


@POLICIES
def test_k1_in_the_advantage_is_the_state_kl(end: int | None) -> None:
    case = Case(end)
    assert relative(case.found(table_of("k1", "advantage")), case.state) < 1e-12
    # Whatever the kind of the advantage: rewards are all 0 here.
    group = Table(ratio=PLAIN, aggregation="sequence_sum", kl=Kl(target="ref", place="advantage", coefficient=1.0))
    assert relative(case.found(group), case.state) < 1e-12


@POLICIES
def test_k1_in_the_loss_would_hold_nothing(end: int | None) -> None:
    case = Case(end)
    new = case.policy.logprobs(case.logits)
    assert case.batch.ref_BT is not None
    loss = (case.p.detach()[:, None] * (new - case.batch.ref_BT) * case.batch.mask_BT).sum()
    assert gradient_of(loss, case.logits).norm() < 1e-14
    with pytest.raises(ConfigError, match="expected gradient of zero"):
        table_of("k1", "loss")


@POLICIES
def test_k2_is_the_state_kl_and_k2_of_the_sequence_the_sequence_kl(end: int | None) -> None:
    case = Case(end)
    k2 = case.found(table_of("k2", "loss"))
    assert relative(k2, case.state) < 1e-12
    assert relative(k2, case.sequence) > 0.1  # the notes' toy: 37 %
    assert relative(case.found(table_of("k2_seq", "loss")), case.sequence) < 1e-12
    true = state_kl(case.policy, case.logits, case.ref).item()
    assert abs(case.value("k2") - true) > 0.02 * true  # biased as a value
    assert abs(case.value("k2_seq") - true) > 0.02 * true


@POLICIES
def test_k3_in_the_loss_has_the_right_value_and_the_forward_gradient(end: int | None) -> None:
    case = Case(end)
    true = state_kl(case.policy, case.logits, case.ref).item()
    assert case.value("k3") == pytest.approx(true, abs=1e-12)
    k3 = case.found(table_of("k3", "loss"))
    assert relative(k3, case.forward) < 1e-12
    assert relative(k3, case.state) > 0.3  # the notes' toy: 60 %


@POLICIES
def test_k3_in_the_reward_would_be_a_difference_of_two(end: int | None) -> None:
    case = Case(end)
    new, mask = case.policy.logprobs(case.logits), case.batch.mask_BT
    assert case.batch.ref_BT is not None
    taken = loss_terms("k3", new, case.batch.ref_BT, mask, new * 0).detach() * mask
    to_go = taken.flip(1).cumsum(1).flip(1)
    found = gradient_of((case.p.detach()[:, None] * to_go * new).sum(), case.logits)
    assert relative(found, case.sequence - case.forward) < 1e-12
    assert relative(found, case.sequence) > 0.5  # the notes' toy: 140 %
    with pytest.raises(ConfigError, match="sequence KL minus a forward KL"):
        table_of("k3", "reward")


@POLICIES
def test_k3_with_its_ratio_is_the_state_kl_on_and_off_policy(end: int | None) -> None:
    case = Case(end)
    assert case.value("k3_is") == pytest.approx(state_kl(case.policy, case.logits, case.ref).item(), abs=1e-12)
    assert relative(case.found(table_of("k3_is", "loss")), case.state) < 1e-12
    # Draws of an old policy: its states, the new policy's KL there.
    old = case.policy.logits(13)
    q = case.policy.probabilities(old).detach()
    batch = batch_of(case.policy, old, torch.zeros(len(q), dtype=torch.float64), ref=case.ref)
    own, other = case.logits.log_softmax(-1), case.ref.detach().log_softmax(-1)
    per_S = (own.exp() * (own - other)).sum(-1)
    wanted = gradient_of((q[:, None] * case.policy.mask_NT * per_S[case.policy.states_NT]).sum(), case.logits)
    table = table_of("k3_is", "loss")
    assert relative(expected_gradient(case.policy, case.logits, batch, table, q), wanted) < 1e-12
    # With anchor "sampler" the same of draws that the sampler made.
    drawn = batch_of(case.policy, case.logits, batch.rewards_B, ref=case.ref, sampler=old)
    by_sampler = Table(advantage=RETURNS, ratio=Ratio(level="none", anchor="sampler"), kl=table.kl)
    assert relative(expected_gradient(case.policy, case.logits, drawn, by_sampler, q), wanted) < 1e-12


@POLICIES
def test_a_ratio_without_gradient_would_be_the_bug(end: int | None) -> None:
    case = Case(end)
    new = case.policy.logprobs(case.logits)
    assert case.batch.ref_BT is not None
    terms = loss_terms("k3_is", new, case.batch.ref_BT, case.batch.mask_BT, (new * 0).detach())
    found = gradient_of((case.p.detach()[:, None] * terms * case.batch.mask_BT).sum(), case.logits)
    assert relative(found, case.state) > 0.3  # the notes' toy: 61 %


def test_no_estimator_is_clamped() -> None:
    # A token that the policy hardly ever draws and the reference always: k3 and its gradient go on growing.
    new = torch.tensor([[-30.0]], dtype=torch.float64, requires_grad=True)
    ref = torch.zeros(1, 1, dtype=torch.float64)
    k3 = loss_terms("k3", new, ref, torch.ones(1, 1, dtype=torch.bool), new - new.detach())
    (gradient,) = torch.autograd.grad(k3.sum(), new)
    assert gradient.item() == pytest.approx(-float(torch.tensor(30.0).double().exp()) + 1, rel=1e-12)


def test_what_is_measured_is_the_kl_a_token() -> None:
    case = Case(2)
    total, tokens = measured(case.batch)
    assert case.batch.ref_BT is not None
    gap = (case.batch.old_BT - case.batch.ref_BT)[case.batch.mask_BT]
    assert (float(total), int(tokens)) == (pytest.approx(float(gap.sum())), gap.numel())


def test_coefficients_over_time() -> None:
    constant = Kl(target="ref", coefficient=0.1)
    assert next_coefficient(constant, 5.0, step=7) == 0.1
    linear = Kl(target="ref", coefficient=0.5, schedule="linear", final=0.1, steps=4)
    assert [next_coefficient(linear, 0.0, step=n) for n in (0, 1, 2, 4, 9)] == pytest.approx([0.5, 0.4, 0.3, 0.1, 0.1])
    adaptive = Kl(target="ref", coefficient=0.1, schedule="adaptive", aim=0.05, horizon=1000.0)
    assert next_coefficient(adaptive, 9.0, step=0) == 0.1

    def after(measured: float, responses: int = 1000) -> float:
        return next_coefficient(adaptive, 0.1, step=1, measured=measured, responses=responses)

    assert after(0.1) == pytest.approx(0.12)  # twice the aim: the error is cut at 0.2
    assert after(0.0) == pytest.approx(0.08)
    assert after(0.05) == pytest.approx(0.1)
    assert after(0.055) == pytest.approx(0.11)
    assert after(0.1, responses=250) == pytest.approx(0.105)
    with pytest.raises(ConfigError, match="needs the measured KL and its number of responses"):
        next_coefficient(adaptive, 0.1, step=1)
