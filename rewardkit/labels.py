"""The labelling job: draw responses, label their steps, write rows that a killed run can go on from.

Rows go to `labels.jsonl` response by response, each response's roll-outs first and its own row last: that row is
the mark that the response is complete. Going on drops roll-outs without their response row, then skips what is
there; because every draw derives from (seed, problem, sample, step), the file ends up the same as without a stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prm.formats import StepRow
from prm.labelling import LabelConfig, label
from search.strategies.best_of_n import draw
from verifiers.core import Engine, Problem, Scorer
from verifiers.jsonl import JsonlAppender, write_jsonl


def make_labels(
    problems: Sequence[Problem],
    *,
    engine: Engine,
    verifier: Scorer,
    config: LabelConfig,
    samples: int,
    path: Path,
    policy: str,
    on_progress: Callable[[int], None] = lambda count: None,
    chunk: int = 32,
) -> int:
    """Label `samples` responses to each problem into the file at `path`; returns the number of new responses.

    Problems whose responses are all in the file already are skipped. The responses are drawn at the sampling
    settings of the roll-outs.
    """
    done = _complete(path)
    todo = [p for p in problems if any((p.id, sample) not in done for sample in range(samples))]
    on_progress(len(problems) - len(todo))
    new = 0
    with JsonlAppender(path) as file:
        for start in range(0, len(todo), chunk):
            part = todo[start : start + chunk]
            pools = draw(part, engine=engine, n=samples, sampling=config.sampling, seed=config.seed)
            pairs = [
                (pool.problem, response)
                for pool in pools
                for response in pool.responses
                if (pool.problem.id, response.sample) not in done
            ]
            labelled = label(
                [p for p, _ in pairs],
                [r for _, r in pairs],
                engine=engine,
                verifier=verifier,
                config=config,
                policy=policy,
                chunk=len(pairs),
            )
            for rows in labelled:
                file.append(*(row.to_json() for row in [*rows[1:], *rows[:1]]))
                new += 1
            on_progress(len(part))
    return new


def _complete(path: Path) -> set[tuple[str, int]]:
    """(problem, sample) of the responses that are whole in the file; what a kill left of another is cut off."""
    if not path.exists():
        return set()
    with JsonlAppender(path) as file:
        rows: list[dict[str, Any]] = file.rows
    whole = max((n for n, row in enumerate(rows, start=1) if row.get("source") == "response"), default=0)
    if whole < len(rows):
        write_jsonl(path, rows[:whole])
    return {(row["problem_id"], row["sample"]) for row in rows[:whole] if row.get("source") == "response"}


def summary(rows: Sequence[StepRow]) -> dict[str, Any]:
    """Counts for people: responses, steps, trials, share of successes, undecided trials."""
    own = [row for row in rows if row.source != "rollout"]
    trials = sum(sum(row.trials) for row in own)
    return {
        "responses": len(own),
        "roll-out rows": len(rows) - len(own),
        "labelled steps": sum(n > 0 for row in rows for n in row.trials),
        "trials": trials,
        "success rate": sum(sum(row.successes) for row in own) / max(1, trials),
        "undecided trials": sum(sum(row.undecided) for row in own),
    }
