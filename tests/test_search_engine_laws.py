"""The laws of engines, one suite for all of them: the same tests run on transformers, scripted, vLLM, vLLM's server.

vLLM's laws run where it is installed (`.ci/vllm`) and are skipped elsewhere. Where an engine is known not to keep a
law, the test says what it keeps instead; `docs/engines.md` has the table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engine_laws import GREEDY, MODELS, VLLM, Subject, first_place, follows, ids_of, only, requests_of, workshop

from verifiers.core import Engine, GenerationRequest, Sampling, StopReason
from verifiers.errors import ConfigError, EngineError
from verifiers.streams import StreamingEngine


@pytest.fixture(params=["transformers", "scripted", "vllm", "server"], scope="session")
def subject(request: pytest.FixtureRequest) -> Subject:
    return workshop(request).subject(request.param)


def test_it_is_an_engine(subject: Subject) -> None:
    assert isinstance(subject.engine, Engine)
    assert isinstance(subject.engine, StreamingEngine) is (subject.name != "scripted")
    assert subject.engine.context_length == 256
    if subject.oracle is not None:
        assert len(subject.eos) == 2
        assert subject.engine.tokenizer.eos_token_id in subject.eos


def test_every_request_gets_its_rows_in_order(subject: Subject) -> None:
    asked = [replace(q, n=1 + i % 3) for i, q in enumerate(requests_of(subject.prefixes))]
    drawn = subject.engine.generate(asked, replace(GREEDY, max_new_tokens=9))
    assert [len(row) for row in drawn] == [q.n for q in asked]
    for request, row in zip(asked, drawn, strict=True):
        alone = subject.engine.generate([replace(request, n=1)], replace(GREEDY, max_new_tokens=9))[0][0]
        assert [c.token_ids for c in row] == [alone.token_ids] * request.n
        assert all(1 <= len(c.token_ids) == len(c.logprobs) <= 9 for c in row)
    assert len({row[0].token_ids for row in drawn}) > 3
    assert subject.engine.generate([], GREEDY) == []


@only(*MODELS)
def test_greedy_is_the_argmax_of_a_full_pass(subject: Subject) -> None:
    for prefix, (c,) in zip(
        subject.prefixes, subject.engine.generate(requests_of(subject.prefixes), GREEDY), strict=True
    ):
        assert list(c.token_ids) == subject.oracle.logits(prefix, c.token_ids).argmax(-1).tolist()
        assert c.logprobs == pytest.approx(subject.oracle.logprobs(prefix, c.token_ids, 0.0), abs=subject.tolerance)


@only(*MODELS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_log_probabilities_are_those_of_a_full_pass(subject: Subject, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, max_new_tokens=20)
    drawn = subject.engine.generate(requests_of(subject.prefixes, n=3), sampling)
    for prefix, row in zip(subject.prefixes, drawn, strict=True):
        for c in row:
            exact = subject.oracle.logprobs(prefix, c.token_ids, temperature)
            # Dividing the logits by the temperature scales their rounding too.
            assert c.logprobs == pytest.approx(exact, abs=subject.tolerance / min(temperature, 1.0))


@only(*MODELS)
@pytest.mark.parametrize("cut", [{"top_k": 9}, {"top_p": 0.8}, {"top_k": 12, "top_p": 0.9}], ids=str)
def test_log_probabilities_under_a_cut(subject: Subject, cut: dict[str, Any]) -> None:
    """transformers: before the cut. vLLM: after it, renormalised, because it reports nothing else."""
    sampling = Sampling(temperature=0.8, max_new_tokens=1, **cut)
    drawn = subject.engine.generate(requests_of(subject.prefixes, n=4), sampling)
    for prefix, row in zip(subject.prefixes, drawn, strict=True):
        after = np.log(np.maximum(subject.oracle.distribution(prefix, sampling), 1e-300))
        before = [subject.oracle.logprobs(prefix, c.token_ids, 0.8)[0] for c in row]
        exact = before if subject.name == "transformers" else [after[c.token_ids[0]] for c in row]
        assert [c.logprobs[0] for c in row] == pytest.approx(exact, abs=subject.tolerance)


def test_draws_depend_on_seed_and_sample_alone(subject: Subject) -> None:
    """For vLLM: token for token here, where the batch changes logits by 1e-6; near-ties may turn in long runs."""
    sampling = Sampling(max_new_tokens=16)
    asked = requests_of(subject.prefixes, n=4)
    whole = ids_of(subject.engine.generate(asked, sampling))
    assert ids_of(subject.engine.generate(asked, sampling)) == whole
    assert ids_of(subject.engine.generate(asked[::-1], sampling))[::-1] == whole
    for request, row in zip(asked[:3], whole, strict=False):
        assert ids_of(subject.engine.generate([request], sampling)) == [row]
        assert len(set(row)) > 1, "samples of one request differ"
    other = ids_of(subject.engine.generate([replace(q, seed=q.seed + 1) for q in asked], sampling))
    assert all(a != b for a, b in zip(other, whole, strict=True))


def test_samples_may_be_drawn_in_pieces(subject: Subject) -> None:
    sampling = Sampling(max_new_tokens=12)
    whole = GenerationRequest(prefix_ids=subject.prefixes[0], n=7, seed=3)
    pieces = [replace(whole, n=n, first=first) for first, n in ((0, 2), (2, 1), (3, 4))]
    drawn = ids_of(subject.engine.generate(pieces[::-1], sampling))[::-1]
    assert [ids for piece in drawn for ids in piece] == ids_of(subject.engine.generate([whole], sampling))[0]


@only(*MODELS)
def test_an_offset_names_other_draws(subject: Subject) -> None:
    sampling = Sampling(max_new_tokens=12)
    at_start = GenerationRequest(prefix_ids=subject.prefixes[2], n=3, seed=3)
    later = replace(at_start, offset=5)
    first, second, again = ids_of(subject.engine.generate([at_start, later, later], sampling))
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert second == again


def test_stop_sequences_end_a_row_where_they_are_complete(subject: Subject) -> None:
    asked, sampling = requests_of(subject.prefixes, n=5), Sampling(max_new_tokens=30)
    free = subject.engine.generate(asked, sampling)
    long = [c.token_ids for row in free for c in row if len(c.token_ids) > 8]
    stops = (long[0][3:5], long[-1][5:6], long[len(long) // 2][2:5])
    drawn = subject.engine.generate(asked, replace(sampling, stop_sequences=stops))
    cut = 0
    for row, free_row in zip(drawn, free, strict=True):
        for c, whole in zip(row, free_row, strict=True):
            end = first_place(whole.token_ids, stops)
            assert c.token_ids == whole.token_ids[:end]
            assert c.logprobs == pytest.approx(whole.logprobs[:end], abs=1e-5)
            assert c.stop_reason is (StopReason.STOP if end is not None else whole.stop_reason)
            cut += end is not None and end < len(whole.token_ids)
    assert cut >= 3
    # A stop sequence must be drawn whole: one that the prefix began does not count.
    first = long[0][0]
    begun = GenerationRequest(prefix_ids=(*subject.prefixes[0], *long[0][:3]), n=1)
    ends = replace(sampling, temperature=0.0, max_new_tokens=6, stop_sequences=((long[0][2], 10_000), (first, 9_999)))
    free_end = subject.engine.generate([begun], replace(ends, stop_sequences=()))[0][0]
    assert subject.engine.generate([begun], ends)[0][0].token_ids == free_end.token_ids


def test_every_end_token_ends_a_row_and_is_kept(subject: Subject) -> None:
    drawn = subject.engine.generate(requests_of(subject.prefixes, n=8), Sampling(max_new_tokens=24))
    rows = [c for row in drawn for c in row]
    assert {c.stop_reason for c in rows} == {StopReason.STOP, StopReason.LENGTH}
    for c in rows:
        assert not subject.eos & set(c.token_ids[:-1])
        assert (c.token_ids[-1] in subject.eos) is (c.stop_reason is StopReason.STOP)
        assert c.stop_reason is StopReason.STOP or len(c.token_ids) == 24
    if subject.oracle is not None:
        own = subject.engine.tokenizer.eos_token_id
        assert any(c.token_ids[-1] in subject.eos - {own} for c in rows), "the checkpoint's second end token ends rows"


def test_a_request_may_ask_for_fewer_tokens(subject: Subject) -> None:
    asked = [
        replace(q, max_new_tokens=most) for q, most in zip(requests_of(subject.prefixes), (1, 4, 99), strict=False)
    ]
    whole = subject.engine.generate([replace(q, max_new_tokens=None) for q in asked], Sampling(max_new_tokens=7))
    drawn = subject.engine.generate(asked, Sampling(max_new_tokens=7))
    assert ids_of(drawn) == [[row[0].token_ids[:most]] for row, most in zip(whole, (1, 4, 7), strict=True)]
    assert (drawn[0][0].stop_reason, len(drawn[0][0].token_ids)) == (StopReason.LENGTH, 1)


@only(*MODELS)
def test_the_context_ends_a_row(subject: Subject) -> None:
    token = next(t for t in range(2, 99) if not set(greedy_tail(subject, t)) & subject.eos)
    drawn = subject.engine.generate(requests_of([(token,) * 253, (token,) * 5]), replace(GREEDY, max_new_tokens=50))
    assert (len(drawn[0][0].token_ids), drawn[0][0].stop_reason) == (3, StopReason.LENGTH)
    assert list(drawn[0][0].token_ids) == greedy_tail(subject, token)
    last = subject.engine.generate(requests_of([(token,) * 255]), GREEDY)[0][0]
    assert (len(last.token_ids), last.stop_reason) == (1, StopReason.LENGTH)


def greedy_tail(subject: Subject, token: int) -> list[int]:
    """The three likeliest tokens in turn after 253 equal ones."""
    ids = [token] * 253
    for _ in range(3):
        ids.append(int(subject.oracle.logits(ids, [0])[0].argmax()))
    return ids[253:]


def test_what_cannot_be_answered_is_refused(subject: Subject) -> None:
    before, one = subject.engine.usage, requests_of(subject.prefixes[:1])[0]
    ask = subject.engine.generate
    with pytest.raises(ConfigError, match="n must be 1 or more; got 0 in request 1"):
        ask([one, replace(one, n=0)], GREEDY)
    with pytest.raises(EngineError, match=r"prefix .*has 256 tokens, but the .*context holds 256"):
        ask([one, replace(one, prefix_ids=one.prefix_ids[:1] * 256)], GREEDY)
    if subject.oracle is not None:
        with pytest.raises(EngineError, match="request 1 has an empty prefix"):
            ask([one, replace(one, prefix_ids=())], GREEDY)
        for name, wrong in (("first", -1), ("offset", -2), ("max_new_tokens", 0)):
            with pytest.raises(ConfigError, match=f"{name} must be . or more; got {wrong} in request 0"):
                ask([replace(one, **{name: wrong})], GREEDY)
    if subject.name in VLLM:
        with pytest.raises(EngineError, match="holds the token id 9999, but the model's ids run from 0 to"):
            ask([replace(one, prefix_ids=(9999,))], GREEDY)
        for temperature in (0.001, 2.5):
            with pytest.raises(ConfigError, match=f"from 0.01 to 2; got Sampling.temperature={temperature}"):
                ask([one], Sampling(temperature=temperature))
    assert subject.engine.usage == before


def test_what_is_paid_is_counted(subject: Subject) -> None:
    asked, before = requests_of(subject.prefixes, n=3), subject.engine.usage
    drawn = subject.engine.generate(asked, Sampling(max_new_tokens=9))
    paid = subject.engine.usage - before
    assert (paid.decoded_tokens, paid.calls) == (sum(len(c.token_ids) for row in drawn for c in row), 1)
    if subject.name in VLLM:
        # Shorter than one block of the prefix cache, so every row reads its prefix.
        assert paid.prefill_tokens == 3 * sum(len(p) for p in subject.prefixes)
    if subject.oracle is not None:
        assert paid.seconds > 0


@only(*VLLM)
def test_tokens_behind_a_stop_sequence_are_paid(subject: Subject) -> None:
    ask, one = subject.engine.generate, requests_of(subject.prefixes[2:3])
    long = ask(one, GREEDY)[0][0].token_ids
    before = subject.engine.usage
    cut = ask(one, replace(GREEDY, stop_sequences=(long[1:3],)))[0][0]
    assert cut.token_ids == long[:3]
    assert 3 <= (subject.engine.usage - before).decoded_tokens <= 8


@only(*VLLM)
def test_a_prefix_that_was_read_is_not_read_again(subject: Subject) -> None:
    prefix = tuple(2 + (7 * k) % 97 for k in range(250))
    reads = []
    for _ in range(2):
        before = subject.engine.usage
        subject.engine.generate([GenerationRequest(prefix_ids=prefix)], Sampling(max_new_tokens=1))
        reads.append((subject.engine.usage - before).prefill_tokens)
    assert reads[0] == 250
    assert reads[1] <= 250 - 128


CUTS = {
    "plain": Sampling(max_new_tokens=1),
    "temperature": Sampling(temperature=0.6, max_new_tokens=1),
    "top-k": Sampling(temperature=1.5, top_k=7, max_new_tokens=1),
    "top-p": Sampling(top_p=0.6, max_new_tokens=1),
    "all": Sampling(temperature=0.8, top_k=12, top_p=0.8, max_new_tokens=1),
}


@only(*MODELS)
@pytest.mark.parametrize("name", CUTS)
def test_first_tokens_follow_the_exact_distribution(subject: Subject, name: str) -> None:
    if subject.name == "server" and name not in ("plain", "all"):
        pytest.skip("one HTTP call a draw: two of the five distributions are drawn over HTTP")
    request = GenerationRequest(prefix_ids=subject.prefixes[2], n=subject.draws, seed=5)
    drawn = [c.token_ids[0] for c in subject.engine.generate([request], CUTS[name])[0]]
    # The seed is fixed, so this passes always or never.
    assert follows(drawn, subject.oracle.distribution(request.prefix_ids, CUTS[name])) > 0.001
