"""A run folder read from disk and checked before anything is drawn.

    config.yaml    the job, kept as text            required
    env.json       versions, machine, revision      optional
    metrics.jsonl  one row a logged step            optional
    results.json   curves, comparisons, costs ...   optional
    samples.jsonl  problems with scored responses   optional
    searches.jsonl search trees                     optional
    rollouts.jsonl responses of training steps      optional

An absent or empty file becomes a sentence in `Run.notes`, so that the page can say what is not there. A field
of the wrong kind is a DataError naming file, place and field. A job killed while writing leaves an unfinished
last line in a JSONL file; that line is left out with a note, as resuming does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from rewardkit.report.fields import Fields, estimate, is_number, rows
from rewardkit.report.rl_reading import alarms, read_rollouts, rl_rows
from rewardkit.report.search_reading import read_equal_compute, read_reference, read_searches, read_strategy
from verifiers.errors import MissingFileError
from verifiers.jsonl import parse_json

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
    metrics = tuple(row.raw for row in rows(folder / "metrics.jsonl", notes))
    steps = rl_rows(metrics)
    begun = [alarm.first for alarm in alarms(steps) if alarm.first is not None]
    return Run(
        name=folder.resolve().name,
        config=(folder / "config.yaml").read_text("utf-8", errors="replace"),
        env=env,
        results=Results() if results is None else _results(Fields(results, str(folder / "results.json"))),
        metrics=metrics,
        samples=tuple(_sample(row) for row in rows(folder / "samples.jsonl", notes)),
        searches=read_searches(folder / "searches.jsonl", notes),
        rollouts=read_rollouts(folder / "rollouts.jsonl", begun, notes) if steps else (),
        notes=notes,
    )


def _results(top: Fields) -> Results:
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
                difference=estimate(row),
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
        strategies=top.all("strategies", read_strategy),
        references=top.all("references", read_reference),
        equal_compute=top.all("equal_compute", read_equal_compute),
    )


def _curve(row: Fields) -> Curve:
    def point(fields: Fields) -> tuple[int, Estimate]:
        n = fields.whole("n")
        if n < 1:
            fields.refuse("n", "at least 1", n)
        return n, estimate(fields)

    points = row.all("points", point, optional=False)
    if not points:
        row.refuse("points", "a list of at least one point", [])
    return Curve(rule=row.text("rule"), points=tuple(sorted(points, key=lambda pair: pair[0])))


def _bounded(row: Fields) -> Bounded:
    return Bounded(value=row.number("value"), low=row.maybe_number("low"), high=row.maybe_number("high"))


def _reliability_point(row: Fields) -> ReliabilityPoint:
    return ReliabilityPoint(
        count=row.whole("count"),
        score=row.number("score"),
        outcome=row.number("outcome"),
        low=row.number("low"),
        high=row.number("high"),
    )


def _step_quality(row: Fields) -> StepQuality:
    def auc(fields: Fields) -> Auc:
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


def _sample(row: Fields) -> Sample:
    return Sample(
        problem_id=row.plain("problem_id"),
        prompt=row.prompt("prompt"),
        answer=row.plain("answer"),
        responses=row.all("responses", _answered, optional=False),
    )


def _answered(row: Fields) -> Answered:
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


def _json(path: Path, notes: dict[str, str]) -> Any:
    """The value of a JSON file, or None with a note."""
    if not path.is_file():
        notes[path.name] = f"This run folder has no {path.name}."
        return None
    return parse_json(path.read_bytes(), str(path))
