"""Which problems' search trees a page shows: at most 12, the telling ones first.

Problems with cuts come before those without. Within either, three kinds take turns, so that success and failure both
stand on the page: strategies disagree (some right, some wrong), all wrong, all right or undecided; within a kind the
order is the file's. A page holds as many as fit into MOST_CHARACTERS, and one at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

PROBLEMS = 12
MOST_CHARACTERS = 4_000_000
"""Of all trees on a page; plotly.js alone has as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """What the choice goes by: one strategy's search on one problem."""

    problem_id: str
    correct: bool | None
    cuts: int
    size: int
    """About how many characters it takes on the page."""


def choose_problems(outlines: Sequence[Outline]) -> list[str]:
    """Ids of the problems to show, most telling first."""
    by_problem: dict[str, list[Outline]] = {}
    for outline in outlines:
        by_problem.setdefault(outline.problem_id, []).append(outline)
    groups: dict[tuple[bool, int], list[str]] = {}
    for problem, own in by_problem.items():
        verdicts = {outline.correct for outline in own}
        kind = 0 if {True, False} <= verdicts else 1 if False in verdicts else 2
        groups.setdefault((any(outline.cuts for outline in own), kind), []).append(problem)
    order = [
        problem
        for cut in (True, False)
        for problem in chain(*zip_longest(*(groups.get((cut, kind), []) for kind in range(3))))
        if problem is not None
    ]
    chosen: list[str] = []
    room = MOST_CHARACTERS
    for problem in order[:PROBLEMS]:
        room -= sum(outline.size for outline in by_problem[problem])
        if chosen and room < 0:
            break
        chosen.append(problem)
    return chosen
