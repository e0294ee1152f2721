"""Train the playground's shipped process reward model on the shipped Monte-Carlo labels.

    python scripts/playground_prm.py --out data/playground/prm

It starts from the policy's phase-1 checkpoint (the one that makes few slips), keeps that fixed, and trains two
decoder layers on top: the first learns, helped by the surprisal loss, to see which tokens the model under it
did not expect, the second to turn that into P(a right answer is still reached). Within a run each label row is
read at most once: going over few rows again and again only overfits. Settings and provenance are in
prm/rewardkit.json, steps
and seconds in prm/training.json.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from dataclasses import asdict
from pathlib import Path

from prm.formats import read_stepwise
from prm.train_config import TrainConfig
from prm.training import fit


def main() -> None:
    """Fit and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", type=Path, default=Path("data/playground/labels.jsonl.gz"))
    parser.add_argument("--init", default="data/playground/policy-right")
    parser.add_argument("--steps", type=int, default=1100, help="0: one pass over all rows")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--lm-weight", type=float, default=0.0)
    parser.add_argument("--extra-layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = read_stepwise(args.labels)
    if args.steps and args.steps * args.rows < len(rows):
        rows = random.Random(args.seed).sample(rows, args.steps * args.rows)
    config = TrainConfig(
        init=str(args.init),
        steps=args.steps or len(rows) // args.rows,
        rows=args.rows,
        micro_rows=args.rows,
        rate=args.rate,
        warmup=100,
        weighting="counts",
        lm_weight=args.lm_weight,
        extra_layers=args.extra_layers,
        freeze_init=True,
        surprisal_weight=0.4,
        seed=args.seed,
    )
    print(f"{len(rows)} rows, {config.steps} steps", flush=True)
    with tempfile.TemporaryDirectory() as work:
        report = fit(
            rows,
            config,
            args.out,
            work=work,
            on_log=lambda row: print(json.dumps(row), flush=True),
            provenance={"script": "scripts/playground_prm.py", "labels": "data/playground/labels.jsonl.gz"},
        )
    (args.out / "training.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
