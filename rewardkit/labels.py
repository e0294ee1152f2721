"""The labelling job: draw responses, label their steps, write rows that a killed run can go on from.

Rows go to `labels.jsonl` response by response, what belongs to a response first and its own row last: that row is
the mark that the response is complete. Going on drops rows without their response row, then skips what is there.
Beside it `responses.jsonl` keeps the responses and `rollouts.jsonl` every roll-out as it ends, so that a killed job
pays for nothing twice but what was being drawn; because every draw derives from (seed, problem,
sample, step), the labels end up the same as without a stop.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prm.formats import StepRow
from prm.label_noise import label_noise
from prm.labelling import LabelConfig, label_pairs
from prm.rollouts import FileLog
from search.strategies.best_of_n import draw
from verifiers.core import Engine, Problem, Response, Scorer, StepScorer, StopReason
from verifiers.errors import DataError
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
    scorer: StepScorer | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
    chunk: int = 32,
    abreast: int = 128,
) -> int:
    """Label `samples` responses to each problem into the file at `path`; returns the number of new responses.

    `scorer` guides the method cheapest_search. Problems whose responses are all in the file already are skipped. The
    responses are drawn at the sampling settings of the roll-outs, `chunk` problems at a time, and labelled `abreast` at
    a time.
    """
    done = _complete(path)
    todo = [p for p in problems if any((p.id, sample) not in done for sample in range(samples))]
    on_progress(len(problems) - len(todo))
    new = 0
    with (
        JsonlAppender(path) as file,
        JsonlAppender(path.with_name("responses.jsonl")) as responses,
        FileLog(path.with_name("rollouts.jsonl")) as log,
    ):
        kept = _kept_responses(responses.rows)
        left: Counter[str] = Counter()

        def pairs() -> Iterator[tuple[Problem, Response]]:
            for start in range(0, len(todo), chunk):
                part = todo[start : start + chunk]
                fresh = [problem for problem in part if len(kept.get(problem.id, ())) < samples]
                sampling, seed = config.sampling, config.seed
                for pool in draw(fresh, engine=engine, n=samples, sampling=sampling, seed=seed) if fresh else ():
                    known = len(kept.get(pool.problem.id, ()))
                    kept[pool.problem.id] = list(pool.responses)
                    responses.append(*map(_response_row, pool.responses[known:]))
                for problem in part:
                    wanted = [r for r in kept[problem.id][:samples] if (problem.id, r.sample) not in done]
                    left[problem.id] = len(wanted)
                    order.extend(wanted)
                    yield from ((problem, response) for response in wanted)

        order: deque[Response] = deque()
        labelled = label_pairs(
            pairs(),
            engine=engine,
            verifier=verifier,
            config=config,
            policy=policy,
            scorer=scorer,
            log=log,
            chunk=abreast,
        )
        for rows in labelled:
            file.append(*(row.to_json() for row in [*rows[1:], *rows[:1]]))
            new += 1
            problem_id = order.popleft().problem_id
            left[problem_id] -= 1
            on_progress(int(not left[problem_id]))
    return new


def _response_row(response: Response) -> dict[str, Any]:
    return {
        "problem_id": response.problem_id,
        "sample": response.sample,
        "text": response.text,
        "stop_reason": response.stop_reason.value,
        "token_ids": list(response.token_ids),
    }


def _kept_responses(rows: Sequence[dict[str, Any]]) -> dict[str, list[Response]]:
    kept: dict[str, dict[int, Response]] = {}
    for row in rows:
        kept.setdefault(row["problem_id"], {})[row["sample"]] = Response(
            problem_id=row["problem_id"],
            sample=row["sample"],
            text=row["text"],
            stop_reason=StopReason(row["stop_reason"]),
            token_ids=tuple(row["token_ids"]),
        )
    return {problem: [found[n] for n in sorted(found)] for problem, found in kept.items()}


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


def noise(rows: Sequence[StepRow], *, trials: int) -> dict[str, float] | str:
    """How far hard labels from this many roll-outs can be trusted, or why nothing can be said."""
    try:
        found = label_noise(rows, trials=trials)
    except DataError as error:
        return str(error)
    return {
        "good steps called bad": round(found.good_called_bad, 4),
        "bad labels that are wrong": round(found.bad_labels_wrong, 4),
        "labels that flip when drawn again": round(found.flip_rate, 4),
        "a step is good from a chance of": found.good,
    }


def summary(rows: Sequence[StepRow]) -> dict[str, Any]:
    """Counts for people: responses, steps, trials, share of successes, undecided trials."""
    own = [row for row in rows if row.source != "rollout"]
    hard = [label for row in own for label in row.labels("hard") if label is not None]
    trials = sum(sum(row.trials) for row in own)
    return {
        "responses": len(own),
        "roll-out rows": len(rows) - len(own),
        "labelled steps": sum(n > 0 for row in rows for n in row.trials),
        "trials": trials,
        "success rate": sum(sum(row.successes) for row in own) / max(1, trials),
        "good steps": sum(map(bool, hard)) / max(1, len(hard)),
        "undecided trials": sum(sum(row.undecided) for row in own),
    }
