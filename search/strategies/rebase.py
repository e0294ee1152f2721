"""Reward-balanced search: every beginning is drawn from in proportion to the softmax of its score.

Of N rows, those whose responses ended are spent; the rest are dealt to the beginnings of one depth by
N_rest * softmax(score / temperature), rounded so that the sum is kept (Wu et al. 2024, arXiv 2408.00724, REBASE).
Nothing is pruned outright: a beginning whose share rounds to nothing ends there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search.plans import Candidate, Draw, Plan, Reduction, Search, exhausted, require, share
from search.tree import Kind, Node


@dataclass(frozen=True, kw_only=True)
class Rebase:
    """See the module's first paragraph."""

    n: int = 16
    """Responses."""
    temperature: float = 0.2
    """Of the softmax over scores: lower follows the best ones more."""
    by: Reduction = "last"
    """What of a beginning's step scores decides."""

    stepwise = True
    needs_scores = True

    def __post_init__(self) -> None:
        require(self.n >= 1, self, "n", "1 or more")
        require(self.temperature > 0, self, "temperature", "above 0")

    def plan(self, search: Search) -> Plan:
        """Depth by depth."""
        level: list[tuple[Node, int]] = [(search.tree.root, self.n)]
        done: list[Candidate] = []
        rest = self.n
        while level:
            each = share(search.left, rest)
            if each == 0:
                for node, _ in level:
                    exhausted(search, node)
                return done or [Candidate(node=node, sample=n) for n, (node, _) in enumerate(level)]
            drawn: list[Node] = yield [
                Draw(node=node, name=(n, node.key), most=each) for node, count in level for n in range(count)
            ]
            for node in drawn:
                if node.ended is not None:
                    done.append(Candidate(node=node, sample=len(done)))
                    rest -= 1
            going = list({node.key: node for node in drawn if node.ended is None}.values())
            counts = deal(rest, [search.value(node, self.by) / self.temperature for node in going])
            for node, count in zip(going, counts, strict=True):
                if not count:
                    why = f"its score {search.value(node, self.by):.2f} earns none of {rest} rows"
                    search.tree.note(Kind.PRUNE, node, why)
            level = [(node, count) for node, count in zip(going, counts, strict=True) if count]
        return done


def deal(rows: int, logits: Sequence[float]) -> list[int]:
    """Rows dealt in proportion to softmax(logits), by largest remainders; earlier ones first among equals."""
    if not logits:
        return []
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    shares = [rows * weight / sum(weights) for weight in weights]
    counts = [math.floor(one) for one in shares]
    order = sorted(range(len(shares)), key=lambda n: counts[n] - shares[n])
    for n in order[: rows - sum(counts)]:
        counts[n] += 1
    return counts
