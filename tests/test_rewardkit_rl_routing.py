"""Keep routing: what the sampler notes, what the trainer repeats, and the gradient it has, against sums by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_rewardkit_rl_loop import distance, loop, weights
from test_rewardkit_rl_loop import settings as run_settings

from rewardkit.rl.loop import StepReport
from rewardkit.rl.policy.reader import Drawn, TokenReader, families_of
from rewardkit.rl.policy.routing import routers_for, routes_of, with_routes
from search.engines.routers import Routers
from search.engines.scripted_engine import ScriptedEngine
from search.engines.transformers_engine import TransformersEngine
from verifiers.core import GenerationRequest, Sampling
from verifiers.errors import ConfigError, EngineError, ModelError

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "renormalised": ("Mixtral", {"num_local_experts": 6, "num_experts_per_tok": 2, "tie_word_embeddings": True}),
    "as they are": ("Olmoe", {"num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": False}),
}
SAMPLING = Sampling(max_new_tokens=10, stop_sequences=tuple((token,) for token in range(20, 60)))
"""Many tokens end a response, so that lengths differ and slots are filled again."""


def made(name: str, vocabulary: int, **more: Any) -> Any:
    """A random model in evaluation mode."""
    torch.manual_seed(0)
    own = {**SIZES, "vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1} | more
    config = getattr(transformers, f"{name}Config")(**own)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.fixture(params=sorted(KINDS))
def model(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> Any:
    name, more = KINDS[request.param]
    return made(name, len(tiny_tokenizer), **more)


@pytest.fixture(scope="module")
def mixture(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a mixture of experts."""
    name, more = KINDS["renormalised"]
    folder = tmp_path_factory.mktemp("mixture")
    made(name, len(tiny_tokenizer), **more).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def drawn(engine: TransformersEngine) -> list[Drawn]:
    """Responses to three prompts, more than there are slots, with what was noted of them."""
    requests = [GenerationRequest(prefix_ids=ids, n=4, seed=len(ids)) for ids in ((5, 6, 7, 8), (9,), (10, 11, 5))]
    found = engine.generate(requests, SAMPLING)
    rows = [
        Drawn(prompt=request.prefix_ids, response=one.token_ids)
        for request, group in zip(requests, found, strict=True)
        for one in group
    ]
    return with_routes(rows, engine)


def perturb(model: Any, size: float = 0.3) -> None:
    """Move the routers, and nothing else."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for router in Routers(model).modules:
            router.weight.add_(size * torch.randn(router.weight.shape, generator=generator))


def by_hand(model: Any, row: Drawn, routes_TLK: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a response and the experts of all positions but the last, one token and expert at a time."""
    trunk = model.model
    ids = torch.tensor([[*row.prompt, *row.response[:-1]]])
    count = ids.shape[1]
    hidden = trunk.embed_tokens(ids)
    places = trunk.rotary_emb(hidden, torch.arange(count)[None])
    taken = []
    for number, layer in enumerate(trunk.layers):
        seen = layer.self_attn(layer.input_layernorm(hidden), position_embeddings=places, attention_mask=None)[0]
        hidden = hidden + seen
        states = layer.post_attention_layernorm(hidden)[0]
        scores = (states @ layer.mlp.gate.weight.T).softmax(-1)
        best = scores.argsort(-1, descending=True)[:, :2]
        experts = best if routes_TLK is None else routes_TLK[:, number].long()
        taken.append(experts)
        out = []
        for t in range(count):
            gates = [scores[t, e] for e in experts[t]]
            total = sum(gates) if model.config.model_type == "mixtral" else 1.0
            parts = []
            for e, gate in zip(experts[t].tolist(), gates, strict=True):
                own, up = (layer.mlp.experts.gate_up_proj[e] @ states[t]).chunk(2)
                parts.append(gate / total * (layer.mlp.experts.down_proj[e] @ (torch.nn.functional.silu(own) * up)))
            out.append(torch.stack(parts).sum(0))
        hidden = hidden + torch.stack(out)[None]
    logits = model.lm_head(trunk.norm(hidden))[0, len(row.prompt) - 1 :]
    return logits.log_softmax(-1)[torch.arange(len(row.response)), torch.tensor(row.response)], torch.stack(taken, 1)


def as_sets(routes: torch.Tensor) -> list[Any]:
    """Experts without their order."""
    found: list[Any] = routes.long().sort(-1).values.tolist()
    return found


