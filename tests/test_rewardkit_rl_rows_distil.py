"""Learning from a teacher: on-policy distillation in its three forms, KDRL and its mask, and the teacher as a model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_policies import Tabular, batch_of, expected_gradient, gradient_of, relative, sequence_kl, state_kl
from test_rewardkit_rl_loop import distance, loop, weights
from test_rewardkit_rl_loop import settings as run_settings
from transformers import AutoModelForCausalLM

from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.loss.kl import divergence, next_coefficient, penalty
from rewardkit.rl.loss.objective import policy_loss
from rewardkit.rl.loss.weights import prepare
from rewardkit.rl.policy import reader as policy_module
from rewardkit.rl.policy.models import load_language_model
from rewardkit.rl.policy.reader import Against, Drawn, TokenReader
from rewardkit.rl.settings.presets import preset
from rewardkit.rl.settings.sections import Kl
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError, DataError, ModelError

NAN = math.nan
FULL: dict[str, Any] = {"estimator": "full", "place": "loss"}


def f64(row: Any) -> torch.Tensor:
    return torch.tensor(row, dtype=torch.float64)


class Case:
    """A student, a teacher and the divergences' gradients; rewards are NaN, since distillation reads none."""

    def __init__(self, end: int | None, *, same: bool = False) -> None:
        self.policy = Tabular(end=end)
        self.logits = self.policy.logits(11)
        self.teacher = self.logits.detach() if same else self.policy.logits(12).detach()
        self.p = self.policy.probabilities(self.logits).detach()
        self.batch = batch_of(self.policy, self.logits, torch.full_like(self.p, NAN), ref=self.teacher)

    def found(self, table: Table) -> torch.Tensor:
        mix = 1.0 if table.kl.mix is None else table.kl.mix
        apart = self.policy.divergences(self.logits, self.teacher, mix)
        return expected_gradient(self.policy, self.logits, self.batch, table, self.p, divergence_BT=apart)


@pytest.mark.parametrize("end", [None, 2])
def test_opd_is_the_state_kl_at_discount_0_and_the_sequence_kl_to_go(end: int | None) -> None:
    case = Case(end)
    state = gradient_of(state_kl(case.policy, case.logits, case.teacher), case.logits)
    sequence = gradient_of(sequence_kl(case.policy, case.logits, case.teacher), case.logits)
    assert relative(sequence, state) > 0.1
    assert relative(case.found(preset("opd")), state) < 1e-10
    assert relative(case.found(preset("opd", kl={"place": "reward"})), sequence) < 1e-10
    assert relative(case.found(preset("opd", kl={"coefficient": 0.25})), 0.25 * state) < 1e-10


@pytest.mark.parametrize("end", [None, 2])
def test_over_the_vocabulary_it_is_the_state_kl_or_its_relatives(end: int | None) -> None:
    case = Case(end)
    state = gradient_of(state_kl(case.policy, case.logits, case.teacher), case.logits)
    forward = gradient_of(state_kl(case.policy, case.logits, case.teacher, forward=True), case.logits)
    assert relative(case.found(preset("opd", kl=FULL)), state) < 1e-10
    assert relative(case.found(preset("opd", kl=FULL | {"mix": 0.0})), forward) < 1e-10
    # Between the ends, written out with probabilities.
    p, q = case.logits.softmax(-1), case.teacher.softmax(-1)
    for mix in (0.2, 0.5):
        m = mix * q + (1 - mix) * p
        per_state = mix * (q * (q / m).log()).sum(-1) + (1 - mix) * (p * (p / m).log()).sum(-1)
        wanted = gradient_of(case.policy.over_states(case.logits, per_state), case.logits)
        assert relative(case.found(preset("opd", kl=FULL | {"mix": mix})), wanted) < 1e-10


@pytest.mark.parametrize("kl", [{}, {"place": "reward"}, FULL, FULL | {"mix": 0.5}, FULL | {"mix": 0.0}], ids=str)
def test_a_teacher_that_is_the_student_teaches_nothing(kl: dict[str, Any]) -> None:
    case = Case(2, same=True)
    assert case.found(preset("opd", kl=kl)).abs().max() <= (1e-16 if "mix" in kl else 0.0)


