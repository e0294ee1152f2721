"""The losses by hand, their laws, and what they do far out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from prm.objectives import margins, pqm_loss, response_logprobs, step_loss

LN = math.log


def ranking(scores: list[float], labels: list[int | None], zeta: float) -> torch.Tensor:
    successes = [float(label or 0) for label in labels]
    trials = [0.0 if label is None else 1.0 for label in labels]
    return pqm_loss(torch.tensor([scores]), torch.tensor([successes]), torch.tensor([trials]), zeta)


def test_margins_of_both_heads() -> None:
    assert margins(torch.tensor([[[1.0, 3.5], [2.0, 0.0]]])).tolist() == [[2.5, -2.0]]
    assert margins(torch.tensor([[[1.5], [-0.5]]])).tolist() == [[1.5, -0.5]]
    assert margins(torch.zeros(1, 1, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_ranking_by_hand() -> None:
    # Right steps e^z = 2 and 3, a wrong one e^(z + zeta) = 4, the prompt 1: 1/5, 2/7, 3/10.
    found = ranking([LN(2), LN(3), 0.0], [1, 1, 0], LN(4))
    assert found.item() == pytest.approx((LN(5) + LN(7 / 2) + LN(10 / 3)) / 3)
    # No wrong step: the prompt's own term is log(1/1) and is not counted. 2/3, 3/6.
    assert ranking([LN(2), LN(3)], [1, 1], 4.0).item() == pytest.approx((LN(3 / 2) + LN(2)) / 2)
    # No right step: the prompt against 4 + 2.
    assert ranking([0.0, LN(1 / 2)], [0, 0], LN(4)).item() == pytest.approx(LN(7))
    # Unlabelled steps take no part, wherever they stand; rows are summed.
    with_gaps = ranking([9.0, LN(2), -9.0, LN(3), 0.0, 9.0], [None, 1, None, 1, 0, None], LN(4))
    assert with_gaps.item() == pytest.approx(found.item())
    two = pqm_loss(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]), torch.ones(2, 1), 0.0)
    assert two.item() == pytest.approx(2 * LN(2))


def test_the_ranking_is_the_published_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        size = int(torch.randint(1, 9, (), generator=generator))
        scores = torch.randn(size, generator=generator, dtype=torch.float64)
        right = torch.rand(size, generator=generator) < 0.6
        low = sum(math.exp(float(z) + 4.0) for z, good in zip(scores, right, strict=True) if not good)
        terms = [-LN(1 / (1 + low))] if low else []
        so_far = 1.0
        for z, good in zip(scores, right, strict=True):
            if good:
                so_far += math.exp(float(z))
                terms.append(-LN(math.exp(float(z)) / (so_far + low)))
        found = pqm_loss(scores[None], right[None].double(), torch.ones(1, size).double(), 4.0)
        assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-6)


def test_the_ranking_orders_right_steps_upwards_above_all_wrong_ones() -> None:
    scores = torch.zeros(1, 5, requires_grad=True)
    successes, trials = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]]), torch.ones(1, 5)
    optimiser = torch.optim.Adam([scores], lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        pqm_loss(scores, successes, trials, 4.0).backward()
        optimiser.step()
    first, second, third, *wrong = scores.tolist()[0]
    assert 0 < first < second < third
    assert max(wrong) < -4.0  # below the prompt's 0 by more than the margin
    assert wrong[0] == pytest.approx(wrong[1])  # nothing orders the wrong steps among each other


def test_losses_stay_finite_far_out() -> None:
    for scores in ([500.0, -500.0, 500.0], [-500.0, 500.0, -500.0]):
        z = torch.tensor([scores], requires_grad=True)
        right, trials = torch.tensor([[1.0, 1.0, 0.0]]), torch.ones(1, 3)
        loss = pqm_loss(z, right, trials, 4.0)
        (slope,) = torch.autograd.grad(loss, z)
        assert loss.isfinite()
        assert slope.isfinite().all()
        assert slope.abs().max() <= 1.0 + 1e-6  # each of the means of log-softmax terms has slopes within 1
    # A row with unlabelled steps alone adds nothing, and no NaN to the gradient.
    z = torch.zeros(1, 3, requires_grad=True)
    loss = pqm_loss(z, torch.zeros(1, 3), torch.zeros(1, 3), 4.0)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, z)[0].abs().max() == 0


def test_the_ranking_has_the_gradient_of_its_value() -> None:
    z = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    right = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    trials = torch.tensor([[1, 1, 1, 0, 1, 1], [0, 1, 0, 0, 0, 0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda scores: pqm_loss(scores, right, trials, 2.0), (z,))


def test_fractional_counts_keep_their_share() -> None:
    # A prior alone may be worth less than one trial: the share is s / n all the same.
    z, s, n = torch.tensor([[LN(3)]]), torch.tensor([[0.1]]), torch.tensor([[0.4]])
    assert step_loss(z, s, n, None).item() == pytest.approx(0.25 * LN(4 / 3) + 0.75 * LN(4))
    assert step_loss(z, s, n, 2.0).item() == pytest.approx((0.1 * LN(4 / 3) + 0.3 * LN(4)) / 2)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_counts_are_unbiased_under_optional_stopping_and_shares_are_not(p: float) -> None:
    # Draw until the first success, at most four times: (s, n) is (1, k) or (0, 4).
    outcomes = [(1.0, float(k), p * (1 - p) ** (k - 1)) for k in range(1, 5)] + [(0.0, 4.0, (1 - p) ** 4)]
    assert sum(chance for *_, chance in outcomes) == pytest.approx(1.0)
    z = torch.tensor([[LN(p / (1 - p))]], requires_grad=True)  # the margin that says p
    mean = {}
    for name, scale in (("counts", 1.0), ("steps", None)):
        loss = sum(c * step_loss(z, torch.tensor([[s]]), torch.tensor([[n]]), scale) for s, n, c in outcomes)
        mean[name] = torch.autograd.grad(loss, z)[0].item()
    assert mean["counts"] == pytest.approx(0.0, abs=1e-6)
    # E[s / n] = sum p (1 - p)^(k - 1) / k is far above p, and that is where the share would pull.
    share = sum(p * (1 - p) ** (k - 1) / k for k in range(1, 5))
    assert mean["steps"] == pytest.approx(p - share, abs=1e-6)
    assert mean["steps"] < -0.1


def test_the_log_probability_of_a_response_is_the_sum_over_its_tokens(tiny_policy: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    ids = torch.tensor([[5, 9, 30, 41, 7, 0, 0], [8, 3, 99, 12, 60, 61, 62]])
    spans = [(2, 5), (3, 7)]
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for number, (start, stop) in enumerate(spans):
        mask[number, start:stop] = True
    with torch.no_grad():
        found = response_logprobs(model, ids, mask)
        for number, (start, stop) in enumerate(spans):
            words = model(input_ids=ids[number : number + 1, :stop]).logits[0].double().log_softmax(-1)
            wanted = sum(words[place - 1, ids[number, place]].item() for place in range(start, stop))
            assert found[number].item() == pytest.approx(wanted, rel=1e-5)
