"""Early stop: a candidate whose step scores fall is cut back to its last good step and drawn again from there.

Each of `n` candidates draws step by step, as sample k of Best-of-N would. After every step its scores are looked at:

    floor    the newest step's score is below `floor`
    falls    the last `falls` steps each scored at least `margin` less than the one before

Either cuts the candidate back to the step before the fall began (the last good step), and it goes on from there under
a new random stream; a step from which `patience` draws in a row have failed is given up too, one step further back.
After `cuts` cuts, or without `resample` at once, the candidate is rejected. Scores should be calibrated
(`prm/calibration.py`), so that `floor` is a probability.

With a budget, candidates are started up to `n` at a time until its tokens are used up, as many as what is left will
hold by the mean cost so far; each may spend an equal share of it. A candidate that runs out of its share returns what
it has, unfinished, for a rule to leave aside.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass

from search.plans import Candidate, Draw, Plan, Search, exhausted, require, share
from search.tree import Kind, Node


@dataclass(frozen=True, kw_only=True)
class EarlyStop:
    """See the module's first paragraph."""

    n: int = 4
    """Candidates; with a budget, how many at a time."""
    floor: float = 0.08
    """Lowest score of a good step: a chance of a right answer below it is not worth going on with."""
    falls: int = 2
    """Falling scores in a row that cut a candidate."""
    margin: float = 0.1
    """Least difference that is a fall."""
    patience: int = 3
    """Failed draws in a row from one step before that step is given up too."""
    cuts: int = 16
    """Most cuts of a candidate."""
    resample: bool = True
    """Draw again after a cut; otherwise the candidate is rejected."""

    stepwise = True
    needs_scores = True

    def __post_init__(self) -> None:
        require(self.n >= 1, self, "n", "1 or more")
        require(0 <= self.floor <= 1, self, "floor", "in [0, 1]")
        require(self.falls >= 1, self, "falls", "1 or more")
        require(0 <= self.margin <= 1, self, "margin", "in [0, 1]")
        require(self.patience >= 1, self, "patience", "1 or more")
        require(self.cuts >= 0, self, "cuts", "0 or more")

    def plan(self, search: Search) -> Plan:
        """Waves of candidates."""
        found: list[Candidate] = []
        started, count = 0, self.n
        while search.left >= 1 and (not started or search.budget is not None):
            if search.budget is not None:
                holds = search.left * started / search.spent if started else search.left
                count = max(1, min(count, int(holds)))
            each = share(search.left, count)
            ends = yield [self._candidate(search, k, each) for k in range(started, started + count)]
            found += [end for end in ends if end is not None]
            started, count = started + count, self.n
        return found

    def _candidate(self, search: Search, k: int, allowance: int | None) -> Plan:
        """One candidate: its end, or None where it was rejected."""
        tree, node, cut, spent = search.tree, search.tree.root, 0, 0
        failed: Counter[int] = Counter()
        tries: Counter[int] = Counter()
        while True:
            left = None if allowance is None else allowance - spent
            if left is not None and left < 1:
                exhausted(search, node, str(k))
                return Candidate(node=node, sample=k)
            (new,) = yield [Draw(node=node, name=(k, cut) if cut else (k,), most=left)]
            spent += new.length - node.length
            fallen = self._fallen(search, new)
            if fallen is None:
                if new.ended is not None:
                    return Candidate(node=new, sample=k, weight=_weight(new, tries))
                node = new
                continue
            steps, why = fallen
            if not self.resample or cut == self.cuts:
                tree.note(Kind.REJECT, new, why if not self.resample else f"{why}, after {cut} cuts", candidate=str(k))
                return None
            back = _back(new, steps)
            failed[back.key] += 1
            tries[back.key] += 1
            while failed[back.key] >= self.patience and back.parent is not None:
                failed[back.key] = 0
                back = back.parent
                failed[back.key] += 1
                tries[back.key] += 1
            cut += 1
            tree.note(Kind.CUT, new, why, to=back, candidate=str(k))
            tree.note(Kind.REFILL, back, f"drawn again, stream {cut}", candidate=str(k))
            node = back

    def _fallen(self, search: Search, node: Node) -> tuple[int, str] | None:
        """How many steps to cut and why; None while all is well."""
        scores = search.tree.step_scores(node)
        if not scores:
            return None
        if scores[-1] < self.floor:
            return 1, f"the step scores {scores[-1]:.2f}, below {self.floor:g}"
        tail = scores[-self.falls - 1 :]
        # The first step has nothing to fall from.
        if len(scores) > self.falls and all(
            after <= before - self.margin for before, after in itertools.pairwise(tail)
        ):
            shown = ", ".join(f"{score:.2f}" for score in tail)
            return self.falls, f"scores fell {self.falls} times in a row: {shown}"
        return None


def _back(node: Node, steps: int) -> Node:
    """The node `steps` steps before."""
    wanted = node.steps - steps
    while node.parent is not None and node.steps > wanted:
        node = node.parent
    return node


def _weight(node: Node, tries: Counter[int]) -> float:
    """How much of the policy's own mass a candidate stands for: one over the draws that each of its steps took."""
    starts = [one.parent for one in node.path if one.parent is not None]
    return 1.0 / math.prod(1 + tries[start.key] for start in starts)
