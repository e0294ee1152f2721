"""Equations, inequalities and chains: what they say, and when two say the same.

    label        `x = 5`, `f(x) = x^2`, `(x, y) = (1, 2)`, `D = (0, 1)`: the value behind the first sign
    chain        `a = b = c` without a label must be true throughout to have a value; `7 = 5` has none
    approx       what follows an "approximately" sign is dropped
    equation     the differences of both sides are proportional
    inequality   ... by a positive constant, after > is turned into <
    interval     `a < x <= b` is `(a, b]`, `x > 3` is `(3, oo)`

Proportionality is tested by d1(P) d2(Q) = d1(Q) d2(P) at seeded points, in GF(2^61 - 1) where both are
rational functions and numerically otherwise.
"""

from __future__ import annotations

import random

from verifiers.numeric import numeric
from verifiers.scalars import Finding, no, points, yes
from verifiers.trees import LimitError, Node, has, symbols
from verifiers.values import PRIME, NoValue, residue

_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_ORDER = frozenset(_FLIPPED)


def operators(node: Node) -> list[str]:
    """The relation signs of a `rel` node, in order."""
    return node.name.split()


def is_label(node: Node) -> bool:
    """A name that an answer may be given under: `x`, `f(x)`, `(x, y)`, words."""
    if node.op in ("sym", "text"):
        return True
    if node.op == "mul":
        first, rest = node.args[0], node.args[1:]
        if first.op == "text" and all(arg.op in ("sym", "const", "text") for arg in rest):
            return True  # a few words before a name, short ones read as letters
        return first.op in ("sym", "text") and len(rest) == 1 and rest[0].op in ("sym", "num", "group")
    if node.op == "unit":
        return is_label(node.args[0])
    return node.op in ("group", "list", "ratio") and all(arg.op == "sym" for arg in node.args)


def cut_approximation(node: Node) -> Node:
    """Without what follows an "approximately" sign; a label before one keeps the value after it."""
    signs = operators(node)
    if node.op != "rel" or "~" not in signs:
        return node
    at = signs.index("~")
    if at == 0 and is_label(node.args[0]):
        return Node("rel", node.args[:2], "=")
    return node.args[0] if at == 0 else Node("rel", node.args[: at + 1], " ".join(signs[:at]))


def labelled(node: Node) -> tuple[Node, list[Node]] | None:
    """(label, values) of a chain of equalities that starts with a label; None for anything else."""
    if node.op != "rel" or set(operators(node)) != {"="}:
        return None
    if is_label(node.args[0]):
        inside = symbols(node.args[0]) if node.args[0].op == "sym" else frozenset()
        if not any(inside & symbols(value) for value in node.args[1:]):
            return node.args[0], list(node.args[1:])
    if len(node.args) == 2 and node.args[1].op == "sym" and not symbols(node.args[0]):
        return node.args[1], [node.args[0]]  # 2 = x
    return None


def as_interval(node: Node) -> tuple[str, Node] | None:
    """(variable, interval) of an inequality in one lone symbol with closed bounds; None for anything else."""
    signs = operators(node)
    if node.op != "rel" or not set(signs) <= _ORDER:
        return None
    args = list(node.args)
    if len(signs) == 2 and args[1].op == "sym" and len({sign[0] for sign in signs}) == 1:
        if signs[0][0] == ">":
            args, signs = args[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
        low, high = args[0], args[2]
        brackets = ("[" if signs[0] == "<=" else "(") + ("]" if signs[1] == "<=" else ")")
        variable = args[1].name
    elif len(signs) == 1 and "sym" in (args[0].op, args[1].op):
        sign = signs[0]
        if args[0].op != "sym":
            args, sign = args[::-1], _FLIPPED[sign]
        variable, bound, infinite = args[0].name, args[1], Node("const", (), "inf")
        closed = sign.endswith("=")
        if sign[0] == ">":
            low, high, brackets = bound, infinite, ("[" if closed else "(") + ")"
        else:
            low, high, brackets = Node("neg", (infinite,)), bound, "(" + ("]" if closed else ")")
    else:
        return None
    return None if symbols(low) or symbols(high) else (variable, Node("group", (low, high), brackets))


def compare_relations(one: Node, two: Node) -> Finding:
    """Whether two single relations say the same; undecided where the parts have no values."""
    signs = operators(one), operators(two)
    if len(signs[0]) != 1 or len(signs[1]) != 1:
        return Finding(None, "unproved", "chains of relations that are not alike")
    (left, first), (right, second) = _difference(one), _difference(two)
    if left != right:
        return no("relation", "different relation signs")
    try:
        ratio = proportion(first, second)
    except (NoValue, LimitError) as error:
        return Finding(None, "unproved", f"relations without values: {error}"[:200])
    if ratio is None or (left in _ORDER and ratio < 0):
        return no("relation", "the two relations say different things")
    return yes("relation", "the same relation up to a factor")


def _difference(node: Node) -> tuple[str, Node]:
    sign, (one, two) = operators(node)[0], node.args
    if sign in (">", ">="):
        sign, one, two = _FLIPPED[sign], two, one
    return sign, Node("add", (one, Node("neg", (two,))))


def proportion(one: Node, two: Node) -> int | None:
    """The sign of c where one = c * two as functions, c constant and not 0; None where there is no such c."""
    names = symbols(one) | symbols(two)
    if not names:
        raise NoValue("no symbol")
    try:
        draw = random.Random(0xCAFE)
        places = [{name: draw.randrange(2, PRIME) for name in sorted(names)} for _ in range(4)]
        values = [(residue(one, place), residue(two, place)) for place in places]
        base = values[0]
        if not all(pair[0] * base[1] % PRIME == pair[1] * base[0] % PRIME for pair in values):
            return None
        if not base[0] or not base[1]:
            return 1 if base == (0, 0) else None
    except NoValue:
        if has(one, "text") or has(two, "text"):
            raise
    samples = [(numeric(one, 50, p), numeric(two, 50, p)) for p in points(names, 4, mixed=False)]
    first, second = samples[0]
    for a, b in samples[1:]:
        if (a * second).disjoint(b * first):
            return None
    if first.has_zero() or second.has_zero():
        return None
    return -1 if (first / second).sign() < 0 else 1
