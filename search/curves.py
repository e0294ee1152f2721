"""Accuracy against the number of responses, for every choice rule over the same pools.

For n = 1, 2, 4, ... N and the rules first, majority, best by each score, weighted majority by each score and the
bound "any" (pass@n), each problem gives its exact expected correctness (`search/estimators.py`), and the table
holds the mean with a bootstrap interval over problems. Two scores are always among them as controls: `random`
(seeded noise) and `oracle` (the verdict itself); a rule that does not beat the first says nothing, and none can
beat the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from search.estimators import (
    Estimate,
    best_of,
    bootstrap,
    majority_at,
    paired_difference,
    pass_at,
    weighted_at,
)
from search.strategies.best_of_n import Pool
from verifiers.core import Outcome, derive_seed
from verifiers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One rule's accuracy at each n, and per problem at the largest n (for paired comparisons)."""

    rule: str
    points: dict[int, Estimate]
    per_problem: tuple[float, ...]


def with_controls(pools: Sequence[Pool], *, seed: int = 0) -> list[Pool]:
    """Pools with the score columns `random` and `oracle` added."""
    return [
        replace(
            pool,
            scores={
                **pool.scores,
                "random": tuple(
                    np.random.default_rng(derive_seed(seed, "control", pool.problem.id)).random(len(pool.responses))
                ),
                "oracle": tuple(float(right) for right in pool.right),
            },
        )
        for pool in pools
    ]


def decided(pools: Sequence[Pool]) -> list[Pool]:
    """The pools without an undecided verdict; what is undecided is neither right nor wrong."""
    return [pool for pool in pools if all(verdict.outcome is not Outcome.UNDECIDED for verdict in pool.verdicts)]


def sizes(total: int) -> list[int]:
    """1, 2, 4, ... and the total itself."""
    return sorted({2**k for k in range(total.bit_length()) if 2**k <= total} | {total})


def accuracy_curves(pools: Sequence[Pool], *, seed: int = 0) -> list[Curve]:
    """All rules' curves over judged pools of equal size; problems with an undecided verdict are left out."""
    if not pools:
        raise ConfigError("there must be at least one pool; got none")
    if any(not pool.verdicts for pool in pools):
        raise ConfigError("pools must be judged before accuracy is measured; call judge() first")
    pools = decided(pools)
    if not pools:
        raise ConfigError("every problem has an undecided verdict, so no accuracy can be measured; read their reasons")
    totals = {len(pool.responses) for pool in pools}
    if len(totals) != 1:
        raise ConfigError(f"pools must be of one size; got {sorted(totals)}")
    ns = sizes(totals.pop())
    table: dict[str, dict[int, list[float]]] = {
        "first": {n: [pass_at(pool.right, 1) for pool in pools] for n in ns},
        "majority": {n: [majority_at(pool.right, pool.classes, n) for pool in pools] for n in ns},
    }
    for name in pools[0].scores:
        table[f"best by {name}"] = {n: [best_of(pool.right, pool.scores[name], n) for pool in pools] for n in ns}
        if name not in ("random", "oracle"):
            table[f"weighted by {name}"] = {
                n: [weighted_at(pool.right, pool.classes, pool.scores[name], n, seed=seed) for pool in pools]
                for n in ns
            }
    table["any (pass@n)"] = {n: [pass_at(pool.right, n) for pool in pools] for n in ns}
    return [
        Curve(
            rule=rule,
            points={n: bootstrap(values, seed=seed) for n, values in columns.items()},
            per_problem=tuple(columns[ns[-1]]),
        )
        for rule, columns in table.items()
    ]


def compare(curves: Sequence[Curve], first: str, second: str, *, seed: int = 0) -> Estimate:
    """Paired difference of two rules at the largest n."""
    by_name = {curve.rule: curve for curve in curves}
    for rule in (first, second):
        if rule not in by_name:
            raise ConfigError(f"no rule {rule!r} among {', '.join(by_name)}")
    return paired_difference(by_name[first].per_problem, by_name[second].per_problem, seed=seed)
