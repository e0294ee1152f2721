"""The server engine against a small server that misbehaves on purpose: what it repeats, what it refuses, what it says.

No vLLM is needed here; the laws against a real `vllm serve` are in test_search_engine_laws.py.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import search.engines.server_calls as calls
from search.engines.vllm_server import VllmServer
from verifiers.core import Engine, GenerationRequest, Sampling, StopReason, Usage
from verifiers.errors import ConfigError, EngineError, MissingFileError
from verifiers.streams import StreamingEngine

SAMPLING = Sampling(max_new_tokens=6)
ASKED = GenerationRequest(prefix_ids=(5, 6, 7), n=2, seed=4)
DRAWN = [11, 12, 13, 14, 15, 16]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "FIRST_PAUSE", 0.01)


class Fake:
    """A server whose answers can be replaced by path; it keeps what it was asked."""

    def __init__(self, root: Path, tokenizer: Any) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.keys: set[str | None] = set()
        self.hung_up = threading.Event()
        self.answers: dict[str, Callable[[Handler, Any], None]] = {
            "/v1/models": lambda h, _: h.whole(
                {"data": [{"id": "tiny", "root": str(root), "max_model_len": 256}, {"id": "lora", "max_model_len": 9}]}
            ),
            "/tokenize": lambda h, b: h.whole({"tokens": tokenizer(b["prompt"])["input_ids"]}),
            "/v1/completions": lambda h, b: h.events(pieces(b)),
        }
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.fake = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def count(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)


class Handler(BaseHTTPRequestHandler):
    """Hands every request to the fake's answer for its path."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        fake = self.server.fake  # type: ignore[attr-defined]
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(data) if data else None
        fake.asked.append((self.path, body))
        fake.keys.add(self.headers.get("Authorization"))
        if self.path not in fake.answers:
            return self.whole({"detail": "Not Found"}, status=404)
        try:
            fake.answers[self.path](self, body)
        except OSError:
            fake.hung_up.set()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def send(self, data: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(data)

    def whole(self, body: Any, status: int = 200) -> None:
        self.send(body if isinstance(body, bytes) else json.dumps(body).encode(), "application/json", status)

    def events(self, events: Any, *, pause: float = 0.0, done: bool = True) -> None:
        self.send(b"", "text/event-stream")
        for event in events:
            self.wfile.write(b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n")
            self.wfile.flush()
            time.sleep(pause)
        if done:
            self.wfile.write(b"data: [DONE]\n\n")


def pieces(body: Any, *, size: int = 1, reason: str = "length", **changes: Any) -> Iterator[dict[str, Any]]:
    """A proper streamed answer; `changes` replace fields of every choice."""
    ids = DRAWN[: body["max_tokens"]]
    for at in range(0, len(ids), size):
        part = ids[at : at + size]
        choice = {"index": 0, "token_ids": part, "logprobs": {"token_logprobs": [-0.5] * len(part)}}
        choice["finish_reason"] = reason if at + size >= len(ids) else None
        choice["prompt_token_ids"] = body["prompt"] if at == 0 else None
        yield {"model": "tiny", "choices": [{**choice, **changes}]}
    details = {"prompt_tokens": 3, "completion_tokens": len(ids), "prompt_tokens_details": {"cached_tokens": 1}}
    yield {"model": "tiny", "choices": [], "usage": details}


@pytest.fixture
def fake(tiny_policy: Path, tiny_tokenizer: Any) -> Iterator[Fake]:
    made = Fake(tiny_policy, tiny_tokenizer)
    # Many fakes live for milliseconds; the default half second to stop each would be most of the suite.
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def engine(fake: Fake, **options: Any) -> VllmServer:
    return VllmServer(fake.url, **{"timeout": 5.0, "retries": 2, "rows": 4, **options})


def test_rows_come_back_as_they_were_drawn(fake: Fake, tiny_policy: Path) -> None:
    own = VllmServer(f"{fake.url}/v1/", rows=4, api_key="secret")
    assert isinstance(own, Engine) and isinstance(own, StreamingEngine)
    assert (own.model, own.context_length, own.max_rows) == ("tiny", 256, 4)
    ((first, second),) = own.generate([ASKED], SAMPLING)
    assert first.token_ids == second.token_ids == tuple(DRAWN)
    assert (first.logprobs, first.stop_reason) == ((-0.5,) * 6, StopReason.LENGTH)
    # Two rows of six tokens; of three prompt tokens each, one was in the server's cache.
    assert replace(own.usage, seconds=0.0) == Usage(prefill_tokens=4, decoded_tokens=12, calls=1)
    bodies = [body for path, body in fake.asked if path == "/v1/completions"]
    assert [body["prompt"] for body in bodies] == [[5, 6, 7]] * 2
    assert len({body["seed"] for body in bodies}) == 2
    assert fake.keys == {"Bearer secret"}
    own.close()


def test_a_server_that_is_away(tiny_policy: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(EngineError) as caught:
        VllmServer(f"http://127.0.0.1:{port}", retries=2)
    assert str(caught.value) == (
        f"the server at http://127.0.0.1:{port} cannot be reached (Connection refused) (3 tries of GET /v1/models); "
        "check that it is running: vllm serve MODEL --logprobs-mode processed_logprobs"
    )


def test_a_server_that_is_silent_is_not_asked_again(fake: Fake) -> None:
    own, release = engine(fake, timeout=0.3), threading.Event()
    fake.answers["/v1/completions"] = lambda h, b: (release.wait(5), None)[1]
    with pytest.raises(EngineError, match=r"was silent for 0\.3 s \(POST /v1/completions\); give it fewer rows"):
        own.generate([replace(ASKED, n=1)], SAMPLING)
    release.set()
    assert fake.count("/v1/completions") == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(fake: Fake, status: int) -> None:
    own, good = engine(fake), fake.answers["/v1/completions"]

    def twice_bad(handler: Handler, body: Any) -> None:
        if fake.count("/v1/completions") <= 2:
            handler.whole({"error": {"message": "a moment"}}, status)
        else:
            good(handler, body)

    fake.answers["/v1/completions"] = twice_bad
    assert own.generate([replace(ASKED, n=1)], SAMPLING)[0][0].token_ids == tuple(DRAWN)
    assert fake.count("/v1/completions") == 3
    fake.answers["/v1/completions"] = lambda h, _: h.whole({"error": {"message": "never"}}, status)
    with pytest.raises(EngineError, match=rf"answered with status {status}: never \(3 tries of POST"):
        own.generate([replace(ASKED, n=1)], SAMPLING)


def test_a_refusal_is_final(fake: Fake) -> None:
    own = engine(fake)
    fake.answers["/v1/completions"] = lambda h, _: h.whole({"error": {"message": "no\nsuch\nthing"}}, 400)
    with pytest.raises(EngineError, match="refused POST /v1/completions with status 400: no such thing"):
        own.generate([replace(ASKED, n=1)], SAMPLING)
    assert fake.count("/v1/completions") == 1


def test_a_broken_stream_is_drawn_again_and_paid_twice(fake: Fake) -> None:
    own, good = engine(fake), fake.answers["/v1/completions"]

    def breaks(handler: Handler, body: Any) -> None:
        if fake.count("/v1/completions") == 1:
            handler.events(list(pieces(body))[:2], done=False)
        elif fake.count("/v1/completions") == 2:
            handler.events([{"error": {"message": "engine hiccup", "code": 500}}])
        else:
            good(handler, body)

    fake.answers["/v1/completions"] = breaks
    assert own.generate([replace(ASKED, n=1)], SAMPLING)[0][0].token_ids == tuple(DRAWN)
    assert own.usage.decoded_tokens == 2 + 6


BAD_ANSWERS = {
    r"not JSON \('<html>.*check that the address is that of a vLLM server": lambda h, b: h.whole(b"<html>hello"),
    r"not JSON \('\{\"oops": lambda h, b: h.events([b'{"oops']),
    "something that is no completion": lambda h, b: h.whole({"hello": 1}),
    "gave no token ids; it must be vLLM": lambda h, b: h.events(pieces(b, token_ids=None)),
    "gave 0 log-probabilities for 1 tokens": lambda h, b: h.events(pieces(b, logprobs=None)),
    "drew the token id 99999, but the tokenizer": lambda h, b: h.events(pieces(b, token_ids=[99999])),
    r"read another prompt than was sent \(2 tokens instead of 3\)": lambda h, b: h.events(
        pieces(b, prompt_token_ids=[5, 6])
    ),
    "ended a row with 'abort'": lambda h, b: h.events(pieces(b, reason="abort")),
    "ended an answer without a finish_reason": lambda h, b: h.events(list(pieces(b))[:2]),
    "answered for model 'other', but 'tiny' was asked": lambda h, b: h.events([{"model": "other", "choices": []}]),
}


@pytest.mark.parametrize("said", BAD_ANSWERS)
def test_an_answer_that_makes_no_sense_is_said(fake: Fake, said: str) -> None:
    own = engine(fake)
    fake.answers["/v1/completions"] = BAD_ANSWERS[said]
    stream = own.stream(SAMPLING)
    stream.submit([ASKED, ASKED])
    with pytest.raises(EngineError, match=f"^the server at {fake.url} .*{said}"):
        stream.collect()
    assert stream.waiting == 0
    assert stream.collect() == []


def test_the_wrong_server_or_tokenizer_is_named(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="serves 'tiny', 'lora', not 'huge'; give one of these"):
        engine(fake, model="huge")
    with pytest.raises(MissingFileError, match=r"no checkpoint folder at .*/absent .*; give tokenizer= a folder"):
        engine(fake, tokenizer=tmp_path / "absent")
    fake.answers["/tokenize"] = lambda h, _: h.whole({"tokens": [1, 2, 3]})
    with pytest.raises(EngineError, match=r"cut the same text into different tokens \(\[1, 2, 3\]…"):
        engine(fake)
    del fake.answers["/tokenize"]
    assert engine(fake).model == "tiny", "a server without /tokenize is not asked"
    for listed, said in (({"data": []}, "lists no models"), ({"data": [{"id": "tiny"}]}, "does not say the context")):
        fake.answers["/v1/models"] = lambda h, _, listed=listed: h.whole(listed)  # type: ignore[misc]
        with pytest.raises(EngineError, match=said):
            engine(fake)


@pytest.mark.parametrize("honest", [True, False])
def test_probabilities_of_another_temperature_are_refused(fake: Fake, honest: bool) -> None:
    own, good = engine(fake), fake.answers["/v1/completions"]

    def answer(handler: Handler, body: Any) -> None:
        if body.get("stream"):
            return good(handler, body)
        top = -1.0 / body["temperature"] if honest else -1.0
        choice = {"token_ids": [3], "logprobs": {"token_logprobs": [top], "top_logprobs": [{"x": 0.0, "y": top}]}}
        handler.whole({"model": "tiny", "choices": [{**choice, "finish_reason": "length"}]})

    fake.answers["/v1/completions"] = answer
    for temperature in (0.0, 1.0):
        own.generate([ASKED], replace(SAMPLING, temperature=temperature))
    assert fake.count("/v1/completions") == 4
    if not honest:
        with pytest.raises(EngineError, match=r"temperature is 0\.7; start it with --logprobs-mode processed_logprobs"):
            own.stream(replace(SAMPLING, temperature=0.7))
        return
    for _ in range(2):
        own.generate([ASKED], replace(SAMPLING, temperature=0.7))
    assert fake.count("/v1/completions") == 4 + 2 + 4, "it is asked once"


def test_a_stop_sequence_and_a_cancellation_hang_up(fake: Fake) -> None:
    own = engine(fake)

    def endless(handler: Handler, body: Any) -> None:
        choice = {"token_ids": [21], "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": None}
        first = [{"model": "tiny", "choices": [{**choice, "token_ids": [token]}]} for token in (11, 12)]
        handler.events([*first, *[{"model": "tiny", "choices": [choice]}] * 1000], pause=0.005)

    fake.answers["/v1/completions"] = endless
    stop = replace(SAMPLING, max_new_tokens=99, stop_sequences=((12, 21), (13,)))
    (row,) = own.generate([replace(ASKED, n=1)], stop)[0]
    assert (row.token_ids, row.stop_reason) == ((11, 12, 21), StopReason.STOP)
    assert fake.hung_up.wait(30)
    assert own.usage.decoded_tokens == 3
    fake.hung_up.clear()
    stream = own.stream(SAMPLING)
    tickets = stream.submit([ASKED] * 5)
    until = time.monotonic() + 30
    while fake.count("/v1/completions") < 2 and time.monotonic() < until:
        time.sleep(0.01)
    stream.cancel(tickets)
    assert fake.hung_up.wait(30)
    assert (stream.waiting, stream.collect()) == (0, [])
    own.close()
    # One row before, and of ten cancelled ones at most as many as there are threads.
    assert 2 <= fake.count("/v1/completions") <= 1 + 4, "what waited for a thread is not asked"


def test_weights_are_replaced_only_where_the_server_allows_it(fake: Fake) -> None:
    own = engine(fake)
    with pytest.raises(EngineError, match="cannot replace its weights; start it with VLLM_SERVER_DEV_MODE=1"):
        own.reload("/models/next")
    fake.answers |= dict.fromkeys(("/collective_rpc", "/reset_prefix_cache"), lambda h, _: h.whole({"results": [None]}))
    own.reload("/models/next")
    assert fake.asked[-2][1] == {"method": "reload_weights", "kwargs": {"weights_path": "/models/next"}}
    assert fake.asked[-1][0] == "/reset_prefix_cache"


def test_settings_are_checked() -> None:
    for options, said in (
        ({"rows": 0}, "rows must be 1 or more; got 0"),
        ({"timeout": 0}, "timeout must be more than 0 seconds; got 0"),
        ({"retries": -1}, "retries must be 0 or more; got -1"),
    ):
        with pytest.raises(ConfigError, match=said):
            VllmServer("http://127.0.0.1:9", **options)
    with pytest.raises(ConfigError, match="must look like http://host:8000; got 'localhost:8000'"):
        VllmServer("localhost:8000")
