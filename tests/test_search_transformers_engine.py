"""The batched engine against `model.generate`, full recomputation and the exact next-token distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

import search.engines.decoding as module
import search.engines.draws as draws
from search.engines.draws import draw
from search.engines.transformers_engine import TransformersEngine
from verifiers.core import Continuation, Engine, GenerationRequest, Sampling, StopReason, Usage
from verifiers.errors import ConfigError, EngineError, MissingFileError, ModelError

TEXTS = ["One apple", "So", "Then three more: 1 + 2 = 3.\n\nSo the", "One apple and two apples. Then", "\n\n", "3 +"]


@pytest.fixture(scope="module")
def loaded(tiny_policy: Path) -> TransformersEngine:
    return TransformersEngine.load(tiny_policy, device="cpu", dtype="float32")


def engine(loaded: TransformersEngine, max_rows: int = 256) -> TransformersEngine:
    """A fresh engine (counters at zero) over the same weights."""
    return TransformersEngine(loaded.model, loaded.tokenizer, max_rows=max_rows)


@pytest.fixture(scope="module")
def prefixes(tiny_tokenizer: Any) -> list[tuple[int, ...]]:
    """Ragged: 1 to 20 tokens."""
    found = [tuple(tiny_tokenizer(text)["input_ids"]) for text in TEXTS]
    assert min(map(len, found)) == 1
    assert len(set(map(len, found))) >= 4
    return found


def requests_of(prefixes: Sequence[tuple[int, ...]], *, n: int = 1) -> list[GenerationRequest]:
    return [GenerationRequest(prefix_ids=p, n=n, seed=100 + i) for i, p in enumerate(prefixes)]


@torch.inference_mode()
def logits_after(model: Any, prefix: Sequence[int], drawn: Sequence[int]) -> torch.Tensor:
    """Logits that predict each drawn token, from one full forward pass. Shape (T, V)."""
    ids = torch.tensor([[*prefix, *drawn]])
    return model(input_ids=ids, use_cache=False).logits[0, len(prefix) - 1 : -1].double()


def ids_of(rows: list[list[Continuation]]) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in row] for row in rows]


@pytest.mark.parametrize("max_rows", [1, 2, 3, 256])
def test_greedy_is_generate_token_for_token(
    loaded: TransformersEngine, prefixes: list[tuple[int, ...]], max_rows: int
) -> None:
    sampling = Sampling(temperature=0.0, max_new_tokens=24)
    drawn = engine(loaded, max_rows).generate(requests_of(prefixes, n=2), sampling)
    for prefix, row in zip(prefixes, drawn, strict=True):
        ids = torch.tensor([prefix])
        expected = loaded.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=loaded.tokenizer.eos_token_id,
            pad_token_id=loaded.tokenizer.pad_token_id,
        )[0, len(prefix) :]
        assert [c.token_ids for c in row] == [tuple(expected.tolist())] * 2


def raised(loaded: TransformersEngine, ending: float = 3.0) -> Any:
    """The model with a likelier end of sequence, so that rows end at many different lengths."""
    eos = loaded.tokenizer.eos_token_id

    class Raised(torch.nn.Module):
        config, generation_config = loaded.model.config, loaded.model.generation_config
        device, dtype = loaded.model.device, loaded.model.dtype

        def forward(self, **options: Any) -> Any:
            output = loaded.model(**options)
            output.logits[..., eos] += ending
            return output

    return Raised()


def test_moved_and_refilled_slots_keep_their_rows(loaded: TransformersEngine, prefixes: list[tuple[int, ...]]) -> None:
    model = raised(loaded)
    sampling = Sampling(max_new_tokens=40)
    asked = requests_of(prefixes, n=7)
    whole = TransformersEngine(model, loaded.tokenizer, max_rows=256).generate(asked, sampling)
    lengths = {len(c.token_ids) for row in whole for c in row}
    assert len(lengths) > 10, "rows must end at different times for slots to be moved"
    for max_rows in (1, 4, 5, 16):
        found = TransformersEngine(model, loaded.tokenizer, max_rows=max_rows).generate(asked, sampling)
        assert ids_of(found) == ids_of(whole)
    for prefix, row in zip(prefixes, whole, strict=True):
        for c in row:
            logits = logits_after(model, prefix, c.token_ids)
            exact = logits.log_softmax(-1).gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
            assert c.logprobs == pytest.approx(exact.tolist(), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.7])
def test_log_probabilities_are_those_of_a_full_forward_pass(
    loaded: TransformersEngine, prefixes: list[tuple[int, ...]], temperature: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=9, top_p=0.9, max_new_tokens=20)
    drawn = engine(loaded, 4).generate(requests_of(prefixes, n=3), sampling)
    for prefix, row in zip(prefixes, drawn, strict=True):
        for c in row:
            logits = logits_after(loaded.model, prefix, c.token_ids) / (temperature or 1.0)
            exact = logits.log_softmax(-1).gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
            assert c.logprobs == pytest.approx(exact.tolist(), abs=1e-5)


def test_samples_do_not_depend_on_their_batch(loaded: TransformersEngine, prefixes: list[tuple[int, ...]]) -> None:
    sampling = Sampling(max_new_tokens=16)
    asked = requests_of(prefixes, n=4)
    whole = ids_of(engine(loaded).generate(asked, sampling))
    backwards = ids_of(engine(loaded, 5).generate(asked[::-1], sampling))
    assert backwards[::-1] == whole
    for request, row in zip(asked, whole, strict=True):
        assert ids_of(engine(loaded, 3).generate([request], sampling)) == [row]
        fewer = GenerationRequest(prefix_ids=request.prefix_ids, n=2, seed=request.seed)
        assert ids_of(engine(loaded).generate([fewer], sampling)) == [row[:2]]
        assert len(set(row)) > 1, "samples of one request differ"
    other = [GenerationRequest(prefix_ids=r.prefix_ids, n=4, seed=r.seed + 1) for r in asked]
    assert all(a != b for a, b in zip(ids_of(engine(loaded).generate(other, sampling)), whole, strict=True))


def test_equal_calls_are_bit_identical(loaded: TransformersEngine, prefixes: list[tuple[int, ...]]) -> None:
    asked, sampling = requests_of(prefixes, n=3), Sampling(max_new_tokens=12)
    assert engine(loaded, 4).generate(asked, sampling) == engine(loaded, 4).generate(asked, sampling)


def exact_distribution(logits_V: torch.Tensor, sampling: Sampling) -> np.ndarray:
    """The next-token distribution, written out token by token."""
    weights = np.exp((logits_V.double() / sampling.temperature).log_softmax(-1).numpy())
    order = sorted(range(len(weights)), key=lambda v: -weights[v])
    if sampling.top_k:
        order = order[: sampling.top_k]
    total, mass, kept = sum(weights[v] for v in order), 0.0, []
    for v in order:
        kept.append(v)
        mass += weights[v] / total
        if mass >= sampling.top_p:
            break
    result = np.zeros_like(weights)
    result[kept] = weights[kept] / weights[kept].sum()
    return result


CUTS = [
    Sampling(max_new_tokens=1),
    Sampling(temperature=0.6, max_new_tokens=1),
    Sampling(temperature=1.5, top_k=7, max_new_tokens=1),
    Sampling(top_p=0.6, max_new_tokens=1),
    Sampling(temperature=0.8, top_k=12, top_p=0.8, max_new_tokens=1),
]


@pytest.mark.parametrize("sampling", CUTS, ids=["plain", "temperature", "top-k", "top-p", "all"])
def test_first_tokens_follow_the_exact_distribution(
    loaded: TransformersEngine, prefixes: list[tuple[int, ...]], sampling: Sampling
) -> None:
    prefix, n = prefixes[2], 3000
    drawn = engine(loaded, n).generate([GenerationRequest(prefix_ids=prefix, n=n, seed=5)], sampling)[0]
    exact = exact_distribution(logits_after(loaded.model, prefix, [0])[0], sampling)
    counts = np.bincount([c.token_ids[0] for c in drawn], minlength=len(exact))
    assert counts[exact == 0].sum() == 0, "a token that was cut has been drawn"
    common = exact * n >= 5
    assert common.sum() >= 3
    observed, expected = counts[common], exact[common] * n
    if (exact * ~common).sum() > 0:
        observed = np.append(observed, counts[~common].sum())
        expected = np.append(expected, exact[~common].sum() * n)
    # The seed is fixed, so this passes always or never.
    assert chisquare(observed, expected).pvalue > 0.001


def test_later_tokens_follow_the_exact_distribution_too(loaded: TransformersEngine) -> None:
    """A model that says the same everywhere: pairs of draws are as likely as the product, in moved slots too."""

    class Constant(torch.nn.Module):
        config, generation_config = loaded.model.config, loaded.model.generation_config
        device, dtype = loaded.model.device, loaded.model.dtype

        def forward(self, *, input_ids: torch.Tensor, **options: Any) -> Any:
            logits = torch.tensor([0.0, 1.0, 2.0, 3.0]).log()  # token 1 ends the sequence
            return SimpleNamespace(logits=logits.expand(len(input_ids), 1, 4))

    made = TransformersEngine(Constant(), loaded.tokenizer, max_rows=700)
    drawn = made.generate([GenerationRequest(prefix_ids=(2,), n=4000, seed=9)], Sampling(max_new_tokens=3))[0]
    share = {1: 1 / 6, 2: 2 / 6, 3: 3 / 6}
    exact = {(1,): share[1]}
    exact |= {(a, 1): share[a] * share[1] for a in (2, 3)}
    exact |= {(a, b, c): share[a] * share[b] * share[c] for a in (2, 3) for b in (2, 3) for c in (1, 2, 3)}
    assert sum(exact.values()) == pytest.approx(1)
    counts = Counter(c.token_ids for c in drawn)
    assert set(counts) == set(exact)
    observed, expected = zip(*((counts[ids], 4000 * chance) for ids, chance in exact.items()), strict=True)
    assert chisquare(observed, expected).pvalue > 0.001
    assert all(sum(c.logprobs) == pytest.approx(np.log(exact[c.token_ids]), abs=1e-5) for c in drawn)


def test_draw_reports_the_probability_before_the_cut() -> None:
    logits = torch.tensor([[0.0, 1.0, 4.0, 3.0]]).log()
    sampling = Sampling(top_k=1)
    tokens, logprobs = draw(logits, np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=np.int64), sampling)
    assert tokens.tolist() == [2]
    assert logprobs.tolist() == pytest.approx([np.log(4 / 8)])
    nucleus = Sampling(top_p=0.5)  # the likeliest token alone has that much
    rows = logits.expand(50, 4)
    tokens, _ = draw(rows, np.arange(50, dtype=np.uint64), np.zeros(50, dtype=np.int64), nucleus)
    assert set(tokens.tolist()) == {2}
    nucleus = Sampling(top_p=0.51)
    tokens, _ = draw(rows, np.arange(50, dtype=np.uint64), np.zeros(50, dtype=np.int64), nucleus)
    assert set(tokens.tolist()) == {2, 3}


def test_draws_at_both_ends_give_possible_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "uniforms", lambda seeds, positions: np.ones(len(seeds)))
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0, 0.0]]).log()
    tokens, logprobs = draw(logits, np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=np.int64), Sampling())
    assert tokens.tolist() == [2]
    assert logprobs.tolist() == pytest.approx([np.log(1 / 4)])
    monkeypatch.setattr(draws, "uniforms", lambda seeds, positions: np.zeros(len(seeds)))
    logits = torch.tensor([[0.0, 0.0, 1.0, 2.0]]).log()
    tokens, _ = draw(logits, np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=np.int64), Sampling())
    assert tokens.tolist() == [2]


def first_place(ids: tuple[int, ...], stops: Sequence[tuple[int, ...]]) -> int | None:
    """Where the first stop sequence ends."""
    ends = [at for at in range(1, len(ids) + 1) for stop in stops if ids[:at][-len(stop) :] == stop]
    return min(ends, default=None)


def test_stop_sequences_end_a_row_where_they_are_complete(
    loaded: TransformersEngine, prefixes: list[tuple[int, ...]]
) -> None:
    asked = requests_of(prefixes, n=6)
    free = ids_of(engine(loaded).generate(asked, Sampling(max_new_tokens=30)))
    # stops that occur: a pair and a single token from the middle of what is drawn anyway
    stops = (free[0][0][4:6], free[3][1][7:8], free[2][2][3:6])
    drawn = engine(loaded, 8).generate(asked, Sampling(max_new_tokens=30, stop_sequences=stops))
    cut = 0
    eos = loaded.tokenizer.eos_token_id
    for row, long_row in zip(drawn, free, strict=True):
        for c, long in zip(row, long_row, strict=True):
            end = first_place(long, stops)
            assert c.token_ids == long[:end]
            ends = end is not None or long[-1] == eos
            assert c.stop_reason is (StopReason.STOP if ends else StopReason.LENGTH)
            cut += end is not None and end < len(long)
    assert cut >= 3
    # One token is no pair, even at the very start.
    alone = engine(loaded).generate(asked[:1], Sampling(temperature=0.0, max_new_tokens=30))[0][0].token_ids
    twice = Sampling(temperature=0.0, max_new_tokens=30, stop_sequences=((alone[0], alone[0]),))
    found = engine(loaded).generate(asked[:1], twice)[0][0].token_ids
    assert found == alone[: first_place(alone, twice.stop_sequences)]
    assert len(found) > 1
    # A stop sequence that the prefix began does not count: it must be drawn whole.
    first = free[0][0]
    prefix = (*prefixes[0], first[0])
    stop = Sampling(temperature=0.0, max_new_tokens=6, stop_sequences=((first[0], 10_000),))
    assert len(engine(loaded).generate(requests_of([prefix]), stop)[0][0].token_ids) == 6


def test_end_of_sequence_is_kept_and_ends_the_row(loaded: TransformersEngine, prefixes: list[tuple[int, ...]]) -> None:
    eos = loaded.tokenizer.eos_token_id
    model = raised(loaded, ending=4.0)
    rows = TransformersEngine(model, loaded.tokenizer).generate(requests_of(prefixes, n=8), Sampling(max_new_tokens=10))
    reasons = Counter(c.stop_reason for row in rows for c in row)
    assert min(reasons[StopReason.STOP], reasons[StopReason.LENGTH]) > 0
    for c in (c for row in rows for c in row):
        assert eos not in c.token_ids[:-1]
        assert (c.token_ids[-1] == eos) is (c.stop_reason is StopReason.STOP)
        assert len(c.logprobs) == len(c.token_ids) <= 10
        assert c.stop_reason is StopReason.STOP or len(c.token_ids) == 10


def test_the_context_ends_a_row_and_refuses_a_prompt(loaded: TransformersEngine) -> None:
    assert loaded.context_length == 256
    never = Sampling(temperature=0.0, max_new_tokens=50)
    ordinary = loaded.tokenizer("a")["input_ids"][0]
    full = (ordinary,) * 253
    short = (ordinary,) * 5
    drawn = engine(loaded).generate(requests_of([full, short]), never)
    assert (len(drawn[0][0].token_ids), drawn[0][0].stop_reason) == (3, StopReason.LENGTH)
    assert len(drawn[1][0].token_ids) == 50
    fresh = engine(loaded)
    with pytest.raises(EngineError, match="prefix of request 1 has 256 tokens, but the model's context holds 256"):
        fresh.generate(requests_of([short, (ordinary,) * 256]), never)
    with pytest.raises(EngineError, match="request 0 has an empty prefix"):
        fresh.generate(requests_of([()]), never)
    with pytest.raises(EngineError, match=rf"holds the token id {fresh.vocabulary}, but the model's ids run from 0 to"):
        fresh.generate(requests_of([(ordinary, fresh.vocabulary)]), never)
    with pytest.raises(ConfigError, match="n must be 1 or more; got 0 in request 0"):
        fresh.generate(requests_of([short], n=0), never)
    assert fresh.usage == Usage()


def test_what_is_paid_is_counted_exactly(
    loaded: TransformersEngine, prefixes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    forward = type(loaded.model).forward

    def counting(self: Any, *, input_ids: torch.Tensor, **options: Any) -> Any:
        nonlocal read
        read += input_ids.numel()
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(loaded.model), "forward", counting)
    fresh = engine(loaded)
    drawn = fresh.generate(requests_of(prefixes, n=3), Sampling(max_new_tokens=9))
    decoded = sum(len(c.token_ids) for row in drawn for c in row)
    # A prefix is read once without its last token, which is the first input of every row; what begins another
    # one is not read by itself.
    asked = [p[:-1] for p in prefixes]
    longest = [p for p in asked if not any(q != p and q[: len(p)] == p for q in asked)]
    prefilled = sum(map(len, longest))
    assert prefilled < sum(map(len, asked))
    assert (fresh.usage.prefill_tokens, fresh.usage.decoded_tokens, fresh.usage.calls) == (prefilled, decoded, 1)
    assert fresh.usage.seconds > 0
    padding = sum(max(map(len, longest)) - len(p) for p in longest)
    assert read == prefilled + padding + decoded
    once = fresh.usage
    fresh.generate([GenerationRequest(prefix_ids=prefixes[2][1:], n=5)], Sampling(max_new_tokens=1))
    assert (fresh.usage - once).prefill_tokens == len(prefixes[2]) - 2
    assert (fresh.usage - once).decoded_tokens == 5
    # Two rows at a time: the prefix is read once for all three fillings.
    narrow = engine(loaded, 2)
    narrow.generate([GenerationRequest(prefix_ids=prefixes[2], n=5)], Sampling(max_new_tokens=1))
    assert narrow.usage.prefill_tokens == len(prefixes[2]) - 1
    assert narrow.usage.decoded_tokens == 5


def test_prefixes_are_read_in_bounded_batches(
    loaded: TransformersEngine, prefixes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, sampling = requests_of(prefixes, n=2), Sampling(temperature=0.0, max_new_tokens=8)
    whole = ids_of(engine(loaded).generate(asked, sampling))
    widths: list[int] = []
    forward = type(loaded.model).forward

    def spying(self: Any, *, input_ids: torch.Tensor, **options: Any) -> Any:
        if input_ids.shape[1] > 1:
            widths.append(input_ids.numel())
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(loaded.model), "forward", spying)
    monkeypatch.setattr(module, "PREFILL_TOKENS", 24)
    assert ids_of(engine(loaded).generate(asked, sampling)) == whole
    assert len(widths) >= 2
    assert max(widths) <= 24


def test_it_is_an_engine_and_knows_its_size(loaded: TransformersEngine) -> None:
    assert isinstance(loaded, Engine)
    # embeddings (tied) 320*32; per layer: q 32*32+32, k and v 32*16+16 each, o 32*32+32, three 32*64, two norms
    layer = (1024 + 32) + 2 * (512 + 16) + (1024 + 32) + 3 * 2048 + 2 * 32
    assert loaded.parameters == len(loaded.tokenizer) * 32 + 2 * layer + 32


def test_every_end_token_of_the_checkpoint_ends_a_row(
    loaded: TransformersEngine, prefixes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(temperature=0.0, max_new_tokens=8)
    plain = engine(loaded).generate(requests_of(prefixes[:1]), sampling)[0][0].token_ids
    second = plain[3]
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [loaded.tokenizer.eos_token_id, second])
    drawn = engine(loaded).generate(requests_of(prefixes[:1]), sampling)[0][0]
    assert drawn.token_ids == plain[: plain.index(second) + 1]
    assert drawn.stop_reason is StopReason.STOP


def tiny(kind: str) -> Any:
    """A random model of another family: 2 layers, 64 tokens."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(1)
    sizes = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=320,
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_positions=64,
                initializer_range=0.2,
                bos_token_id=1,
                eos_token_id=1,
            )
        )
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**sizes, sliding_window=8))
    if kind == "mistral-full":
        return MistralForCausalLM(MistralConfig(**sizes, sliding_window=None))
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **(windows if kind == "qwen-window" else {})))


