r"""Problem sets in the layouts people have, and the doorway to JSON Lines in and out.

`load_problems` reads our layout {"id", "prompt", "answer"}, GSM8K {"question", "answer" ending in a line
"#### x"} (openai/grade-school-math) and MATH {"problem", "answer", or "solution" with \boxed{x}}
(hendrycks/math), from JSON, JSON Lines (`.gz` too), Parquet, any rows in memory, or the hub. Local files need
neither `datasets` nor the network. A column that is asked for and not there is an error that lists those that
are; one row's fault names file, line and field. Reading and writing of rows is in `verifiers/jsonl.py`.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from verifiers.core import Message, Problem, Prompt
from verifiers.errors import ConfigError, DataError, MissingExtraError
from verifiers.jsonl import (
    JsonlAppender,
    iter_jsonl,
    numbered_rows,
    open_bytes,
    parse_json,
    read_jsonl,
    write_jsonl,
)
from verifiers.layout import box_starts, braced

__all__ = ["JsonlAppender", "iter_jsonl", "load_problems", "open_rows", "read_jsonl", "reference_answer", "write_jsonl"]

PROMPT_COLUMNS = ("prompt", "problem", "question")
ANSWER_COLUMNS = ("answer", "solution")
_FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".gz")


def load_problems(
    path_or_dataset: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    *,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    id_column: str | None = None,
    limit: int | None = None,
    split: str | None = None,
    subset: str | None = None,
) -> list[Problem]:
    """Problems of a JSON, JSON Lines or Parquet file, rows such as a `datasets.Dataset`, or a hub id.

    Columns that are not named are found: prompt, problem or question; answer or solution; id. Reference
    answers are cut out of worked ones ("#### x" at the end, else the last box of a `solution`); columns that
    are not used, and worked answers, go to `metadata`. Without an id column, ids are "<stem>-<index>" from 0.
    `split` and `subset` name parts of a hub data set. Raises ConfigError for a setting, MissingFileError for
    a file that is not there, and DataError for a row.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be 1 or more problems, or None for all; got {limit}")
    source, stem, rows = _open_rows(path_or_dataset, split, subset)
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    columns: tuple[str, str | None, str | None] | None = None
    for where, row in rows:
        if columns is None:
            columns = _columns(source, row, prompt_column, answer_column, id_column)
        problem = _problem(where, row, columns, f"{stem}-{len(problems)}")
        if problem.id in seen:
            raise DataError(f"{where}: the id {problem.id!r} is already that of {seen[problem.id]}; make ids unique")
        seen[problem.id] = where
        problems.append(problem)
        if limit is not None and len(problems) >= limit:
            break
    if not problems:
        raise DataError(f"{source} holds no rows; a data set needs at least one problem")
    return problems


def open_rows(path_or_dataset: str | os.PathLike[str], *, split: str | None = None) -> Iterator[tuple[str, Any]]:
    """(place, row) of each row of a file or hub data set that `load_problems` could read, whatever its columns.

    Raises as `load_problems` does for a source that is not there or not readable.
    """
    return _open_rows(path_or_dataset, split, None)[2]


def reference_answer(text: str, *, worked: bool = False) -> str | None:
    """The answer in a reference: after "####" on the last line, else the last box if `worked`, else all.

    None when a worked solution marks no answer. Thousands separators of GSM8K's numbers are dropped.
    """
    head, mark, tail = text.rpartition("####")
    if mark and tail.strip() and "\n" not in tail.strip() and (not head or head.endswith("\n")):
        bare = tail.strip().replace(",", "")
        return bare if bare.lstrip("+-$").replace(".", "", 1).isdigit() else tail.strip()
    if not worked:
        return text.strip() or None
    contents = [braced(text, start) for start in box_starts(text)]
    return contents[-1].strip() or None if contents and contents[-1] is not None else None


def _problem(
    where: str, row: Mapping[str, Any], columns: tuple[str, str | None, str | None], default_id: str
) -> Problem:
    prompt_column, answer_column, id_column = columns
    prompt = _prompt(where, prompt_column, _field(where, row, prompt_column))
    used = {prompt_column}
    answer = given = None
    if answer_column is not None:
        given = _field(where, row, answer_column)
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            given = str(given)
        if given is not None and not isinstance(given, str):
            raise DataError(f"{where}: field {answer_column!r} must be a text or a number; got {type(given).__name__}")
        worked = answer_column == "solution"
        answer = None if given is None else reference_answer(given, worked=worked)
        if worked and given is not None and answer is None:
            raise DataError(
                f"{where}: field 'solution' marks no answer with \\boxed{{...}} or '#### '; name the column "
                f"that holds the answer"
            )
        if answer is None or given == answer:
            used.add(answer_column)
    name = row.get(id_column) if id_column is not None else None
    if id_column is not None:
        used.add(id_column)
        if isinstance(name, bool) or not (name is None or isinstance(name, (str, int))):
            raise DataError(f"{where}: field {id_column!r} must be a text or a whole number; got {type(name).__name__}")
    metadata = {key: value for key, value in row.items() if key not in used}
    return Problem(id=default_id if name is None else str(name), prompt=prompt, answer=answer, metadata=metadata)


