r"""Numeric values of parsed expressions, to any number of digits, as enclosures (`verifiers.enclosure`).

One walk over the tree, leaves first, in interval arithmetic: what comes back holds the value for certain.
`\sqrt[3]{-8}` is the real root -2; other powers of negative numbers are principal values.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from verifiers.enclosure import (
    MAX_MAGNITUDE,
    Enclosure,
    Interval,
    absolute,
    as_complex,
    check_power,
    constant,
    divide,
    exponent_of,
    libmp,
    libmpi,
    multiply,
    negative,
    plus,
    power,
    rectangle,
    root,
)
from verifiers.trees import Node, fold, words
from verifiers.values import NoValue, TooLarge, exact

MAX_NEGATIVE: Final = 50
"""How far below zero a factorial is computed: each unit costs a step of recursion."""
MAX_ARGUMENT: Final = 31
"""Largest binary exponent of the argument of a periodic function or a factorial."""


def numeric(root: Node, digits: int, point: Mapping[str, Fraction] | None = None) -> Enclosure:
    """The value to about `digits` significant digits, symbols set to `point`.

    Raises NoValue for what has no complex value or one that cannot be enclosed, TooLarge where a binary exponent
    would pass MAX_MAGNITUDE.
    """
    precision = int(digits * 3.33) + 16
    places = point or {}

    def combine(node: Node, args: list[Enclosure]) -> Enclosure:
        if node.op == "sym":
            if node.name not in places:
                raise NoValue(node.name)
            value = constant(places[node.name], precision)
        else:
            value = _evaluate(node, args, precision)
        if exponent_of(value) > MAX_MAGNITUDE:
            raise TooLarge("a value is too large to write down")
        return value

    try:
        return fold(root, combine)
    except (ValueError, ArithmeticError, TypeError, NotImplementedError) as problem:
        if isinstance(problem, TooLarge):
            raise
        raise NoValue(str(problem)) from None


def _evaluate(node: Node, args: list[Enclosure], precision: int) -> Enclosure:
    op, mp, mpi = node.op, libmp(), libmpi()
    if op == "num":
        return constant(node.number, precision)
    if op == "const":
        if node.name == "i":
            return Enclosure((mp.fzero, mp.fzero), (mp.fone, mp.fone), precision)
        if node.name not in ("pi", "e"):
            raise NoValue(node.name)
        whole = mpi.mpi_pi(precision) if node.name == "pi" else mpi.mpi_exp((mp.fone, mp.fone), precision)
        return Enclosure(whole, None, precision)
    if op == "add":
        return plus(args)
    if op == "mul":
        product = args[0]
        for arg in args[1:]:
            product = multiply(product, arg)
        return product
    if op in ("neg", "unit"):
        return negative(args[0]) if op == "neg" else args[0]
    if op == "div":
        return divide(args[0], args[1])
    if op == "percent":
        return divide(args[0], constant(Fraction(100), precision))
    if op == "degree":
        half_turn = Enclosure(mpi.mpi_pi(precision), None, precision)
        return divide(multiply(args[0], half_turn), constant(Fraction(180), precision))
    if op == "pow":
        return power(args[0], args[1], _whole(node.args[1]))
    if op == "root":
        return root(args[0], args[1], _whole(node.args[1]))
    if op in ("fact", "call"):
        return _function("fact" if op == "fact" else node.name, args)
    raise NoValue(op)


def _whole(node: Node) -> int | None:
    """The value of an exponent or index that is an integer written out."""
    try:
        value = exact(node)
    except (NoValue, TooLarge):
        return None
    return int(value) if value.denominator == 1 and abs(value) < MAX_MAGNITUDE else None


_REAL = frozenset(words("floor ceil max min fact binom sinh cosh tanh")) | frozenset(
    prefix + name for prefix in ("arc", "a") for name in words("sin cos tan cot sec csc")
)


def _function(name: str, args: list[Enclosure]) -> Enclosure:
    mpi, one, precision = libmpi(), args[0], args[0].precision
    if name in ("log", "lg", "ln"):
        base = args[1] if len(args) == 2 and name != "ln" else constant(Fraction(10), precision)
        return _log(one) if name == "ln" else divide(_log(one), _log(base))
    if name == "abs":
        return Enclosure(absolute(one), None, precision)
    if name in ("Re", "Im"):
        return Enclosure(as_complex(one)[name == "Im"], None, precision)
    if name == "arg" and not one.has_zero():
        return Enclosure(mpi.mpci_arg(as_complex(one), precision), None, precision)
    if name not in ("exp", "max", "min") and _is_large(one):
        raise TooLarge("an argument is too large")
    if name in ("exp", "sin", "cos"):
        if name == "exp":
            check_power(constant(Fraction(2), precision), one)
        if one.im is None:
            return Enclosure(getattr(mpi, f"mpi_{name}")(one.re, precision), None, precision)
        return rectangle(getattr(mpi, f"mpci_{name}")(as_complex(one), precision), precision)
    if name in ("sech", "csch", "coth"):
        upper_name = {"coth": "cosh"}.get(name)
        below = _function("cosh" if name == "sech" else "sinh", args)
        return divide(_function(upper_name, args) if upper_name else constant(Fraction(1), precision), below)
    if name == "sgn" and one.sign():
        return constant(Fraction(one.sign()), precision)
    if name in ("tan", "cot", "sec", "csc"):
        upper = {"tan": "sin", "cot": "cos"}.get(name)
        lower = _function("cos" if name in ("tan", "sec") else "sin", args)
        return divide(_function(upper, args) if upper else constant(Fraction(1), precision), lower)
    if name not in _REAL or any(arg.im is not None for arg in args):
        raise NoValue(name)
    return _real_function(name, args)


def _is_large(one: Enclosure) -> bool:
    mp = libmp()
    return any(end != mp.fzero and end[2] + end[3] > MAX_ARGUMENT for part in as_complex(one) for end in part)


def _log(one: Enclosure) -> Enclosure:
    mp, mpi = libmp(), libmpi()
    if one.has_zero():
        raise NoValue("logarithm of what may be zero")
    if one.im is None and mp.mpf_sign(one.re[0]) > 0:
        return Enclosure(mpi.mpi_log(one.re, one.precision), None, one.precision)
    return rectangle(mpi.mpci_log(as_complex(one), one.precision), one.precision)


def _real_function(name: str, args: list[Enclosure]) -> Enclosure:
    mp, mpi, one, precision = libmp(), libmpi(), args[0], args[0].precision
    if name in ("max", "min"):
        better = mp.mpf_gt if name == "max" else mp.mpf_lt
        ends = list(args[0].re)
        for arg in args[1:]:
            ends = [new if better(new, old) else old for new, old in zip(arg.re, ends, strict=True)]
        return Enclosure((ends[0], ends[1]), None, precision)
    if name == "binom" and len(args) == 2:
        parts = [plus([arg, constant(Fraction(1), precision)]) for arg in (one, args[1], one - args[1])]
        upper, *lower = (_real_function("fact", [part - constant(Fraction(1), precision)]) for part in parts)
        return divide(upper, multiply(*lower))
    if len(args) != 1:
        raise NoValue(name)
    if name == "fact":
        if mp.mpf_lt(one.re[0], mp.from_int(-MAX_NEGATIVE)):
            raise NoValue("the gamma function far below zero")
        return Enclosure(mpi.mpi_factorial(one.re, precision), None, precision)
    if name in ("floor", "ceil"):
        rounded = [getattr(mp, f"mpf_{name}")(end, precision, "n") for end in one.re]
        if rounded[0] != rounded[1]:
            raise NoValue("rounding of what may be an integer")
        return Enclosure((rounded[0], rounded[0]), None, precision)
    if name in ("sinh", "cosh", "tanh"):
        cosh, sinh = (Enclosure(part, None, precision) for part in mpi.mpi_cosh_sinh(one.re, precision))
        return {"sinh": sinh, "cosh": cosh}.get(name) or divide(sinh, cosh)
    return Enclosure(_inverse(name.removeprefix("arc").removeprefix("a"), one), None, precision)


def _inverse(name: str, one: Enclosure) -> Interval:
    """Arcsin x = atan2(x, s), arccos x = atan2(s, x) with s = sqrt(1 - x^2); arcsec x = arccos 1/x and so on."""
    mp, mpi, precision = libmp(), libmpi(), one.precision
    unit = constant(Fraction(1), precision)
    if name in ("cot", "sec", "csc"):
        one, name = divide(unit, one), {"cot": "tan", "sec": "cos", "csc": "sin"}[name]
    if name == "tan":
        return tuple(mpi.mpi_atan(one.re, precision))
    rest = unit - multiply(one, one)
    if mp.mpf_sign(rest.re[0]) < 0:
        raise NoValue("an arc outside [-1, 1]")
    other = mpi.mpi_sqrt(rest.re, precision)
    pair = (one.re, other) if name == "sin" else (other, one.re)
    return tuple(mpi.mpi_atan2(*pair, precision))
