"""A training step of an outcome model behind shared prompts against TRL 1.16.0's RewardTrainer.

Both train the same sequence classifier from the same weights on the same pairs in the same order, with AdamW, in fp32,
without dropout and gradient checkpointing. TRL reads a pair as two rows and pads to the longest of the batch; ours
reads the prompt once. Two shapes of rows, of random words: prompt and responses equally long, and a prompt three times
as long as a response; lengths vary by a tenth around that, and each response ends with the end of sequence.

    tokens   P + A + B of 2 P + A + B:   0.75 with P = A = B,   0.625 with P = 3 A = 3 B

Arms run in turns, each in a process of its own on one thread, a seed a turn, and the second half of the steps is timed
in processor seconds, which other jobs on the machine disturb less than the clock; wall seconds stand beside. They are
ratios of medians with a bootstrap interval over the turns; `two rows` is our own step without the shared prompt.
Before that, each arm gives every pair's loss at the start; the largest difference is a figure.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from claims import arguments, figure, finish
from made_models import word_model
from prm_training import ratio
from trl_peer import THREADS, run_arm, trl_python

from verifiers.jsonl import write_jsonl

SHAPES = {"prompt as long as a response": (144, 144, 0.77), "prompt three times as long": (288, 96, 0.65)}
"""Tokens of prompts and responses, and the ceiling."""
ARMS: dict[str, dict[str, Any]] = {
    "RewardKit": {"library": "rewardkit", "shared": True},
    "two rows": {"library": "rewardkit", "shared": False},
    "TRL": {"library": "trl", "shared": False},
}
WORDS = [f"w{n}" for n in range(500)]


def checkpoint(folder: Path) -> Path:
    """A sequence classifier of 5M parameters whose tokenizer has one token a word."""
    from rewardkit.outcome.model import OutcomeModel
    from rewardkit.outcome.starting import as_sequence_classifier, start

    word_model(
        folder / "policy",
        WORDS,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    model, tokenizer = start(folder / "policy")
    OutcomeModel(as_sequence_classifier(model), tokenizer).save(folder / "model")
    return folder / "model"


def pairs(count: int, prompt: int, response: int, seed: int) -> list[dict[str, str]]:
    """Pairs of random words; all texts end with a space, so that both arms see the same words."""
    draw = random.Random(seed)

    def words(about: int) -> str:
        size = round(about * draw.uniform(0.9, 1.1))
        return "".join(f"{draw.choice(WORDS)} " for _ in range(size))

    return [{"prompt": words(prompt), "chosen": words(response), "rejected": words(response)} for _ in range(count)]


def run(what: str, arm: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One arm in a process of its own."""
    python: str | Path = trl_python("1.16.0") if arm == "TRL" else sys.executable
    return run_arm(python, "outcome_train_arms.py", [what, ARMS[arm]["library"]], {**job, **ARMS[arm]}, folder)


def shape_figures(name: str, model: Path, folder: Path, *, turns: int, steps: int, batch: int) -> list[dict[str, Any]]:
    """Equal losses, then seconds in turns."""
    prompt, response, ceiling = SHAPES[name]
    job = {"model": str(model), "rows": str(folder / "rows.jsonl"), "batch": batch, "steps": steps}
    cpu: dict[str, list[float]] = {arm: [] for arm in ARMS}
    wall: dict[str, list[float]] = {arm: [] for arm in ARMS}
    worst = 0.0
    for seed in range(turns):
        write_jsonl(folder / "rows.jsonl", pairs(batch * steps, prompt, response, seed))
        job |= {"out": str(folder / f"out-{seed}"), "seed": seed}
        if not seed:
            losses = {arm: run("losses", arm, job, folder) for arm in ARMS}
            assert losses["TRL"]["ids"] == losses["two rows"]["ids"], "the arms read other tokens"
            found = [len(ids) for pair in losses["TRL"]["ids"] for ids in pair]
            assert min(found) > 0.9 * (prompt + response) - 2, "words were lost in tokenising"
            for arm in ("RewardKit", "two rows"):
                gaps = [abs(a - b) for a, b in zip(losses[arm]["losses"], losses["TRL"]["losses"], strict=True)]
                worst = max(worst, *gaps)
        for arm in sorted(ARMS, key=lambda arm: random.Random(f"{seed} {arm}").random()):
            done = run("time", arm, job, folder)
            cpu[arm].append(done["cpu_seconds"])
            wall[arm].append(done["seconds"])
    step = f"{name}: step of RewardKit / of TRL"
    return [
        figure(step, **ratio(cpu["RewardKit"], cpu["TRL"]), ceiling=ceiling, unit="x"),
        figure("    by the clock", **ratio(wall["RewardKit"], wall["TRL"]), unit="x"),
        figure("    two rows / TRL", **ratio(cpu["two rows"], cpu["TRL"]), unit="x"),
        figure("    largest difference of a pair's loss x 1e5", 1e5 * worst, ceiling=1.0),
    ]


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__)
    turns, steps, batch = (2, 4, 4) if options.quick else (5, 8, 8)
    load = os.getloadavg()[0]
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        model = checkpoint(Path(made))
        for name in SHAPES:
            figures += shape_figures(name, model, Path(made), turns=turns, steps=steps, batch=batch)
    figures.append(figure("load before the first arm", load, threads=int(THREADS)))
    finish("outcome_train", figures, options)


if __name__ == "__main__":
    main()
