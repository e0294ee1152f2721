"""The math verifier against math-verify 0.9: verdicts a second, tail, import time, two processes, memory drift.

Both arms in one process and one run, in turns, on shuffled inputs, best of three. Real completions are the GSM8K
solutions of shared/data (left out where absent); the distinct pairs are generated (integers, fractions, radicals,
quadratics, pairs; a third of them unequal). math-verify judges a tenth of the pairs, for it takes minutes.
"""

from __future__ import annotations

import logging
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from claims import arguments, figure, finish

from verifiers.equality import math_equal
from verifiers.jsonl import read_jsonl
from verifiers.maths import MathVerifier

DATA = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_model_solutions.jsonl"
Pair = tuple[str, str]


def pairs(count: int, seed: int = 0) -> list[Pair]:
    """Distinct (answer, reference) pairs of five shapes."""
    draw = random.Random(seed)
    found: dict[Pair, None] = {}
    while len(found) < count:
        a, b, c = (draw.randrange(2, 10 ** draw.randrange(1, 5)) for _ in range(3))
        one, two = draw.choice(
            [
                (f"{a * b:,}", str(a * b)),
                (rf"\frac{{{a * c}}}{{{b * c}}}", rf"\dfrac{{{a}}}{{{b}}}"),
                (rf"\sqrt{{{a * a * b}}}", rf"{a}\sqrt{{{b}}}"),
                (f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b}"),
                (rf"\left({a},\frac{{{b * c}}}{{{c}}}\right)", f"({a},{b})"),
            ]
        )
        found[(one.replace(str(a), str(a + 1), 1) if draw.random() < 0.34 else one, two)] = None
    return list(found)


def memory() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def rate(judge: Callable[[str, str], object], inputs: Sequence[Pair]) -> float:
    """Inputs a second."""
    begin = time.perf_counter()
    for pair in inputs:
        judge(*pair)
    return len(inputs) / (time.perf_counter() - begin)


def times(name: str, ours: list[float], theirs: list[float], floor: float) -> dict[str, object]:
    """How many times faster, best run against best run."""
    mine, peer = max(ours), max(theirs)
    return figure(f"{name}, times math-verify", mine / peer, floor=floor, ours_per_s=mine, peer_per_s=peer)


def import_seconds(statement: str) -> float:
    """Median time of an interpreter that runs one statement."""

    def once() -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True, cwd=Path(__file__).parents[1])
        return time.perf_counter() - begin

    return statistics.median(once() for _ in range(9))


def main() -> None:
    """All figures in one run."""
    options = arguments(__doc__)
    from math_verify import parse, verify

    logging.disable(logging.ERROR)
    verifier = MathVerifier()

    def peer(answer: str, reference: str) -> bool:
        return bool(verify(parse(f"${reference}$"), parse(f"${answer}$")))

    def peer_on_text(response: str, reference: str) -> bool:
        return bool(verify(parse(reference), parse(response)))

    figures = []
    draw = random.Random(1)
    if DATA.exists():
        rows = read_jsonl(DATA, required=("response", "answer"))
        texts = [(row["response"], row["answer"]) for row in draw.sample(rows, 200 if options.quick else 800)]
        ours, theirs = [], []
        for _ in range(3):
            draw.shuffle(texts)
            ours.append(rate(MathVerifier().verify, texts))
            theirs.append(rate(peer_on_text, texts))
        times = []
        for response, answer in texts:
            begin = time.perf_counter()
            verifier.verify(response, answer)
            times.append(time.perf_counter() - begin)
        figures += [
            times(f"{len(texts)} real completions", ours, theirs, 10.0),
            figure("p99 on them", 1000 * statistics.quantiles(times, n=100)[98], ceiling=5.0, unit="ms"),
        ]
    made = pairs(2_000 if options.quick else 12_000)
    draw.shuffle(made)
    rate(math_equal, made[:3_000])  # memory settles, all that is lazy is loaded
    before = memory()
    ours = [rate(math_equal, made)]
    drift = memory() - before
    theirs = [rate(peer, made[: len(made) // 20]) for _ in range(2)]
    ours.append(rate(math_equal, made))
    figures += [
        times(f"{len(made)} distinct pairs", ours, theirs, 20.0),
        figure("memory drift over them after the first 3,000", drift, ceiling=5.0, unit="MiB"),
    ]
    answers, references = zip(*made, strict=True)
    batches = {workers: MathVerifier(workers=workers) for workers in (1, 2)}
    for batch in batches.values():
        batch.verify_batch(answers[:256], references[:256])  # the workers start
    seconds = dict.fromkeys(batches, float("inf"))
    for workers in (1, 2) * 4:  # in turns, for the machine is shared
        begin = time.perf_counter()
        batches[workers].verify_batch(answers, references)
        seconds[workers] = min(seconds[workers], time.perf_counter() - begin)
    batches[2].close()
    figures.append(figure("a batch over 2 processes, times 1", seconds[1] / seconds[2], floor=1.7))
    bare = import_seconds("pass")
    lazy = "import sys, verifiers; assert 'sympy' not in sys.modules"
    figures.append(figure("import verifiers", import_seconds(lazy) - bare, ceiling=0.15, unit="s"))
    figures.append(figure("import math_verify", import_seconds("import math_verify") - bare, unit="s"))
    finish("verifiers_speed", figures, options)


if __name__ == "__main__":
    main()
