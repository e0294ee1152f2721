"""A batch of our loop against TRL 1.16.0's GRPOTrainer: draw, score, read, update.

Both begin from the same 1M-parameter model and take the same problems, 8 responses each of up to 32 tokens, the same
reward function, group-relative advantages, the mean over all tokens and AdamW in fp32. Five kinds of work:

    one update    strictly on-policy
    4 updates     the responses of one generation in four parts, an optimiser step each
    2 passes      two optimiser steps on all of them
    KL            a reference model beside (beta = 0.04)
    half flat     the reward of half the problems is constant, so their groups teach nothing
    long          128 tokens a response

Arms run in turns, each in a process of its own on one thread, a seed a turn, measured in processor seconds (those of
reward processes among them), which other jobs on the machine disturb less than the clock; ratios of medians with a
bootstrap interval over the turns.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from claims import arguments, figure, finish
from made_models import word_model
from prm_training import ratio
from trl_peer import THREADS, run_arm, trl_python

WORK: dict[str, tuple[dict[str, Any], float]] = {
    "one update": ({}, 0.90),
    "4 updates": ({"updates": 4}, 0.70),
    "2 passes": ({"epochs": 2}, 0.75),
    "KL": ({"beta": 0.04}, 0.88),
    "half flat": ({"constant": 0.5}, 0.65),
    "long": ({"tokens": 128}, 0.80),
}
"""What a job changes, and the ceiling of our seconds over TRL's."""
PLAIN = {"prompts": 16, "group": 8, "tokens": 32, "updates": 1, "epochs": 1, "beta": 0.0, "constant": 0.0}
WORDS = [f"w{n}" for n in range(480)]


def checkpoint(folder: Path) -> Path:
    """A causal language model of 1M random weights; it ends a response once in 500 tokens."""
    return word_model(
        folder,
        WORDS,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )


def measure(name: str, model: Path, folder: Path, *, turns: int, batches: int, warmup: int) -> list[dict[str, Any]]:
    """Both arms in turns on one kind of work."""
    more, ceiling = WORK[name]
    job = {**PLAIN, **more, "model": str(model), "batches": batches, "warmup": warmup, "threads": THREADS}
    pythons: dict[str, str | Path] = {"rewardkit": sys.executable, "trl": trl_python("1.16.0")}
    done: dict[str, list[dict[str, Any]]] = {arm: [] for arm in pythons}
    for seed in range(turns):
        for arm in sorted(pythons, key=lambda arm: random.Random(f"{seed} {arm}").random()):
            words = ["time", arm]
            done[arm].append(run_arm(pythons[arm], "rl_step_time_arms.py", words, {**job, "seed": seed}, folder))

    def taken(arm: str, what: str) -> list[float]:
        return [row[what] for row in done[arm]]

    ours, theirs = statistics.median(taken("rewardkit", "cpu")), statistics.median(taken("trl", "cpu"))
    drawn = statistics.median(taken("rewardkit", "tokens")) / statistics.median(taken("trl", "tokens"))
    phases = {
        part.strip(): statistics.median(taken("rewardkit", part)) for part in done["rewardkit"][0] if part[0] == " "
    }
    return [
        figure(
            f"{name}: batch of RewardKit / of TRL",
            **ratio(taken("rewardkit", "cpu"), taken("trl", "cpu")),
            ceiling=ceiling,
            unit="x",
            turns=turns,
        ),
        figure("    by the clock", **ratio(taken("rewardkit", "wall"), taken("trl", "wall")), unit="x"),
        figure("    processor seconds of RewardKit", ours, unit="s", phases=phases),
        figure("    processor seconds of TRL", theirs, unit="s"),
        figure("    drawn tokens of RewardKit / of TRL", drawn, floor=0.97, ceiling=1.03, unit="x"),
    ]


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__)
    turns, batches, warmup = (1, 4, 1) if options.quick else (5, 9, 2)
    figures: list[dict[str, Any]] = []
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as made:
        model = checkpoint(Path(made, "model"))
        for name in WORK:
            figures += measure(name, model, Path(made), turns=turns, batches=batches, warmup=warmup)
    figures.append(figure("load before the first arm", load, threads=int(THREADS)))
    finish("rl_step_time", figures, options)


if __name__ == "__main__":
    main()
