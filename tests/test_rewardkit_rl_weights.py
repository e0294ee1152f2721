"""One weight tensor: what a token weighs, and that no way of cutting a batch changes its gradient."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from rl_policies import Tabular, batch_of, gradient_of, in_lockstep, relative

from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.loss.batch import Batch, Prepared, micro_batches, take, widths
from rewardkit.rl.loss.filters import kept_rows, policy_rows, value_rows
from rewardkit.rl.loss.objective import policy_loss, value_loss
from rewardkit.rl.loss.picks import Look
from rewardkit.rl.loss.tally import Tally, over
from rewardkit.rl.loss.weights import count, mismatch, prepare, weigh
from rewardkit.rl.settings.presets import PRESETS, preset
from rewardkit.rl.settings.sections import Advantage, Aggregation, Clip, Kl, Masks, Ratio
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError

NAN = math.nan


def f64(rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def ragged(lengths: list[int], group: list[int] | None = None, **more: Any) -> Batch:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    given: dict[str, Any] = {
        "mask_BT": mask,
        "old_BT": zeros,
        "sampler_BT": zeros,
        "group_B": torch.tensor(group or [0] * len(lengths)),
        "rewards_B": torch.zeros(len(lengths), dtype=torch.float64),
        "outcome_B": torch.zeros(len(lengths), dtype=torch.float64),
        "truncated_B": torch.zeros(len(lengths), dtype=torch.bool),
    }
    return Batch(**(given | more))


def weights_of(batch: Batch, table: Table, limit: int | None = None) -> torch.Tensor:
    return weigh(batch, table, count(batch, table), limit=limit)


@pytest.mark.parametrize(
    ("aggregation", "first"),
    [
        ("token", [1 / 9] * 4),
        ("sequence", [1 / 8, 1 / 2, 1 / 4, 1 / 8]),
        ("sequence_sum", [1 / 4] * 4),
        ("constant", [1 / 40] * 4),
        # Groups of 2 + 1 and 2 + 4 tokens.
        ("group", [1 / 12, 1 / 6, 1 / 6, 1 / 12]),
    ],
)
def test_what_a_token_weighs(aggregation: Aggregation, first: list[float]) -> None:
    lengths = [4, 1, 2, 2]
    if aggregation == "sequence":
        lengths, first = [2, 1, 2, 4], [1 / 8, 1 / 4, 1 / 8, 1 / 16]
    if aggregation == "group":
        lengths, first = [4, 1, 2, 2], [1 / 12, 1 / 6, 1 / 6, 1 / 12]
    batch = ragged(lengths, [3, 8, 8, 3])
    weights = weights_of(batch, Table(aggregation=aggregation), 10)
    assert weights[:, 0].tolist() == pytest.approx(first)
    assert torch.equal(weights, weights[:, :1] * batch.mask_BT)


def test_a_response_twice_as_long_weighs_as_declared() -> None:
    # Two responses of 2 tokens; then the first has 4. Weight of one of its tokens, and of all of them together.
    before, after = ragged([2, 2]), ragged([4, 2])

    def change(aggregation: Aggregation) -> tuple[float, float]:
        table = Table(aggregation=aggregation)
        old, new = weights_of(before, table, 8), weights_of(after, table, 8)
        return (new[0, 0] / old[0, 0]).item(), (new[0].sum() / old[0].sum()).item()

    assert change("sequence") == pytest.approx((1 / 2, 1))
    assert change("sequence_sum") == pytest.approx((1, 2))
    assert change("constant") == pytest.approx((1, 2))
    assert change("token") == pytest.approx((2 / 3, 4 / 3))
    assert change("group") == pytest.approx((2 / 3, 4 / 3))


def test_what_is_left_out_counts_neither_above_nor_below() -> None:
    truncated = torch.tensor([False, True, False, False])
    rewards = f64([0.0, 1.0, NAN, 1.0])
    batch = ragged([1, 2, 3, 3], [0, 0, 1, 1], truncated_B=truncated, rewards_B=rewards)
    for aggregation, wanted in (
        ("token", [1 / 4, 0, 0, 1 / 4]),
        ("sequence", [1 / 2, 0, 0, 1 / 6]),
        ("group", [1 / 2, 0, 0, 1 / 6]),
        ("constant", [1 / 20, 0, 0, 1 / 20]),
    ):
        table = Table(aggregation=aggregation, masks=Masks(truncated=True))  # type: ignore[arg-type]
        assert weights_of(batch, table, 10)[:, 0].tolist() == pytest.approx(wanted)
    kept = weights_of(batch, Table())
    assert kept[:, 0].tolist() == pytest.approx([1 / 6, 1 / 6, 0, 1 / 6])
    empty = weights_of(take(batch, torch.tensor([2])), Table())
    assert not empty.count_nonzero()
    with pytest.raises(ConfigError, match="aggregation='constant' divides by the length limit; got None"):
        weights_of(batch, Table(aggregation="constant"))


# --- Importance weights -----------------------------------------------------------------------------------------


def test_bounds_truncate_or_mask() -> None:
    sampler = -f64([[0.0, math.log(4), math.log(0.25)]])
    batch = ragged([3], sampler_BT=sampler)  # o - mu: weights 1, 4 and 1/4

    def weights(**masks: Any) -> list[float]:
        found = weights_of(batch, Table(aggregation="sequence_sum", masks=Masks(**masks)))
        return found[0].tolist()

    assert weights(importance="truncate", level="token") == pytest.approx([1, 4, 0.25])
    assert weights(importance="truncate", level="token", high=2.0) == pytest.approx([1, 2, 0.25])
    assert weights(importance="truncate", level="token", low=0.5, high=2.0) == pytest.approx([1, 2, 0.5])
    assert weights(importance="mask", level="token", low=0.5, high=2.0) == pytest.approx([1, 0, 0])
    assert weights(importance="mask", level="sequence", low=0.5, high=2.0) == pytest.approx([1, 1, 1])
    tilted = replace(batch, sampler_BT=-f64([[math.log(4), math.log(2), NAN]]))
    found = weights_of(tilted, Table(masks=Masks(importance="truncate", level="sequence", high=5.0)))
    assert found[0].tolist() == pytest.approx([5 / 3] * 3)  # the token nobody reported counts 1
    figures = mismatch(tilted, Table(masks=Masks(importance="truncate", level="sequence", high=5.0))).figures()
    assert (figures["importance"], figures["importance_bounded"]) == pytest.approx((5.0, 1.0))
    assert figures["sampler_gap_greatest"] == pytest.approx(math.log(4))
    assert (figures["sampler_gap"], figures["sampler_unknown"]) == pytest.approx((math.log(8) / 3, 1 / 3))
    # Figures over other tokens do not change them.
    more = Tally(sums=over(torch.tensor(5), {"clipped_high": torch.tensor(2)}))
    both = (mismatch(tilted, Table()) + more + more).figures()
    assert (both["sampler_gap"], both["clipped_high"]) == pytest.approx((math.log(8) / 3, 2 / 5))


@pytest.mark.parametrize("end", [None, 2])
def test_products_over_responses_repair_a_wrong_sampler_exactly(end: int | None) -> None:
    policy = Tabular(end=end)
    logits, sampler, rewards = policy.logits(1), policy.logits(2), policy.random(3)
    wanted = -gradient_of((policy.probabilities(logits) * rewards).sum(), logits)
    drawn = policy.probabilities(sampler).detach()
    batch = batch_of(policy, logits, rewards, sampler=sampler)
    masks = Masks(importance="truncate", level="sequence")

    def found(masks: Masks, batch: Batch = batch) -> torch.Tensor:
        table = Table(
            advantage=Advantage(kind="none", scale="none"),
            ratio=Ratio(level="none"),
            aggregation="sequence_sum",
            masks=masks,
        )
        prepared = prepare(batch, estimate(batch, table), table)
        # Each sequence is one row: its weight 1/N becomes the chance that the sampler draws it.
        part = replace(prepared, weights_BT=prepared.weights_BT * len(drawn) * drawn[:, None])
        (gradient,) = torch.autograd.grad(policy_loss(policy.logprobs(logits), part, table).total, logits)
        return gradient

    assert relative(found(masks), wanted) < 1e-12
    assert relative(found(Masks()), wanted) > 0.1
    # Token weights are a first-order repair: their error halves with the gap.
    token = Masks(importance="truncate", level="token")
    errors = []
    for size in (0.02, 0.01):
        near = (logits + size * policy.logits(2)).detach()
        drawn = policy.probabilities(near)
        errors.append(relative(found(token, batch_of(policy, logits, rewards, sampler=near)), wanted))
    assert 1.9 < errors[0] / errors[1] < 2.1


def test_a_sampler_that_agrees_changes_no_bit() -> None:
    batch, _ = random_batch()
    equal = replace(batch, sampler_BT=batch.old_BT)
    for masks in (
        Masks(importance="truncate", level="token", low=0.5, high=2.0),
        Masks(importance="mask", level="sequence", low=0.5, high=2.0),
    ):
        for name in ("dapo", "grpo"):
            plain = preset(name)
            assert torch.equal(weights_of(equal, replace(plain, masks=masks)), weights_of(equal, plain))


# --- Cuts -------------------------------------------------------------------------------------------------------

POLICY = Tabular(vocabulary=3, length=5, end=2)


def random_batch(seed: int = 0, rows: int = 8) -> tuple[Batch, torch.Tensor]:
    """Two groups of four responses drawn by one policy, with all that any preset reads; and which rows they are."""
    generator = torch.Generator().manual_seed(seed)
    old, ref, sampler = POLICY.logits(21), POLICY.logits(22), POLICY.logits(21)
    sampler = (sampler + 0.1 * POLICY.logits(23)).detach()
    drawn = torch.multinomial(POLICY.probabilities(old).detach(), rows, generator=generator)
    drawn[0] = max(range(len(POLICY.sequences)), key=lambda n: len(POLICY.sequences[n]))
    mask = POLICY.mask_NT[drawn]

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ends = mask & ((mask.cumsum(1) == mask.sum(1, keepdim=True)) | (noise(*mask.shape) > 0.5))
    batch = batch_of(
        POLICY,
        old,
        noise(rows),
        rows=drawn,
        group=torch.arange(rows) // 4,
        ref=ref,
        sampler=sampler,
        values_BT=noise(*mask.shape),
        step_ends_BT=ends,
        token_rewards_BT=noise(*mask.shape) * ends,
        truncated_B=torch.tensor([True] + [False] * (rows - 1)),
        stream_B=torch.arange(rows) * 7919,
    )
    return batch, drawn


def look_of(drawn: torch.Tensor) -> Look:
    """The policy on an optimiser batch, as it is before its update: that of `leaves`."""
    policy = leaves()[0].detach()
    return Look(logprobs_BT=POLICY.logprobs(policy, drawn), entropies_BT=POLICY.entropies(policy, drawn))


def fitting(batch: Batch, table: Table) -> Batch:
    """Without token rewards where the table would ignore them."""
    return batch if table.advantage.by_token else replace(batch, token_rewards_BT=None)


def whole_loss(
    part: Prepared, drawn: torch.Tensor, table: Table, policy: torch.Tensor, critic: torch.Tensor
) -> tuple[torch.Tensor, Tally]:
    width = part.batch.mask_BT.shape[1]
    new, entropy = POLICY.logprobs(policy, drawn), POLICY.entropies(policy, drawn)
    apart = POLICY.divergences(policy, POLICY.logits(22))[drawn][:, :width]
    loss = policy_loss(new[:, :width], part, table, entropy_BT=entropy[:, :width], divergence_BT=apart)
    total, tally = loss.total, loss.tally
    if table.critic is not None:
        of_values = value_loss(critic[POLICY.states_NT[drawn]][:, :width], part, table)
        total, tally = total + of_values.total, tally + of_values.tally
    return total, tally


def leaves() -> tuple[torch.Tensor, torch.Tensor]:
    """The new policy, moved away from the old one so that clips act, and a critic."""
    policy = (POLICY.logits(21) + 0.3 * POLICY.logits(24)).detach().requires_grad_()
    return policy, POLICY.logits(25)[:, 0].detach().requires_grad_()


REF = Kl(target="ref", estimator="k2", place="loss", coefficient=0.3)
FURTHER: dict[str, Table] = {
    "k2": Table(kl=REF),
    "k2_seq": Table(kl=replace(REF, estimator="k2_seq"), aggregation="sequence_sum"),
    "k3": Table(kl=replace(REF, estimator="k3"), aggregation="group"),
    "advantage KL": Table(kl=Kl(target="ref", place="advantage", coefficient=0.3), aggregation="constant"),
    "mirror": Table(ratio=Ratio(level="none"), clip=Clip(kind="mirror", tau=0.5), aggregation="sequence_sum"),
    "dppo": Table(ratio=Ratio(anchor="sampler"), clip=Clip(kind="dppo", delta=0.02), entropy=0.1),
    "mask": Table(ratio=Ratio(anchor="sampler"), clip=Clip(kind="mask", low=0.1, high=0.1, cap=1.2)),
    "off-policy mask": Table(masks=Masks(off_policy=0.01, truncated=True)),
    "TIS": Table(masks=Masks(importance="truncate", level="token", high=1.05), entropy=0.1),
    "MIS": Table(masks=Masks(importance="mask", level="sequence", low=0.9, high=1.1), aggregation="sequence"),
    "batch": Table(advantage=Advantage(kind="batch"), clip=Clip(kind="ppo", low=0.1, high=0.1, dual=1.2)),
    "discounted": Table(advantage=Advantage(kind="none", scale="none", gamma=0.9)),
}
FURTHER |= {
    "full": Table(kl=replace(REF, estimator="full", target="teacher", mix=0.3)),
    "failed": Table(kl=replace(REF, only="failed"), advantage=Advantage(smooth_right=0.1)),
    "soft": Table(advantage=Advantage(kind="soft", scale="none", temperature=0.5)),
    "sampler KL": Table(kl=Kl(target="sampler", estimator="k3", place="loss", coefficient=0.3)),
    "KL-Cov": preset("kl_cov", kl={"share": 0.3}),
    "Clip-Cov": preset("clip_cov", masks={"clip_cov": 0.2, "cov_low": 0.01, "cov_high": 50.0}),
    "top half": preset(
        "entropy_top", masks={"entropy_top": 0.5, "importance": "mask", "level": "geometric", "high": 3}
    ),
    "rejected": Table(masks=Masks(reject="k3", reject_above=3e-3)),
}
TABLES = {name: row.table for name, row in PRESETS.items()} | FURTHER


@pytest.mark.parametrize("name", sorted(TABLES))
def test_no_cut_changes_gradient_loss_or_figures(name: str) -> None:
    table = TABLES[name]
    batch, drawn = random_batch()
    batch = fitting(batch, table)
    prepared = prepare(batch, estimate(batch, table), table, limit=5, look=look_of(drawn))
    found = []
    for rows in (8, 2, 1):
        policy, critic = leaves()
        total, tally = torch.zeros((), dtype=torch.float64), Tally()
        for index, part in micro_batches(prepared, rows):
            loss, own = whole_loss(part, drawn[index], table, policy, critic)
            loss.backward()
            total, tally = total + loss.detach(), tally + own
        assert policy.grad is not None and policy.grad.norm() > 1e-3
        values = torch.zeros_like(critic) if critic.grad is None else critic.grad
        assert (values.norm() > 1e-3) == (table.critic is not None)
        found.append((torch.cat([policy.grad.flatten(), values]), total, tally.figures()))
    for gradient, total, figures in found[1:]:
        assert (gradient - found[0][0]).abs().max() < 1e-12
        assert (total - found[0][1]).abs() < 1e-12
        assert figures == pytest.approx(found[0][2], abs=1e-12)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_two_processes_make_the_same_update(name: str) -> None:
    table = TABLES[name]
    batch, drawn = random_batch()
    batch = fitting(batch, table)

    def gradient(rows: torch.Tensor, **options: Any) -> torch.Tensor:
        own = take(batch, rows)
        prepared = prepare(own, estimate(own, table, **options), table, limit=5, look=look_of(drawn[rows]), **options)
        policy, critic = leaves()
        whole_loss(prepared, drawn[rows], table, policy, critic)[0].backward()
        assert policy.grad is not None
        return policy.grad if critic.grad is None else torch.cat([policy.grad.flatten(), critic.grad])

    alone = gradient(torch.arange(8))
    halves = in_lockstep(2, lambda rank, add: gradient(torch.arange(8).chunk(2)[rank], over_ranks=add))
    assert (sum(halves) - alone).abs().max() < 1e-12


@pytest.mark.parametrize("name", sorted(TABLES))
def test_rows_that_need_not_be_seen_change_nothing(name: str) -> None:
    table = TABLES[name]
    batch, drawn = random_batch()
    # The second group's rewards are equal, one response of the first is unscored, the first one is cut off.
    rewards = batch.rewards_B.clone()
    rewards[4:], rewards[1] = 1.0, NAN
    batch = replace(fitting(batch, table), rewards_B=rewards, outcome_B=rewards)
    if batch.token_rewards_BT is not None:
        assert batch.step_ends_BT is not None
        batch.token_rewards_BT[4:] = 0.0
    prepared = prepare(batch, estimate(batch, table), table, limit=5, look=look_of(drawn))
    policy, critic = leaves()
    whole_loss(prepared, drawn, table, policy, critic)[0].backward()
    sparse_policy, sparse_critic = leaves()
    for needed, width in ((policy_rows(prepared, table), "policy"), (value_rows(prepared), "critic")):
        order = needed.nonzero()[:, 0].tolist()
        assert table.advantage.kind == "zero" or 1 not in order
        for index, part in micro_batches(prepared, 3, order=order):
            short = part.batch.mask_BT.shape[1]
            if width == "policy":
                new, entropy = (
                    POLICY.logprobs(sparse_policy, drawn[index]),
                    POLICY.entropies(sparse_policy, drawn[index]),
                )
                apart = POLICY.divergences(sparse_policy, POLICY.logits(22))[drawn[index]][:, :short]
                loss = policy_loss(new[:, :short], part, table, entropy_BT=entropy[:, :short], divergence_BT=apart)
            elif table.critic is None:
                continue
            else:
                loss = value_loss(sparse_critic[POLICY.states_NT[drawn[index]]][:, :short], part, table)
            loss.total.backward()
    assert policy.grad is not None and sparse_policy.grad is not None
    assert (policy.grad - sparse_policy.grad).abs().max() < 1e-12
    if table.critic is not None:
        assert critic.grad is not None and sparse_critic.grad is not None
        assert (critic.grad - sparse_critic.grad).abs().max() < 1e-12


def test_which_rows_need_not_be_seen() -> None:
    rewards = f64([1.0, 0.0, 1.0, 1.0, NAN, 1.0])
    batch = ragged([2] * 6, [0, 0, 1, 1, 2, 2], rewards_B=rewards, outcome_B=rewards, ref_BT=torch.zeros(6, 2).double())

    def seen(table: Table, **more: Any) -> list[int]:
        prepared = prepare(batch, estimate(batch, table), table, limit=4)
        return policy_rows(prepared, table, **more).nonzero()[:, 0].tolist()

    assert seen(preset("cispo")) == [0, 1]  # equal rewards and a lone response have advantage 0
    assert seen(preset("cispo", entropy=0.1)) == [0, 1, 2, 3, 5]
    assert seen(preset("grpo")) == [0, 1, 2, 3, 5]
    assert seen(preset("grpo"), kl_coefficient=0.0) == [0, 1]
    assert seen(preset("rloo")) == [0, 1]  # the KL in the reward is an advantage; here it is 0 everywhere
    mirror = TABLES["mirror"]
    assert seen(mirror) == [0, 1, 2, 3, 5]
    prepared = prepare(batch, estimate(batch, preset("cispo")), preset("cispo"))
    assert value_rows(prepared).tolist() == [True, True, True, True, False, True]


def test_filters_look_at_outcomes_and_not_at_shaped_rewards() -> None:
    outcome = f64([0.0, 0.0, 1.0, 0.0, 1.0, NAN, 1.0, 1.0])
    rewards = outcome + f64([-0.5, 0.0, 0.0, 0.0, 0.0, 0.0, -0.25, 0.0])
    batch = ragged([1] * 8, [5, 5, 2, 2, 9, 9, 1, 1], outcome_B=outcome, rewards_B=rewards)
    # All wrong and all right stay constant though the shaped rewards differ; one known outcome is no comparison.
    assert kept_rows(batch, preset("dapo")).tolist() == [False] * 2 + [True] * 2 + [False] * 4
    assert kept_rows(batch, Table(filter="reward")).tolist() == [True] * 4 + [False] * 2 + [True] * 2
    assert kept_rows(batch, Table()).all()


def test_one_estimate_serves_several_optimiser_batches() -> None:
    table = preset("gspo_token", advantage=Advantage(kind="step", lam=0.5))
    batch, _ = random_batch()
    found = estimate(batch, table)
    for rows in torch.arange(8).chunk(2):
        part = prepare(take(batch, rows), take(found, rows), table)
        assert torch.equal(part.advantages_BT, found.advantages_BT[rows])
        assert part.weights_BT.sum().item() == pytest.approx(1)  # each batch has its own divisor
    assert take(found, rows).tally == found.tally


def test_micro_batches_are_as_wide_as_their_longest_row() -> None:
    batch = ragged([3, 1, 5, 2], rewards_B=f64([0.0, 1.0, 2.0, 3.0]))
    prepared = prepare(batch, estimate(batch, Table()), Table())
    assert widths(batch.mask_BT) == [3, 1, 5, 2]
    parts = [(index.tolist(), part.batch.mask_BT.shape) for index, part in micro_batches(prepared, 2, order=[1, 3, 0])]
    assert parts == [([1, 3], (2, 2)), ([0], (1, 3))]
    gap = replace(batch, mask_BT=batch.mask_BT & (torch.arange(5) != 1))
    assert widths(gap.mask_BT) == [3, 1, 5, 1]  # the column after the last token, gaps inside included
    for index, part in micro_batches(prepared, 3):
        assert torch.equal(part.batch.rewards_B, batch.rewards_B[index])
        width = part.weights_BT.shape[1]
        assert torch.equal(part.weights_BT, prepared.weights_BT[index][:, :width])
