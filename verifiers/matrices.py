r"""Arithmetic on small matrices written out in an answer: `2A`, `AB`, `A + B`, `A^n`, `A^{-1}`, `A^T`, `|A|`.

Each entry of the result is an expression of the entries, compared as any other expression is. Sizes and powers are
bounded by counters; what is larger, or no matrix arithmetic, is left as it is.

    (AB)_ij = sum_k A_ik B_kj      A^{-1} = adj(A) / |A|      |A| = sum_j (-1)^j A_0j |A without row 0, column j|
"""

from __future__ import annotations

from collections.abc import Callable

from verifiers.trees import Node, fold, has, num
from verifiers.values import NoValue, TooLarge, exact

MAX_SIZE = 6
"""Most rows and columns of a matrix that is multiplied."""
MAX_POWER = 8
"""Largest power of a matrix."""
MAX_DETERMINANT = 5
"""Most rows of a determinant that is expanded."""

Rows = list[list[Node]]


class _Unknown(Exception):
    """The expression is no arithmetic of small matrices."""


def evaluate(root: Node) -> Node:
    """The matrix (or the value of a determinant) that an expression of matrices is; itself where it is none."""
    if not has(root, "matrix") or (root.op == "matrix" and root.name != "vmatrix"):
        return root
    try:
        value = fold(root, _combine)
    except _Unknown:
        return root
    return value if isinstance(value, Node) else _node(value)


def _node(rows: Rows) -> Node:
    return Node("matrix", tuple(Node("group", tuple(row), "row") for row in rows), "pmatrix")


def _combine(node: Node, args: list[Node | Rows]) -> Node | Rows:
    matrices = [arg for arg in args if isinstance(arg, list)]
    if node.op == "matrix":
        rows = [list(row.args) for row in node.args]
        if len({len(row) for row in rows}) != 1 or max(len(rows), len(rows[0])) > MAX_SIZE:
            raise _Unknown
        return _determinant(rows) if node.name == "vmatrix" else rows
    if (node.op == "group" and node.name == "row") or not matrices:
        return Node(node.op, tuple(arg for arg in args if isinstance(arg, Node)), node.value, node.digits)
    rule = _RULES.get(node.op)
    if node.op == "call" and node.name in ("det", "abs"):
        return _determinant(matrices[0])
    if rule is None:
        raise _Unknown
    return rule(args)


def _each(rows: Rows, change: Callable[[Node], Node]) -> Rows:
    return [[change(entry) for entry in row] for row in rows]


def _add(args: list[Node | Rows]) -> Rows:
    total: Rows | None = None
    for arg in args:
        if not isinstance(arg, list) or (total and (len(arg), len(arg[0])) != (len(total), len(total[0]))):
            raise _Unknown
        pairs = zip(total, arg, strict=True) if total else ()
        total = [[Node("add", (a, b)) for a, b in zip(*rows, strict=True)] for rows in pairs] if total else arg
    assert total is not None
    return total


def _multiply(args: list[Node | Rows]) -> Rows:
    scalars = tuple(arg for arg in args if isinstance(arg, Node))
    matrices = [arg for arg in args if isinstance(arg, list)]
    product = matrices[0]
    for right in matrices[1:]:
        product = _product(product, right)
    return _each(product, lambda entry: Node("mul", (*scalars, entry))) if scalars else product


def _product(left: Rows, right: Rows) -> Rows:
    if len(left[0]) != len(right):
        raise _Unknown
    columns = list(zip(*right, strict=True))
    return [
        [Node("add", tuple(Node("mul", pair) for pair in zip(row, column, strict=True))) for column in columns]
        for row in left
    ]


def _divide(args: list[Node | Rows]) -> Rows:
    upper, lower = args
    if not isinstance(upper, list) or isinstance(lower, list):
        raise _Unknown
    return _each(upper, lambda entry: Node("div", (entry, lower)))


def _negate(args: list[Node | Rows]) -> Rows:
    (rows,) = args
    assert isinstance(rows, list)
    return _each(rows, lambda entry: Node("neg", (entry,)))


def _power(args: list[Node | Rows]) -> Rows:
    rows, exponent = args
    if not isinstance(rows, list) or isinstance(exponent, list):
        raise _Unknown
    if exponent.op == "sym" and exponent.name in ("T", "\\top"):
        return [list(row) for row in zip(*rows, strict=True)]
    try:
        power = exact(exponent)
    except (NoValue, TooLarge):
        raise _Unknown from None
    if len(rows) != len(rows[0]):
        raise _Unknown
    if power == -1 and len(rows) <= MAX_DETERMINANT:
        return _inverse(rows)
    if power.denominator != 1 or not 1 <= power <= MAX_POWER:
        raise _Unknown
    product = rows
    for _ in range(int(power) - 1):
        product = [[_settled(entry) for entry in row] for row in _product(product, rows)]
    return product


def _settled(entry: Node) -> Node:
    """An entry as a number where it is one: powers would grow too large otherwise."""
    try:
        return num(exact(entry))
    except (NoValue, TooLarge):
        raise _Unknown from None


def _inverse(rows: Rows) -> Rows:
    determinant = _determinant(rows)
    if len(rows) == 1:
        return [[Node("div", (num(1), determinant))]]

    def cofactor(row: int, column: int) -> Node:
        minor = _determinant(_without(rows, row, column))
        return Node("div", (minor if (row + column) % 2 == 0 else Node("neg", (minor,)), determinant))

    return [[cofactor(row, column) for row in range(len(rows))] for column in range(len(rows))]


def _without(rows: Rows, row: int, column: int) -> Rows:
    return [[entry for j, entry in enumerate(entries) if j != column] for i, entries in enumerate(rows) if i != row]


def _determinant(rows: Rows) -> Node:
    if len(rows) != len(rows[0]) or len(rows) > MAX_DETERMINANT:
        raise _Unknown
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, entry in enumerate(rows[0]):
        term = Node("mul", (entry, _determinant(_without(rows, 0, column))))
        terms.append(Node("neg", (term,)) if column % 2 else term)
    return Node("add", tuple(terms))


_RULES: dict[str, Callable[[list[Node | Rows]], Node | Rows]] = {
    "add": _add, "mul": _multiply, "div": _divide, "neg": _negate, "pow": _power,
}  # fmt: skip
