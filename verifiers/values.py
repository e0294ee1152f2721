"""Values of parsed expressions: exact, and modulo a prime; each bounded by a counter of work.

    exact      a Fraction, where the expression is rational; refuses past `MAX_BITS` bits
    residue    an element of GF(p), p = 2^61 - 1, symbols set to given residues. Two rational functions of
               total degree d that differ agree at a random point with probability <= d / p (Schwartz-Zippel).

A value that does not exist (0/0, an unknown function) raises `NoValue`; a value that is too large to write
down within the budget raises `TooLarge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Final

from verifiers.trees import LimitError, Node, fold

PRIME: Final = (1 << 61) - 1
MAX_BITS: Final = 200_000
"""Largest exact numerator or denominator."""
MAX_WORK: Final = 4_000_000
"""Bits written over one exact evaluation."""


class NoValue(Exception):
    """The expression has no value of the asked kind."""


class Undefined(NoValue):
    """The expression has no value at all, such as 1/0."""


class TooLarge(LimitError):
    """The value exists and passes a budget."""


class _Work:
    __slots__ = ("bits",)

    def __init__(self) -> None:
        self.bits = 0

    def note(self, value: Fraction) -> Fraction:
        size = value.numerator.bit_length() + value.denominator.bit_length()
        self.bits += size
        if size > MAX_BITS or self.bits > MAX_WORK:
            raise TooLarge(f"an exact value passes {MAX_BITS} bits")
        return value


def exact(root: Node) -> Fraction:
    """The rational value; NoValue where it is not rational by arithmetic alone, TooLarge past the budget."""
    work = _Work()
    return fold(root, lambda node, args: work.note(_exact(node, args)))


def _exact(node: Node, args: list[Fraction]) -> Fraction:
    op = node.op
    if op == "num":
        return node.number
    if op == "add":
        return sum(args, Fraction(0))
    if op == "mul":
        value = Fraction(1)
        for arg in args:
            if value.numerator.bit_length() + arg.numerator.bit_length() > 2 * MAX_BITS:
                raise TooLarge("a product passes the budget")
            value *= arg
        return value
    if op == "neg":
        return -args[0]
    if op == "div":
        return args[0] / _divisor(args[1])
    if op == "percent":
        return args[0] / 100
    if op == "unit":
        return args[0]
    if op == "pow":
        return _power(args[0], args[1])
    if op == "root" and args[1].denominator == 1 and args[1] > 0:
        return _power(args[0], 1 / args[1])
    if op == "fact":
        return Fraction(_factorial(args[0]))
    if op == "call":
        return _call(node.name, args)
    raise NoValue(op)


def _divisor(value: Fraction) -> Fraction:
    if not value:
        raise Undefined("division by zero")
    return value


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        upper = _exact_root(base.numerator, exponent.denominator)
        lower = _exact_root(base.denominator, exponent.denominator)
        return _power(Fraction(upper, lower), Fraction(exponent.numerator))
    power = exponent.numerator
    if power <= 0:
        if not base and power == 0:
            return Fraction(1)
        base, power = 1 / _divisor(base), -power
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base.numerator) > 1 or base.denominator > 1:
        if size * power > MAX_BITS * 2:
            raise TooLarge("a power passes the budget")
    else:
        power = power % 2 + 2 * bool(power)  # of -1, 0 and 1 only the parity matters
    return base**power


def _exact_root(value: int, index: int) -> int:
    """The integer whose `index`-th power is `value`; NoValue where there is none, by Newton's iteration."""
    if value < 0 or index > 64 or value.bit_length() > 20_000:
        raise NoValue("no rational root")
    if value < 2:
        return value
    guess = 1 << -(-value.bit_length() // index)
    while True:
        better = ((index - 1) * guess + value // guess ** (index - 1)) // index
        if better >= guess:
            break
        guess = better
    if guess**index != value:
        raise NoValue("no rational root")
    return guess


def _factorial(value: Fraction) -> int:
    if value.denominator != 1 or value < 0:
        raise NoValue("factorial of no natural number")
    if value > 10_000:
        raise TooLarge("a factorial passes the budget")
    product = 1
    for factor in range(2, int(value) + 1):
        product *= factor
    return product


def _call(name: str, args: list[Fraction]) -> Fraction:
    one = args[0]
    if name == "abs":
        return abs(one)
    if name == "floor":
        return Fraction(one.numerator // one.denominator)
    if name == "ceil":
        return Fraction(-(-one.numerator // one.denominator))
    if name in ("max", "min"):
        return max(args) if name == "max" else min(args)
    if name == "mod" and len(args) == 2 and args[1]:
        return one % args[1]
    if name == "binom" and len(args) == 2:
        return _binomial(one, args[1])
    raise NoValue(name)


def _binomial(upper: Fraction, lower: Fraction) -> Fraction:
    if upper.denominator != 1 or lower.denominator != 1 or upper < 0:
        raise NoValue("binomial of no natural numbers")
    n, k = int(upper), int(lower)
    k = min(k, n - k)
    if k < 0:
        return Fraction(0)
    if k > 5_000 or n.bit_length() * k > MAX_BITS:
        raise TooLarge("a binomial passes the budget")
    value = 1
    for step in range(k):
        value = value * (n - step) // (step + 1)
    return Fraction(value)


def residue(root: Node, point: Mapping[str, int]) -> int:
    """The value in GF(PRIME) at a point; NoValue for anything but a rational function with integer powers."""

    def combine(node: Node, args: list[tuple[int, Fraction | None]]) -> tuple[int, Fraction | None]:
        # Beside each residue goes the small exact value, where there is one: exponents need it.
        op = node.op
        if op == "num":
            number = node.number
            return _quotient(number.numerator % PRIME, number.denominator % PRIME), number
        if op == "sym":
            return point[node.name], None
        known = _small(node, [small for _, small in args])
        values = [value for value, _ in args]
        if op == "add":
            return sum(values) % PRIME, known
        if op == "mul":
            product = 1
            for value in values:
                product = product * value % PRIME
            return product, known
        if op == "neg":
            return -values[0] % PRIME, known
        if op == "div":
            return _quotient(values[0], values[1]), known
        if op in ("percent", "unit"):
            return (values[0] if op == "unit" else _quotient(values[0], 100)), known
        if op == "pow":
            power = args[1][1]
            if power is None or power.denominator != 1:
                raise NoValue("no integer power")
            if power < 0:
                return pow(_quotient(1, values[0]), -int(power), PRIME), known
            return pow(values[0], int(power), PRIME), known
        raise NoValue(op)

    return fold(root, combine)[0]


def _quotient(upper: int, lower: int) -> int:
    if not lower % PRIME:
        raise NoValue("division by zero")
    return upper * pow(lower, -1, PRIME) % PRIME


def _small(node: Node, args: list[Fraction | None]) -> Fraction | None:
    known = [arg for arg in args if arg is not None]
    bits = [arg.numerator.bit_length() + arg.denominator.bit_length() for arg in known]
    if len(known) < len(args) or sum(bits) > 4_096:
        return None
    if node.op == "pow" and abs(known[1]) * bits[0] > 4_096:
        return None
    try:
        return _exact(node, known)
    except (NoValue, TooLarge):
        return None
