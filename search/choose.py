"""Choosing one response out of many: first, best by score, majority, weighted majority.

Votes are counted over equivalence classes of answers, not over strings: "1/2" and "0.5" vote together when
the given `same` relation says so. A response without an answer does not vote. Tie rules: `best` takes the
earliest of equally scored responses; `majority` and `weighted` take the class whose first member is earliest,
and inside the class that was chosen, its earliest member (majority) or its best-scored one (weighted).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from verifiers.errors import ConfigError

Rule: TypeAlias = Literal["best", "weighted", "majority", "first"]
"""How one response is chosen from many."""


def answer_classes(answers: Sequence[str | None], same: Callable[[str, str], bool] | None = None) -> list[int | None]:
    """A class number for each answer, in order of first appearance; None for no answer.

    `same` compares a new string with the first member of each class so far; equal strings are never compared.
    Without it strings are compared as they are.
    """
    known: dict[str, int] = {}
    members: list[str] = []
    classes: list[int | None] = []
    for answer in answers:
        if answer is None:
            classes.append(None)
            continue
        if answer not in known:
            found = next((n for n, m in enumerate(members) if same is not None and same(answer, m)), None)
            if found is None:
                found = len(members)
                members.append(answer)
            known[answer] = found
        classes.append(known[answer])
    return classes


def best(scores: Sequence[float]) -> int:
    """Index of the highest score; the earliest where several are equal. NaN is refused."""
    _check(scores, len(scores))
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def majority(classes: Sequence[int | None]) -> int | None:
    """Index of the earliest member of the largest class; None when nobody votes."""
    return weighted(classes, [1.0] * len(classes), pick_best=False)


def weighted(classes: Sequence[int | None], weights: Sequence[float], *, pick_best: bool = True) -> int | None:
    """Index of a member of the class with the largest sum of weights; None when nobody votes."""
    _check(weights, len(classes))
    totals: dict[int, float] = {}
    for label, weight in zip(classes, weights, strict=True):
        if label is not None:
            totals[label] = totals.get(label, 0.0) + weight
    if not totals:
        return None
    # dict order is the order of first appearance, and max keeps the first of equals.
    winner = max(totals, key=lambda label: totals[label])
    members = [index for index, label in enumerate(classes) if label == winner]
    return max(members, key=lambda index: (weights[index], -index)) if pick_best else members[0]


def _check(values: Sequence[float], length: int) -> None:
    if not values:
        raise ConfigError("there must be at least one response to choose from; got none")
    if len(values) != length:
        raise ConfigError(f"there must be one weight a response; got {len(values)} for {length} responses")
    if any(math.isnan(value) for value in values):
        raise ConfigError("scores must be numbers; got NaN, which has no place in an order")
