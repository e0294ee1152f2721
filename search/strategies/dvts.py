"""Diverse verifier tree search: independent subtrees, each of which follows its best step.

N rows are N / M subtrees. Each draws M next steps, goes on from the one that scores highest, and ends with a response;
subtrees never compete, which keeps answers different (Beeching et al. 2024, "Scaling test-time compute with open
models"). Only what a subtree followed to its end is a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

from search.plans import Candidate, Draw, Plan, Reduction, Search, exhausted, require, share
from search.tree import Kind


@dataclass(frozen=True, kw_only=True)
class Dvts:
    """See the module's first paragraph."""

    n: int = 16
    """Rows: subtrees times draws a step."""
    width: int = 4
    """Draws a step (M)."""
    by: Reduction = "last"
    """What of a beginning's step scores decides."""

    stepwise = True
    needs_scores = True

    def __post_init__(self) -> None:
        require(self.n >= 1, self, "n", "1 or more")
        require(self.width >= 1 and self.n % self.width == 0, self, "width", f"a divisor of n = {self.n}")

    def plan(self, search: Search) -> Plan:
        """All subtrees side by side."""
        trees = self.n // self.width
        each = share(search.left, trees)
        found: list[Candidate] = yield [self._subtree(search, k, each) for k in range(trees)]
        return found

    def _subtree(self, search: Search, k: int, allowance: int | None) -> Plan:
        """One subtree's response."""
        node = search.tree.root
        while node.ended is None:
            most = None if allowance is None else allowance // self.width
            if most == 0:
                exhausted(search, node, str(k))
                break
            numbers = range(k * self.width, (k + 1) * self.width)
            drawn = yield [Draw(node=node, name=(n, node.key), most=most) for n in numbers]
            if allowance is not None:
                allowance -= sum(new.length - node.length for new in drawn)
            best = max(drawn, key=lambda new: search.value(new, self.by))
            for other in {new.key: new for new in drawn if new.key != best.key}.values():
                why = f"its score {search.value(other, self.by):.2f} is below {search.value(best, self.by):.2f}"
                search.tree.note(Kind.PRUNE, other, why, candidate=str(k))
            node = best
        return Candidate(node=node, sample=k)
