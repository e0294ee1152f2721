"""Speculative rejection: start many responses and give up the worst of them while they are being drawn.

After every `every` steps the responses that are not finished are ranked by their scores and all but a share of `keep`
are given up (Sun et al. 2024, arXiv 2410.20290, where memory sets the moments). Finished ones stay. It is Best-of-N
with the hopeless rows cut short, and draws nothing again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from search.plans import Candidate, Draw, Plan, Reduction, Search, exhausted, require, share
from search.tree import Kind, Node


@dataclass(frozen=True, kw_only=True)
class SpeculativeRejection:
    """See the module's first paragraph."""

    n: int = 16
    """Responses that are started."""
    keep: float = 0.5
    """Share of the running ones that goes on."""
    every: int = 2
    """Steps between rejections."""
    by: Reduction = "min"
    """What of a beginning's step scores decides."""

    stepwise = True
    needs_scores = True

    def __post_init__(self) -> None:
        require(self.n >= 1, self, "n", "1 or more")
        require(0 < self.keep <= 1, self, "keep", "in (0, 1]")
        require(self.every >= 1, self, "every", "1 or more")

    def plan(self, search: Search) -> Plan:
        """Round by round."""
        running: list[tuple[int, Node]] = [(k, search.tree.root) for k in range(self.n)]
        done: list[Candidate] = []
        round_number = 0
        while running:
            each = share(search.left, len(running))
            if each == 0:
                for k, node in running:
                    exhausted(search, node, str(k))
                    done.append(Candidate(node=node, sample=k))
                break
            drawn = yield [Draw(node=node, name=(k,), most=each) for k, node in running]
            round_number += 1
            went = [(k, new) for (k, _), new in zip(running, drawn, strict=True)]
            done += [Candidate(node=new, sample=k) for k, new in went if new.ended is not None]
            running = [(k, new) for k, new in went if new.ended is None]
            if running and round_number % self.every == 0:
                ranked = sorted(running, key=lambda pair: -search.value(pair[1], self.by))
                kept = max(1, math.ceil(self.keep * len(ranked)))
                for k, node in ranked[kept:]:
                    why = f"its score {search.value(node, self.by):.2f} is not among the best {kept} of {len(ranked)}"
                    search.tree.note(Kind.REJECT, node, why, candidate=str(k))
                running = sorted(ranked[:kept], key=lambda pair: pair[0])
        done.sort(key=lambda candidate: candidate.sample)
        return done
