"""Step scores in a 16-wide beam: the forkable cache against reading every candidate again.

Both arms score the same texts level by level: 4 beams with 4 continuations each, of which 4 random ones go on.
The texts are steps of playground solutions behind a playground problem, so their lengths are ragged as in a search.
The arms run in turns; figures are ratios, recomputation over cache, their intervals bootstraps over seeds. One thread
is the main case: a model this small does not fill more.
"""

from __future__ import annotations

import copy
import random
import time
from typing import Any

import numpy as np
import torch
from claims import arguments, figure, finish
from transformers import AutoModelForTokenClassification

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


def wide() -> ProcessModel:
    """A random model of 14M parameters with the shipped one's tokenizer: where arithmetic outweighs the overhead."""
    small = ProcessModel.load(playground.asset("prm"), dtype="float32")
    config = copy.deepcopy(small.model.config)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 384, 1152, 8
    config.num_attention_heads = config.num_key_value_heads = 12
    return ProcessModel(AutoModelForTokenClassification.from_config(config), small.tokenizer)


def ratios(model: ProcessModel, lines: list[str], depth: int, seeds: int) -> dict[str, list[float]]:
    """Per seed: seconds and tokens of recomputation over those of the cache, and the greatest difference of a score."""
    found: dict[str, list[float]] = {"seconds": [], "tokens": [], "difference": []}
    for seed in range(-1, seeds):  # the first round warms up
        problem = max(playground.problems(20, split="test", seed=seed + 50), key=lambda p: len(str(p.prompt)))
        beam = levels(model.tokenizer, problem, lines, depth, seed)
        again, wanted, read = scored(model, problem, beam)
        seconds, got, less = scored(CachedScorer(model), problem, beam)
        found["difference"].append(max(abs(a - b) for a, b in zip(wanted, got, strict=True)))
        if seed >= 0:
            found["seconds"].append(again / seconds)
            found["tokens"].append(read / less)
    return found


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__)
    torch.manual_seed(0)
    shipped, large = ProcessModel.load(playground.asset("prm"), dtype="float32"), wide()
    pool = playground.problems(60, split="validation", seed=9)
    lines = [step.text for p in pool for step in split_steps(str(p.metadata["solution"]))]
    figures = []
    worst = {"shipped": 0.0, "14M random": 0.0}
    for name, model, threads, depth, floor in (
        ("shipped", shipped, 1, 8, 4.0),
        ("shipped", shipped, 1, 16, 8.0),
        ("14M random", large, 1, 16, None),
    ):
        torch.set_num_threads(threads)
        seeds = 2 if options.quick or name != "shipped" else 8
        found = ratios(model, lines, depth, seeds)
        worst[name] = max([worst[name], *found["difference"]])
        picks = np.random.default_rng(0).integers(0, seeds, size=(2000, seeds))
        low, high = np.quantile(np.array(found["seconds"])[picks].mean(1), [0.025, 0.975])
        value = float(np.mean(found["seconds"]))
        what = f"{name} model, T={depth}, {threads} thread{'s' * (threads > 1)}"
        figures.append(
            figure(f"seconds, {what}", value, low=float(low), high=float(high), floor=floor, unit="x", seeds=seeds)
        )
        if threads == 1:
            figures.append(figure(f"tokens read, {what}", float(np.mean(found["tokens"])), unit="x"))
    for name, difference in worst.items():
        figures.append(figure(f"greatest difference of a score, float32, {name} model", difference, ceiling=1e-5))
    figures.append(figure("the same between two batchings of recomputation, shipped model", batching(shipped, lines)))
    finish("prm_scoring", figures, options)


def batching(model: ProcessModel, lines: list[str]) -> float:
    """How far scores move when the same rows are read one by one: what float32 leaves open."""
    (problem,) = playground.problems(1, split="test", seed=50)
    rows = [row for level in levels(model.tokenizer, problem, lines, 16, 0) for row in level]
    together = model.score_steps([problem] * len(rows), rows)
    model.batch_tokens = 1
    alone = model.score_steps([problem] * len(rows), rows)
    return max(abs(a - b) for one, two in zip(together, alone, strict=True) for a, b in zip(one, two, strict=True))


if __name__ == "__main__":
    main()
