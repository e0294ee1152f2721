"""Make the playground's shipped step labels: Monte-Carlo roll-outs of the shipped policy on train problems.

    python scripts/playground_labels.py --out data/playground/labels.jsonl.gz

Each of `--problems` train problems is answered `--samples` times, and every step is labelled with `--trials`
roll-outs; the roll-outs are kept as rows of their own. Two worker processes share the work (one thread each is
faster than two threads in one process for a model this small). A killed run goes on where it stopped: each
worker appends to its own part file, and the parts are merged at the end.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path

from prm.formats import StepRow
from prm.labelling import LabelConfig, label
from rewardkit import playground
from verifiers.jsonl import JsonlAppender, write_jsonl

WORKERS = 2


def make_part(worker: int, args: argparse.Namespace, part: Path) -> None:
    """Label every second problem into a part file."""
    import torch

    from search.engines.transformers_engine import TransformersEngine
    from search.strategies.best_of_n import draw
    from verifiers.core import Sampling
    from verifiers.maths import MathVerifier

    torch.set_num_threads(1)
    engine = TransformersEngine.load(args.policy)
    verifier = MathVerifier()
    config = LabelConfig(
        trials=args.trials,
        temperature=playground.TEMPERATURE,
        max_new_tokens=playground.MAX_NEW_TOKENS,
        keep_rollouts=True,
        seed=args.seed,
    )
    sampling = Sampling(temperature=playground.TEMPERATURE, max_new_tokens=playground.MAX_NEW_TOKENS)
    with JsonlAppender(part) as file:
        done = {row["problem_id"] for row in file.rows}
        todo = [
            p
            for p in playground.problems(args.problems, split="train", seed=args.seed)[worker::WORKERS]
            if p.id not in done
        ]
        begin = time.time()
        for start in range(0, len(todo), 32):
            pools = draw(todo[start : start + 32], engine=engine, n=args.samples, sampling=sampling, seed=args.seed)
            pairs = [(pool.problem, response) for pool in pools for response in pool.responses]
            rows: dict[str, list[StepRow]] = {pool.problem.id: [] for pool in pools}
            labelled = label(
                [p for p, _ in pairs], [r for _, r in pairs], engine=engine, verifier=verifier,
                config=config, policy="playground/policy", chunk=128,
            )  # fmt: skip
            for found in labelled:
                for row in found:
                    rows[row.problem_id].append(row)
            # A problem's rows go out together, so that a killed run never leaves half a problem.
            file.append(*({"problem_id": name, "rows": [r.to_json() for r in own]} for name, own in rows.items()))
            rate = engine.usage.decoded_tokens / (time.time() - begin)
            print(f"worker {worker}: {start + 32}/{len(todo)} problems, {rate:.0f} tokens/s", flush=True)


def main() -> None:
    """Run the workers and merge their parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--policy", type=Path, default=Path("data/playground/policy"))
    parser.add_argument("--problems", type=int, default=3000)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", type=Path, default=Path("runs/playground-labels"))
    args = parser.parse_args()
    args.parts.mkdir(parents=True, exist_ok=True)
    begin = time.time()
    parts = [args.parts / f"part-{worker}.jsonl" for worker in range(WORKERS)]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=make_part, args=(n, args, part)) for n, part in enumerate(parts)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0, f"a worker ended with {worker.exitcode}"
    count = merge(parts, args.out)
    print(f"{count} rows in {time.time() - begin:.0f} seconds")


def merge(parts: list[Path], out: Path) -> int:
    """All rows of all finished problems; provenance is left to the README beside the file."""

    def rows():  # type: ignore[no-untyped-def]
        for part in parts:
            for line in part.read_text().splitlines():
                for row in json.loads(line)["rows"]:
                    row.pop("provenance", None)
                    yield row

    return write_jsonl(out, rows())


if __name__ == "__main__":
    main()
