"""JSON Lines in and out, and appending that survives kill -9.

One JSON object a line, UTF-8, `.gz` by suffix on reading and whole writing. Every error is one sentence that
names file and line, and the field where there is one. `write_jsonl` writes beside the target and renames, so
that a reader sees the old file or the new one. `JsonlAppender` makes each row durable before `append` returns
(write, then fsync); a process killed in the middle leaves at most one unfinished last line, which the next
opening drops: that row was never acknowledged, so the resumed job makes it again, and nothing is lost or
doubled. No proper prefix of a JSON object is itself one, which is how an unfinished line is told from a
complete line that only lacks its end.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import importlib
import json
import os
import secrets
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self

from verifiers.errors import ConfigError, DataError, ExistingRunError, MissingFileError


def iter_jsonl(path: str | os.PathLike[str], *, required: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file, one by one; blank lines are skipped.

    Raises MissingFileError, and DataError for a broken line, a missing field of `required`, or no row at all.
    """
    for _, row in numbered_rows(Path(path), required):
        yield row


def read_jsonl(path: str | os.PathLike[str], *, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All rows of a JSON Lines file; errors as in `iter_jsonl`."""
    return list(iter_jsonl(path, required=required))


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows to a new file that replaces `path` once complete; returns how many. `.gz` compresses.

    Raises DataError for a row that is no JSON object (NaN included) and leaves the old file as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    count = 0
    try:
        with temporary.open("xb") as raw:
            # No name and no time in the header: equal rows give equal bytes.
            zipped = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) if _is_gz(target) else None
            out: IO[bytes] | gzip.GzipFile = zipped or raw
            for count, row in enumerate(rows, start=1):
                out.write(_encode(row, f"{target}:{count}"))
            if zipped is not None:
                zipped.close()
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return count


class JsonlAppender:
    """Appends rows to a JSON Lines file, each durable when `append` returns; a context manager.

    With `sync_seconds` above 0 a row is with the system when `append` returns (it outlives the process, whatever kills
    that) and on the disk that much later at the most, if something is appended then, or on closing.
    `rows` holds what the file had on opening, for a job to know what is done; `dropped` says whether an
    unfinished last line was cut off. One process at a time: a second one gets ExistingRunError. DataError for
    a broken line that is not an unfinished last one, ConfigError for `.gz`, which cannot be cut and resumed.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, required: Sequence[str] = (), sync_seconds: float = 0.0
    ) -> None:
        self.path = Path(path)
        self._sync_seconds, self._synced = sync_seconds, time.monotonic()
        if _is_gz(self.path):
            raise ConfigError(f"{self.path} cannot be appended to; write a plain .jsonl and compress it after")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(self._file, self.path)
            self.rows, self.dropped = self._recover(required)
        except BaseException:
            os.close(self._file)
            raise

    def _recover(self, required: Sequence[str]) -> tuple[list[dict[str, Any]], bool]:
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        tail, dropped = data[end:], False
        if tail.strip():
            try:
                complete = isinstance(json.loads(tail.decode()), dict)
            except (ValueError, RecursionError):
                complete = False
            dropped = not complete
            end = len(data) if complete else end
        kept = data[:end]
        rows = [row for _, row in _parse(enumerate(kept.split(b"\n"), start=1), self.path, required)]
        os.ftruncate(self._file, end)
        self._size = os.lseek(self._file, 0, os.SEEK_END)
        if kept and not kept.endswith(b"\n"):
            self._write(b"\n")
        return rows, dropped

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Add rows; on return they are on disk. DataError for a row that is no JSON object; none is added."""
        if self._file < 0:
            raise ConfigError(f"the appender of {self.path} is closed; open a new one")
        self._write(b"".join(_encode(row, f"{self.path} (row {i})") for i, row in enumerate(rows)))

    def _write(self, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
            if time.monotonic() - self._synced >= self._sync_seconds:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except BaseException:
            # A full disk may leave half a line; the next row must not be glued to it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
                os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Release the file; closing twice is fine."""
        if self._file >= 0:
            try:
                if self._sync_seconds:
                    os.fsync(self._file)
            finally:
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def numbered_rows(path: Path, required: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of a JSON Lines file; errors as in `iter_jsonl`."""
    count = 0
    with open_bytes(path) as stream:
        for number, row in _parse(enumerate(_lines(stream, path), start=1), path, required):
            count += 1
            yield number, row
    if not count:
        raise DataError(f"{path} holds no rows; it should have one JSON object a line")


def open_bytes(path: Path) -> IO[bytes] | gzip.GzipFile:
    """The bytes of a file, unpacked for `.gz`; raises MissingFileError with the nearest names there are."""
    if path.is_file():
        return gzip.open(path, "rb") if _is_gz(path) else path.open("rb")
    if path.is_dir():
        raise MissingFileError(f"{path} is a folder; name a file in it")
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"did you mean {folder / near[0]}?" if near else "check the path"
    raise MissingFileError(f"the file {path} does not exist; {hint}")


def _lines(stream: IO[bytes] | gzip.GzipFile, path: Path) -> Iterator[bytes]:
    try:
        yield from stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is a broken gzip file ({error}); fetch or write it again") from error


def _parse(
    lines: Iterable[tuple[int, bytes]], path: Path, required: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        row = parse_json(line.rstrip(), f"{path}:{number}")
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number} must be a JSON object; got {_kind(row)}; write one object a line")
        for name in required:
            if name not in row:
                there = ", ".join(repr(key) for key in row) or "none"
                raise DataError(f"{path}:{number}: the field {name!r} is missing; fields there: {there}")
        yield number, row


def parse_json(data: bytes, where: str) -> Any:
    """A JSON value; DataError naming `where` for anything that is not JSON (NaN and Infinity are not)."""
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        text = f"{error.msg} at column {error.colno}"
    except UnicodeDecodeError as error:
        text = f"byte {error.start} is not UTF-8"
    except RecursionError:
        text = "it is nested too deeply"
    except ValueError as error:
        text = str(error)
    raise DataError(f"{where} is not valid JSON: {text}; mend or remove it")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _encode(row: Mapping[str, Any], where: str) -> bytes:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: a row must be a mapping of names to values; got {type(row).__name__}")
    try:
        text = json.dumps(dict(row), ensure_ascii=False, allow_nan=False)
        try:
            return text.encode() + b"\n"
        except UnicodeEncodeError:  # half of a surrogate pair, which only \u can spell
            return json.dumps(dict(row), allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        wrong = next((name for name, value in row.items() if not _is_json(value)), None)
        what = "the row" if wrong is None else f"field {wrong!r}"
        value = row if wrong is None else row[wrong]
        raise DataError(
            f"{where}: {what} cannot be written as JSON; got {value!r:.80}; "
            f"use texts, finite numbers, true, false, null, lists and objects"
        ) from error


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _is_gz(path: Path) -> bool:
    return path.suffix == ".gz"


def _lock(file: int, path: Path) -> None:
    try:
        fcntl = importlib.import_module("fcntl")
    except ImportError:  # no such locks on this system: one process at a time is up to the user
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ExistingRunError(
            f"{path} is being written by another process; wait for it, or stop it before resuming"
        ) from error
