"""A JSON object whose fields are taken by kind, and the rows of a JSONL file as such objects.

An error names the file, the place in it and the field, says what was wanted and what was found, and what to do. Files
are read row by row: what a row is turned into stays in memory, the rows do not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, TypeVar

from rewardkit.report.contents import Estimate
from verifiers.errors import DataError
from verifiers.jsonl import parse_json

T = TypeVar("T")


class Fields:
    """A JSON object whose fields are taken by kind; errors name the place and the field."""

    def __init__(self, raw: Any, where: str) -> None:
        self.where = where
        if not isinstance(raw, dict):
            self.refuse("", "an object", raw)
        self.raw: dict[str, Any] = raw

    def refuse(self, name: str, wanted: str, got: Any) -> NoReturn:
        """Raise DataError for a field, or for the object itself where `name` is empty."""
        what = f"the field {name!r}" if name else "this"
        shown = json.dumps(got, ensure_ascii=False)
        shown = shown if len(shown) <= 60 else shown[:60] + "…"
        raise DataError(
            f"{self.where}: {what} must be {wanted}; got {shown}; "
            "mend it, or let the command that wrote the folder write the file again"
        )

    def take(self, name: str, wanted: str, good: Callable[[Any], bool], *, optional: bool = False) -> Any:
        """A value that `good` accepts; `wanted` says so in words. Null and absence pass where it is optional."""
        if name not in self.raw and not optional:
            there = ", ".join(repr(key) for key in self.raw) or "none"
            raise DataError(
                f"{self.where}: the field {name!r} is missing; fields there: {there}; "
                "add it, or let the command that wrote the folder write the file again"
            )
        value = self.raw.get(name)
        if not (good(value) or (optional and value is None)):
            self.refuse(name, wanted + (" or null" if optional else ""), value)
        return value

    def text(self, name: str) -> str:
        """A text."""
        return str(self.take(name, "a text", lambda value: isinstance(value, str)))

    def maybe_text(self, name: str) -> str | None:
        """A text, or None for null and absence."""
        value: str | None = self.take(name, "a text", lambda value: isinstance(value, str), optional=True)
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        return float(self.take(name, "a number", is_number))

    def maybe_number(self, name: str) -> float | None:
        """A finite number, or None for null and absence."""
        value = self.take(name, "a number", is_number, optional=True)
        return None if value is None else float(value)

    def whole(self, name: str) -> int:
        """A whole number; 3.0 is one."""
        return int(self.take(name, "a whole number", lambda value: is_number(value) and value == int(value)))

    def truth(self, name: str) -> bool:
        """A truth value."""
        return bool(self.take(name, "true or false", lambda value: isinstance(value, bool)))

    def maybe_truth(self, name: str) -> bool | None:
        """A truth value, or None for null and absence."""
        value: bool | None = self.take(name, "true or false", lambda x: isinstance(x, bool), optional=True)
        return value

    def all(self, name: str, build: Callable[[Fields], T], *, optional: bool = True) -> tuple[T, ...]:
        """What `build` makes of each object of a list."""
        rows = self.take(name, "a list", lambda value: isinstance(value, list), optional=optional) or []
        return tuple(build(Fields(row, f"{self.where}: {name}[{i}]")) for i, row in enumerate(rows))

    def maybe(self, name: str, build: Callable[[Fields], T]) -> T | None:
        """What `build` makes of an object, or None for null and absence."""
        raw = self.raw.get(name)
        return None if raw is None else build(Fields(raw, f"{self.where}: {name}"))

    def texts(self, name: str, *, optional: bool = False) -> tuple[str, ...] | None:
        """A list of texts, or None for null and absence where it is optional."""
        value = self.take(
            name,
            "a list of texts",
            lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
            optional=optional,
        )
        return None if value is None else tuple(value)

    def plain(self, name: str) -> str:
        """A text, or a number or null written as one (ids and reference answers come as either)."""
        value = self.take(name, "a text or a number", lambda x: isinstance(x, str) or is_number(x), optional=True)
        return "" if value is None else str(value)

    def prompt(self, name: str) -> str:
        """A prompt as text; chat messages one below the other with their roles."""
        value = self.take(name, "a text or a list of messages", lambda x: isinstance(x, str | list))
        if isinstance(value, str):
            return value
        messages = [Fields(message, f"{self.where}: {name}[{i}]") for i, message in enumerate(value)]
        return "\n\n".join(f"{message.text('role')}: {message.text('content')}" for message in messages)


def is_number(value: object) -> TypeGuard[float]:
    """A finite int or float, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def estimate(row: Fields) -> Estimate:
    """A mean with its interval and its number of problems, from the fields every such row has."""
    return Estimate(
        mean=row.number("mean"),
        low=row.maybe_number("low"),
        high=row.maybe_number("high"),
        problems=row.whole("problems"),
    )


def rows(path: Path, notes: dict[str, str]) -> Iterator[Fields]:
    """The rows of a JSONL file; what is absent, empty or cut off becomes a note once all rows are taken."""
    if not path.is_file():
        notes[path.name] = f"This run folder has no {path.name}."
        return
    empty = True
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                value = parse_json(line, where)
            except DataError:
                if line.endswith(b"\n"):
                    raise
                notes[path.name] = f"The last line of {path.name} is unfinished (the job was stopped) and is left out."
                continue
            empty = False
            yield Fields(value, where)
    if empty:
        notes.setdefault(path.name, f"{path.name} holds no rows.")
