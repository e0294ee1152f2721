"""Prefixes are read once, whatever the order and the call in which they are asked for, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search.engines.prefixes import PrefixStore
from search.engines.transformers_engine import TransformersEngine
from verifiers.core import Continuation, GenerationRequest, Sampling
from verifiers.errors import ConfigError

SAMPLING = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module")
def loaded(tiny_policy: Path) -> TransformersEngine:
    return TransformersEngine.load(tiny_policy, device="cpu", dtype="float32")


def engine(loaded: TransformersEngine, **options: Any) -> TransformersEngine:
    return TransformersEngine(loaded.model, loaded.tokenizer, **options)


@pytest.fixture(scope="module")
def text(tiny_tokenizer: Any) -> tuple[int, ...]:
    ids = tuple(
        tiny_tokenizer("One apple and two apples. Then three more: 1 + 2 = 3.\n\nSo the answer is")["input_ids"]
    )
    assert len(ids) >= 20
    return ids


def nested(text: tuple[int, ...], n: int = 3, first: int = 0) -> list[GenerationRequest]:
    return [GenerationRequest(prefix_ids=text[:k], n=n, seed=k, first=first) for k in (5, 9, 14, 20)]


def ids_of(rows: list[list[Continuation]]) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in row] for row in rows]


def test_a_family_of_prefixes_costs_its_longest(loaded: TransformersEngine, text: tuple[int, ...]) -> None:
    shared, alone = engine(loaded), engine(loaded, prefix_tokens=0)
    assert ids_of(shared.generate(nested(text), SAMPLING)) == ids_of(alone.generate(nested(text), SAMPLING))
    assert shared.usage.prefill_tokens == 19
    assert alone.usage.prefill_tokens == 4 + 8 + 13 + 19
    # A later call finds them all; the store that keeps nothing reads them again.
    before = shared.usage
    assert ids_of(shared.generate(nested(text, first=3), SAMPLING)) == ids_of(
        alone.generate(nested(text, first=3), SAMPLING)
    )
    assert (shared.usage - before).prefill_tokens == 0
    assert alone.usage.prefill_tokens == 2 * (4 + 8 + 13 + 19)


def test_shared_keys_give_the_log_probabilities_of_a_full_pass(
    loaded: TransformersEngine, text: tuple[int, ...]
) -> None:
    for request, row in zip(nested(text), engine(loaded, max_rows=2).generate(nested(text), SAMPLING), strict=True):
        for c in row:
            ids = torch.tensor([[*request.prefix_ids, *c.token_ids]])
            with torch.inference_mode():
                logits = loaded.model(input_ids=ids).logits[0, len(request.prefix_ids) - 1 : -1].double()
            exact = logits.log_softmax(-1).gather(1, torch.tensor(c.token_ids)[:, None])[:, 0]
            assert c.logprobs == pytest.approx(exact.tolist(), abs=1e-5)


def test_a_stream_may_be_drawn_in_pieces(loaded: TransformersEngine, text: tuple[int, ...]) -> None:
    whole = engine(loaded).generate(nested(text, n=6), SAMPLING)
    pieces = engine(loaded)
    parts = [pieces.generate(nested(text, n=n, first=first), SAMPLING) for first, n in ((0, 1), (1, 3), (4, 2))]
    assert [[c for part in parts for c in part[k]] for k in range(4)] == whole


def test_what_was_used_longest_ago_is_dropped_first(loaded: TransformersEngine, text: tuple[int, ...]) -> None:
    small = engine(loaded, prefix_tokens=16)
    one, two, three = (GenerationRequest(prefix_ids=(token, *text[:8])) for token in (40, 41, 42))

    def cost(request: GenerationRequest) -> int:
        before = small.usage
        small.generate([request], SAMPLING)
        return (small.usage - before).prefill_tokens

    assert [cost(one), cost(two), cost(one)] == [8, 8, 0]
    assert [cost(three), cost(one), cost(two)] == [8, 0, 8]


def test_refuses_negative_settings(loaded: TransformersEngine) -> None:
    with pytest.raises(ConfigError, match="prefix_tokens must be 0 or more; got -1"):
        engine(loaded, prefix_tokens=-1)
    with pytest.raises(ConfigError, match="first must be 0 or more; got -2 in request 0"):
        engine(loaded).generate([GenerationRequest(prefix_ids=(3,), first=-2)], SAMPLING)


PREFIXES = st.lists(st.lists(st.integers(0, 2), max_size=6).map(tuple), min_size=1, max_size=12)


@given(calls=st.lists(PREFIXES, min_size=1, max_size=4), room=st.integers(0, 30))
@settings(max_examples=200, deadline=None)
def test_every_prefix_is_found_in_a_text_that_begins_with_it(calls: list[list[tuple[int, ...]]], room: int) -> None:
    store = PrefixStore(room)
    for prefixes in calls:
        store.expect(prefixes)
        for batch in store.missing(prefixes, limit=12):
            store.add(object(), batch, sum(map(len, batch)))
        for prefix in prefixes:
            block, row = store.find(prefix)
            assert block.texts[row][: len(prefix)] == prefix
        store.trim()
        assert sum(block.positions for block in store._blocks) <= room