@pytest.mark.parametrize("kind", ["mistral", "qwen-window"])
def test_sliding_windows_are_refused(tiny_tokenizer: Any, kind: str) -> None:
    name = "Mistral" if kind == "mistral" else "Qwen2"
    with pytest.raises(ModelError, match=f"full attention in every layer; {name}ForCausalLM has .*sliding_attention"):
        TransformersEngine(tiny(kind), tiny_tokenizer)


@pytest.mark.parametrize("kind", ["gpt2", "qwen", "mistral-full"])
def test_other_families_sample_as_they_compute(tiny_tokenizer: Any, prefixes: list[tuple[int, ...]], kind: str) -> None:
    """GPT-2 has absolute positions: a wrong position_ids would show here and nowhere else."""
    model = tiny(kind)
    made = TransformersEngine(model, tiny_tokenizer, max_rows=4)
    assert made.context_length == 64
    drawn = made.generate(requests_of(prefixes, n=2), Sampling(max_new_tokens=12))
    for prefix, row in zip(prefixes, drawn, strict=True):
        for c in row:
            logits = logits_after(model, prefix, c.token_ids)
            exact = logits.log_softmax(-1).gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
            assert c.logprobs == pytest.approx(exact.tolist(), abs=1e-5)


def test_loading_says_what_is_wrong(tmp_path: Path, tiny_policy: Path, tiny_tokenizer: Any) -> None:
    with pytest.raises(MissingFileError, match="no checkpoint folder at"):
        TransformersEngine.load(tmp_path / "absent")
    tiny_tokenizer.save_pretrained(tmp_path / "words")
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        TransformersEngine.load(tmp_path / "words")
    with pytest.raises(ConfigError, match="max_rows must be 1 or more; got 0"):
        TransformersEngine.load(tiny_policy, max_rows=0)