def test_the_sampler_notes_every_position_it_reads_and_draws_as_before(model: Any, tiny_tokenizer: Any) -> None:
    engine = TransformersEngine(model, tiny_tokenizer, max_rows=3, routes=True)
    rows = drawn(engine)
    assert len({len(row.response) for row in rows}) > 3
    for row in rows:
        assert row.routes is not None and row.routes.shape == (len(row.prompt) + len(row.response) - 1, 2, 2)
        with torch.no_grad():
            assert as_sets(row.routes) == as_sets(by_hand(model, row, None)[1])
    assert len({str(as_sets(row.routes)) for row in rows if row.routes is not None}) > 6
    plain = TransformersEngine(model, tiny_tokenizer, max_rows=3)
    requests = [GenerationRequest(prefix_ids=(5, 6, 7, 8), n=4, seed=4)]
    again = TransformersEngine(model, tiny_tokenizer, max_rows=3, routes=True)
    assert plain.generate(requests, SAMPLING) == again.generate(requests, SAMPLING)
    assert all("forward" not in vars(module) for module in model.modules())
    with pytest.raises(EngineError, match="no experts are known of a text of 2 tokens"):
        plain.routes_of((5, 6))


def test_what_is_kept_to_go_on_with_keeps_its_routes(model: Any, tiny_tokenizer: Any) -> None:
    """A text that a stop sequence ended goes on without being read again, and its routes are all there."""
    engine = TransformersEngine(model, tiny_tokenizer, max_rows=2, routes=True)
    stream = engine.stream(SAMPLING, keep=True)
    stream.submit([GenerationRequest(prefix_ids=(5, 6, 7), n=3, seed=2, max_new_tokens=4)])
    texts = [(5, 6, 7, *one.token_ids) for one in stream.collect()[0][1]]
    paid = engine.usage.prefill_tokens
    tickets = stream.submit([GenerationRequest(prefix_ids=text, seed=7) for text in texts])
    longer = {}
    while stream.waiting:
        longer |= dict(stream.collect())
    assert engine.usage.prefill_tokens == paid and len(longer) == 3
    for text, ticket in zip(texts, tickets, strict=True):
        more = longer[ticket][0].token_ids
        with torch.no_grad():
            own = by_hand(model, Drawn(prompt=text, response=more), None)[1]
        assert as_sets(engine.routes_of((*text, *more))) == as_sets(own)


@pytest.mark.parametrize("row_tokens", [0, 512])
def test_replay_has_the_sampler_s_experts_and_the_router_s_own_gates(
    model: Any, tiny_tokenizer: Any, row_tokens: int
) -> None:
    rows = drawn(TransformersEngine(model, tiny_tokenizer, max_rows=5, routes=True))
    free = [replace(row, routes=None) for row in rows]
    reader = TokenReader(model, row_tokens=row_tokens, routers=routers_for(model))
    with torch.no_grad():
        before = reader.read(free).logprobs
        assert torch.equal(reader.read(rows).logprobs, before)  # nothing has moved yet
        perturb(model)
        now, loose = reader.read(rows).logprobs, reader.read(free).logprobs
        moved = 0
        for number, row in enumerate(rows):
            assert row.routes is not None
            count = len(row.response)
            wanted, _ = by_hand(model, row, row.routes)
            assert torch.allclose(now[number, :count], wanted, atol=1e-5)
            own, experts = by_hand(model, row, None)
            assert torch.allclose(loose[number, :count], own, atol=1e-5)
            moved += sum(a != b for a, b in zip(as_sets(row.routes), as_sets(experts), strict=True))
    assert moved > 10  # without replay tokens go elsewhere
    assert (now - loose).abs().max() > 0.05 and (now - before).abs().max() > 0.01


def test_gradient_reaches_the_scores_of_the_experts_taken_and_is_the_one_by_hand(
    model: Any, tiny_tokenizer: Any
) -> None:
    rows = drawn(TransformersEngine(model, tiny_tokenizer, max_rows=5, routes=True))[:3]
    perturb(model)
    reader = TokenReader(model, row_tokens=512, routers=routers_for(model))
    found = []
    for of in (
        lambda: reader.read(rows).logprobs.sum(),
        lambda: sum(by_hand(model, row, row.routes)[0].sum() for row in rows),
    ):
        model.zero_grad()
        of().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert (gradient - found[1][name]).norm() <= 1e-4 * found[1][name].norm(), name
    taken = torch.cat([row.routes for row in rows if row.routes is not None])
    for number in range(2):
        gradient = found[0][f"model.layers.{number}.mlp.gate.weight"].norm(dim=1)
        used = torch.bincount(taken[:, number].flatten().long(), minlength=6) > 0
        assert (gradient[used] > 1e-3).all()
        if model.config.model_type == "mixtral":
            # Renormalised gates know of the experts taken alone.
            assert (gradient[~used] < 1e-6).all()


