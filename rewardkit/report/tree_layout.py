"""Where the nodes of a search tree stand: left to right, the prompt at the left, one column a step.

    x    depth times COLUMN
    y    a node without children takes the next free row; one with children stands midway between its first and last

Children stand in the order of their scores, the highest at the top, unscored ones last. Subtrees take separate runs of
rows, so two nodes of a column are at least ROW apart, more than the largest node is wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rewardkit.report.contents import TreeNode

COLUMN, ROW = 80, 38
LEFT, TOP, RIGHT, BOTTOM = 30, 56, 72, 30
SMALLEST, LARGEST = 6.5, 11.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Places in pixels, the prompt's first; `radii` grow with the number of draws."""

    xs: tuple[int, ...]
    ys: tuple[float, ...]
    radii: tuple[float, ...]
    depth: int
    width: int
    height: int


def lay_out(nodes: Sequence[TreeNode]) -> Layout:
    """Places of the prompt and of all nodes, each of which comes after its parent."""
    children: list[list[int]] = [[] for _ in range(len(nodes) + 1)]
    depths = [0]
    for number, node in enumerate(nodes, start=1):
        children[node.parent].append(number)
        depths.append(depths[node.parent] + 1)
    for own in children:
        own.sort(key=lambda number: -_rank(nodes[number - 1]))
    ys = [0.0] * (len(nodes) + 1)
    rows = 0
    for number in _children_first(children):
        below = children[number]
        if below:
            ys[number] = (ys[below[0]] + ys[below[-1]]) / 2
        else:
            ys[number] = float(TOP + ROW * rows)
            rows += 1
    return Layout(
        xs=tuple(LEFT + COLUMN * depth for depth in depths),
        ys=tuple(round(y, 1) for y in ys),
        radii=(SMALLEST + 2, *(radius(node.draws) for node in nodes)),
        depth=max(depths),
        width=LEFT + COLUMN * max(depths) + RIGHT,
        height=TOP + ROW * max(0, rows - 1) + BOTTOM,
    )


def radius(draws: int) -> float:
    """Of a node drawn this often: it grows with the draws, up to a limit."""
    return round(min(LARGEST, SMALLEST * math.pow(max(1, draws), 0.3)), 1)


def _rank(node: TreeNode) -> float:
    return -math.inf if node.score is None else node.score


def _children_first(children: Sequence[Sequence[int]]) -> list[int]:
    """All nodes, each after what stands behind it, upper ones first. Not recursive: chains may be long."""
    order, waiting = [], [0]
    while waiting:
        number = waiting.pop()
        order.append(number)
        waiting += children[number]
    return order[::-1]
