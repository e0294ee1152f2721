"""The laws of streams, loops and replaced weights, on every engine that has them (see test_search_engine_laws.py)."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from engine_laws import GREEDY, MODELS, VLLM, Oracle, Subject, ids_of, need_vllm, only, requests_of, workshop

from search.engines.rows import RepetitionRule, Row, Stops
from search.engines.server_calls import Hangup
from search.engines.vllm_engine import VllmEngine
from search.engines.vllm_server import VllmServer
from verifiers.core import GenerationRequest, Sampling, StopReason
from verifiers.errors import ConfigError, EngineError, MissingExtraError, MissingFileError, ModelError
from verifiers.streams import open_stream


@pytest.fixture(params=["transformers", "scripted", "vllm", "server"], scope="session")
def subject(request: pytest.FixtureRequest) -> Subject:
    return workshop(request).subject(request.param)


def test_streams_draw_what_generate_draws(subject: Subject) -> None:
    sampling, asked = Sampling(max_new_tokens=14), requests_of(subject.prefixes, n=2)
    wanted = ids_of(subject.engine.generate(asked, sampling))
    stream = open_stream(subject.engine, sampling, keep=True)
    tickets = dict(zip(stream.submit(asked[:2]), range(2), strict=True))
    found = dict(stream.collect())
    tickets |= dict(zip(stream.submit(asked[2:]), range(2, 6), strict=True))
    assert stream.waiting == 6 - len(found)
    while stream.waiting:
        found |= dict(stream.collect())
    assert stream.collect() == []
    assert {tickets[ticket]: [c.token_ids for c in row] for ticket, row in found.items()} == dict(enumerate(wanted))


@only(*MODELS)
def test_streams_of_one_engine_do_not_mix(subject: Subject) -> None:
    asked, hot = requests_of(subject.prefixes, n=2), Sampling(temperature=1.5, max_new_tokens=14)
    wanted = [ids_of(subject.engine.generate(asked, sampling)) for sampling in (GREEDY, hot)]
    streams = [open_stream(subject.engine, sampling) for sampling in (GREEDY, hot)]
    tickets = [stream.submit(asked) for stream in streams]
    found: list[dict[int, list[tuple[int, ...]]]] = [{}, {}]
    while any(stream.waiting for stream in streams):
        for rows, stream in zip(found, reversed(streams), strict=True):
            rows |= {ticket: [c.token_ids for c in row] for ticket, row in stream.collect()}
    assert [[rows[t] for t in own] for rows, own in zip(reversed(found), tickets, strict=True)] == wanted


@only(*MODELS)
def test_a_short_request_is_collected_before_a_long_one(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    never = next(q for q in requests_of(subject.prefixes * 9) if not ends_within(subject, q, 60))
    release = threading.Event()
    if subject.name == "server":
        hold_back(subject.engine, 60, release, monkeypatch)
    stream = open_stream(subject.engine, Sampling(max_new_tokens=60))
    long, short = stream.submit([never, replace(never, max_new_tokens=2)])
    assert [ticket for ticket, _ in stream.collect()] == [short]
    (later,) = stream.submit([replace(never, max_new_tokens=3)])
    assert [ticket for ticket, _ in stream.collect()] == [later]
    release.set()
    assert [ticket for ticket, _ in stream.collect()] == [long]


def hold_back(engine: VllmServer, limit: int, release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of that many tokens end once released. A server decodes on, whether or not anybody collects: on a busy
    machine a long row may end before the test looks for the short one.
    """
    draw = engine.draw

    def held(row: Row, body: dict[str, Any], stops: Stops, hangup: Hangup) -> StopReason:
        reason = draw(row, body, stops, hangup)
        assert row.limit != limit or release.wait(60)
        return reason

    monkeypatch.setattr(engine, "draw", held)


def ends_within(subject: Subject, request: GenerationRequest, most: int) -> bool:
    return len(subject.engine.generate([request], Sampling(max_new_tokens=most))[0][0].token_ids) < most