def test_routes_stand_where_their_tokens_do(model: Any) -> None:
    """Two responses behind one prompt, one of another; the number of a route says whose token it is."""
    routers = Routers(model)

    def row(prompt: tuple[int, ...], response: tuple[int, ...], first: int) -> Drawn:
        count = len(prompt) + len(response) - 1
        routes = torch.arange(first, first + count)[:, None, None].expand(count, 2, 2).to(routers.dtype)
        return Drawn(prompt=prompt, response=response, routes=routes)

    rows = [row((5, 6), (7, 8, 9), 10), row((5, 6), (7, 1), 20), replace(row((5,), (8, 1), 30), routes=None)]
    families = families_of(rows, most=lambda prompt: 64)
    assert [len(one.responses) for one in families] == [2, 1]
    routes_NLK, known_N = routes_of(rows, families, routers)
    assert routes_NLK.shape == (14, 2, 2) and known_N.shape == (14,)
    # The prompt's routes are the first row's; a response's last token and a row without routes have none.
    assert routes_NLK[:7, 1, 0].tolist() == [10, 11, 12, 13, 0, 22, 0]
    assert known_N.tolist() == [True] * 4 + [False, True, False] + [False] * 7


def test_a_run_that_keeps_routing_learns_through_the_sampler_s_experts(mixture: Path) -> None:
    def run(*change: str, **more: Any) -> tuple[dict[str, torch.Tensor], list[StepReport]]:
        own = loop(run_settings(mixture, preset="grpo", change=change, rate=0.01, **more))
        begun = weights(own)
        reports: list[StepReport] = []
        own.run(on_step=reports.append)
        assert distance(begun, weights(own)) > 1e-3
        return weights(own), reports

    for updates, least, most in ((1, 0.0, 1e-5), (2, 1e-4, 1.0)):
        # One update a batch is made where nothing has moved; before a second one the routers have.
        kept, reports = run("masks.keep_routing=true", updates=updates)
        free, _ = run(updates=updates)
        assert least <= distance(kept, free) <= most, updates
        assert all(report.metrics["sampler/gap"] < 1e-5 for report in reports)


