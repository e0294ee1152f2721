"""PRIME: advantages of both reward sources by hand, what the implicit model learns, and a run that is stopped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_rewardkit_rl_loop import distance, loop, weights
from test_rewardkit_rl_loop import settings as run_settings
from test_rewardkit_rl_weights import ragged

from rewardkit.rl.credit.implicit import ImplicitRewards
from rewardkit.rl.loop import Loop, StepReport
from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.policy.models import load_language_model
from rewardkit.rl.policy.reader import Drawn, TokenReader
from rewardkit.rl.settings.presets import preset
from verifiers.errors import ConfigError, DataError

NAN = math.nan
ROWS = [
    Drawn(prompt=(5, 6, 7), response=(8, 9, 1)),
    Drawn(prompt=(5, 6, 7), response=(10,)),
    Drawn(prompt=(11,), response=(12, 1)),
    Drawn(prompt=(11,), response=(13, 14, 15)),
]


def f64(rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_both_rewards_are_compared_with_the_others_and_added() -> None:
    # Three responses of one group, one that is alone in its own, one unscored.
    tokens = f64([[0.3, 0.6], [-0.2, 0.0], [0.5, 0.1], [0.7, 0.7], [9.0, 9.0]])
    batch = ragged(
        [2, 1, 2, 2, 2],
        [0, 0, 0, 1, 0],
        token_rewards_BT=tokens,
        rewards_B=f64([1.0, 0.0, 1.0, 1.0, NAN]),
    )
    plain = preset("prime", advantage={"scale": "none"})
    found = estimate(batch, plain).advantages_BT
    # Means a token: 0.45, -0.2, 0.3. What each is compared with: 0.05, 0.375, 0.125; outcomes with 0.5, 1, 0.5.
    wanted = f64(
        [
            [0.3 + 0.6 - 2 * 0.05 + 0.5, 0.6 - 0.05 + 0.5],
            [-0.2 - 0.375 - 1.0, 0.0],
            [0.5 + 0.1 - 2 * 0.125 + 0.5, 0.1 - 0.125 + 0.5],
            [0.0, 0.0],
            [0.0, 0.0],
        ]
    )
    assert torch.allclose(found, wanted, atol=1e-12)
    counted = found[[0, 0, 1, 2, 2], [0, 1, 0, 0, 1]]
    whitened = estimate(batch, preset("prime")).advantages_BT[[0, 0, 1, 2, 2], [0, 1, 0, 0, 1]]
    assert torch.allclose(whitened, (counted - counted.mean()) / (counted.std() + 1e-4), atol=1e-12)
    discounted = estimate(batch, preset("prime", advantage={"scale": "none", "gamma": 0.5})).advantages_BT
    assert discounted[0, 0].item() == pytest.approx(0.3 - 0.05 + 0.5 * (0.6 - 0.05) + 0.5)
    with pytest.raises(
        DataError, match=r"'implicit' needs Batch.token_rewards_BT of an implicit reward model; got None"
    ):
        estimate(replace(batch, token_rewards_BT=None), plain)


def made(tiny_policy: Path, **more: Any) -> tuple[Loop, ImplicitRewards]:
    own = loop(run_settings(tiny_policy, preset="prime", implicit_rate=1e-3, **more))
    assert own.implicit is not None
    return own, own.implicit


def batch_for(outcome: list[float]) -> Any:
    zeros = torch.zeros(4, 3)
    given = torch.tensor(outcome)
    return ragged([3, 1, 2, 3], [0, 0, 1, 1], old_BT=zeros, sampler_BT=zeros, outcome_B=given, rewards_B=given)


def test_phi_follows_the_cross_entropy_of_its_sum_and_the_outcome(tiny_policy: Path) -> None:
    _, prime = made(tiny_policy, micro_rows=1)
    batch = batch_for([1.0, 0.0, NAN, 0.0])
    # Away from its beginning, where all sums are 0.
    phi = prime.models.implicit
    assert phi is not None
    with torch.no_grad():
        for parameter in phi.model.parameters():
            parameter.mul_(1.05)
    reference = TokenReader(load_language_model(str(tiny_policy)))
    new = phi.read(ROWS).logprobs
    rewards = 0.05 * (new - reference.read(ROWS).logprobs.detach())
    sums = rewards.sum(1)[[0, 1, 3]]
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(sums, torch.tensor([1.0, 0.0, 0.0]))
    gradients = torch.autograd.grad(wanted, prime.parameters)
    prime.config = replace(prime.config, max_grad_norm=1e9)
    given, figures = prime.learn(batch, ROWS)
    assert figures["implicit/loss"] == pytest.approx(wanted.item(), rel=1e-5)
    right = ((sums > 0) == torch.tensor([True, False, False])).double().mean().item()
    assert figures["implicit/accuracy"] == pytest.approx(right)
    assert torch.allclose(given, rewards.detach() * batch.mask_BT, atol=1e-6) and given.abs().max() > 1e-3
    for parameter, gradient in zip(prime.parameters, gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7, rtol=1e-4)  # type: ignore[arg-type]


def test_before_it_rewards_what_it_has_learned_after_what_it_knew(tiny_policy: Path) -> None:
    batch = batch_for([1.0, 0.0, 0.0, 1.0])
    _, after = made(tiny_policy, change=("implicit.order=after",))
    _, before = made(tiny_policy)
    late, _ = after.step(batch, ROWS)
    early, _ = before.step(batch, ROWS)
    assert late.token_rewards_BT is not None and early.token_rewards_BT is not None
    assert not late.token_rewards_BT.any()  # it began as its own reference
    sums = early.token_rewards_BT.sum(1)
    assert (sums[[0, 3]] > 0).all() and (sums[[1, 2]] < 0).all()
    assert not early.token_rewards_BT[~batch.mask_BT].any()
    again, _ = after.step(batch, ROWS)
    assert again.token_rewards_BT is not None
    assert torch.allclose(again.token_rewards_BT, early.token_rewards_BT, atol=1e-6)


def test_a_batch_can_be_told_apart(tiny_policy: Path) -> None:
    _, prime = made(tiny_policy)
    batch = batch_for([1.0, 0.0, 0.0, 1.0])
    figures = [prime.learn(batch, ROWS)[1] for _ in range(30)]
    assert figures[0]["implicit/loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert figures[-1]["implicit/loss"] < 0.7 * math.log(2) and figures[-1]["implicit/accuracy"] == 1.0


def test_a_prime_run_that_was_stopped_goes_on_bit_for_bit(tiny_policy: Path, tmp_path: Path) -> None:
    config: dict[str, Any] = {"preset": "prime", "steps": 3, "save_steps": 1, "implicit_rate": 1e-3}
    whole = loop(run_settings(tiny_policy, **config))
    figures: list[float] = []
    whole.run(on_step=lambda report: figures.append(report.metrics["implicit/loss"]))

    class Stopped(Exception):
        pass

    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        loop(run_settings(tiny_policy, **config)).run(work=tmp_path, on_step=stop)
    again = loop(run_settings(tiny_policy, **config))
    last: list[float] = []
    again.run(work=tmp_path, resume=True, on_step=lambda report: last.append(report.metrics["implicit/loss"]))
    assert last == figures[2:]
    assert distance(weights(whole), weights(again)) == 0.0
    assert whole.models.implicit is not None and again.models.implicit is not None
    one, other = (found.models.implicit.model.state_dict() for found in (whole, again))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert any(not torch.equal(value, whole.models.policy.state_dict()[name]) for name, value in one.items())


def test_its_rate_alone_has_no_effect(tiny_policy: Path) -> None:
    with pytest.raises(ConfigError, match=r"implicit_rate=0\.001 has no effect without an implicit reward model"):
        run_settings(tiny_policy, implicit_rate=1e-3)
