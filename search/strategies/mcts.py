"""Monte-Carlo tree search over steps, guided by step scores (PUCT).

One iteration walks from the root to a node that has no children yet, at each node to the child that maximises

    Q + c * P * sqrt(N_parent) / (1 + N)            (Silver et al. 2017, AlphaGo Zero)

with Q the mean value backed up through it, N its visits, and P the softmax of the siblings' step scores. There `width`
next steps are drawn (equal ones are one child) and scored; the best of them is drawn on to the end of its response
where `rollouts` is set, and its value is mixed half and half with that response's. Every child's value goes up its
path. A walk that ends at a finished response backs up its value again. All finished responses are candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from search.plans import Candidate, Draw, Plan, Reduction, Search, require, share
from search.tree import Node


@dataclass(slots=True, eq=False)
class _Arm:
    """A node as the walk sees it."""

    node: Node
    above: _Arm | None
    prior: float = 1.0
    visits: int = 0
    total: float = 0.0
    below: list[_Arm] = field(default_factory=list)

    def back_up(self, value: float) -> None:
        """Add a value here and on the way to the root."""
        at: _Arm | None = self
        while at is not None:
            at.visits += 1
            at.total += value
            at = at.above


@dataclass(frozen=True, kw_only=True)
class Mcts:
    """See the module's first paragraph."""

    iterations: int = 16
    """Walks."""
    width: int = 4
    """Next steps drawn at a new node."""
    explore: float = 1.25
    """c: weight of what was tried little."""
    temperature: float = 0.5
    """Of the softmax that makes priors of scores."""
    rollouts: bool = True
    """Draw the best new step to the end of its response."""
    by: Reduction = "min"
    """What of the step scores is a node's value."""

    stepwise = True
    needs_scores = True

    def __post_init__(self) -> None:
        require(self.iterations >= 1, self, "iterations", "1 or more")
        require(self.width >= 1, self, "width", "1 or more")
        require(self.explore >= 0, self, "explore", "0 or more")
        require(self.temperature > 0, self, "temperature", "above 0")

    def plan(self, search: Search) -> Plan:
        """One walk after another."""
        root = _Arm(search.tree.root, None)
        ends: dict[int, Node] = {}
        for _ in range(self.iterations):
            arm = root
            while arm.below:
                arm = self._descend(arm)
            if arm.node.ended is not None:
                arm.back_up(search.value(arm.node, self.by))
                continue
            each = share(search.left, self.width)
            if each == 0:
                break
            drawn = yield [Draw(node=arm.node, name=(k, arm.node.key), most=each) for k in range(self.width)]
            self._expand(search, arm, drawn)
            best = max(arm.below, key=lambda one: search.value(one.node, self.by))
            values = {one.node.key: search.value(one.node, self.by) for one in arm.below}
            if self.rollouts and best.node.ended is None and search.left >= 1:
                most = share(search.left, 1)
                (end,) = yield [Draw(node=best.node, name=(0, best.node.key, 1), until="end", most=most)]
                values[best.node.key] = (values[best.node.key] + search.value(end, self.by)) / 2
                if end.ended is not None:
                    ends[end.key] = end
            for one in arm.below:
                one.back_up(values[one.node.key])
                if one.node.ended is not None:
                    ends[one.node.key] = one.node
        return [Candidate(node=node, sample=k) for k, node in enumerate(ends.values())]

    def _descend(self, arm: _Arm) -> _Arm:
        root = math.sqrt(arm.visits)
        return max(
            arm.below,
            key=lambda one: (
                (one.total / one.visits if one.visits else 0.0) + self.explore * one.prior * root / (1 + one.visits)
            ),
        )

    def _expand(self, search: Search, arm: _Arm, drawn: list[Node]) -> None:
        nodes = list({node.key: node for node in drawn}.values())
        weights = [math.exp(search.tree.last_score(node) / self.temperature) for node in nodes]
        arm.below = [_Arm(node, arm, prior=weight / sum(weights)) for node, weight in zip(nodes, weights, strict=True)]