def _field(where: str, row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise DataError(f"{where}: the field {name!r} is missing; the row has {_listed(row)}")
    return row[name]


def _prompt(where: str, column: str, value: Any) -> Prompt:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, (list, tuple)) and value:
        messages: list[Message] = []
        for i, message in enumerate(value):
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(key), str) for key in ("role", "content")
            ):
                raise DataError(
                    f"{where}: message {i} of field {column!r} must be an object with the texts 'role' and "
                    f"'content'; got {message!r:.80}"
                )
            messages.append(message)
        return tuple(messages)
    raise DataError(f"{where}: field {column!r} must be a text or a list of messages, and not empty; got {value!r:.80}")


def _columns(
    source: str, row: Mapping[str, Any], prompt: str | None, answer: str | None, name: str | None
) -> tuple[str, str | None, str | None]:
    for setting, wanted in (("prompt_column", prompt), ("answer_column", answer), ("id_column", name)):
        if wanted is not None and wanted not in row:
            near = difflib.get_close_matches(wanted, list(row), n=1, cutoff=0.0)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{setting} {wanted!r} is not in {source}, which has {_listed(row)}{hint}")
    prompt = prompt or next((column for column in PROMPT_COLUMNS if column in row), None)
    if prompt is None:
        raise ConfigError(f"{source} has no column prompt, problem or question, only {_listed(row)}; set prompt_column")
    answer = answer or next((column for column in ANSWER_COLUMNS if column in row), None)
    return prompt, answer, name or ("id" if "id" in row else None)


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(repr(key) for key in row) or "no fields"


def _open_rows(
    given: str | os.PathLike[str] | Iterable[Mapping[str, Any]], split: str | None, subset: str | None
) -> tuple[str, str, Iterator[tuple[str, Mapping[str, Any]]]]:
    """(how to name the source in an error, the stem of made-up ids, rows with the place each is from)."""
    if not isinstance(given, (str, os.PathLike)):
        rows: Any = given
        if isinstance(rows, Mapping):
            raise ConfigError(f"a data set has several splits, {_listed(rows)}; pass one of them")
        return "the data set", "problem", (_placed(f"row {i}", row) for i, row in enumerate(rows))
    path = Path(given)
    if not path.exists() and isinstance(given, str) and _looks_like_hub_id(given):
        hub = _from_hub(given, split, subset)
        return given, path.name, ((f"{given}, row {i}", row) for i, row in enumerate(hub))
    if split is not None or subset is not None:
        raise ConfigError(f"split and subset choose parts of a hub data set; {path} is a file without them")
    name = path.name.removesuffix(".gz")
    stem = Path(name).stem
    if name.endswith(".parquet"):
        return str(path), stem, _from_parquet(path)
    if name.endswith(".json"):
        with open_bytes(path) as stream:
            array = stream.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
        if array:
            return str(path), stem, _from_array(path)
    return str(path), stem, ((f"{path}:{n}", row) for n, row in numbered_rows(path))


def _placed(where: str, row: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where} must be a mapping of columns to values; got {type(row).__name__}")
    return where, row


def _from_array(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with open_bytes(path) as stream:
        rows = parse_json(stream.read(), str(path))
    for i, row in enumerate(rows):
        yield _placed(f"{path}, entry {i}", row)


def _from_parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    open_bytes(path).close()  # the same words for a missing file
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError(f"{path} is Parquet; to read it: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as table:
            i = 0
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield f"{path}, row {i}", row
                    i += 1
    except (OSError, ValueError) as error:  # pyarrow's errors are children of these
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a readable Parquet file: {error}; fetch or write it again") from error


def _looks_like_hub_id(name: str) -> bool:
    parts = name.split("/")
    plain = all(part and part not in (".", "..", "~") for part in parts)
    return plain and len(parts) <= 2 and "\\" not in name and not name.endswith(_FILE_SUFFIXES)


def _from_hub(name: str, split: str | None, subset: str | None) -> Iterable[Mapping[str, Any]]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingExtraError(f"there is no file {name!r}; to load it from the hub: pip install datasets") from error
    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # whatever the hub client raises, the user asked for a data set by this name
        raise DataError(
            f"there is no file {name!r}, and the hub data set of that name did not load "
            f"({type(error).__name__}: {error}); check the name, split and subset"
        ) from error
    if split is None and isinstance(loaded, Mapping):
        if len(loaded) != 1:
            raise ConfigError(f"{name} has the splits {_listed(loaded)}; set split to one of them")
        loaded = next(iter(loaded.values()))
    rows: Iterable[Mapping[str, Any]] = loaded
    return rows
