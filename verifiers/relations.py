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
from fractions import Fraction
from typing import TypeAlias

from verifiers.enclosure import constant
from verifiers.lexer import ARROWS
from verifiers.numeric import numeric
from verifiers.scalars import Finding, no, points, yes
from verifiers.sets import FLIPPED
from verifiers.trees import LimitError, Node, has, key, symbols
from verifiers.values import PRIME, NoValue, exact, residue

_ORDER = frozenset(FLIPPED)


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
    if node.op == "call" and node.name in ("f", "g", "h"):
        return True
    return node.op in ("group", "list", "ratio") and all(arg.op == "sym" for arg in node.args)


def cut_approximation(node: Node) -> Node:
    """Without what follows an "approximately" sign; a label before one keeps the value after it."""
    signs = operators(node)
    if node.op != "rel" or "~" not in signs:
        return node
    at = signs.index("~")
    if _far_apart(node.args[at], node.args[at + 1]):
        return node  # 5 ~ 7 is two answers
    if at == 0 and is_label(node.args[0]):
        return Node("rel", node.args[:2], "=")
    return node.args[0] if at == 0 else Node("rel", node.args[: at + 1], " ".join(signs[:at]))


def _far_apart(one: Node, two: Node) -> bool:
    """Whether two numbers that are said to be close differ by more than a twentieth."""
    try:
        first, second = numeric(one, 15), numeric(two, 15)
        return not first.has_zero() and not (second / first).within(constant(Fraction(1), 60), Fraction(1, 20))
    except (NoValue, LimitError):
        return False


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


def compare_relations(one: Node, two: Node) -> Finding:
    """Whether two single relations say the same; undecided where the parts have no values."""
    signs = operators(one), operators(two)
    if len(signs[0]) != 1 or len(signs[1]) != 1:
        return Finding(None, "unproved", "chains of relations that are not alike")
    congruences = _congruence(one), _congruence(two)
    if any(congruences):
        return _compare_congruences(*congruences)
    if signs[0] == signs[1] and signs[0][0] in ARROWS:
        same = [key(node) for node in one.args] == [key(node) for node in two.args]
        return yes("relation", "the same arrow") if same else no("relation", "different arrows")
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


_Congruence: TypeAlias = tuple[Node, Fraction, Fraction]


def _congruence(node: Node) -> _Congruence | None:
    """(left side, residue, modulus) of `x = 3 mod 5` with numbers; None for anything else."""
    right = node.args[1]
    if operators(node) != ["="] or right.op != "call" or right.name != "mod":
        return None
    try:
        residue_, modulus = exact(right.args[0]), exact(right.args[1])
    except (NoValue, LimitError):
        return None
    return (node.args[0], residue_ % modulus, modulus) if modulus else None


def _compare_congruences(one: _Congruence | None, two: _Congruence | None) -> Finding:
    if one is None or two is None:
        return no("relation", "a congruence against something else")
    same = key(one[0]) == key(two[0]) and one[1:] == two[1:]
    return yes("relation", "the same congruence") if same else no("relation", "different congruences")


def _difference(node: Node) -> tuple[str, Node]:
    sign, (one, two) = operators(node)[0], node.args
    if sign in (">", ">="):
        sign, one, two = FLIPPED[sign], two, one
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