def test_every_update_of_a_run_sends_tokens_where_the_sampler_did(
    mixture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = loop(run_settings(mixture, change=("masks.keep_routing=true",), rate=0.02, updates=2, steps=1))
    reader = own.models.reader
    hidden, passes = reader.hidden, []

    def watched(rows: list[Drawn], **more: Any) -> Any:
        assert reader.routers is not None
        with reader.routers.recorded() as found:
            result = hidden(rows, **more)
        families = families_of(rows, most=reader.most)
        routes_NLK, known_N = routes_of(rows, families, reader.routers)
        passes.append(torch.equal(torch.stack(found, 1)[known_N], routes_NLK[known_N].long()))
        with torch.no_grad(), reader.routers.recorded() as free:
            hidden([replace(row, routes=None) for row in rows], **more)
        moved.append(not torch.equal(torch.stack(free, 1)[known_N], routes_NLK[known_N].long()))
        return result

    moved: list[bool] = []
    monkeypatch.setattr(reader, "hidden", watched)
    own.run()
    # In the second update the routers would take others, and are given the sampler's.
    assert passes == [True, True] and moved == [False, True]


def test_adapters_leave_the_reference_its_own_experts(mixture: Path) -> None:
    change = ("masks.keep_routing=true", "kl.target=ref", "kl.estimator=k3_is", "kl.place=loss", "kl.coefficient=0.01")
    own = loop(run_settings(mixture, change=change, lora_rank=2, lora_targets=("q_proj", "v_proj"), steps=1))
    read: list[bool] = []
    plain = own.models.reader.read

    def watched(rows: list[Drawn], **more: Any) -> Any:
        read.append(rows[0].routes is not None)
        return plain(rows, **more)

    own.models.reader.read = watched  # type: ignore[method-assign]
    report = own.step()
    assert read[0] is False and all(read[1:]) and len(read) > 1
    assert abs(report.metrics["update/ref_kl"]) < 1e-5 and report.metrics["sampler/gap"] < 1e-5


REFUSED: list[tuple[Callable[[int], Any], str]] = [
    (lambda size: made("Llama", size), "LlamaForCausalLM has no routers of experts; take a mixture-of-experts model"),
    (
        lambda size: made("Phimoe", size, num_local_experts=6, num_experts_per_tok=2),
        r"PhimoeForCausalLM chooses experts in a way that cannot be repeated \(PhimoeTopKRouter\)",
    ),
    (
        lambda size: made(
            "DeepseekV2",
            size,
            **{"num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2},
            **{"topk_group": 1, "topk_method": "group_limited_greedy", "moe_intermediate_size": 16},
            **{"first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8},
            **{"qk_nope_head_dim": 8, "v_head_dim": 8},
        ),
        "DeepseekV2ForCausalLM chooses experts in a way that cannot be repeated",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_models_whose_routes_cannot_be_kept_are_refused(make: Callable[[int], Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"masks.keep_routing repeats which experts tokens went to: {message}"):
        routers_for(make(40))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Qwen2Moe", {"num_experts": 6, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}),
        ("Qwen3Moe", {"num_experts": 6, "moe_intermediate_size": 16, "head_dim": 8}),
        ("GraniteMoe", {"num_local_experts": 6}),
        (
            "DeepseekV3",
            {"n_routed_experts": 6, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16, "q_lora_rank": 8}
            | {"first_k_dense_replace": 1, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
            | {"v_head_dim": 8, "num_key_value_heads": 4},
        ),
    ],
)
def test_other_routers_are_repeated_by_their_own_formula(name: str, more: dict[str, Any], tiny_tokenizer: Any) -> None:
    """With groups, shared experts, dense layers, scaled gates: nothing changes at the sampler's weights."""
    model = made(name, len(tiny_tokenizer), num_experts_per_tok=2, **more)
    rows = drawn(TransformersEngine(model, tiny_tokenizer, max_rows=5, routes=True))
    reader = TokenReader(model, row_tokens=512, routers=routers_for(model))
    with torch.no_grad():
        free = reader.read([replace(row, routes=None) for row in rows]).logprobs
        assert torch.equal(reader.read(rows).logprobs, free)
        assert rows[0].routes is not None
        assert rows[0].routes.shape[1] == (1 if name == "DeepseekV3" else 2)
        for shift in (1, 2):
            # In other experts' hands, and back: every expert can be imposed, in other groups too.
            away = [replace(row, routes=(row.routes + shift) % 6) for row in rows if row.routes is not None]
            assert (reader.read(away).logprobs - free).abs().max() > 1e-3
        perturb(model)
        kept, loose = reader.read(rows).logprobs, reader.read([replace(row, routes=None) for row in rows]).logprobs
    assert (kept - loose).abs().max() > 1e-3 and (kept - free).abs().max() > 1e-4


def test_who_does_not_report_experts_is_refused(mixture: Path, tiny_policy: Path) -> None:
    change = ("masks.keep_routing=true",)
    with pytest.raises(ConfigError, match=r"masks\.keep_routing needs to know .* engine='vllm' does not say"):
        run_settings(mixture, change=change, engine="vllm")
    with pytest.raises(ConfigError, match=r"staleness=1 gives responses of older weights, whose experts are not noted"):
        run_settings(mixture, change=change, staleness=1)
    with pytest.raises(ModelError, match=r"masks\.keep_routing repeats .* LlamaForCausalLM has no routers"):
        loop(run_settings(tiny_policy, change=change))
    with pytest.raises(ConfigError, match=r"needs an engine that reports experts, and ScriptedEngine does not"):
        with_routes([Drawn(prompt=(5,), response=(6,))], ScriptedEngine.__new__(ScriptedEngine))


def test_a_router_that_was_wrapped_before_stays_wrapped() -> None:
    model = made("Mixtral", 40, num_local_experts=6, num_experts_per_tok=2)
    routers = Routers(model)
    module = routers.modules[0]
    inner, calls = module.forward, []

    def wrapped(*args: Any) -> Any:
        calls.append(1)
        return inner(*args)

    module.forward = wrapped
    with pytest.raises(ZeroDivisionError), routers.recorded():
        model(torch.tensor([[5, 6]]))
        raise ZeroDivisionError
    assert vars(module)["forward"] is wrapped and calls == [1]
    assert "forward" not in vars(routers.modules[1])
