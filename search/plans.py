"""What a strategy is: a plan that asks for draws and is sent the nodes that came of them.

A plan is a generator. It yields wishes (draws, or other plans to run beside one another) and is sent their results, in
the order of the wishes, once all of them are there:

    nodes = yield [Draw(node=root, name=(k,)) for k in range(4)]     four first steps
    ends = yield [candidate(k) for k in range(4)]                    four plans side by side, and what they return

`search/scheduler.py` runs the plans of many problems at once and keeps the engine busy. Because a plan sees results
only in its own order, what it decides cannot depend on the batch, and a run is a function of its seed. The same rule
holds for tokens: what a plan may still spend is `Search.left`, to be shared out among wishes that run side by side.

The name of a draw names its random stream. Two draws from one node under one name are the same draw; the name (k,)
from step to step draws what sample k of Best-of-N would be, token for token on engines that honour `offset`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from search.tree import Kind, Node, Tree
from verifiers.core import Problem, Sampling, derive_seed
from verifiers.errors import ConfigError

Until: TypeAlias = Literal["step", "end"]
Reduction: TypeAlias = Literal["min", "product", "last", "mean"]
REDUCTIONS: dict[str, Any] = {
    "min": min,
    "product": math.prod,
    "last": lambda scores: scores[-1],
    "mean": lambda scores: sum(scores) / len(scores),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """A continuation of a node, up to the end of its next step or of the response."""

    node: Node
    name: tuple[int, ...]
    """Sample number, then whatever tells this stream from that sample's first one."""
    until: Until = "step"
    most: int | None = None
    """Most tokens; None leaves it to the longest response."""
    score: bool = True
    """Have the new steps scored, where there is a scorer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A response that a search may choose, finished or not."""

    node: Node
    sample: int
    weight: float = 1.0
    """How many samples it stands for."""


Plan: TypeAlias = Generator[Sequence["Draw | Plan"], list[Any], Any]
"""Yields wishes, is sent their results, returns what the plan above it is sent (in the end: candidates)."""


@dataclass(slots=True)
class Search:
    """One problem's search as its plan sees it."""

    tree: Tree
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    """Of this problem: the request seed of Best-of-N."""
    budget: int | None = None
    """Most tokens to draw."""
    spent: int = 0
    """Tokens drawn."""
    limit: int = 0
    """Longest response, by the sampling and the context."""

    @property
    def problem(self) -> Problem:
        """What is searched for."""
        return self.tree.problem

    @property
    def left(self) -> float:
        """Tokens that may still be drawn. Only meaningful while nothing of this problem is being drawn."""
        return math.inf if self.budget is None else self.budget - self.spent

    def value(self, node: Node, reduction: Reduction = "min") -> float:
        """A response score from the step scores up to a node; 0 for a response without steps."""
        scores = self.tree.step_scores(node)
        return float(REDUCTIONS[reduction](scores)) if scores else 0.0

    def request_seed(self, name: tuple[int, ...]) -> int:
        """The seed of a named stream."""
        return self.seed if len(name) == 1 else derive_seed(self.seed, *name[1:])


class Strategy(Protocol):
    """A small policy over the scheduler: what to draw, from where, and when to stop."""

    @property
    def stepwise(self) -> bool:
        """Whether draws stop at the ends of steps; whole responses are drawn with fewer requests."""
        ...

    @property
    def needs_scores(self) -> bool:
        """Whether it cannot work without a step scorer."""
        ...

    def plan(self, search: Search) -> Plan:
        """The plan of one problem, which returns its candidates."""
        ...


def share(left: float, among: int) -> int | None:
    """Tokens for each of some draws side by side; None for no bound."""
    return None if math.isinf(left) else max(0, int(left) // max(1, among))


def require(held: bool, owner: object, name: str, must: str) -> None:
    """Raise ConfigError for a setting of a strategy that makes no sense."""
    if not held:
        raise ConfigError(f"{type(owner).__name__}.{name} must be {must}; got {getattr(owner, name)!r}")


def exhausted(search: Search, node: Node, candidate: str = "") -> None:
    """Note that a candidate ends because the tokens are used up."""
    search.tree.note(Kind.BUDGET, node, f"the budget of {search.budget} tokens is used up", candidate=candidate)
