"""Enclosures: real intervals and complex rectangles that hold a value, and arithmetic on them.

Every operation is interval arithmetic with outward rounding (mpmath's `libmpi`, pure functions of their precision
that share no state among threads), so two enclosures that do not meet are two different values, for certain:

    f(X) encloses { f(x) : x in X },   disjoint(X, Y) => x != y

Exponents are checked before a value is computed (`MAX_MAGNITUDE`), so every operation is cheap. mpmath is imported
when first needed.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final, NamedTuple

from verifiers.values import NoValue, TooLarge

MAX_MAGNITUDE: Final = 1 << 40
"""Largest binary exponent of a value."""
Interval = tuple[Any, Any]
"""Lower and upper end, each an mpmath raw float."""


class Enclosure(NamedTuple):
    """Where a value lies: its real part in `re`, its imaginary part in `im` (None: it is real)."""

    re: Interval
    im: Interval | None
    precision: int

    def __mul__(self, other: Enclosure) -> Enclosure:  # type: ignore[override]
        return multiply(self, other)

    def __sub__(self, other: Enclosure) -> Enclosure:
        return plus([self, negative(other)])

    def __truediv__(self, other: Enclosure) -> Enclosure:
        return divide(self, other)

    def disjoint(self, other: Enclosure) -> bool:
        """Whether the two values are different for certain."""
        mp = libmp()
        zero = (mp.fzero, mp.fzero)
        parts = ((self.re, other.re), (self.im or zero, other.im or zero))
        return any(mp.mpf_lt(a[1], b[0]) or mp.mpf_lt(b[1], a[0]) for a, b in parts)

    def may_be_real(self) -> bool:
        """Whether the imaginary part may be zero."""
        return self.im is None or _has_zero(self.im)

    def has_zero(self) -> bool:
        """Whether the value may be zero."""
        return _has_zero(self.re) and self.may_be_real()

    def may_be_integer(self) -> bool:
        """Whether an integer lies in the enclosure; also where it is too large to say."""
        mp = libmp()
        if not self.may_be_real():
            return False
        if any(end != mp.fzero and end[2] + end[3] > self.precision for end in self.re):
            return True
        return bool(mp.mpf_le(mp.mpf_ceil(self.re[0], self.precision, "c"), self.re[1]))

    def sign(self) -> int:
        """+1 or -1 of a real value that cannot be zero; 0 for anything else."""
        mp = libmp()
        if self.im is not None or _has_zero(self.re):
            return 0
        return int(mp.mpf_sign(self.re[0]))

    def within(self, other: Enclosure, allowed: Fraction) -> bool:
        """Whether the two values are at most `allowed` apart, for certain."""
        mp = libmp()
        limit = mp.from_rational(allowed.numerator, allowed.denominator, self.precision, "f")
        return bool(mp.mpf_le(absolute(self - other)[1], limit))

    def narrow(self, bits: int) -> bool:
        """Whether no side is longer than 2^-bits times the least absolute value."""
        mp = libmp()
        limit = mp.mpf_shift(absolute(self)[0], -bits)
        return all(mp.mpf_le(side, limit) for side in self._sides())

    def tiny(self, bits: int) -> bool:
        """Whether no side is longer than 2^-bits."""
        mp = libmp()
        return all(mp.mpf_le(side, mp.mpf_shift(mp.fone, -bits)) for side in self._sides())

    def _sides(self) -> list[Any]:
        mp = libmp()
        return [mp.mpf_sub(part[1], part[0], 53, "c") for part in (self.re, self.im) if part is not None]

    def middle(self) -> float:
        """The middle of the real part as a float; infinite past its range."""
        mp = libmp()
        try:
            return float(mp.to_float(mp.mpf_shift(mp.mpf_add(*self.re, 53, "n"), -1)))
        except OverflowError:
            return float("inf") if mp.mpf_sign(self.re[1]) > 0 else float("-inf")


def libmp() -> Any:
    """Mpmath's arithmetic on raw floats."""
    from mpmath import libmp  # type: ignore[import-untyped]

    return libmp


def libmpi() -> Any:
    """Mpmath's arithmetic on intervals."""
    from mpmath.libmp import libmpi  # type: ignore[import-untyped]

    return libmpi


def _has_zero(part: Interval) -> bool:
    mp = libmp()
    return bool(mp.mpf_sign(part[0]) <= 0 <= mp.mpf_sign(part[1]))


def exponent_of(value: Enclosure) -> int:
    """The binary exponent of the largest end; refuses what is not finite."""
    mp = libmp()
    largest = -MAX_MAGNITUDE
    for part in (value.re, value.im):
        for end in part or ():
            if end in (mp.finf, mp.fninf, mp.fnan):
                raise NoValue("not finite")
            if end != mp.fzero:
                largest = max(largest, abs(end[2] + end[3]))
    return largest


def rectangle(parts: tuple[Interval, Interval], precision: int) -> Enclosure:
    """A complex value between real and imaginary ends."""
    return Enclosure(parts[0], parts[1], precision)


def constant(value: Fraction, precision: int) -> Enclosure:
    """The narrowest enclosure of a rational number."""
    mp = libmp()
    low, high = (mp.from_rational(value.numerator, value.denominator, precision, way) for way in "fc")
    return Enclosure((low, high), None, precision)


