"""Labelling wall time: shared prefixes and early stop against one batch of full-prompt roll-outs with fixed K.

The same responses of the shipped policy and the same streams of K = 16 roll-outs a step, so the hard labels must be
the same. Three arms in turns, each with an engine of its own: every roll-out asked for by itself in one call, full
prompt and all, K of them; the same with prefixes shared (one reading a response, forked at every step); sharing and
early stop, as many roll-outs again as were drawn so far. All three decode in the same loop, whose batch is refilled as
rows end: a batch that waits for its slowest row would make the first arm slower still. A seed is another set of
problems. Ratios of seconds; the interval is a bootstrap over seeds. A small job (--quick) ends with a long tail of few
rows and shows less.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from claims import arguments, figure, finish
from prm_labels import BASE, interval, labelled, responses

from rewardkit import playground
from search.engines.transformers_engine import TransformersEngine
from verifiers.core import Continuation, GenerationRequest, Sampling


@dataclass
class Separate:
    """An engine that is asked for every roll-out by itself, full prompt and all, and has no streams."""

    engine: TransformersEngine

    def __getattr__(self, name: str) -> Any:
        if name == "stream":
            raise AttributeError(name)
        return getattr(self.engine, name)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[list[Continuation]]:
        """One request a roll-out."""
        single = [replace(q, n=1, first=q.first + j) for q in requests for j in range(q.n)]
        drawn = iter(self.engine.generate(single, sampling))
        return [[next(drawn)[0] for _ in range(q.n)] for q in requests]


def wall_time(engine: TransformersEngine, count: int, seed: int) -> dict[str, float]:
    """Seconds of the same labels: full prompts and fixed K, then sharing, then both."""
    pairs = responses(engine, count, seed)
    config = replace(BASE, seed=seed)
    arms = {
        "base": (Separate(TransformersEngine(engine.model, engine.tokenizer, prefix_tokens=0)), config),
        "shared": (TransformersEngine(engine.model, engine.tokenizer), config),
        "early": (
            TransformersEngine(engine.model, engine.tokenizer),
            replace(config, method="early_stop", doubling=True),
        ),
    }
    seconds, labels = {}, {}
    for name, (arm, settings) in arms.items():
        started = time.perf_counter()
        labels[name] = [row.labels("hard") for row in labelled(pairs, arm, settings)]
        seconds[name] = time.perf_counter() - started
    return {
        "sharing": seconds["base"] / seconds["shared"],
        "both": seconds["base"] / seconds["early"],
        "same": float(np.mean([a == b for a, b in zip(labels["base"], labels["early"], strict=True)])),
    }


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__)
    engine = TransformersEngine.load(playground.asset("policy"), dtype="float32")
    found = [wall_time(engine, 8 if options.quick else 120, seed) for seed in range(2 if options.quick else 5)]
    finish(
        "prm_label_time",
        [
            figure(
                "seconds, full prompts and fixed K / sharing and early stop",
                **interval([one["both"] for one in found]),
                floor=3.0,
                unit="x",
            ),
            figure("seconds, full prompts / sharing alone", **interval([one["sharing"] for one in found]), unit="x"),
            figure("share of responses labelled the same", **interval([one["same"] for one in found]), floor=1.0),
        ],
        options,
    )


if __name__ == "__main__":
    main()
