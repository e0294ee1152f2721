"""`rewardkit score`: judge the responses of a JSON Lines file."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from verifiers.core import Verdict
from verifiers.errors import DataError
from verifiers.jsonl import read_jsonl


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """What `score` judges."""

    data: Path
    """JSON Lines (optionally .gz) with a response and a reference answer in every row."""
    response_column: str = "response"
    """Column of the responses."""
    answer_column: str = "answer"
    """Column of the reference answers: a bare answer, or a worked one with a box or ####."""
    record_column: str | None = None
    """Column with a recorded true/false to compare with; `correct` is taken when every row has it."""
    show: int = 20
    """Most disagreements with the record that are printed."""
    limit: int | None = None
    """Judge the first rows only."""
    workers: int = 1
    """Processes that judge; 1 is this one."""
    out: Path | None = None
    """Run folder for the verdicts (samples.jsonl, results.json); none by default."""


def score(job: ScoreJob) -> int:
    """Judge every row: counts by outcome and kind, and the disagreements with a recorded column.

    Examples
    --------
    rewardkit score --data generations.jsonl
    rewardkit score --data solved.jsonl --record-column correct --out runs/scored
    """
    from rewardkit.runs import RunFolder
    from verifiers.maths import MathVerifier

    rows = read_jsonl(job.data)[: job.limit]
    responses = _column(rows, job.response_column, job)
    answers = _column(rows, job.answer_column, job)
    record = job.record_column or ("correct" if all("correct" in row for row in rows) else None)
    recorded = None if record is None else [_flag(row, record, job, n) for n, row in enumerate(rows, 1)]
    run = RunFolder.create("score", job, out=job.out) if job.out else None
    started = time.perf_counter()
    verdicts = MathVerifier(workers=job.workers).verify_batch(responses, answers)
    seconds = time.perf_counter() - started
    results = summary(verdicts, recorded)
    print(f"{len(rows)} responses judged in {seconds:.1f} s")
    for name, count in results["outcomes"].items():
        print(f"  {name:12} {count:6}")
    print("by kind: " + ", ".join(f"{kind} {count}" for kind, count in results["kinds"].items()))
    if results["accuracy"] is not None:
        print(f"accuracy {results['accuracy']:.4f} over {results['decided']} decided responses")
    if recorded is not None:
        print(f"agreement with {record!r}: {results['agreement']:.4f} ({results['agreeing']} of {len(rows)})")
        _show(rows, verdicts, recorded, job)
    if run is not None:
        with run:
            for number, (row, verdict) in enumerate(zip(rows, verdicts, strict=True)):
                run.append(
                    "samples.jsonl",
                    _sample(number, row, verdict, None if recorded is None else recorded[number]),
                )
            run.write_json("results.json", {"title": f"Verdicts on {job.data.name}", **results})
        print(f"written to {run.path}")
    return 0


def summary(verdicts: list[Verdict], recorded: list[bool] | None) -> dict[str, Any]:
    """Counts, accuracy over decided rows, and agreement with a record (an undecided row never agrees)."""
    decided = [verdict.score for verdict in verdicts if verdict.score is not None]
    agreeing = None
    if recorded is not None:
        agreeing = sum(v.score is not None and (v.score == 1.0) is r for v, r in zip(verdicts, recorded, strict=True))
    return {
        "rows": len(verdicts),
        "decided": len(decided),
        "outcomes": dict(Counter(verdict.outcome.value for verdict in verdicts)),
        "kinds": dict(Counter(f"{v.outcome.value}:{v.kind}" for v in verdicts).most_common()),
        "accuracy": sum(decided) / len(decided) if decided else None,
        "agreeing": agreeing,
        "agreement": None if agreeing is None else agreeing / len(verdicts),
    }


def _column(rows: list[dict[str, Any]], name: str, job: ScoreJob) -> list[str]:
    """A text column of every row."""
    for number, row in enumerate(rows, start=1):
        if name not in row:
            raise DataError(
                f"{job.data}, line {number}: no column {name!r}; its columns are {', '.join(sorted(row))}; "
                "name the right one with --response-column or --answer-column"
            )
        if not isinstance(row[name], str):
            raise DataError(f"{job.data}, line {number}, field {name!r}: must be text; got {row[name]!r:.60}")
    return [row[name] for row in rows]


def _flag(row: dict[str, Any], name: str, job: ScoreJob, number: int) -> bool:
    if not isinstance(row.get(name), bool):
        raise DataError(
            f"{job.data}, line {number}, field {name!r}: must be true or false to be compared with; got "
            f"{row.get(name)!r:.60}"
        )
    return bool(row[name])


def _show(rows: list[dict[str, Any]], verdicts: list[Verdict], recorded: list[bool], job: ScoreJob) -> None:
    differing = [
        n
        for n, (v, r) in enumerate(zip(verdicts, recorded, strict=True))
        if v.score is None or (v.score == 1.0) is not r
    ]
    for number in differing[: job.show]:
        name = rows[number].get("id", f"row {number + 1}")
        print(
            f"  {name}: recorded {recorded[number]}, {verdicts[number]}; reference {rows[number][job.answer_column]!r}"
        )
    if len(differing) > job.show:
        print(f"  and {len(differing) - job.show} more; --out writes them all")


def _sample(number: int, row: dict[str, Any], verdict: Verdict, recorded: bool | None) -> dict[str, Any]:
    return {
        "id": row.get("id", number),
        "outcome": verdict.outcome.value,
        "score": verdict.score,
        "extracted": verdict.extracted,
        "kind": verdict.kind,
        "reason": verdict.reason,
        "recorded": recorded,
    }
