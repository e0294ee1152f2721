"""JSON Lines: what is written is read back, a crash loses and doubles nothing, errors say where and what."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import verifiers.jsonl as module
from verifiers.errors import ConfigError, DataError, ExistingRunError, MissingFileError
from verifiers.records import JsonlAppender, iter_jsonl, read_jsonl, write_jsonl

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=6)


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@FEW
@given(rows=ROWS, suffix=st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_written_rows_are_read_back(tmp_path: Path, rows: list[dict], suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    assert write_jsonl(path, rows) == len(rows)
    assert read_jsonl(path) == rows
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix == ".tmp"] == []


def test_equal_rows_give_equal_gzip_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_jsonl(tmp_path / name, [{"x": "ü"}])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == '{"x": "ü"}\n'.encode()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"x": 1}])
    with pytest.raises(DataError) as caught:
        write_jsonl(path, [{"x": 2}, {"ok": 1, "loss": float("nan")}])
    assert str(caught.value) == (
        f"{path}:2: field 'loss' cannot be written as JSON; got nan; "
        f"use texts, finite numbers, true, false, null, lists and objects"
    )
    assert read_jsonl(path) == [{"x": 1}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{path} holds no rows; it should have one JSON object a line"),
        (
            '{"a": 1}\n{"a": \n',
            "{path}:2 is not valid JSON: Expecting value at column 6; mend or remove it",
        ),
        ('{"a": 1}\n\n[1]\n', "{path}:3 must be a JSON object; got a list; write one object a line"),
        ('{"b": 1, "c": 2}\n', "{path}:1: the field 'a' is missing; fields there: 'b', 'c'"),
        ('{"a": NaN}\n', "{path}:1 is not valid JSON: NaN is no JSON number; mend or remove it"),
        ('{"a": ' + "[" * 100_000, "{path}:1 is not valid JSON: it is nested too deeply; mend or remove it"),
    ],
)
def test_a_broken_file_is_named_by_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = put(tmp_path / "rows.jsonl", text)
    with pytest.raises(DataError) as caught:
        read_jsonl(path, required=("a",))
    assert str(caught.value) == message.format(path=path)


def test_bytes_that_are_not_text_and_broken_gzip(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:1 is not valid JSON: byte 7 is not UTF-8"):
        read_jsonl(path)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 100)[:-12])
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz is a broken gzip file"):
        read_jsonl(path)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xe2\x80\xa8"}\r\n')  # U+2028 ends a line for str.splitlines only
    assert list(iter_jsonl(path)) == [{"a": "\u2028"}]


def test_a_missing_file_suggests_the_nearest(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", "{}\n")
    with pytest.raises(MissingFileError) as caught:
        read_jsonl(tmp_path / "trian.jsonl")
    assert str(caught.value) == (
        f"the file {tmp_path / 'trian.jsonl'} does not exist; did you mean {tmp_path / 'train.jsonl'}?"
    )
    with pytest.raises(MissingFileError, match="is a folder; name a file in it"):
        read_jsonl(tmp_path)


@FEW
@given(rows=ROWS, more=ROWS, data=st.data())
def test_a_crash_loses_and_doubles_nothing(
    tmp_path: Path, rows: list[dict], more: list[dict], data: st.DataObject
) -> None:
    """Cut the file anywhere inside the last line: exactly that row is made again."""
    path = tmp_path / "job.jsonl"
    path.unlink(missing_ok=True)
    with JsonlAppender(path) as job:
        for row in rows:
            job.append(row)
    whole = path.read_bytes()
    last = len(whole[:-1].rpartition(b"\n")[2]) + 1
    cut = data.draw(st.integers(0, last), label="bytes lost")
    path.write_bytes(whole[: len(whole) - cut])
    with JsonlAppender(path) as job:
        # Losing only the line end loses no row; losing the whole line leaves nothing to drop.
        kept = rows if cut <= 1 else rows[:-1]
        assert job.rows == kept
        assert job.dropped is (1 < cut < last)
        job.append(*rows[len(kept) :], *more)
    assert read_jsonl(path) == rows + more


def test_a_complete_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = put(tmp_path / "job.jsonl", '{"a": 1}\n{"a": 2}')
    with JsonlAppender(path) as job:
        assert (job.rows, job.dropped) == ([{"a": 1}, {"a": 2}], False)
        job.append({"a": 3})
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n{"a": 3}\n'


def test_kill_9_in_the_middle_of_a_job(tmp_path: Path) -> None:
    path = tmp_path / "job.jsonl"
    code = f"""
        import os
        from verifiers.records import JsonlAppender
        job = JsonlAppender({str(path)!r})
        for i in range(len(job.rows), 10**9):
            job.append({{"i": i, "pad": "x" * 5000}})
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=Path(__file__).parents[1])
    deadline = time.monotonic() + 60
    while (not path.exists() or path.stat().st_size < 30_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with JsonlAppender(path) as job:
        done = len(job.rows)
        assert done >= 5
        job.append({"i": done})
    assert [row["i"] for row in read_jsonl(path)] == list(range(done + 1))


def test_only_the_last_line_may_be_unfinished(tmp_path: Path) -> None:
    path = put(tmp_path / "job.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(DataError, match=r"job.jsonl:2 is not valid JSON: Expecting value at column 6"):
        JsonlAppender(path)
    assert path.read_text() == '{"a": 1}\n{"a": \n{"a": 3}\n'


def test_a_second_writer_and_a_gzip_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.jsonl"
    with JsonlAppender(path) as job:
        with pytest.raises(ExistingRunError, match="is being written by another process"):
            JsonlAppender(path)
        job.append({"a": 1})
    with pytest.raises(ConfigError, match="is closed; open a new one"):
        job.append({"a": 2})
    with pytest.raises(ConfigError, match=r"cannot be appended to; write a plain \.jsonl"):
        JsonlAppender(tmp_path / "job.jsonl.gz")
    assert read_jsonl(path) == [{"a": 1}]


def test_a_row_that_cannot_be_written_adds_nothing(tmp_path: Path) -> None:
    with JsonlAppender(tmp_path / "job.jsonl") as job:
        with pytest.raises(DataError, match=r"\(row 1\): field 'b' cannot be written as JSON"):
            job.append({"a": 1}, {"b": {1, 2}})
        job.append({"a": "\ud800"})  # half of a surrogate pair has no UTF-8, but JSON can spell it
    assert read_jsonl(tmp_path / "job.jsonl") == [{"a": "\ud800"}]


def test_rows_reach_the_file_at_once_and_the_disk_a_little_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    clock = [100.0]
    monkeypatch.setattr(module.os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    path = tmp_path / "log.jsonl"
    with JsonlAppender(path, sync_seconds=1.0) as file:
        for seconds in (0.1, 0.3, 0.7, 0.2):
            clock[0] += seconds
            file.append({"at": seconds})
            assert path.read_bytes().endswith(f'{{"at": {seconds}}}\n'.encode())
        assert synced == [3 * len('{"at": 0.1}\n')]
    assert synced[1:] == [4 * len('{"at": 0.1}\n')]
