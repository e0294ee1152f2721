"""The small immutable tree that answers are parsed into, and the limits that keep it small.

A `Node` is an operator, its arguments and at most one value (a rational number or a name). Everything that
walks a tree does so with an explicit stack (`fold`), so that no input reaches Python's recursion limit.
Limits are counters (characters, tokens, nodes, depth, bits), never the clock: the same text gives the same
result under any load. `encode` and `decode` turn a tree into a flat JSON-able list for the worker processes.

    op        args                 value
    num                            Fraction; `digits` > 0 marks a decimal with that many significant digits
    sym                            name, subscript included ("x_1")
    const                          pi, e, i, inf, empty
    add mul   any number
    neg div pow root fact          (root: radicand, index)
    percent degree unit            one; unit's value is its name
    pm        one or two           "+-" or "-+"
    call      any number           name of the function
    group     items                the two brackets, "(]"
    list      items                (no brackets)
    matrix    group "row"s         environment
    rel       two or more          operators between them, separated by spaces
    union inter minus ratio        two or more
    text                           the words
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

from verifiers.errors import DataError

MAX_CHARACTERS = 20_000
"""Longest text that is parsed."""
MAX_DEPTH = 200
"""Deepest nesting, after redundant brackets are collapsed."""
MAX_NODES = 5_000
"""Most nodes in one tree, and most tokens in one text."""
MAX_DIGITS = 10_000
"""Longest single number, in digits."""
MAX_EXPONENT = 4_000
"""Largest decimal exponent of scientific notation that is expanded."""

T = TypeVar("T")

words = str.split
"""A table of words written as one text."""


class UnparsableError(DataError):
    """A text is not mathematics that this parser knows; the message says where it stopped."""


class LimitError(UnparsableError):
    """A text or a value is larger than a counter allows."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator with its arguments; compared by `key`, never by `==`."""

    op: str
    args: tuple[Node, ...] = ()
    value: Fraction | str | None = None
    digits: int = 0

    @property
    def number(self) -> Fraction:
        """The value of a `num` node."""
        assert isinstance(self.value, Fraction)
        return self.value

    @property
    def name(self) -> str:
        """The value of any node but `num`; empty where there is none."""
        return self.value if isinstance(self.value, str) else ""


def num(value: Fraction | int, digits: int = 0) -> Node:
    """A number node."""
    return Node("num", (), Fraction(value), digits)


def postorder(root: Node) -> Iterator[Node]:
    """Every node, arguments before their operator."""
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done or not node.args:
            yield node
        else:
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(node.args))


def fold(root: Node, combine: Callable[[Node, list[T]], T]) -> T:
    """`combine(node, values of its arguments)` from the leaves up; the value of the root."""
    values: list[T] = []
    for node in postorder(root):
        count = len(node.args)
        args = values[len(values) - count :] if count else []
        if count:
            del values[len(values) - count :]
        values.append(combine(node, args))
    return values[0]


def rebuild(root: Node, change: Callable[[Node], Node | None]) -> Node:
    """The tree with `change(node)` in place of every node for which it is not None, leaves first."""

    def combine(node: Node, args: list[Node]) -> Node:
        same = all(new is old for new, old in zip(args, node.args, strict=True))
        kept = node if same else Node(node.op, tuple(args), node.value, node.digits)
        return change(kept) or kept

    return fold(root, combine)


def join(op: str, items: list[Node], name: str | None = None) -> Node:
    """One item stands alone; several become one flat node."""
    return items[0] if len(items) == 1 else Node(op, tuple(items), name)


def renamer(name: str) -> Callable[[Node], Node | None]:
    """Reads the constant `i` or `e` as a symbol where it is the index of a sum."""
    return lambda node: Node("sym", (), name) if node.op == "const" and node.name == name else None


def is_minus_one(node: Node) -> bool:
    """Whether a node is -1 written out."""
    return node.op == "neg" and node.args[0].op == "num" and node.args[0].number == 1


def measure(root: Node) -> tuple[int, int]:
    """(nodes, depth)."""
    count = sum(1 for _ in postorder(root))

    def depth(_: Node, below: list[int]) -> int:
        return 1 + max(below, default=0)

    return count, fold(root, depth)


def symbols(root: Node) -> frozenset[str]:
    """Names of the symbols that occur."""
    return frozenset(node.name for node in postorder(root) if node.op == "sym")


def has(root: Node, *ops: str) -> bool:
    """Whether any node has one of these operators."""
    return any(node.op in ops for node in postorder(root))


_COMMUTATIVE = frozenset({"add", "mul", "union", "inter"})


def key(root: Node) -> str:
    """A text that is equal for trees that are equal up to the order of sums and products."""

    def combine(node: Node, args: list[str]) -> str:
        if node.op == "num":
            return f"{node.number.numerator:x}/{node.number.denominator:x}"
        if node.op in ("sym", "const"):
            return f"{node.op[0]}:{node.name}"
        if node.op == "text":
            return f"t:{node.name.casefold()}"
        if node.op in _COMMUTATIVE:
            args = sorted(args)
        return f"{node.op}[{node.name}]({','.join(args)})"

    return fold(root, combine)


def encode(root: Node) -> list[list[Any]]:
    """A flat, postfix, JSON-able form: [op, value, number of arguments] a node; numbers as hex "n/d"."""
    rows: list[list[Any]] = []
    for node in postorder(root):
        value: str | None = node.name or None
        if node.op == "num":
            value = f"{node.number.numerator:x}/{node.number.denominator:x}"
        rows.append([node.op, value, len(node.args)])
    return rows


def decode(rows: list[list[Any]]) -> Node:
    """The tree that `encode` wrote."""
    stack: list[Node] = []
    for op, value, count in rows:
        args = tuple(stack[len(stack) - count :]) if count else ()
        del stack[len(stack) - count :]
        if op == "num":
            upper, lower = str(value).split("/")
            stack.append(num(Fraction(int(upper, 16), int(lower, 16))))
        else:
            stack.append(Node(str(op), args, value))
    (root,) = stack
    return root
