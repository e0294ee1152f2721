"""Beam search by step scores: keep the best few beginnings, draw several next steps from each.

With N rows and M draws a beam, N / M beams are kept after every step, those whose newest step scores highest
(Snell et al. 2024, arXiv 2408.03314, section 5.2; search-and-learn's beam search). Equal steps of one beam are one
beginning, so a beam never holds a text twice; where there are fewer beginnings than places, each is drawn from more
often. A response that ends among the kept ones keeps its place and is done; the search ends when all kept ones are.
"""

from __future__ import annotations

from dataclasses import dataclass

from search.plans import Candidate, Draw, Plan, Reduction, Search, exhausted, require, share
from search.tree import Kind, Node


@dataclass(frozen=True, kw_only=True)
class Beam:
    """See the module's first paragraph."""

    n: int = 16
    """Rows: beams kept times draws a beam."""
    width: int = 4
    """Draws a beam (M)."""
    by: Reduction = "last"
    """What of a beginning's step scores decides."""

    stepwise = True
    needs_scores = True

    def __post_init__(self) -> None:
        require(self.n >= 1, self, "n", "1 or more")
        require(self.width >= 1 and self.n % self.width == 0, self, "width", f"a divisor of n = {self.n}")

    def plan(self, search: Search) -> Plan:
        """Level by level."""
        beams: list[Node] = [search.tree.root]
        done: list[Candidate] = []
        rows = self.n
        while beams:
            each = share(search.left, rows)
            if each == 0:
                for node in beams:
                    exhausted(search, node)
                return done or [Candidate(node=node, sample=n) for n, node in enumerate(beams)]
            counts = [rows // len(beams) + (n < rows % len(beams)) for n in range(len(beams))]
            drawn = yield [
                Draw(node=node, name=(n, node.key), most=each)
                for node, count in zip(beams, counts, strict=True)
                for n in range(count)
            ]
            unique = list({node.key: node for node in drawn}.values())
            # A stable sort: of equals the one drawn first.
            unique.sort(key=lambda node: -search.value(node, self.by))
            keep = max(1, rows // self.width)
            for node in unique[keep:]:
                search.tree.note(
                    Kind.PRUNE, node, f"its score {search.value(node, self.by):.2f} is not among the best {keep}"
                )
            kept = unique[:keep]
            ended = [node for node in kept if node.ended is not None]
            done += [Candidate(node=node, sample=len(done) + n) for n, node in enumerate(ended)]
            beams = [node for node in kept if node.ended is None]
            rows -= self.width * len(ended)
        return done
