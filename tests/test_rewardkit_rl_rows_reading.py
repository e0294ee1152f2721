"""Other ways of reading the policy: among the tokens that the sampler kept, and as an inner layer would speak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_policies import Tabular, batch_of, gradient_of, relative
from test_rewardkit_rl_loop import distance, loop, weights
from test_rewardkit_rl_loop import settings as run_settings
from test_rewardkit_rl_weights import ragged
from transformers import AutoModelForCausalLM

from rewardkit.rl.loop import StepReport
from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.loss.objective import policy_loss
from rewardkit.rl.loss.weights import prepare
from rewardkit.rl.policy import reader as policy_module
from rewardkit.rl.policy.keeping import keep_sampling
from rewardkit.rl.policy.reader import FAR, Drawn, TokenReader
from rewardkit.rl.settings.presets import preset
from search.engines.draws import cut
from verifiers.core import Sampling
from verifiers.errors import ConfigError, ModelError

ROWS = [
    Drawn(prompt=(5, 6, 7), response=(8, 9, 1)),
    Drawn(prompt=(5, 6, 7), response=(10,)),
    Drawn(prompt=(11,), response=(12, 1)),
]
NUCLEUS = Sampling(temperature=0.7, top_p=0.8, top_k=9)


@pytest.fixture(scope="module")
def model(tiny_policy: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)


# --- Keep sampling --------------------------------------------------------------------------------------------------


def kept_by_hand(model: Any, row: Drawn) -> list[list[int]]:
    """The ids that top-k and then top-p leave before each token, counted off, with the token that was drawn."""
    logits = model(torch.tensor([[*row.prompt, *row.response]])).logits[0, len(row.prompt) - 1 : -1] / 0.7
    found = []
    for p, token in zip(logits.double().softmax(-1), row.response, strict=True):
        order = p.argsort(descending=True)[:9]
        mass, kept = 0.0, set()
        for v in order.tolist():
            if mass < 0.8 * p[order].sum():
                kept.add(v)
            mass += p[v].item()
        found.append(sorted(kept | {token}))
    return found


def test_the_sets_are_those_of_the_cut_and_probabilities_are_among_them(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = TokenReader(model, temperature=0.7)
    sets = reader.keep(ROWS, NUCLEUS)
    for row, one in zip(ROWS, sets, strict=True):
        pieces = torch.split(one.ids_K, one.counts_T.tolist())
        assert [sorted(piece.tolist()) for piece in pieces] == kept_by_hand(model, row)
        assert max(one.counts_T) <= 10
    own = [Drawn(prompt=r.prompt, response=r.response, kept=k) for r, k in zip(ROWS, sets, strict=True)]
    with torch.no_grad():
        inside, whole = reader.read(own, entropies=True), reader.read(ROWS)
    for number, (row, one) in enumerate(zip(ROWS, sets, strict=True)):
        logits = model(torch.tensor([[*row.prompt, *row.response]])).logits[0, len(row.prompt) - 1 : -1] / 0.7
        for place, ids in enumerate(torch.split(one.ids_K.long(), one.counts_T.tolist())):
            mass = logits[place].softmax(-1)[ids].sum()
            more = (inside.logprobs - whole.logprobs)[number, place].item()
            assert more == pytest.approx(-mass.log().item(), abs=1e-5)
            p = logits[place][ids].softmax(-1)
            assert inside.entropies is not None
            assert inside.entropies[number, place].item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)
    monkeypatch.setattr(policy_module, "PIECE", 2 * model.config.vocab_size)
    in_pieces = TokenReader(model, temperature=0.7)
    for one, other in zip(in_pieces.keep(ROWS, NUCLEUS), sets, strict=True):
        assert torch.equal(one.ids_K, other.ids_K) and torch.equal(one.counts_T, other.counts_T)
    assert torch.allclose(in_pieces.read(own).logprobs, inside.logprobs, atol=1e-6)


def test_at_the_old_parameters_every_ratio_is_1_whatever_the_engine_reports(model: Any) -> None:
    reader = TokenReader(model, temperature=0.7)
    before = reader.read(ROWS).logprobs.detach()
    batch = ragged([3, 1, 2], old_BT=before, sampler_BT=before + 0.25)
    options: dict[str, Any] = {"micro_rows": 3, "autocast": torch.enable_grad}
    rows, kept = keep_sampling(reader, ROWS, batch, NUCLEUS, cut_reported=False, **options)
    new = reader.read(rows).logprobs
    mask = batch.mask_BT
    assert torch.equal(new[mask], kept.old_BT[mask])
    assert (before - kept.old_BT)[mask].abs().max() > 0.05  # without the sets each is off by the mass that was cut
    # What was 0.25 from the trainer before the cut still is; what was reported behind it stays.
    assert torch.allclose((kept.sampler_BT - kept.old_BT)[mask], torch.tensor(0.25), atol=1e-6)
    _, reported = keep_sampling(reader, ROWS, batch, NUCLEUS, cut_reported=True, **options)
    assert torch.equal(reported.sampler_BT, batch.sampler_BT)


def test_the_gradient_is_that_of_the_policy_among_what_was_kept() -> None:
    policy = Tabular(vocabulary=5, length=3)
    logits, rewards = policy.logits(1), policy.random(2)
    sets = cut(logits.detach().softmax(-1), Sampling(top_p=0.7)) > 0
    assert 1 < sets.sum(-1).double().mean() < 4
    inside = logits.masked_fill(~sets, FAR)
    p = policy.probabilities(inside)
    assert p.sum().item() == pytest.approx(1) and (p == 0).any()
    wanted = -gradient_of((p * rewards).sum(), logits)
    drawn = (p > 0).nonzero()[:, 0]
    table = preset("deepseek_v32", kl=None, advantage={"kind": "none"}, aggregation="token")

    def found(seen: torch.Tensor) -> torch.Tensor:
        batch = batch_of(policy, inside.detach(), rewards[drawn], rows=drawn)
        part = prepare(batch, estimate(batch, table), table)
        part = replace(part, weights_BT=p.detach()[drawn, None] * batch.mask_BT)
        return gradient_of(policy_loss(policy.logprobs(seen, drawn), part, table).total, logits)

    assert relative(found(inside), wanted) < 1e-10
    assert relative(found(logits), wanted) > 0.05  # the policy over all tokens against the sampler's


def test_a_run_that_cuts_has_ratio_1_and_no_gap(tiny_policy: Path) -> None:
    reports: list[StepReport] = []
    own = loop(run_settings(tiny_policy, preset="deepseek_v32", steps=2, top_p=0.8, top_k=20))
    begun = weights(own)
    own.run(on_step=reports.append)
    assert distance(begun, weights(own)) > 1e-5
    for report in reports:
        assert report.metrics["sampler/gap"] < 1e-5
        assert report.metrics["update/ratio_least"] == pytest.approx(1, abs=1e-5)
        assert report.metrics["update/ratio_greatest"] == pytest.approx(1, abs=1e-5)
    assert abs(reports[0].metrics["update/ref_kl"]) < 1e-5  # the reference is read among the same tokens
    with pytest.raises(ConfigError, match=r"top_p=0\.8 and top_k=0 cut tokens off that the trainer would count"):
        run_settings(tiny_policy, preset="dapo", top_p=0.8)
    with pytest.raises(ConfigError, match=r"top_p must be in \(0, 1\]; got 1\.5"):
        run_settings(tiny_policy, top_p=1.5)


# --- An inner layer -----------------------------------------------------------------------------------------------


def test_the_last_layer_is_the_whole_model_bit_for_bit(model: Any) -> None:
    """The update of bupo at the last layer is that of grpo."""
    reader = TokenReader(model)
    found = []
    for layer in (None, 1):
        model.zero_grad()
        new = reader.read(ROWS, layer=layer).logprobs
        batch = ragged([3, 1, 2], old_BT=new.detach() + 0.1, rewards_B=torch.tensor([1.0, 0.0, 0.5]))
        table = preset("bupo", layer=layer, layer_steps=None if layer is None else 1)
        prepared = prepare(batch, estimate(batch, table), table)
        policy_loss(new, prepared, table).total.backward()  # type: ignore[no-untyped-call]
        found.append(torch.cat([new.detach().flatten(), *(p.grad.flatten() for p in model.parameters())]))
    assert torch.equal(found[0], found[1]) and found[0].abs().max() > 0.01
    assert len(model.model.layers) == 2


def test_a_layer_speaks_through_the_norm_and_the_head(model: Any) -> None:
    row = ROWS[0]
    ids = torch.tensor([[*row.prompt, *row.response]])
    hidden = model(ids, output_hidden_states=True).hidden_states[1]  # behind layer 0, before the norm
    logits = model.lm_head(model.model.norm(hidden))[0, 2:-1]
    wanted = logits.log_softmax(-1)[torch.arange(3), torch.tensor(row.response)]
    assert torch.allclose(TokenReader(model).read([row], layer=0).logprobs[0], wanted, atol=1e-5)
    with pytest.raises(ModelError, match=r"layer must be one of the model's 2, from 0 to 1; got 2"):
        TokenReader(model).read([row], layer=2)
    assert len(model.model.layers) == 2


def test_layers_above_stay_as_they_are_until_the_whole_model_is_trained(tiny_policy: Path) -> None:
    change = ("layer=0", "layer_steps=2")
    own = loop(run_settings(tiny_policy, preset="bupo", change=change, steps=3, updates=2, weight_decay=0.1))
    begun = weights(own)
    moved: list[set[str]] = []
    gaps: list[float] = []

    def look(report: StepReport) -> None:
        now = weights(own)
        names = {name for name, value in now.items() if not torch.equal(value, begun[name])}
        moved.append({"above" if "layers.1." in name else "below" for name in names})
        gaps.append(report.metrics["sampler/gap"])

    own.run(on_step=look)
    assert moved == [{"below"}, {"below"}, {"above", "below"}]
    assert 0 < max(gaps) < 1e-5  # sampler and trainer are compared as whole models all along
