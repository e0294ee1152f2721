"""A run folder read from disk and checked before anything is drawn.

    config.yaml    the job, kept as text            required
    env.json       versions, machine, revision      optional
    metrics.jsonl  one row a logged step            optional
    results.json   curves, comparisons, costs ...   optional
    samples.jsonl  problems with scored responses   optional

An absent or empty file becomes a sentence in `Run.notes`, so that the page can say what is not there. A field
of the wrong kind is a DataError naming file, place and field. A job killed while writing leaves an unfinished
last line in a JSONL file; that line is left out with a note, as resuming does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, TypeVar

from rewardkit.report.contents import (
    Answered,
    Auc,
    Bounded,
    Comparison,
    Cost,
    Curve,
    Estimate,
    FirstError,
    Gate,
    ReliabilityPoint,
    Results,
    Run,
    Sample,
    StepQuality,
)
from verifiers.errors import DataError, MissingFileError
from verifiers.jsonl import parse_json

T = TypeVar("T")
TRUTHS = ("right", "wrong", "useless")


def read_run(folder: Path) -> Run:
    """Read a run folder. MissingFileError without folder or config.yaml, DataError for a broken file."""
    if not folder.is_dir():
        raise MissingFileError(f"there is no run folder at {folder}; give the folder a rewardkit job wrote")
    if not (folder / "config.yaml").is_file():
        raise MissingFileError(
            f"{folder} has no config.yaml, so it is no run folder; give the folder a rewardkit job wrote"
        )
    notes: dict[str, str] = {}
    env, results = _json(folder / "env.json", notes), _json(folder / "results.json", notes)
    return Run(
        name=folder.resolve().name,
        config=(folder / "config.yaml").read_text("utf-8", errors="replace"),
        env=env,
        results=Results() if results is None else _results(_Fields(results, str(folder / "results.json"))),
        metrics=tuple(row.raw for row in _rows(folder / "metrics.jsonl", notes)),
        samples=tuple(_sample(row) for row in _rows(folder / "samples.jsonl", notes)),
        notes=notes,
    )


class _Fields:
    """A JSON object whose fields are taken by kind; errors name the place and the field."""

    def __init__(self, raw: Any, where: str) -> None:
        self.where = where
        if not isinstance(raw, dict):
            self.refuse("", "an object", raw)
        self.raw: dict[str, Any] = raw

    def refuse(self, name: str, wanted: str, got: Any) -> NoReturn:
        what = f"the field {name!r}" if name else "this"
        shown = json.dumps(got, ensure_ascii=False)
        shown = shown if len(shown) <= 60 else shown[:60] + "…"
        raise DataError(
            f"{self.where}: {what} must be {wanted}; got {shown}; "
            "mend it, or let the command that wrote the folder write the file again"
        )

    def take(self, name: str, wanted: str, good: Callable[[Any], bool], *, optional: bool = False) -> Any:
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
        return str(self.take(name, "a text", lambda value: isinstance(value, str)))

    def maybe_text(self, name: str) -> str | None:
        value: str | None = self.take(name, "a text", lambda value: isinstance(value, str), optional=True)
        return value

    def number(self, name: str) -> float:
        return float(self.take(name, "a number", is_number))

    def maybe_number(self, name: str) -> float | None:
        value = self.take(name, "a number", is_number, optional=True)
        return None if value is None else float(value)

    def whole(self, name: str) -> int:
        return int(self.take(name, "a whole number", lambda value: is_number(value) and value == int(value)))

    def truth(self, name: str) -> bool:
        return bool(self.take(name, "true or false", lambda value: isinstance(value, bool)))

    def maybe_truth(self, name: str) -> bool | None:
        value: bool | None = self.take(name, "true or false", lambda x: isinstance(x, bool), optional=True)
        return value

    def all(self, name: str, build: Callable[[_Fields], T], *, optional: bool = True) -> tuple[T, ...]:
        rows = self.take(name, "a list", lambda value: isinstance(value, list), optional=optional) or []
        return tuple(build(_Fields(row, f"{self.where}: {name}[{i}]")) for i, row in enumerate(rows))

    def maybe(self, name: str, build: Callable[[_Fields], T]) -> T | None:
        raw = self.raw.get(name)
        return None if raw is None else build(_Fields(raw, f"{self.where}: {name}"))

    def texts(self, name: str, *, optional: bool = False) -> tuple[str, ...] | None:
        value = self.take(
            name,
            "a list of texts",
            lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
            optional=optional,
        )
        return None if value is None else tuple(value)


def is_number(value: object) -> TypeGuard[float]:
    """A finite int or float, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _results(top: _Fields) -> Results:
    facts = top.take("facts", "an object", lambda value: isinstance(value, dict), optional=True) or {}
    return Results(
        title=top.maybe_text("title"),
        summary=top.texts("summary", optional=True) or (),
        facts=tuple(facts.items()),
        curves=top.all("curves", _curve),
        comparisons=top.all(
            "comparisons",
            lambda row: Comparison(
                first=row.text("first"),
                second=row.text("second"),
                n=row.whole("n"),
                difference=_estimate(row),
            ),
        ),
        steps=top.maybe("steps", _step_quality),
        costs=top.all(
            "costs",
            lambda row: Cost(
                part=row.text("part"),
                prefill_tokens=row.whole("prefill_tokens"),
                decoded_tokens=row.whole("decoded_tokens"),
                scored_tokens=row.whole("scored_tokens"),
                judged=row.whole("judged"),
                seconds=row.number("seconds"),
                flops=row.number("flops"),
            ),
        ),
        gates=top.all(
            "gates",
            lambda row: Gate(
                name=row.text("name"),
                value=row.number("value"),
                floor=row.number("floor"),
                held=row.truth("held"),
            ),
        ),
    )


