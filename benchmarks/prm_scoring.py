"""Step scores in a 16-wide beam: the forkable cache against reading every candidate again.

Both arms score the same texts level by level: 4 beams with 4 continuations each, of which 4 random ones go on.
The texts are steps of playground solutions behind a playground problem, so their lengths are ragged as in a search.
The arms run in turns; the figure is the ratio of their seconds, its interval a bootstrap over seeds.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch
from claims import arguments, figure, finish

from prm.cache import CachedScorer
from prm.model import ProcessModel
from rewardkit import playground
from verifiers.core import Problem, Response
from verifiers.steps import BLANK_LINE, split_steps

WIDTH, KEPT = 16, 4


def levels(tokenizer: Any, problem: Problem, lines: list[str], depth: int, seed: int) -> list[list[Response]]:
    """The candidates that a beam search looks at, level by level."""
    rng = random.Random(seed)
    beams: list[list[str]] = [[] for _ in range(KEPT)]
    found = []
    for _ in range(depth):
        grown = [[*beam, rng.choice(lines)] for beam in beams for _ in range(WIDTH // KEPT)]
        # As in a search, responses come as the ids that were drawn.
        texts = [BLANK_LINE.join([*steps, ""]) for steps in grown]
        found.append(
            [
                Response(problem_id=problem.id, text=text, token_ids=tuple(tokenizer(text)["input_ids"]))
                for text in texts
            ]
        )
        beams = rng.sample(grown, KEPT)
    return found


def scored(scorer: Any, problem: Problem, beam: list[list[Response]]) -> tuple[float, list[float], int]:
    """Seconds, scores of all steps, tokens read."""
    before = scorer.usage
    started = time.perf_counter()
    scores = [scorer.score_steps([problem] * len(level), level) for level in beam]
    seconds = time.perf_counter() - started
    read = (scorer.usage - before).prefill_tokens
    return seconds, [x for level in scores for row in level for x in row], read


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__)
    seeds = 2 if options.quick else 8
    torch.manual_seed(0)
    model = ProcessModel.load(playground.asset("prm"), dtype="float32")
    pool = playground.problems(60, split="validation", seed=9)
    lines = [step.text for p in pool for step in split_steps(str(p.metadata["solution"]))]
    figures = []
    worst = 0.0
    for depth, floor in ((8, 4.0), (16, 8.0)):
        ratios, tokens = [], []
        for seed in range(-1, seeds):  # the first round warms up
            problem = max(playground.problems(20, split="test", seed=seed + 50), key=lambda p: len(str(p.prompt)))
            beam = levels(model.tokenizer, problem, lines, depth, seed)
            again, wanted, read = scored(model, problem, beam)
            seconds, found, less = scored(CachedScorer(model), problem, beam)
            worst = max(worst, max(abs(a - b) for a, b in zip(wanted, found, strict=True)))
            if seed >= 0:
                ratios.append(again / seconds)
                tokens.append(read / less)
        picks = np.random.default_rng(0).integers(0, len(ratios), size=(2000, len(ratios)))
        low, high = np.quantile(np.array(ratios)[picks].mean(1), [0.025, 0.975])
        figures += [
            figure(
                f"seconds, recomputation / cache, T={depth}",
                float(np.mean(ratios)),
                low=float(low),
                high=float(high),
                floor=floor,
                unit="x",
                seeds=len(ratios),
            ),
            figure(f"tokens read, recomputation / cache, T={depth}", float(np.mean(tokens)), unit="x"),
        ]
    figures.append(figure("greatest difference of a score, float32", worst, ceiling=1e-5))
    finish("prm_scoring", figures, options)


if __name__ == "__main__":
    main()