def as_complex(value: Enclosure) -> tuple[Interval, Interval]:
    """Real and imaginary part."""
    mp = libmp()
    return value.re, value.im or (mp.fzero, mp.fzero)


def plus(items: list[Enclosure]) -> Enclosure:
    """The sum."""
    mpi, total = libmpi(), items[0]
    for item in items[1:]:
        im = item.im if total.im is None else total.im
        if total.im is not None and item.im is not None:
            im = mpi.mpi_add(total.im, item.im, total.precision)
        total = Enclosure(mpi.mpi_add(total.re, item.re, total.precision), im, total.precision)
    return total


def negative(one: Enclosure) -> Enclosure:
    """-x."""
    mpi = libmpi()
    im = None if one.im is None else mpi.mpi_neg(one.im, one.precision)
    return Enclosure(mpi.mpi_neg(one.re, one.precision), im, one.precision)


def multiply(one: Enclosure, two: Enclosure) -> Enclosure:
    """The product."""
    mpi = libmpi()
    if one.im is None and two.im is None:
        return Enclosure(mpi.mpi_mul(one.re, two.re, one.precision), None, one.precision)
    return rectangle(mpi.mpci_mul(as_complex(one), as_complex(two), one.precision), one.precision)


def divide(one: Enclosure, two: Enclosure) -> Enclosure:
    """The quotient; NoValue where the divisor may be zero."""
    mpi = libmpi()
    if two.has_zero():
        raise NoValue("division by what may be zero")
    if one.im is None and two.im is None:
        return Enclosure(mpi.mpi_div(one.re, two.re, one.precision), None, one.precision)
    return rectangle(mpi.mpci_div(as_complex(one), as_complex(two), one.precision), one.precision)


def absolute(one: Enclosure) -> Interval:
    """The absolute value."""
    mpi = libmpi()
    if one.im is None:
        return tuple(mpi.mpi_abs(one.re, one.precision))
    return tuple(mpi.mpci_abs(as_complex(one), one.precision))


def root(radicand: Enclosure, index: Enclosure, whole: int | None) -> Enclosure:
    """A root; real where an odd one of a negative number is asked. `whole`: the index, where it is an integer."""
    inverse = divide(constant(Fraction(1), index.precision), index)
    below = radicand.im is None and libmp().mpf_sign(radicand.re[1]) < 0
    if below and whole is not None and whole % 2:
        return negative(power(negative(radicand), inverse, None))
    return power(radicand, inverse, 1 if whole == 1 else None)


def power(base: Enclosure, exponent: Enclosure, whole: int | None) -> Enclosure:
    """A power, its principal value. `whole`: the exponent, where it is an integer."""
    mp, mpi, precision = libmp(), libmpi(), base.precision
    if base.has_zero():
        return _power_of_zero(base, exponent, whole)
    check_power(base, exponent)
    if whole is not None:
        if base.im is None:
            return Enclosure(mpi.mpi_pow_int(base.re, whole, precision), None, precision)
        return rectangle(mpi.mpci_pow_int(as_complex(base), whole, precision), precision)
    if base.im is None and exponent.im is None and mp.mpf_sign(base.re[0]) > 0:
        if exponent.re == constant(Fraction(1, 2), precision).re:
            return Enclosure(mpi.mpi_sqrt(base.re, precision), None, precision)
        log = mpi.mpi_mul(exponent.re, mpi.mpi_log(base.re, precision + 20), precision + 20)
        return Enclosure(mpi.mpi_exp(log, precision), None, precision)
    power = mpi.mpci_mul(as_complex(exponent), mpi.mpci_log(as_complex(base), precision + 20), precision + 20)
    return rectangle(mpi.mpci_exp(power, precision), precision)


def _power_of_zero(base: Enclosure, exponent: Enclosure, whole: int | None) -> Enclosure:
    """What may be zero, to a power: bounded by the largest |base| to that power, where the power is positive."""
    mp, mpi, precision = libmp(), libmpi(), base.precision
    largest = absolute(base)[1]
    if exponent.im is not None or mp.mpf_sign(exponent.re[0]) <= 0 or (largest == mp.fzero and whole == 0):
        raise NoValue("power of what may be zero")
    if largest == mp.fzero:
        return constant(Fraction(0), precision)
    if whole is not None and base.im is None:
        check_power(Enclosure((largest, largest), None, precision), exponent)
        return Enclosure(mpi.mpi_pow_int(base.re, whole, precision), None, precision)
    size = power(Enclosure((largest, largest), None, precision), exponent, whole).re[1]
    around = (mp.mpf_neg(size), size)
    return Enclosure(around, around, precision)


def check_power(base: Enclosure, exponent: Enclosure) -> None:
    """TooLarge where |exponent| (|log |base|| + 4) passes the largest magnitude."""
    mp = libmp()
    logs = [abs(end[2] + end[3]) + 1 for end in absolute(base) if end != mp.fzero]
    largest = absolute(exponent)[1]
    if largest != mp.fzero and largest[2] + largest[3] > 41:
        raise TooLarge("a power is too large to write down")
    if mp.to_float(largest) * (max(logs) + 4) > MAX_MAGNITUDE:
        raise TooLarge("a power is too large to write down")
