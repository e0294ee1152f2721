"""The scripted engine obeys the engine contract: script, stops, limits, counters, independence."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.engines.scripted_engine import ByteTokenizer, ScriptedEngine
from verifiers.core import Continuation, Engine, GenerationRequest, Sampling, StopReason, Tokenizer, Usage
from verifiers.errors import ConfigError, EngineError

SCRIPT = {"Q: ": ["one\n\ntwo", "one\n\nthree", "four"], "Ü? ": ["Größe €5"]}
GREEDY = Sampling(temperature=0.0, max_new_tokens=100)


def ask(text: str | bytes, *, n: int = 1, seed: int = 0) -> GenerationRequest:
    ids = text if isinstance(text, bytes) else text.encode()
    return GenerationRequest(prefix_ids=tuple(ids), n=n, seed=seed)


def only(engine: ScriptedEngine, text: str | bytes, sampling: Sampling = GREEDY) -> Continuation:
    return engine.generate([ask(text)], sampling)[0][0]


def test_it_is_an_engine_with_a_tokenizer() -> None:
    engine = ScriptedEngine(SCRIPT, context_length=77)
    assert isinstance(engine, Engine)
    assert isinstance(engine.tokenizer, Tokenizer)
    assert engine.context_length == 77


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode([*ids, 256, 257]) == text
    assert len(ids) == len(text.encode())


def test_greedy_takes_the_first_text_and_is_certain_of_it() -> None:
    found = only(ScriptedEngine(SCRIPT), "Q: ")
    assert found.token_ids == (*b"one\n\ntwo", 256)
    assert found.logprobs == (0.0,) * 9
    assert found.stop_reason is StopReason.STOP


def test_a_prefix_inside_a_text_goes_on_with_the_texts_that_fit() -> None:
    engine = ScriptedEngine(SCRIPT)
    drawn = engine.generate([ask("Q: one\n\nt", n=60)], Sampling())[0]
    texts = Counter(bytes(c.token_ids[:-1]) for c in drawn)
    assert set(texts) == {b"wo", b"hree"}
    assert 15 <= texts[b"wo"] <= 45  # binomial(60, 1/2): four deviations are 15.5
    assert {c.logprobs[0] for c in drawn} == {math.log(1 / 2)}
    assert only(engine, "Q: four").token_ids == (256,)


def test_log_probabilities_are_those_of_the_draw() -> None:
    drawn = ScriptedEngine({"p": ["a", "a", "b"]}).generate([ask("p", n=300)], Sampling())[0]
    share = Counter(c.token_ids[0] for c in drawn)[ord("a")] / 300
    assert share == pytest.approx(2 / 3, abs=0.11)  # four deviations
    assert {c.token_ids[0]: math.exp(c.logprobs[0]) for c in drawn} == pytest.approx({ord("a"): 2 / 3, ord("b"): 1 / 3})


def test_a_prefix_may_be_cut_inside_a_character() -> None:
    engine = ScriptedEngine(SCRIPT)
    whole = "Ü? Größe €5".encode()
    for cut in range(len("Ü? ".encode()), len(whole)):
        assert only(engine, whole[:cut]).token_ids == (*whole[cut:], 256)


def test_stop_sequences_and_limits() -> None:
    engine = ScriptedEngine(SCRIPT, context_length=20)
    stop = Sampling(temperature=0.0, max_new_tokens=50, stop_sequences=(tuple(b"\n\n"), tuple(b"wo")))
    assert (only(engine, "Q: ", stop).token_ids, only(engine, "Q: ", stop).stop_reason) == (
        tuple(b"one\n\n"),
        StopReason.STOP,
    )
    assert only(engine, "Q: one\n\n", stop).token_ids == tuple(b"two")
    short = only(engine, "Q: ", Sampling(temperature=0.0, max_new_tokens=4))
    assert (short.token_ids, short.stop_reason) == (tuple(b"one\n"), StopReason.LENGTH)
    exact = only(engine, "Q: ", Sampling(temperature=0.0, max_new_tokens=9))
    assert (len(exact.token_ids), exact.stop_reason) == (9, StopReason.STOP)
    both = Sampling(temperature=0.0, max_new_tokens=5, stop_sequences=(tuple(b"\n\n"),))
    assert only(engine, "Q: ", both).stop_reason is StopReason.STOP


def test_the_context_bounds_a_row() -> None:
    engine = ScriptedEngine({"Q: ": ["abcdefgh"]}, context_length=7)
    found = only(engine, "Q: ")
    assert (found.token_ids, found.stop_reason) == (tuple(b"abcd"), StopReason.LENGTH)
    with pytest.raises(EngineError, match="the prefix has 7 tokens, but the engine's context holds 7"):
        only(engine, "Q: abcd")


def test_a_sample_depends_on_its_seed_and_number_alone() -> None:
    alone = [ScriptedEngine(SCRIPT).generate([ask("Q: ", n=8, seed=s)], Sampling())[0] for s in range(6)]
    together = ScriptedEngine(SCRIPT).generate(
        [ask("Q: ", n=8 if s % 2 else 3, seed=s) for s in reversed(range(6))], Sampling()
    )
    for seed, drawn in zip(reversed(range(6)), together, strict=True):
        assert drawn == alone[seed][: len(drawn)]
    assert len({tuple(c.token_ids for c in drawn) for drawn in alone}) > 1


def test_what_is_paid_is_counted() -> None:
    engine = ScriptedEngine(SCRIPT)
    engine.generate([ask("Q: ", n=2), ask("Q: one")], GREEDY)
    assert engine.usage == Usage(prefill_tokens=3 + 6, decoded_tokens=2 * 9 + 6, calls=1)
    only(engine, "Q: four")
    assert engine.usage == Usage(prefill_tokens=16, decoded_tokens=25, calls=2)


def test_what_is_not_in_the_script_is_refused() -> None:
    engine = ScriptedEngine(SCRIPT)
    with pytest.raises(EngineError, match=r"no scripted text begins with 'Q: five'; add one to the script"):
        only(engine, "Q: five")
    with pytest.raises(ConfigError, match="n must be 1 or more; got 0 in request 1"):
        engine.generate([ask("Q: "), ask("Q: ", n=0)], GREEDY)
