"""MathVerifier against the recorded correctness of 3,260 GSM8K solutions written by language models.

Needs the development data beside the checkout (shared/data/gsm8k_model_solutions.jsonl) and says so where it is
absent. Every disagreement is printed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from claims import arguments, figure, finish

from verifiers.jsonl import read_jsonl
from verifiers.maths import MathVerifier

DATA = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_model_solutions.jsonl"


def main() -> None:
    """Judge and compare."""
    options = arguments(__doc__)
    if not DATA.exists():
        print(f"skipped: {DATA.name} is not there (development data, not part of the project)")
        sys.exit(0)
    rows = read_jsonl(DATA, required=("response", "answer", "correct"))[: 500 if options.quick else None]
    begin = time.perf_counter()
    verdicts = MathVerifier().verify_batch([r["response"] for r in rows], [r["answer"] for r in rows])
    seconds = time.perf_counter() - begin
    agreeing = 0
    for row, verdict in zip(rows, verdicts, strict=True):
        same = verdict.score is not None and (verdict.score == 1.0) is row["correct"]
        agreeing += same
        if not same:
            print(f"  {row['id']}: recorded {row['correct']}, {verdict}")
    share = agreeing / len(rows)
    finish(
        "verifier_gsm8k",
        [figure(f"agreement over {len(rows)} rows", share, floor=0.995, seconds=seconds, rows=len(rows))],
        options,
    )


if __name__ == "__main__":
    main()