def test_over_the_vocabulary_there_is_no_sampling_noise() -> None:
    # One state, five tokens: what a draw teaches.
    policy = Tabular(vocabulary=5, length=1)
    logits, teacher = policy.logits(1), policy.logits(2).detach()
    batch = batch_of(policy, logits, torch.zeros(5, dtype=torch.float64), ref=teacher)

    def of_draws(table: Table) -> torch.Tensor:
        found = []
        for one in torch.eye(5, dtype=torch.float64):
            apart = policy.divergences(logits, teacher)
            found.append(expected_gradient(policy, logits, batch, table, one, divergence_BT=apart)[0])
        return torch.stack(found)

    full, sampled = of_draws(preset("opd", kl=FULL)), of_draws(preset("opd"))
    assert full.var(0).sum() < 1e-30
    assert sampled.var(0).sum() > 0.1
    # And the sampled one has the same mean.
    p = logits.softmax(-1).detach()[0]
    assert relative(p @ sampled, full[0]) < 1e-12


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=8, max_size=8), st.floats(0.01, 0.99))
def test_the_generalised_divergence_is_bounded_and_changes_sides(numbers: list[float], mix: float) -> None:
    own, other = f64(numbers[:4])[None], f64(numbers[4:])[None]
    found = divergence(own, other, mix).item()
    assert -1e-12 <= found <= -mix * math.log(mix) - (1 - mix) * math.log(1 - mix) + 1e-12
    assert found == pytest.approx(divergence(other, own, 1 - mix).item(), abs=1e-12)
    # The ends are the limits over what goes to 0, which must be far below the least ratio of probabilities (e^-8 here).
    own, other = own / 4, other / 4
    near = divergence(own, other, 1 - 1e-7).item() / 1e-7
    assert near == pytest.approx(divergence(own, other).item(), rel=1e-3, abs=1e-6)


# --- KDRL -------------------------------------------------------------------------------------------------------


def kdrl_batch() -> tuple[Tabular, torch.Tensor, Any]:
    """Two groups of three: the first has right, wrong and undecided; the second none that is right."""
    policy = Tabular(end=2)
    rows = torch.tensor([0, 3, 7, 4, 6, 1])
    outcome = f64([1.0, 0.0, NAN, 0.0, 0.0, NAN])
    batch = batch_of(
        policy,
        policy.logits(1),
        f64([1.0, 0.0, 0.5, 0.0, 0.2, 0.1]),
        rows=rows,
        group=torch.tensor([5, 5, 5, 2, 2, 2]),
        ref=policy.logits(2),
        outcome_B=outcome,
    )
    return policy, rows, batch


def test_kdrl_leaves_right_responses_the_gradient_of_grpo() -> None:
    policy, rows, batch = kdrl_batch()
    new_BT = policy.logprobs((policy.logits(1) + 0.2 * policy.logits(3)).detach(), rows)

    def gradient(table: Table) -> torch.Tensor:
        prepared = prepare(batch, estimate(batch, table), table)
        leaf = new_BT.clone().requires_grad_()
        (found,) = torch.autograd.grad(policy_loss(leaf, prepared, table).total, leaf)
        return found

    grpo = gradient(preset("kdrl", kl=None))
    pull_BT = 5e-3 * torch.where(batch.mask_BT, new_BT - batch.ref_BT, 0) / batch.mask_BT.sum()
    for only, held in (("wrong", [1, 2, 3, 4, 5]), ("failed", [3, 4, 5]), ("all", [0, 1, 2, 3, 4, 5])):
        found = gradient(preset("kdrl", kl={"only": only}))
        free = [row for row in range(6) if row not in held]
        assert torch.equal(found[free], grpo[free])
        assert (found[held] - grpo[held] - pull_BT[held]).abs().max() < 1e-15
        assert (pull_BT[held].abs().amax(1) > 1e-6).all()


@pytest.mark.parametrize("end", [None, 2])
def test_kdrl_has_k2_for_the_reverse_and_k3_for_the_forward_kl(end: int | None) -> None:
    case = Case(end)
    case.batch = replace(case.batch, rewards_B=torch.zeros_like(case.p), outcome_B=torch.zeros_like(case.p))
    state = gradient_of(state_kl(case.policy, case.logits, case.teacher), case.logits)
    forward = gradient_of(state_kl(case.policy, case.logits, case.teacher, forward=True), case.logits)
    assert relative(case.found(preset("kdrl")), 5e-3 * state) < 1e-10
    assert relative(case.found(preset("kdrl", kl={"estimator": "k3"})), 5e-3 * forward) < 1e-10


def test_kdrl_anneals_along_a_line() -> None:
    kl = preset("kdrl").kl
    found = [next_coefficient(kl, 0.0, step=step) for step in (0, 40, 80, 500)]
    assert found == pytest.approx([5e-3, 3e-3, 1e-3, 1e-3], abs=1e-15)


