"""Texts made to hang or break a verifier: slowest call with and without sympy, memory, exceptions; then fuzzing.

The corpus is tests/hostile.py, run through `verify` and `math_equal` on the main thread, a worker thread and an
asyncio loop; `--minutes` of random texts, glued from pieces of it and of LaTeX, follow (10 for the figure in the
README; none with --quick).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from claims import figure, finish

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hostile import HOSTILE, fuzz_text

from verifiers.core import Verdict
from verifiers.maths import MathVerifier
from verifiers.scalars import EqualityPolicy

Judge = Callable[[str, str], Verdict]


def slowest(judges: list[Judge], name: str) -> tuple[float, int]:
    """Seconds of the slowest call over the corpus, and the number of verdicts that are wrong."""
    worst, wrong = 0.0, 0
    for case, (response, reference, equal) in HOSTILE.items():
        for judge in judges:
            begin = time.perf_counter()
            verdict = judge(response, reference)
            seconds = time.perf_counter() - begin
            if seconds > worst:
                worst = seconds
                print(f"  {name}: {case} {seconds:.3f} s, {verdict.kind}")
            wrong += equal is not None and (verdict.score == 1.0) is not equal
    return worst, wrong


def in_thread(judges: list[Judge]) -> tuple[float, int]:
    """The corpus in a worker thread."""
    found: list[tuple[float, int]] = []
    thread = threading.Thread(target=lambda: found.append(slowest(judges, "thread")))
    thread.start()
    thread.join()
    return found[0]


async def in_loop(judges: list[Judge]) -> tuple[float, int]:
    """The corpus inside a running event loop."""
    return slowest(judges, "asyncio")


def main() -> None:
    """Corpus, then fuzz."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 3 when a floor is missed")
    parser.add_argument("--quick", action="store_true", help="the corpus alone")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results/")
    parser.add_argument("--minutes", type=float, default=0.5, help="how long to fuzz")
    options = parser.parse_args()
    plain = MathVerifier(equality_policy=EqualityPolicy(symbolic=False))
    whole = MathVerifier()
    whole.verify("2", "2")
    whole.compare(r"\sum_{k=1}^{n}k", "n(n+1)/2")  # the worker starts
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    without, _ = slowest([plain.verify, plain.compare], "without sympy")
    runs = [slowest([whole.verify, whole.compare], "main thread")]
    runs += [in_thread([whole.compare]), asyncio.run(in_loop([whole.compare]))]
    # `compare` alone knows each text as a bare answer, which is what the corpus states verdicts for.
    _, wrong = slowest([whole.compare], "again")
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    draw, worst, count, defects = random.Random(0), 0.0, 0, 0
    until = time.monotonic() + 60 * (0.0 if options.quick else options.minutes)
    while time.monotonic() < until:
        one, two = fuzz_text(draw), fuzz_text(draw)
        for judge in (whole.verify, whole.compare):
            begin = time.perf_counter()
            verdict = judge(one, two)
            seconds = time.perf_counter() - begin
            if verdict.kind == "defect":
                defects += 1
                print(f"  fuzz: {verdict} for {one[:80]!r} against {two[:80]!r}")
            if seconds > worst:
                worst = seconds
                print(f"  fuzz: {seconds:.3f} s for {one[:80]!r} against {two[:80]!r}")
        count += 1
    figures = [
        figure(f"slowest of {len(HOSTILE)} before sympy", without, ceiling=0.25, unit="s"),
        figure("slowest overall", max(seconds for seconds, _ in runs), ceiling=2.0, unit="s"),
        figure("wrong verdicts", wrong, ceiling=0),
        figure("memory of the caller, growth", growth, ceiling=150, unit="MiB"),
    ]
    if count:
        figures.append(
            figure(f"slowest of {count} fuzzed pairs", worst, ceiling=2.5, unit="s", minutes=options.minutes)
        )
        figures.append(figure("defects in them (exceptions caught)", defects, ceiling=0))
    finish("verifiers_hostile", figures, options)


if __name__ == "__main__":
    main()
