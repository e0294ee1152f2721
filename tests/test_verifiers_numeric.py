"""Enclosures hold the value: every operation against sympy at twice the digits, and what cannot be enclosed."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from verifiers.enclosure import Enclosure, constant
from verifiers.latex import parse
from verifiers.numeric import numeric
from verifiers.symbolic import build
from verifiers.trees import words
from verifiers.values import NoValue, TooLarge

REAL = words(
    r"""
    \sqrt{2}+\pi e^{-3} 2^{1/3} \ln{7} \log_2{10} \sin{1} \cos{10^6} \tan{1.5} \cot{2} \sec{1} \csc{2} \arcsin{0.5}
    \arccos(-0.3) \arctan{10} \sinh{2} \cosh{2} \tanh{0.1} 5.5! \binom{7}{3} |-\pi| |3-4i| \sqrt[5]{-7} 10^{-40}
    \sqrt[3]{2+\sqrt{5}} \lfloor\pi\rfloor \lceil-e\rceil \max(\pi,3) \min(\pi,3) (-2)^{-3} 30^\circ 12.5\%
    \frac{1}{7}-\frac{1}{\pi} 1-1/2-1/2
    """
)
COMPLEX = words(r"(1+2i)^5 e^{2i} \ln(-2) (-8)^{1/3} i^i \sqrt{-3} \sin(1+i) \frac{1}{2-3i} (1+i)^{-3}")


def ends(value: Enclosure) -> list[tuple[Fraction, Fraction]]:
    """Both parts as rational ends."""
    from mpmath import libmp

    parts = [value.re, value.im or (libmp.fzero, libmp.fzero)]
    found = []
    for low, high in parts:
        pair = [Fraction(*map(int, libmp.to_rational(end))) for end in (low, high)]
        found.append((pair[0], pair[1]))
    return found


def exactly(number: Any) -> Fraction:
    """A sympy float as a fraction."""
    import sympy

    ratio = sympy.Rational(str(number))
    return Fraction(int(ratio.p), int(ratio.q))


@pytest.mark.parametrize("text", REAL + COMPLEX)
def test_the_value_lies_inside_and_the_enclosure_is_narrow(text: str) -> None:
    value = numeric(parse(text), 30)
    truth = build(parse(text)).evalf(70)
    if text == r"\sqrt[5]{-7}":  # sympy takes the principal root, we the real one
        truth = -build(parse(r"\sqrt[5]{7}")).evalf(70)
    slack = Fraction(1, 10**60)
    for (low, high), part in zip(ends(value), truth.as_real_imag(), strict=True):
        assert low - slack <= exactly(part) <= high + slack
        assert high - low <= Fraction(1, 10**24)
    assert (value.im is None) == (text in REAL)


LEAVES = st.integers(-20, 20).map(str) | st.sampled_from([r"\pi", "e", "0.3", r"\sqrt{2}"])
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", r"\cdot ", "/"]), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})")
        | inner.map(lambda t: rf"\sin({t})")
        | inner.map(lambda t: rf"e^{{\cos({t})}}")
        | inner.map(lambda t: rf"\sqrt{{|{t}|}}")
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_more_digits_lie_inside_fewer(text: str) -> None:
    tree = parse(text)
    try:
        rough, fine = numeric(tree, 15), numeric(tree, 60)
    except (NoValue, TooLarge):
        assume(False)
    assert not rough.disjoint(fine)
    for (low, high), (inner_low, inner_high) in zip(ends(rough), ends(fine), strict=True):
        assert low <= inner_low <= inner_high <= high


@given(st.fractions(), st.fractions())
def test_disjoint_is_a_certain_difference(one: Fraction, two: Fraction) -> None:
    first, second = constant(one, 60), constant(two, 60)
    if first.disjoint(second):
        assert one != two
    if one == two:
        assert first.within(second, Fraction(1, 10**6)) or abs(one) > 10**9
    assert first.has_zero() == (one == 0)
    assert first.sign() == (one > 0) - (one < 0)
    assert first.may_be_integer() or one.denominator != 1
    product, quotient = first * second, None if two == 0 else first / second
    assert not product.disjoint(constant(one * two, 60))
    assert quotient is None or not quotient.disjoint(constant(one / two, 60))
    assert not (first - second).disjoint(constant(one - two, 60))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1/(\\sqrt{2}-\\sqrt{2})", NoValue),
        ("\\ln(1-1)", NoValue),
        ("\\arcsin 2", NoValue),
        ("\\lfloor \\log 1000 \\rfloor", NoValue),
        ("x", NoValue),
        ("9^9^9^9", TooLarge),
        ("e^{e^{e^{e^e}}}", TooLarge),
        ("\\sin 10^{30}", TooLarge),
        ("(-60.5)!", NoValue),
    ],
)
def test_what_cannot_be_enclosed_says_so(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        numeric(parse(text), 30)


def test_widths() -> None:
    value = numeric(parse(r"\pi"), 50)
    assert value.narrow(150) and value.tiny(150) and not value.narrow(400)
    assert numeric(parse(r"\sqrt{2}-\sqrt{2}"), 50).has_zero()
    assert value.middle() == pytest.approx(3.141592653589793, abs=1e-15)
    assert numeric(parse("-9^{9^9}"), 20).middle() == float("-inf")