@only(*MODELS)
def test_what_is_cancelled_is_never_seen(subject: Subject) -> None:
    greedy = replace(GREEDY, max_new_tokens=200)
    rows = ids_of(subject.engine.generate(requests_of(subject.prefixes), greedy))
    asked, wanted = max(zip(requests_of(subject.prefixes), rows, strict=True), key=lambda pair: len(pair[1][0]))
    assert len(wanted[0]) >= 100
    before = subject.engine.usage
    stream = subject.engine.stream(greedy)
    with pytest.raises(EngineError, match="request 1 has an empty prefix"):
        stream.submit([asked, replace(asked, prefix_ids=())])
    assert stream.waiting == 0
    kept, *others = stream.submit([asked, *(replace(asked, n=9) for _ in range(20))])
    stream.cancel([*others, 999])
    assert stream.waiting == 1
    assert [(ticket, [c.token_ids for c in row]) for ticket, row in stream.collect()] == [(kept, wanted)]
    assert stream.collect() == []
    stream.cancel([kept])
    if subject.name == "vllm":
        assert not subject.engine.llm.llm_engine.has_unfinished_requests()
    # Nothing of the cancelled requests turns up later, and a new one does not wait for them.
    assert ids_of(subject.engine.generate([asked], greedy))[0] == wanted
    drawn = (subject.engine.usage - before).decoded_tokens - 2 * len(wanted[0])
    assert drawn < 20 * 9 * len(wanted[0]) / 2, "what is cancelled is not drawn to its end"


@only(*MODELS)
def test_a_loop_ends_a_row_where_one_asks_for_it(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, long = requests_of(subject.prefixes), replace(GREEDY, max_new_tokens=150)
    free = subject.engine.generate(asked, long)
    monkeypatch.setattr(subject.engine, "repetition", RepetitionRule(longest=20, times=3))
    ended = 0
    for (c,), (whole,) in zip(subject.engine.generate(asked, long), free, strict=True):
        looping = [at for at in range(1, len(whole.token_ids) + 1) if loops(whole.token_ids[:at], 20, 3)]
        end = min(looping, default=len(whole.token_ids))
        assert c.token_ids == whole.token_ids[:end]
        assert (c.stop_reason is StopReason.REPETITION) is (end < len(whole.token_ids))
        ended += c.stop_reason is StopReason.REPETITION
    assert ended >= 2
    with pytest.raises(ConfigError, match="times must be 2 or more; got 1"):
        RepetitionRule(longest=4, times=1)
    with pytest.raises(ConfigError, match="got shortest 5 and longest 4"):
        RepetitionRule(longest=4, times=2, shortest=5)


def loops(ids: tuple[int, ...], longest: int, times: int) -> bool:
    return any(
        len(ids) >= size * times and ids[-size * times :] == ids[-size:] * times for size in range(1, longest + 1)
    )


@only(*VLLM)
def test_reloaded_weights_are_drawn_with(subject: Subject, request: pytest.FixtureRequest) -> None:
    """Last, and undone, for the engine serves all tests. The long prefix would come from the cache if it were kept."""
    checkpoints = workshop(request).checkpoints
    asked = requests_of([*subject.prefixes, tuple(2 + (7 * k) % 97 for k in range(200))])
    first = ids_of(subject.engine.generate(asked, GREEDY))
    other = Oracle(checkpoints[1])
    try:
        subject.engine.reload(checkpoints[1])
        for q, (c,) in zip(asked, subject.engine.generate(asked, GREEDY), strict=True):
            assert list(c.token_ids) == other.logits(q.prefix_ids, c.token_ids).argmax(-1).tolist()
            assert c.logprobs == pytest.approx(other.logprobs(q.prefix_ids, c.token_ids, 0.0), abs=1e-3)
    finally:
        subject.engine.reload(checkpoints[0])
    assert ids_of(subject.engine.generate(asked, GREEDY)) == first


@only("vllm")
def test_weights_that_do_not_fit_are_refused(
    subject: Subject, request: pytest.FixtureRequest, tiny_policy: Path, tmp_path: Path
) -> None:
    with pytest.raises(MissingFileError, match="no checkpoint folder at"):
        subject.engine.reload(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"cannot take the place of .*: weight .* has shape"):
        subject.engine.reload(tiny_policy)
    stream = subject.engine.stream(GREEDY)
    tickets = stream.submit(requests_of(subject.prefixes))
    with pytest.raises(EngineError, match="cannot be replaced while 6 rows are decoding"):
        subject.engine.reload(workshop(request).checkpoints[1])
    stream.cancel(tickets)


@only("vllm")
def test_it_knows_its_size(subject: Subject) -> None:
    assert subject.engine.parameters == sum(p.numel() for p in subject.oracle.model.parameters())
    assert subject.engine.max_rows == 64


def test_without_vllm_the_remedy_is_named(tiny_policy: Path) -> None:
    try:
        need_vllm()
    except pytest.skip.Exception:
        with pytest.raises(MissingExtraError, match=r"pip install 'rewardkit\[vllm\]'"):
            VllmEngine.load(tiny_policy)
