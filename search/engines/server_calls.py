"""Calls to an OpenAI-compatible server over HTTP with the standard library: retries, time-outs, streamed answers.

A call that cannot reach the server, or is answered with 429 or 5xx, is made again after 0.5, 1, 2, … seconds (at most
`retries` times); a 4xx never is, for it would fail again. `timeout` bounds the seconds in which nothing comes, not the
whole answer: a long row that is decoding is not slow. What goes wrong is one EngineError that names the address.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from verifiers.errors import ConfigError, EngineError

FIRST_PAUSE = 0.5
"""Seconds before the first repetition; doubled each time, at most `LONGEST_PAUSE`."""
LONGEST_PAUSE = 30.0


class Hangup:
    """Lets another thread end a call: the connection is cut, and the server stops drawing for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._event = threading.Event()

    @property
    def done(self) -> bool:
        """Whether the call was ended."""
        return self._event.is_set()

    def hold(self, connected: socket.socket | None) -> None:
        """Remember the connection of the call that is being made."""
        with self._lock:
            self._socket = connected
            if self.done:
                self._cut()

    def end(self) -> None:
        """End the call, now or when it starts."""
        with self._lock:
            self._event.set()
            self._cut()

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the end."""
        self._event.wait(seconds)

    def _cut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the other side was quicker
                self._socket.shutdown(socket.SHUT_RDWR)


class _Refused(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Server:
    """One address. Calls may be made from many threads at once; each has a connection of its own."""

    def __init__(self, url: str, *, timeout: float, retries: int, api_key: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"the address of a server must look like http://host:8000; got {url!r}")
        if timeout <= 0:
            raise ConfigError(f"timeout must be more than 0 seconds; got {timeout!r}")
        if retries < 0:
            raise ConfigError(f"retries must be 0 or more; got {retries!r}")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self.timeout, self.retries = timeout, retries
        self._parts = parts
        self._base = urlsplit(self.url).path
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self._repeat("GET", path, None, self._whole, Hangup())

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that answers a JSON body; None where the answer is empty."""
        return self._repeat("POST", path, body, self._whole, Hangup())

    def known(self, path: str, body: dict[str, Any]) -> Any:
        """Like `post`, but None where the server has no such path."""
        try:
            return self.post(path, body)
        except EngineError as error:
            if isinstance(error.__cause__, _Refused) and error.__cause__.status in (404, 405):
                return None
            raise

    def events(self, path: str, body: dict[str, Any], take: Callable[[Iterator[Any]], Any], hangup: Hangup) -> Any:
        """Post, and give the streamed JSON events to `take`; it is called anew, from the first event, on each try."""

        def read(answer: http.client.HTTPResponse) -> Any:
            return take(self._events(answer))

        return self._repeat("POST", path, body, read, hangup)

    def garbage(self, what: str) -> EngineError:
        """The error for an answer that makes no sense."""
        return EngineError(f"the server at {self.url} {what}; check that the address is that of a vLLM server")

    def _repeat(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        read: Callable[[http.client.HTTPResponse], Any],
        hangup: Hangup,
    ) -> Any:
        pause, last, reason = FIRST_PAUSE, "", Exception()
        for tries in range(self.retries + 1):
            try:
                return self._once(method, path, body, read, hangup)
            except TimeoutError as error:
                raise EngineError(
                    f"the server at {self.url} was silent for {self.timeout:g} s ({method} {path}); give it fewer "
                    "rows at once (rows=), more time (timeout=), or look at its log"
                ) from error
            except _Refused as error:
                if error.status != 429 and error.status < 500:
                    raise EngineError(
                        f"the server at {self.url} refused {method} {path} with status {error.status}: {error}"
                    ) from error
                last, reason = f"answered with status {error.status}: {error}", error
            except (OSError, http.client.HTTPException) as failed:
                if hangup.done:
                    raise
                last, reason = f"cannot be reached ({_spelled(failed)})", failed
            if tries < self.retries:
                hangup.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            if hangup.done:
                raise reason
        raise EngineError(
            f"the server at {self.url} {last} ({self.retries + 1} tries of {method} {path}); "
            "check that it is running: vllm serve MODEL --logprobs-mode processed_logprobs"
        ) from reason

    def _once(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        read: Callable[[http.client.HTTPResponse], Any],
        hangup: Hangup,
    ) -> Any:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self.timeout)
        try:
            connection.connect()
            hangup.hold(connection.sock)
            text = None if body is None else json.dumps(body)
            connection.request(method, self._base + path, text, self._headers)
            with connection.getresponse() as answer:
                if answer.status >= 400:
                    raise _Refused(answer.status, _message(answer.read(100_000)))
                return read(answer)
        finally:
            hangup.hold(None)
            connection.close()

    def _whole(self, answer: http.client.HTTPResponse) -> Any:
        data = answer.read()
        return self._parsed(data) if data.strip() else None

    def _events(self, answer: http.client.HTTPResponse) -> Iterator[Any]:
        """The events of a stream; an answer in one piece counts as one event."""
        if "text/event-stream" not in (answer.getheader("Content-Type") or ""):
            yield self._parsed(answer.read())
            return
        for line in answer:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            event = self._parsed(data)
            if isinstance(event, dict) and event.get("error"):
                error = event["error"] if isinstance(event["error"], dict) else {"message": event["error"]}
                code = error.get("code")
                raise _Refused(code if isinstance(code, int) else 500, str(error.get("message"))[:300])
            yield event
        raise http.client.IncompleteRead(b"", None)  # the stream broke off

    def _parsed(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError as error:
            shown = data[:60].decode(errors="replace")
            raise self.garbage(f"answered with something that is not JSON ({shown!r})") from error


def _spelled(error: BaseException) -> str:
    """What a failed connection is called."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _message(data: bytes) -> str:
    """What an error answer says, in one line."""
    try:
        body = json.loads(data)
        error = body.get("error", body)
        said = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        said = data.decode(errors="replace")
    return " ".join(said.split())[:300] or "no reason given"


def wait_until_up(server: Server, seconds: float) -> None:
    """Return when the server answers /health. Raises EngineError when it does not within `seconds`."""
    until = time.monotonic() + seconds
    patient = Server(server.url, timeout=min(5.0, server.timeout), retries=0)
    while True:
        try:
            patient.get("/health")
            return
        except EngineError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