def _estimate(row: _Fields) -> Estimate:
    return Estimate(
        mean=row.number("mean"),
        low=row.maybe_number("low"),
        high=row.maybe_number("high"),
        problems=row.whole("problems"),
    )


def _curve(row: _Fields) -> Curve:
    def point(fields: _Fields) -> tuple[int, Estimate]:
        n = fields.whole("n")
        if n < 1:
            fields.refuse("n", "at least 1", n)
        return n, _estimate(fields)

    points = row.all("points", point, optional=False)
    if not points:
        row.refuse("points", "a list of at least one point", [])
    return Curve(rule=row.text("rule"), points=tuple(sorted(points, key=lambda pair: pair[0])))


def _bounded(row: _Fields) -> Bounded:
    return Bounded(value=row.number("value"), low=row.maybe_number("low"), high=row.maybe_number("high"))


def _reliability_point(row: _Fields) -> ReliabilityPoint:
    return ReliabilityPoint(
        count=row.whole("count"),
        score=row.number("score"),
        outcome=row.number("outcome"),
        low=row.number("low"),
        high=row.number("high"),
    )


def _step_quality(row: _Fields) -> StepQuality:
    def auc(fields: _Fields) -> Auc:
        return Auc(
            auc=fields.number("auc"),
            low=fields.maybe_number("low"),
            high=fields.maybe_number("high"),
            pairs=fields.whole("pairs"),
            problems=fields.whole("problems"),
        )

    return StepQuality(
        auc_within=row.maybe("auc_within", auc),
        auc_first_error=row.maybe("auc_first_error", auc),
        auc_pooled=row.maybe_number("auc_pooled"),
        first_error_f1=row.maybe(
            "first_error_f1",
            lambda f1: FirstError(
                f1=f1.number("f1"),
                on_erroneous=f1.number("on_erroneous"),
                on_correct=f1.number("on_correct"),
                erroneous=f1.whole("erroneous"),
                correct=f1.whole("correct"),
                threshold=f1.maybe_number("threshold"),
                protocol=f1.maybe_text("protocol"),
                low=f1.maybe_number("low"),
                high=f1.maybe_number("high"),
            ),
        ),
        ece=row.maybe_number("ece"),
        ece_bounds=row.maybe("ece_bounds", _bounded),
        brier=row.maybe("brier", _bounded),
        reliability=row.all("reliability", _reliability_point),
    )


def _sample(row: _Fields) -> Sample:
    return Sample(
        problem_id=_plain(row, "problem_id"),
        prompt=_prompt(row),
        answer=_plain(row, "answer"),
        responses=row.all("responses", _answered, optional=False),
    )


def _answered(row: _Fields) -> Answered:
    steps = row.texts("steps") or ()
    scores = row.take(
        "scores",
        "a list of numbers (null: not scored)",
        lambda value: isinstance(value, list) and all(item is None or is_number(item) for item in value),
        optional=True,
    )
    truth = row.texts("truth", optional=True)
    if scores and len(scores) != len(steps):
        row.refuse("scores", f"one number for each of the {len(steps)} steps", scores)
    if truth is not None and (len(truth) != len(steps) or set(truth) - set(TRUTHS)):
        row.refuse("truth", f"one of {', '.join(TRUTHS)} for each of the {len(steps)} steps", list(truth))
    return Answered(
        sample=row.whole("sample"),
        role=row.text("role"),
        steps=steps,
        scores=tuple(None if score is None else float(score) for score in scores or [None] * len(steps)),
        truth=truth,
        extracted=row.maybe_text("extracted"),
        correct=row.maybe_truth("correct"),
    )


def _plain(row: _Fields, name: str) -> str:
    """A text, or a number or null written as one (ids and reference answers come as either)."""
    value = row.take(name, "a text or a number", lambda x: isinstance(x, str) or is_number(x), optional=True)
    return "" if value is None else str(value)


def _prompt(row: _Fields) -> str:
    """The prompt as text; chat messages one below the other with their roles."""
    value = row.take("prompt", "a text or a list of messages", lambda x: isinstance(x, str | list))
    if isinstance(value, str):
        return value
    messages = [_Fields(message, f"{row.where}: prompt[{i}]") for i, message in enumerate(value)]
    return "\n\n".join(f"{message.text('role')}: {message.text('content')}" for message in messages)


def _json(path: Path, notes: dict[str, str]) -> Any:
    """The value of a JSON file, or None with a note."""
    if not path.is_file():
        notes[path.name] = f"This run folder has no {path.name}."
        return None
    return parse_json(path.read_bytes(), str(path))


def _rows(path: Path, notes: dict[str, str]) -> list[_Fields]:
    """The rows of a JSONL file; what is absent, empty or cut off becomes a note."""
    if not path.is_file():
        notes[path.name] = f"This run folder has no {path.name}."
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            value = parse_json(line, where)
        except DataError:
            if number < len(lines):
                raise
            notes[path.name] = f"The last line of {path.name} is unfinished (the job was stopped) and is left out."
            continue
        rows.append(_Fields(value, where))
    if not rows:
        notes.setdefault(path.name, f"{path.name} holds no rows.")
    return rows
