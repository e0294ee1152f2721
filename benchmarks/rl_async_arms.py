"""One arm of `rl_async.py` in a process of its own: steps of the loop, with or without a second process that draws.

    python rl_async_arms.py JOB.json

The process that draws has one thread of its own. The last line is a JSON object: the mean seconds a step by the clock,
without the first `warmup` steps and without measurements, the same by phase, what was drawn, and the right responses to
held-out problems at the steps in `at`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rl_runs import POLICY, SAMPLING, answered, right_of, verified

from rewardkit import playground
from rewardkit.rl.config import RlConfig
from rewardkit.rl.loop import Loop
from search.engines.transformers_engine import TransformersEngine

Job = dict[str, Any]
"""prompts, group, steps, warmup, staleness, threads (of this process), seed, at, problems (held out), samples."""


def run(job: Job) -> Job:
    """Learn, timed."""
    torch.set_num_threads(job["threads"])
    config = RlConfig(
        init=POLICY,
        preset="grpo",
        change=("kl=null",),
        steps=job["steps"],
        prompts=job["prompts"],
        group=job["group"],
        rate=3e-4,
        temperature=SAMPLING.temperature,
        max_new_tokens=SAMPLING.max_new_tokens,
        staleness=job["staleness"],
        seed=job["seed"],
    )
    rewards = verified()
    loop = Loop(config, playground.problems(2000, split="train"), rewards, outcome="math")
    tests = playground.problems(job["problems"], split="test") if job["at"] else []
    right: dict[int, list[list[int]]] = {}
    rows: list[dict[str, float]] = []
    rewards.start()
    try:
        for step in range(config.steps + 1):
            if step in job["at"]:
                engine = TransformersEngine(loop.models.policy, loop.models.tokenizer, max_rows=256)
                right[step] = right_of(answered(engine, tests, job["samples"]))
            if step == config.steps:
                break
            since = time.perf_counter()
            report = loop.step()
            row = {"seconds": time.perf_counter() - since, "tokens": report.metrics["tokens"]}
            row |= {name: value for name, value in report.metrics.items() if name.startswith("seconds/")}
            rows.append(row | {"staleness": report.metrics.get("draw/staleness", 0.0)})
    finally:
        loop.close()
        rewards.close()
    counted = rows[job["warmup"] :]
    means = {name: sum(row[name] for row in counted) / len(counted) for name in counted[0]}
    return {**means, "right": [right[step] for step in sorted(right)]}


def main() -> None:
    """Run one arm."""
    print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))


if __name__ == "__main__":
    main()