def test_a_kl_in_the_reward_can_leave_right_responses_alone() -> None:
    _, _, batch = kdrl_batch()
    kl = Kl(target="teacher", coefficient=0.5, only="wrong")
    taken = penalty(batch, 0.5, kl)
    assert not taken[0].any()
    assert torch.equal(taken[1:], penalty(batch, 0.5)[1:])
    found = estimate(batch, Table(kl=kl)).advantages_BT
    assert torch.equal(found[0], estimate(batch, Table()).advantages_BT[0])
    with pytest.raises(DataError, match=r"kl.target='teacher' needs Batch.ref_BT; got None, compute the teacher's"):
        penalty(replace(batch, ref_BT=None), 0.5, kl)


# --- The teacher as a model ---------------------------------------------------------------------------------------

ROWS = [
    Drawn(prompt=(5, 6, 7), response=(8, 9, 1)),
    Drawn(prompt=(5, 6, 7), response=(10,)),
    Drawn(prompt=(11,), response=(12, 1)),
]


def test_the_divergence_is_read_where_the_token_is_not_yet_known(
    tiny_policy: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (tiny_policy, tiny_teacher)
    )
    against = Against(reader=TokenReader(teacher, temperature=0.7), mix=0.3)

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        student.zero_grad()
        found = TokenReader(student, temperature=0.7).read(ROWS, against=against)
        assert found.divergences is not None
        (found.divergences.sum() + found.logprobs.sum()).backward()
        return found.divergences.detach(), torch.cat([p.grad.flatten() for p in student.parameters()])

    divergences, gradient = read()
    for number, row in enumerate(ROWS):
        ids = torch.tensor([[*row.prompt, *row.response]])
        own, other = (m(ids).logits[0, len(row.prompt) - 1 : -1].double() / 0.7 for m in (student, teacher))
        p, q = own.softmax(-1), other.softmax(-1)
        m = 0.3 * q + 0.7 * p
        by_hand = 0.3 * (q * (q / m).log()).sum(-1) + 0.7 * (p * (p / m).log()).sum(-1)
        assert (by_hand > 1e-3).all()
        assert torch.allclose(divergences[number, : len(by_hand)].double(), by_hand, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())
    monkeypatch.setattr(policy_module, "PIECE", 3 * student.config.vocab_size)
    in_pieces, of_pieces = read()
    assert torch.allclose(in_pieces, divergences, atol=1e-6)
    assert (of_pieces - gradient).norm() <= 1e-5 * gradient.norm()


def test_the_student_as_its_own_teacher_moves_nothing(tiny_policy: Path) -> None:
    change = ("kl.estimator=full", "kl.place=loss")
    own = loop(run_settings(tiny_policy, preset="opd", teacher=str(tiny_policy), change=change, steps=1))
    begun = weights(own)
    own.run()
    assert distance(begun, weights(own)) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("change", [(), ("kl.estimator=full", "kl.place=loss")], ids=["sampled", "full"])
def test_the_student_comes_nearer_to_its_teacher(
    change: tuple[str, ...], tiny_policy: Path, tiny_teacher: Path
) -> None:
    own = loop(run_settings(tiny_policy, preset="opd", teacher=str(tiny_teacher), change=change, steps=40, rate=3e-3))
    rows = [Drawn(prompt=tuple(own.models.tokenizer("One apple ").input_ids), response=(8, 9, 10))]
    against = Against(reader=TokenReader(load_language_model(str(tiny_teacher))))

    def apart() -> float:
        with torch.no_grad():
            found = own.models.reader.read(rows, against=against).divergences
        assert found is not None
        return float(found[0, 0])

    begun = apart()
    own.run()
    assert apart() < 0.5 * begun


def test_what_teachers_are_refused(tiny_policy: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher goes with kl.target='teacher' and with no other; got None and"):
        run_settings(tiny_policy, preset="opd")
    with pytest.raises(ConfigError, match=r"teacher goes with kl.target='teacher' .* got '/x' and kl.target='none'"):
        run_settings(tiny_policy, preset="dapo", teacher="/x")
    from transformers import AutoTokenizer

    model = load_language_model(str(tiny_teacher))
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    tokenizer.add_tokens(["<other>"])
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ModelError, match=r"has another tokenizer than the policy .*: 1 tokens differ, such as '<other>'"
    ):
        loop(run_settings(tiny_policy, preset="opd", teacher=str(tmp_path / "other")))
    model.resize_token_embeddings(20)
    model.save_pretrained(tmp_path / "narrow")
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ModelError, match=r"knows 20 token ids, and the policy's tokenizer has \d+; take a teacher"):
        loop(run_settings(tiny_policy, preset="opd", teacher=str(tmp_path / "narrow")))
