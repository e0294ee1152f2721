"""Streams: what is drawn does not depend on when it was asked for, and no slot stands empty while anything waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.labelling import LabelConfig, label
from search.engines.scripted_engine import ScriptedEngine
from search.engines.transformers_engine import TransformersEngine
from verifiers.core import Continuation, GenerationRequest, Problem, Response, Sampling, StopReason, Verdict
from verifiers.errors import ConfigError, EngineError
from verifiers.streams import Finished, Rounds, Stream, open_stream

SAMPLING = Sampling(max_new_tokens=14)


@pytest.fixture(scope="module")
def loaded(tiny_policy: Path) -> TransformersEngine:
    return TransformersEngine.load(tiny_policy, device="cpu", dtype="float32")


def engine(loaded: TransformersEngine, **options: Any) -> TransformersEngine:
    return TransformersEngine(loaded.model, loaded.tokenizer, **options)


@pytest.fixture(scope="module")
def requests(tiny_tokenizer: Any) -> list[GenerationRequest]:
    text = tuple(tiny_tokenizer("One apple and two apples. Then three more: 1 + 2 = 3.\n\nSo the")["input_ids"])
    return [
        GenerationRequest(prefix_ids=text[:k], n=n, seed=k)
        for k, n in ((3, 2), (7, 1), (12, 3), (18, 1), (7, 2), (1, 1))
    ]


def drain(stream: Stream) -> list[Finished]:
    found: list[Finished] = []
    while stream.waiting:
        found += stream.collect()
    assert stream.collect() == []
    return found


def ids_of(row: Sequence[Continuation]) -> list[tuple[int, ...]]:
    return [c.token_ids for c in row]


@given(
    order=st.permutations(range(6)), at_once=st.lists(st.integers(1, 4), min_size=6, max_size=6), rows=st.integers(1, 9)
)
@settings(max_examples=25, deadline=None)
def test_any_order_and_any_time_draws_the_same(
    loaded: TransformersEngine, requests: list[GenerationRequest], order: list[int], at_once: list[int], rows: int
) -> None:
    wanted = [ids_of(row) for row in engine(loaded).generate(requests, SAMPLING)]
    own = engine(loaded, max_rows=rows)
    stream, tickets, found = own.stream(SAMPLING), {}, {}
    left = list(order)
    for count in at_once:
        part, left = left[:count], left[count:]
        tickets |= dict(zip(stream.submit([requests[k] for k in part]), part, strict=True))
        found |= dict(stream.collect())
    found |= dict(drain(stream))
    assert {tickets[ticket]: ids_of(row) for ticket, row in found.items()} == dict(enumerate(wanted))
    assert own.usage.decoded_tokens == sum(len(ids) for row in wanted for ids in row)


def without_end(loaded: TransformersEngine, requests: list[GenerationRequest]) -> GenerationRequest:
    """A request whose first 14 tokens hold no end of sequence."""
    return next(
        replace(q, n=1, seed=seed)
        for q in requests[2:]
        for seed in range(50)
        if len(engine(loaded).generate([replace(q, n=1, seed=seed)], SAMPLING)[0][0].token_ids) == 14
    )


@pytest.mark.parametrize("keep", [False, True])
def test_a_text_drawn_in_pieces_is_the_text_drawn_at_once(
    loaded: TransformersEngine, requests: list[GenerationRequest], keep: bool
) -> None:
    asked = without_end(loaded, requests)
    whole = engine(loaded).generate([asked], SAMPLING)[0][0]
    own = engine(loaded)
    stream = own.stream(SAMPLING, keep=keep)
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    read = []
    for most in (1, 4, 2, 7):
        before = own.usage.prefill_tokens
        stream.submit([replace(asked, prefix_ids=(*asked.prefix_ids, *ids), offset=len(ids), max_new_tokens=most)])
        ((_, (piece,)),) = stream.collect()
        assert (len(piece.token_ids), piece.stop_reason) == (most, StopReason.LENGTH)
        ids, logprobs = (*ids, *piece.token_ids), (*logprobs, *piece.logprobs)
        read.append(own.usage.prefill_tokens - before)
    assert ids == whole.token_ids
    assert logprobs == pytest.approx(whole.logprobs, abs=1e-5)
    # What was kept is not read again; otherwise the longer text is read as a whole.
    length = len(asked.prefix_ids) - 1
    assert read == ([length, 0, 0, 0] if keep else [length, length + 1, length + 5, length + 7])


def test_kept_rows_give_the_log_probabilities_of_a_full_pass(
    loaded: TransformersEngine, requests: list[GenerationRequest]
) -> None:
    stream = engine(loaded, max_rows=3).stream(SAMPLING, keep=True)
    texts = {}
    for ticket, q in zip(stream.submit([replace(q, n=1, max_new_tokens=5) for q in requests]), requests, strict=True):
        texts[ticket] = q.prefix_ids
    for ticket, (piece,) in drain(stream):
        prefix = (*texts[ticket], *piece.token_ids)
        if piece.stop_reason is StopReason.STOP:
            continue
        stream.submit([GenerationRequest(prefix_ids=prefix, max_new_tokens=6)])
        ((_, (more,)),) = drain(stream)
        with torch.inference_mode():
            logits = loaded.model(input_ids=torch.tensor([[*prefix, *more.token_ids]])).logits[0, len(prefix) - 1 : -1]
        exact = logits.double().log_softmax(-1).gather(1, torch.tensor(more.token_ids)[:, None])[:, 0]
        assert more.logprobs == pytest.approx(exact.tolist(), abs=1e-5)


def test_a_free_slot_is_taken_at_once(loaded: TransformersEngine, requests: list[GenerationRequest]) -> None:
    asked = without_end(loaded, requests)
    stream = engine(loaded, max_rows=2).stream(SAMPLING)
    first, second = stream.submit([replace(asked, max_new_tokens=3), replace(asked, max_new_tokens=12)])
    assert [ticket for ticket, _ in stream.collect()] == [first]
    (third,) = stream.submit([replace(asked, max_new_tokens=4)])
    assert [ticket for ticket, _ in stream.collect()] == [third]
    assert stream.passes == 7
    assert [ticket for ticket, _ in stream.collect()] == [second]
    # 3 + 4 passes with both slots taken, 5 more of the long one alone.
    assert (stream.passes, stream.row_passes) == (12, 19)


def test_what_is_cancelled_is_freed_paid_and_never_seen(
    loaded: TransformersEngine, requests: list[GenerationRequest]
) -> None:
    asked = without_end(loaded, requests)
    own = engine(loaded, max_rows=2)
    stream = own.stream(SAMPLING)
    wanted = engine(loaded).generate([asked], SAMPLING)[0][0].token_ids
    short, long, queued, last = stream.submit([replace(asked, max_new_tokens=3), asked, asked, asked])
    assert [ticket for ticket, _ in stream.collect()] == [short]
    stream.cancel([long, queued, short, 99])
    assert stream.waiting == 1
    ((ticket, (whole,)),) = drain(stream)
    assert (ticket, whole.token_ids) == (last, wanted)
    # Three tokens of the finished one, three of the cancelled one, fourteen of the last.
    assert own.usage.decoded_tokens == 3 + 3 + 14


def test_a_refused_request_adds_nothing(loaded: TransformersEngine, requests: list[GenerationRequest]) -> None:
    stream = engine(loaded).stream(SAMPLING)
    with pytest.raises(EngineError, match="request 1 has an empty prefix"):
        stream.submit([requests[0], GenerationRequest(prefix_ids=())])
    with pytest.raises(ConfigError, match="offset must be 0 or more; got -1 in request 0"):
        stream.submit([replace(requests[0], offset=-1)])
    with pytest.raises(ConfigError, match="max_new_tokens must be 1 or more; got 0 in request 0"):
        stream.submit([replace(requests[0], max_new_tokens=0)])
    assert stream.waiting == 0
    assert stream.collect() == []


class Judge:
    """Right is what boxes 1."""

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        return [Verdict.correct("") if "{1}" in r.text else Verdict.incorrect("") for r in responses]


class TestEnginesWithoutStreams:
    texts = ("One.\n\nTwo.\n\n\\boxed{1}", "One.\n\nTwo.\n\n\\boxed{2}", "One.\n\nOther.\n\n\\boxed{2}")
    problems = tuple(Problem(id=f"p{n}", prompt=f"Question {n}\n") for n in range(4))

    def scripted(self) -> ScriptedEngine:
        return ScriptedEngine({str(p.prompt): self.texts for p in self.problems})

    def test_answer_in_rounds(self) -> None:
        asked = [
            GenerationRequest(prefix_ids=tuple(f"Question {n}\n".encode()), n=n + 1, seed=n, max_new_tokens=6)
            for n in range(3)
        ]
        stream = open_stream(self.scripted(), SAMPLING)
        assert isinstance(stream, Rounds)
        first, second, third = stream.submit(asked)
        stream.cancel([second, 7])
        assert stream.waiting == 2
        whole = self.scripted().generate(asked, SAMPLING)
        assert drain(stream) == [(first, whole[0]), (third, whole[2])]
        assert all(len(c.token_ids) == 6 for row in whole for c in row)

    def test_give_the_same_labels(self, loaded: TransformersEngine) -> None:
        class Wrapped:
            """The same engine without its streams."""

            def __init__(self, inner: TransformersEngine) -> None:
                self.tokenizer, self.generate, self.context_length = inner.tokenizer, inner.generate, 256

        problems = [Problem(id=f"p{n}", prompt="One apple and two apples. ") for n in range(3)]
        responses = [Response(problem_id=p.id, text="1 + 2\n\n3 apples\n\nSo\n\nThen three") for p in problems]
        config = LabelConfig(trials=5, method="early_stop", max_new_tokens=9)

        class Odd(Judge):
            def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
                return [Verdict.correct("") if len(r.text) % 5 == 0 else Verdict.incorrect("") for r in responses]

        def rows(own: Any, **options: Any) -> list[Any]:
            return list(label(problems, responses, engine=own, verifier=Odd(), config=config, **options))

        streamed = rows(engine(loaded, max_rows=4))
        assert rows(Wrapped(engine(loaded))) == rows(engine(loaded), chunk=1) == streamed
        drawn = [n for (row,) in streamed for n in row.trials[:-1]]
        assert min(drawn) < 5 and len(set(drawn)) > 1
