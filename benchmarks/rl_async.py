"""Drawing ahead in a second process (staleness 1) against drawing when a step begins: seconds a step, and learning.

All arms begin at the shipped policy with GRPO on the verifier, 8 problems a step with 8 responses each, on two cores:
two threads that do one thing after another, or one thread for each of two processes that work at the same time. So
small a model gains little from a second thread, and on a busy machine loses by it; so one thread that does one thing
after another stands beside them, and the ratio is to the faster of the two. Seconds are by the clock, means over the
steps of a turn; arms take turns, each in a process of its own, and the ratio is of medians over turns with a bootstrap
interval. Equal learning: held-out pass@1 after the same number of steps, the same problems in the same order, 3 seeds;
the interval is a bootstrap over seeds and problems.
"""

from __future__ import annotations

import functools
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from claims import figure, finish
from prm_training import ratio
from rl_learning import Curve, mean, resampled
from rl_runs import kept, options
from trl_peer import run_arm

NOW = "now, 1 thread"
ARMS: dict[str, dict[str, int]] = {
    "now": {"staleness": 0, "threads": 2},
    NOW: {"staleness": 0, "threads": 1},
    "ahead": {"staleness": 1, "threads": 1},
}
PLAIN = {"prompts": 8, "group": 8, "warmup": 2, "at": [], "problems": 0, "samples": 2}


def in_turns(
    arms: Sequence[str], job: dict[str, Any], turns: int, folder: Path, *, resume: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """The arms, once a seed, in an order that changes."""
    done: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for seed in range(turns):
        for arm in sorted(arms, key=lambda arm: random.Random(f"{seed} {arm}").random()):
            own = {**job, **ARMS[arm], "seed": seed}
            make = functools.partial(run_arm, sys.executable, "rl_async_arms.py", [], own, folder)
            done[arm].append(kept(f"async-{arm}-{job['steps']}-{seed}", own, make, resume=resume))
            print(f"{arm}, seed {seed}: {done[arm][-1]['seconds']:.2f} s a step", flush=True)
    return done


def seconds(done: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Figures of time."""
    taken = {arm: [row["seconds"] for row in rows] for arm, rows in done.items()}
    faster = min(("now", NOW), key=lambda arm: statistics.median(taken[arm]))
    found = [
        figure(
            f"seconds a step, ahead / {faster}",
            **ratio(taken["ahead"], taken[faster]),
            ceiling=0.75,
            unit="x",
            turns=len(taken["now"]),
        )
    ]
    for arm, rows in done.items():
        phases = {
            name[8:]: statistics.median(row[name] for row in rows) for name in rows[0] if name.startswith("seconds/")
        }
        found.append(figure(f"    {arm}", statistics.median(taken[arm]), unit="s", phases=phases))
    tokens = {arm: statistics.median(row["tokens"] for row in rows) for arm, rows in done.items()}
    found.append(figure("    drawn tokens, ahead / now", tokens["ahead"] / tokens["now"], unit="x"))
    return found


def learning(done: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Figures of what was learned."""
    curves: dict[str, Curve] = {
        arm: np.stack([np.asarray(row["right"], dtype=float).mean(-1) for row in rows]) for arm, rows in done.items()
    }
    found = [figure("held-out pass@1 at the start", float(mean(curves[NOW])[0]))]
    for arm, curve in curves.items():
        points = [round(float(value), 4) for value in mean(curve)]
        last = resampled(curves, lambda c, arm=arm: float(mean(c[arm])[-1]))
        found.append(figure(f"    {arm}: at the end", **last, curve=points, seeds=len(curve)))

    def apart(curves: Mapping[str, Curve]) -> float:
        return float(mean(curves["ahead"])[-1] - mean(curves[NOW])[-1])

    found.append(figure("pass@1 at the end, ahead minus now", **resampled(curves, apart), floor=-0.03))
    return found


def main() -> None:
    """Measure and report."""
    chosen = options(__doc__)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as made:
        if chosen.quick:
            job = {**PLAIN, "prompts": 4, "group": 4, "steps": 3, "warmup": 1, "at": [0, 3], "problems": 6}
            learned = timed = in_turns(list(ARMS), job, 1, Path(made))
        else:
            timed = in_turns(list(ARMS), {**PLAIN, "steps": 10}, 5, Path(made))
            job = {**PLAIN, "steps": 50, "at": list(range(0, 51, 10)), "problems": 200}
            # Times are taken anew; what was learned does not hang on how busy the machine is.
            learned = in_turns([NOW, "ahead"], job, 3, Path(made), resume=chosen.resume)
    figures = [*seconds(timed), *learning(learned), figure("load before the first arm", load)]
    finish("rl_async", figures, chosen)


if __name__ == "__main__":
    main()
