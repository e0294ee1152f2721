"""What `rl_recipe.py` and `rl_relatives.py` share: one online run, its measurements, and results that outlive a kill.

An online run takes steps until it has taken them all, or has drawn so many tokens, and answers held-out problems at
given steps, always from the same random streams. Its processor seconds are those of this process on one thread, without
the measurements and without loading. With the environment variable KEEP every run's result is written to that folder as
soon as it is there; `--resume` takes up those that were made for the same settings and the same `VERSION`, which is to
be raised whenever the library changes what a run gives.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from claims import arguments

from rewardkit import playground
from rewardkit.rl.config import RlConfig
from rewardkit.rl.loop import Loop
from rewardkit.rl.rewards.functions import RewardList, reward_list
from rewardkit.rl.rewards.specs import RewardConfig
from search.engines.transformers_engine import TransformersEngine
from search.strategies.best_of_n import Pool, draw, judge
from verifiers.checkpoints import load_tokenizer
from verifiers.core import Problem, Sampling
from verifiers.maths import MathVerifier

VERSION = "2"
POLICY = str(playground.asset("policy"))
SAMPLING = Sampling(temperature=playground.TEMPERATURE, max_new_tokens=playground.MAX_NEW_TOKENS)
STREAM = 77
"""Seed of all measurements."""

Right = npt.NDArray[np.float64]
"""1 for a right response, 0 for another. Shape (P, N), N responses a problem."""


def options(doc: str | None) -> argparse.Namespace:
    """Every benchmark's flags, and --tune and --resume; from here on torch has one thread."""
    own = argparse.ArgumentParser(add_help=False)
    for name in ("--tune", "--resume"):
        own.add_argument(name, action="store_true")
    found, rest = own.parse_known_args()
    sys.argv[1:] = rest
    torch.set_num_threads(1)
    return argparse.Namespace(**vars(arguments(doc)), **vars(found))


def kept(name: str, what: Any, make: Callable[[], dict[str, Any]], *, resume: bool) -> dict[str, Any]:
    """The result of a run, written to $KEEP; with `resume` the one there, if it is of the same settings and version."""
    mark = {"version": VERSION, "what": what}
    # Through JSON, so that tuples compare equal to what is read back.
    mark = json.loads(json.dumps(mark))
    folder = os.environ.get("KEEP")
    path = Path(folder, f"{name}.json".replace(" ", "_")) if folder else None
    if resume and path is not None and path.exists():
        saved = json.loads(path.read_text())
        if saved["mark"] == mark:
            return dict(saved["result"])
    result = json.loads(json.dumps(make()))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps({"mark": mark, "result": result}))
        partial.replace(path)
    return dict(result)


def answered(engine: TransformersEngine, problems: Sequence[Problem], samples: int) -> list[Pool]:
    """Judged responses to held-out problems."""
    return judge(draw(problems, engine=engine, n=samples, sampling=SAMPLING, seed=STREAM), MathVerifier())[0]


def right_of(pools: Sequence[Pool]) -> list[list[int]]:
    """Which responses are right, problem by problem."""
    return [[int(one) for one in pool.right] for pool in pools]


def pass_rates(right: Any) -> Right:
    """pass@1 and pass@N of every problem. Shape (2, P)."""
    right_PN = np.asarray(right, dtype=float)
    return np.stack([right_PN.mean(1), right_PN.max(1)])


@dataclass(frozen=True, kw_only=True)
class Online:
    """What an online run gave."""

    steps: int
    tokens: int
    """Drawn to learn from."""
    seconds: float
    """Processor seconds of the steps."""
    right: Mapping[int, list[list[int]]] = field(default_factory=dict)
    """Step -> right responses of every held-out problem."""
    reward: tuple[float, ...] = ()
    """Mean reward at every step."""
    alarms: Mapping[str, int] = field(default_factory=dict)
    """Guard -> the first step at which it rang."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def verified() -> RewardList:
    """The verifier as the only reward."""
    return reward_list(RewardConfig(), tokenizer=load_tokenizer(POLICY))


def online(
    config: RlConfig,
    problems: Sequence[Problem],
    rewards: RewardList,
    *,
    outcome: str = "math",
    tests: Sequence[Problem],
    samples: int,
    at: Collection[int] = (),
    tokens: float = math.inf,
    out: Path | None = None,
) -> Online:
    """Learn for `config.steps` steps or until `tokens` are drawn; measure at the steps in `at` and behind the last."""
    loop = Loop(config, problems, rewards, outcome=outcome)
    right: dict[int, list[list[int]]] = {}
    reward: list[float] = []
    alarms: dict[str, int] = {}
    drawn, seconds = 0, 0.0

    def measure(step: int) -> None:
        engine = TransformersEngine(loop.models.policy, loop.models.tokenizer, max_rows=256)
        right[step] = right_of(answered(engine, tests, samples))

    rewards.start()
    try:
        for step in itertools.count():
            ended = step == config.steps or drawn >= tokens
            if step in at or (ended and tests):
                measure(step)
            if ended:
                break
            since = time.process_time()
            report = loop.step()
            seconds += time.process_time() - since
            drawn += sum(len(one.token_ids) for group in report.sampled.groups for one in group.responses)
            reward.append(report.metrics["reward/mean"])
            for alarm in report.alarms:
                alarms.setdefault(alarm.name, report.step)
    finally:
        rewards.close()
    if out is not None:
        loop.models.save(out)
    return Online(steps=step, tokens=drawn, seconds=seconds, right=right, reward=tuple(reward), alarms=alarms)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def told(estimate: Mapping[str, float], digits: int = 3) -> str:
    """Value [low, high]."""
    return f"{estimate['value']:.{digits}f} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"
