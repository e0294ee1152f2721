"""Judging a batch in several processes: pairs of (response, reference) dealt out in chunks to a pool of workers.

`python -m verifiers.batch` is the worker; it builds one MathVerifier (with a sympy worker of its own) from the
settings that come with each chunk. Everything travels as JSON. A chunk whose worker fails (deadline, memory,
crash) is judged in the caller's process, so that no verdict is ever lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from verifiers.core import Outcome, Verdict
from verifiers.sandbox import WorkerPool

if TYPE_CHECKING:
    from verifiers.maths import MathVerifier

CHUNK = 64
"""Most pairs in one message."""
START_ALLOWANCE_S = 60.0
"""Added to a chunk's deadline, for a machine under load."""
PIECES = 4
"""Chunks a worker at least, so that one slow chunk does not leave the others idle."""

Pair = tuple[str, str]


class BatchPool:
    """Worker processes that judge as one verifier does."""

    def __init__(self, *, settings: Mapping[str, Any], workers: int) -> None:
        """`settings` are the keyword arguments of MathVerifier with policies as dicts."""
        self.settings = dict(settings)
        self.pool = WorkerPool(
            "verifiers.batch",
            timeout_s=CHUNK * float(settings["timeout_s"]) + START_ALLOWANCE_S,
            memory_mb=int(settings["memory_mb"]),
            workers=workers,
        )

    def judge(self, pairs: Sequence[Pair], fallback: Callable[[str, str], Verdict]) -> list[Verdict]:
        """One verdict a pair, in order; `fallback` judges the pairs of a chunk whose worker failed."""
        size = max(1, min(CHUNK, -(-len(pairs) // (self.pool.workers * PIECES))))
        chunks = [pairs[start : start + size] for start in range(0, len(pairs), size)]

        def ask(chunk: Sequence[Pair]) -> list[Verdict]:
            reply = self.pool.ask({"settings": self.settings, "pairs": [list(pair) for pair in chunk]})
            if reply.value is None:
                return [fallback(*pair) for pair in chunk]
            return [_verdict(row) for row in reply.value["verdicts"]]

        with ThreadPoolExecutor(max_workers=self.pool.workers) as threads:
            return [verdict for found in threads.map(ask, chunks) for verdict in found]


def _verdict(row: Mapping[str, Any]) -> Verdict:
    return Verdict(**{**row, "outcome": Outcome(row["outcome"])})


def judge_chunk(request: Mapping[str, Any], verifiers: dict[str, MathVerifier]) -> dict[str, Any]:
    """The worker's answer to one chunk; `verifiers` keeps the verifier of each group of settings."""
    from verifiers.answers import AnswerPolicy
    from verifiers.maths import MathVerifier
    from verifiers.scalars import EqualityPolicy

    settings = dict(request["settings"])
    name = repr(settings)
    if name not in verifiers:
        settings["answer_policy"] = AnswerPolicy(**settings["answer_policy"])
        settings["equality_policy"] = EqualityPolicy(**settings["equality_policy"])
        verifiers[name] = MathVerifier(**settings)
    return {"verdicts": [_row(verifiers[name].verify(*pair)) for pair in request["pairs"]]}


def _row(verdict: Verdict) -> dict[str, Any]:
    return {**asdict(verdict), "outcome": verdict.outcome.value}


def _main() -> None:
    from verifiers.sandbox import serve

    kept: dict[str, MathVerifier] = {}
    serve(lambda request: judge_chunk(request, kept))


if __name__ == "__main__":
    _main()
