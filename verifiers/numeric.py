"""Numeric values of parsed expressions to any number of digits, with an estimate of their error.

mpmath computes, in a context of each thread (the shared one keeps its precision in a global) that is imported
when first needed. Every operation carries the absolute errors of its arguments forward to first order,
doubled, plus a few units of its own rounding, so that cancellation, tiny denominators and towers of powers
are seen for what they are. Values whose binary exponent would pass MAX_MAGNITUDE raise TooLarge before they
are computed, so every operation is cheap.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final, NamedTuple

from verifiers.trees import Node, fold, words
from verifiers.values import NoValue, TooLarge

MAX_MAGNITUDE: Final = 1 << 40
"""Largest binary exponent of a value."""
_local = threading.local()


def _context() -> Any:
    """The mpmath context of this thread: the shared one keeps its precision in a global."""
    if not hasattr(_local, "context"):
        from mpmath.ctx_mp import MPContext  # type: ignore[import-untyped]

        _local.context = MPContext()
    return _local.context


_FUNCTIONS = {
    **{name: name for name in words("sin cos tan cot sec csc sinh cosh tanh exp")},
    **{f"arc{name}": f"a{name}" for name in words("sin cos tan cot sec csc")},
    **{f"a{name}": f"a{name}" for name in words("sin cos tan")},
    "ln": "ln", "abs": "fabs", "arg": "arg", "Re": "re", "Im": "im", "floor": "floor", "ceil": "ceil",
}  # fmt: skip


class Numeric(NamedTuple):
    """A value (an mpmath number) and a bound, not proved but generous, on its absolute error."""

    value: Any
    error: Any


def numeric(root: Node, digits: int, point: Mapping[str, Fraction] | None = None) -> Numeric:
    """The value to about `digits` significant digits, symbols set to `point`.

    Raises NoValue for what has no complex value, TooLarge where a binary exponent would pass MAX_MAGNITUDE.
    """
    context = _context()
    context.dps = digits
    places = point or {}

    def combine(node: Node, args: list[Numeric]) -> Numeric:
        if node.op == "sym":
            if node.name not in places:
                raise NoValue(node.name)
            value, error = _ratio(context, places[node.name]), context.mpf(0)
        else:
            value, error = _evaluate(context, node, args)
        if not context.isfinite(value) or not context.isfinite(error):
            raise NoValue("not finite")
        if value and abs(int(context.mag(value))) > MAX_MAGNITUDE:
            raise TooLarge("a value is too large to write down")
        return Numeric(value, error + 4 * abs(value) * context.eps)

    try:
        return fold(root, combine)
    except (ValueError, ArithmeticError, TypeError) as problem:
        if isinstance(problem, TooLarge):
            raise
        raise NoValue(str(problem)) from None


def _ratio(context: Any, value: Fraction) -> Any:
    return context.mpf(value.numerator) / value.denominator


def _evaluate(context: Any, node: Node, args: list[Numeric]) -> tuple[Any, Any]:
    """(value, error that comes from the errors of the arguments)."""
    op, zero = node.op, context.mpf(0)
    if op == "num":
        return _ratio(context, node.number), zero
    if op == "const":
        if node.name not in ("pi", "e", "i"):
            raise NoValue(node.name)
        return (context.mpc(0, 1) if node.name == "i" else +getattr(context, node.name)), zero
    if op == "add":
        return context.fsum(arg.value for arg in args), context.fsum(arg.error for arg in args)
    if op == "mul":
        value, error = context.mpf(1), zero
        for arg in args:
            error = error * abs(arg.value) + arg.error * (abs(value) + error)
            value = value * arg.value
        return value, error
    if op in ("neg", "unit"):
        return (-args[0].value if op == "neg" else args[0].value), args[0].error
    if op == "div":
        return _quotient(context, args[0], args[1])
    if op == "percent":
        return args[0].value / 100, args[0].error / 100
    if op == "degree":
        return args[0].value * context.pi / 180, args[0].error / 57
    if op == "pow":
        return _power(context, args[0], args[1])
    if op == "root":
        inverse = _quotient(context, Numeric(context.mpf(1), zero), args[1])
        return _power(context, args[0], Numeric(*inverse))
    if op in ("fact", "call"):
        return _apply(context, node, args)
    raise NoValue(op)


def _quotient(context: Any, upper: Numeric, lower: Numeric) -> tuple[Any, Any]:
    size = abs(lower.value)
    if size <= 2 * lower.error:
        raise NoValue("division by what may be zero")
    value = upper.value / lower.value
    return value, 2 * (upper.error + abs(value) * lower.error) / size


def _power(context: Any, base: Numeric, exponent: Numeric) -> tuple[Any, Any]:
    size, power = abs(base.value), exponent.value
    if size <= 2 * base.error:
        if context.re(power) <= 0:
            raise NoValue("power of what may be zero")
        return context.mpf(0), (3 * base.error) ** context.re(power) if base.error else context.mpf(0)
    log = context.ln(size)
    if abs(power) * (abs(log) + 4) > MAX_MAGNITUDE:
        raise TooLarge("a power is too large to write down")
    value = base.value**power
    # the argument of a complex base adds at most pi to the logarithm
    relative = abs(power) * base.error / size + (abs(log) + 4) * exponent.error
    return value, 2 * abs(value) * relative


def _apply(context: Any, node: Node, args: list[Numeric]) -> tuple[Any, Any]:
    """A function, and how far it moves when its first argument moves by that argument's error."""
    name = "fact" if node.op == "fact" else node.name
    values = [arg.value for arg in args]
    limit = 1e6 if name in ("fact", "binom") else 1e9
    if name not in ("ln", "log", "lg", "abs", "arg", "Re", "Im") and abs(values[0]) > limit:
        raise TooLarge("an argument is too large")

    def function(first: Any) -> Any:
        if name == "fact":
            return context.factorial(first)
        if name in ("log", "lg"):
            return context.ln(first) / context.ln(values[1] if len(values) == 2 else 10)
        if name == "binom" and len(values) == 2:
            return context.binomial(first, values[1])
        if name not in _FUNCTIONS or len(values) != 1:
            raise NoValue(name)
        return getattr(context, _FUNCTIONS[name])(first)

    step = 2 * args[0].error
    if name in ("floor", "ceil"):
        nearest = context.nint(values[0])
        return (nearest if abs(nearest - values[0]) <= step else function(values[0])), context.mpf(0)
    value = function(values[0])
    return value, 2 * abs(function(values[0] + step) - value) + abs(value) * sum(a.error for a in args[1:])
