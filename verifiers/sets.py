r"""Sets of real numbers written in different ways, brought to one form: a union of intervals and finite sets.

    x > 3                     (3, oo)             x \ne 0         (-oo, 0) u (0, oo)
    -2 < x <= 3               (-2, 3]             |x| < 2         (-2, 2)
    x < 0 or x > 2            (-oo, 0) u (2, oo)  x > 1, x < 3    (1, 3)
    x \in S                   S                   R \ {1, 2}      (-oo, 1) u (1, 2) u (2, oo)

Bounds must be closed expressions; where an order of bounds is needed, it is read off enclosures of their values and
the reading is given up where those meet. The variable's name is kept beside the set.
"""

from __future__ import annotations

from itertools import pairwise

from verifiers.enclosure import Enclosure
from verifiers.numeric import numeric
from verifiers.trees import Node, symbols
from verifiers.values import NoValue, TooLarge

FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
REALS = "bbR"
_INFINITY = Node("const", (), "inf")
_MINUS_INFINITY = Node("neg", (_INFINITY,))

Named = tuple[str, list[Node]]
"""The variable ("" where none is named) and the parts of its set."""


def as_set(node: Node) -> Named | None:
    """The set that an answer describes, or None where it describes none in a way known here."""
    if node.op == "rel":
        return _relation(node)
    if node.op in ("list", "union"):
        return _several(node)
    if (node.op == "sym" and node.name == REALS) or _says_reals(node):
        return "", [_interval(_MINUS_INFINITY, _INFINITY, "()")]
    if node.op == "minus" and node.args[0].op == "sym" and node.args[0].name == REALS:
        return _without(node.args[1])
    if node.op == "group" and node.name != "{}" and len(node.args) == 2:
        return "", [node]
    if node.op == "group" and node.name == "{}":
        return "", list(node.args)
    return None


def is_described(node: Node) -> bool:
    """Whether the set is described (by a relation, R, or a difference) and not written out."""
    if node.op in ("list", "union"):
        return any(is_described(arg) for arg in node.args)
    return node.op in ("rel", "minus") or (node.op == "sym" and node.name == REALS) or _says_reals(node)


def _says_reals(node: Node) -> bool:
    return node.op == "text" and node.name.casefold() in ("all real numbers", "all reals", "real numbers", "all real")


def _interval(low: Node, high: Node, brackets: str) -> Node:
    return Node("group", (low, high), brackets)


def _relation(node: Node) -> Named | None:
    signs, args = node.name.split(), list(node.args)
    if signs == ["in"]:
        inner = as_set(args[1]) if args[0].op == "sym" else None
        return (args[0].name, inner[1]) if inner else None
    if "union" in (arg.op for arg in args[1:-1]):
        return _joined(signs, args)
    if signs == ["!="] and args[0].op == "sym" and not symbols(args[1]):
        return args[0].name, _around([args[1]])
    if not set(signs) <= set(FLIPPED):
        return None
    if len(signs) == 1:
        return _half_line(signs[0], args)
    if len(signs) == 2 and args[1].op == "sym" and len({sign[0] for sign in signs}) == 1:
        if signs[0][0] == ">":
            args, signs = args[::-1], [FLIPPED[sign] for sign in signs[::-1]]
        if symbols(args[0]) or symbols(args[2]):
            return None
        brackets = ("[" if signs[0] == "<=" else "(") + ("]" if signs[1] == "<=" else ")")
        return args[1].name, [_interval(args[0], args[2], brackets)]
    return None


def _half_line(sign: str, args: list[Node]) -> Named | None:
    if symbols(args[0]) and symbols(args[1]):
        return None
    if not symbols(args[0]):
        args, sign = args[::-1], FLIPPED[sign]
    inner, bound = args
    closed = sign.endswith("=")
    if inner.op == "call" and inner.name == "abs" and inner.args[0].op == "sym":
        minus, name = Node("neg", (bound,)), inner.args[0].name
        if sign[0] == "<":
            return name, [_interval(minus, bound, "[]" if closed else "()")]
        below = _interval(_MINUS_INFINITY, minus, "(]" if closed else "()")
        return name, [below, _interval(bound, _INFINITY, "[)" if closed else "()")]
    if inner.op != "sym":
        return None
    if sign[0] == ">":
        return inner.name, [_interval(bound, _INFINITY, "[)" if closed else "()")]
    return inner.name, [_interval(_MINUS_INFINITY, bound, "(]" if closed else "()")]


def _joined(signs: list[str], args: list[Node]) -> Named | None:
    r"""`x < -2 \cup x > 2`, which the grammar reads as x < (-2 u x) > 2."""
    at = next(index for index, arg in enumerate(args) if arg.op == "union")
    first = Node("rel", (*args[:at], args[at].args[0]), " ".join(signs[:at]))
    second = Node("rel", (args[at].args[1], *args[at + 1 :]), " ".join(signs[at:]))
    return _several(Node("union", (first, second)))


def _several(node: Node) -> Named | None:
    """A union, or relations in one variable in a list; a comma means both where they overlap."""
    found = [as_set(arg) for arg in node.args]
    if node.op == "list" and not all(arg.op == "rel" for arg in node.args):
        return None
    names = {one[0] for one in found if one} - {""}
    if not all(found) or len(names) > 1:
        return None
    parts = [part for one in found if one for part in one[1]]
    if node.op == "list" and node.name != "or" and len(parts) == 2:
        parts = _overlap(parts) or parts
    return names.pop() if names else "", parts


def _overlap(parts: list[Node]) -> list[Node]:
    """(a, oo) and (-oo, b) as (a, b) where a < b; nothing for anything else."""
    for first, second in (parts, parts[::-1]):
        if len(first.args) == len(second.args) == 2 and first.args[1] is _INFINITY:
            if second.args[0] is _MINUS_INFINITY and _below(first.args[0], second.args[1]):
                return [_interval(first.args[0], second.args[1], first.name[0] + second.name[1])]
            return []
    return []


def _without(node: Node) -> Named | None:
    points = list(node.args) if node.op == "group" and node.name == "{}" else [node]
    if any(symbols(point) or point.op in ("group", "list") for point in points):
        return None
    ordered = _sorted(points)
    return ("", _around(ordered)) if ordered else None


def _around(points: list[Node]) -> list[Node]:
    """The real line without these points, which are in order."""
    ends = [_MINUS_INFINITY, *points, _INFINITY]
    return [_interval(low, high, "()") for low, high in pairwise(ends)]


def _value(node: Node) -> Enclosure | None:
    try:
        value = numeric(node, 30)
    except (NoValue, TooLarge):
        return None
    return value if value.im is None else None


def _below(one: Node, two: Node) -> bool:
    first, second = _value(one), _value(two)
    return first is not None and second is not None and (second - first).sign() > 0


def _sorted(points: list[Node]) -> list[Node]:
    """In ascending order; nothing where two of them cannot be told apart."""
    ordered: list[Node] = []
    for point in points:
        at = next((index for index, other in enumerate(ordered) if _below(point, other)), len(ordered))
        if at and not _below(ordered[at - 1], point):
            return []
        ordered.insert(at, point)
    return ordered
