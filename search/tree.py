"""The tree of one problem's search: what was drawn from where, how it was scored, what was cut and why.

A node is one step (a span of token ids) behind its parent; its path from the root is a beginning of a response. Equal
steps behind the same node are one node, drawn `draws` times, paid for each time and scored once. Nodes never change;
decisions about them (a cut, a pruning, a refill) are events beside them. Node keys derive from the ids on the path, so
that a tree does not depend on the order in which its rows happened to end; `rows` numbers the nodes for a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from verifiers.core import Problem, Response, StopReason, derive_seed
from verifiers.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Node:
    """A step and the path to it."""

    key: int
    """Derives from the ids of the path and how it ended."""
    parent: Node | None
    token_ids: tuple[int, ...] = ()
    """This node's own ids, the separator's or the end mark included."""
    text: str = ""
    """The response so far."""
    steps: int = 0
    """Steps so far, this one included."""
    length: int = 0
    """Tokens so far, this node's included."""
    ended: StopReason | None = None
    """Why nothing can follow; None where the response goes on."""

    @property
    def path(self) -> list[Node]:
        """From the first step to this one; the root, which holds nothing, is left out."""
        nodes, at = [], self
        while at.parent is not None:
            nodes.append(at)
            at = at.parent
        return nodes[::-1]

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of the response so far."""
        return tuple(token for node in self.path for token in node.token_ids)


class Kind(StrEnum):
    """What was decided about a node."""

    CUT = "cut"
    """A candidate was cut back from here to `to`."""
    REFILL = "refill"
    """A candidate was drawn again from here."""
    PRUNE = "prune"
    """Not gone on with: others were better."""
    REJECT = "reject"
    """Given up."""
    LOOP = "loop"
    """The text repeats itself."""
    BUDGET = "budget"
    """The tokens were used up."""
    CHOOSE = "choose"
    """The response that the search returns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """A decision and its reason, in words for people."""

    kind: Kind
    node: Node
    why: str
    to: Node | None = None
    candidate: str = ""


@dataclass(slots=True)
class Tree:
    """The nodes of one problem, their scores, and what was decided."""

    problem: Problem
    root: Node = field(default_factory=lambda: Node(key=0, parent=None))
    nodes: dict[int, Node] = field(default_factory=dict)
    draws: Counter[int] = field(default_factory=Counter)
    """Node key -> how often it was drawn."""
    scores: dict[int, tuple[float, ...]] = field(default_factory=dict)
    """Node key -> scores of all steps up to it."""
    events: list[Event] = field(default_factory=list)

    def add(
        self, parent: Node, token_ids: Sequence[int], *, text: str, steps: int, ended: StopReason | None = None
    ) -> Node:
        """The node behind `parent` with these ids, made where there is none; counts as drawn once more."""
        key = derive_seed(parent.key, ended.value if ended else "", *token_ids)
        if key not in self.nodes:
            self.nodes[key] = Node(
                key=key,
                parent=parent,
                token_ids=tuple(token_ids),
                text=text,
                steps=steps,
                length=parent.length + len(token_ids),
                ended=ended,
            )
        self.draws[key] += 1
        return self.nodes[key]

    def note(self, kind: Kind, node: Node, why: str, *, to: Node | None = None, candidate: str = "") -> None:
        """Write a decision down."""
        self.events.append(Event(kind=kind, node=node, why=why, to=to, candidate=candidate))

    def score(self, node: Node, scores: tuple[float, ...]) -> None:
        """Keep the scores of all steps up to a node, for it and for the nodes before it that have none."""
        self.scores[node.key] = scores
        at = node.parent
        while at is not None and at.steps and at.key not in self.scores:
            self.scores[at.key] = scores[: at.steps]
            at = at.parent

    def step_scores(self, node: Node) -> tuple[float, ...]:
        """The scores of all steps up to a node; () where it was not scored."""
        return self.scores.get(node.key, ())

    def last_score(self, node: Node) -> float:
        """The score of the newest step on a node's path; 1 before the first."""
        return next((own[-1] for one in reversed(node.path) if (own := self.scores.get(one.key))), 1.0)

    def response(self, node: Node, *, sample: int = 0) -> Response:
        """The response, or the beginning of one, that a node stands for."""
        return Response(
            problem_id=self.problem.id,
            text=node.text,
            token_ids=node.ids,
            stop_reason=node.ended or StopReason.LENGTH,
            sample=sample,
        )

    @property
    def drawn_tokens(self) -> int:
        """Tokens of all nodes, each as often as it was drawn."""
        return sum(len(node.token_ids) * self.draws[key] for key, node in self.nodes.items())

    def to_json(self) -> dict[str, Any]:
        """Plain values: nodes in an order that depends on nothing but the tree, events by node."""
        order = sorted(self.nodes.values(), key=lambda node: (len(node.path), node.ids, node.key))
        numbers = {self.root.key: 0} | {node.key: n for n, node in enumerate(order, start=1)}
        rows = [
            {
                "node": numbers[node.key],
                "parent": numbers[node.parent.key if node.parent else 0],
                "text": node.text[len(node.parent.text) if node.parent else 0 :],
                "token_ids": list(node.token_ids),
                "steps": node.steps - (node.parent.steps if node.parent else 0),
                "draws": self.draws[node.key],
                "scores": list(self.scores.get(node.key, ())),
                "ended": node.ended.value if node.ended else None,
            }
            for node in order
        ]
        events = [
            {
                "kind": event.kind.value,
                "node": numbers[event.node.key],
                "to": None if event.to is None else numbers[event.to.key],
                "candidate": event.candidate,
                "why": event.why,
            }
            for event in self.events
        ]
        events.sort(key=lambda row: [str(row[name]) for name in ("candidate", "kind", "node", "to", "why")])
        return {"nodes": rows, "events": events}

    @classmethod
    def from_json(cls, problem: Problem, data: dict[str, Any]) -> Tree:
        """The tree that `to_json` wrote. Raises DataError for one whose nodes do not hang together."""
        tree = cls(problem)
        by_number = {0: tree.root}
        for row in data["nodes"]:
            parent = by_number.get(row["parent"])
            if parent is None:
                raise DataError(
                    f"the tree of problem {problem.id!r}: node {row['node']} stands behind node {row['parent']}, "
                    "which is not there before it; the file is broken, write it again"
                )
            node = tree.add(
                parent,
                row["token_ids"],
                text=parent.text + row["text"],
                steps=parent.steps + row["steps"],
                ended=StopReason(row["ended"]) if row["ended"] else None,
            )
            tree.draws[node.key] = row["draws"]
            if row["scores"]:
                tree.scores[node.key] = tuple(row["scores"])
            by_number[row["node"]] = node
        for row in data["events"]:
            tree.note(
                Kind(row["kind"]),
                by_number[row["node"]],
                row["why"],
                to=None if row["to"] is None else by_number[row["to"]],
                candidate=row["candidate"],
            )
        return tree
