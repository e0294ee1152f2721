"""Equality: hand-decided pairs by stage, policies, laws, and inputs made to hang a comparison."""

from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.core import Outcome, Verdict
from verifiers.equality import EqualityPolicy, judge_equal
from verifiers.errors import ConfigError
from verifiers.reading import canonical_text, read
from verifiers.scalars import Finding
from verifiers.trees import Node


def never(one: Node, two: Node) -> Finding:
    """A last stage that must not be needed."""
    return Finding(None, "asked", "sympy would have been asked")


def same(a: str, b: str, **settings: object) -> Verdict:
    policy = EqualityPolicy(**settings)  # type: ignore[arg-type]
    return judge_equal(read(a), read(b), policy, never)


EQUAL = [
    ("$0.5$", r"\frac{1}{2}", "exact"),
    ("549.0", "549", "exact"),
    ("2432902008176640000", "20!", "exact"),
    (r"999!\cdot 1000", "1000!", "exact"),
    (r"3\cdot 3^{2022}", "3^{2023}", "exact"),
    ("18446744073709551616", "2^{64}", "exact"),
    ("10^{10^{10}}", "10^{10^{10}}", "text"),
    (r"\text{Odd}", "odd", "text"),
    ("2:15 PM", r"2:15\text{ p.m.}", "text"),
    ("B) 12", "B", "choice"),
    (r"\textbf{(B)}\ 12", r"\text{B}", "choice"),
    ("(x-1)(x+1)", "x^2-1", "rational"),
    (r"\frac{n^2+n}{2}", r"\frac{n(n+1)}{2}", "rational"),
    (r"1+\sqrt{2}", r"\sqrt{3+2\sqrt{2}}", "numeric"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", "numeric"),
    (r"\sin 18^\circ", r"\frac{\sqrt{5}-1}{4}", "numeric"),
    ("-1", r"e^{i\pi}", "numeric"),
    ("5", "|3+4i|", "numeric"),
    (r"\sqrt{2}-\sqrt{2}", "0", "numeric"),
    (r"1-\cos^2 x", r"\sin^2 x", "sampled"),
    (r"2\log(x)", r"\log(x^2)", "sampled"),
    ("1.41421356237", r"\sqrt{2}", "rounded"),
    ("0.333333", r"\frac13", "rounded"),
    (r"\frac{10}{3}", "3.33333333", "rounded"),
    (r"\pi", "3.1416", "rounded"),
    ("50", r"50\%", "percent"),
    ("0.5", r"50\%", "exact"),
    ("10 cm", "10", "exact"),
    ("30 miles per hour", r"30\text{ mph}", "exact"),
    ("2", "x=2", "exact"),
    ("x=561", "561", "exact"),
    ("x^2", "f(x)=x^2", "structure"),
    ("9x^2+4y^2=36", r"\frac{x^2}{4}+\frac{y^2}{9}=1", "relation"),
    ("y-2x-3=0", "y=2x+3", "relation"),
    ("x>3", "2x>6", "relation"),
    (r"-2 \le x \le 7", "[-2,7]", "elements"),
    ("(3,\\infty)", "x>3", "elements"),
    (r"x \in [1,2)", "[1,2)", "elements"),
    ("3, 1, 2", "1, 2, 3", "elements"),
    (r"\{3,2,1\}", r"\{1,2,3\}", "elements"),
    ("5 and 3", "3, 5", "elements"),
    (r"\pm 3", "3, -3", "elements"),
    ("5", r"\{5\}", "exact"),
    ("(0.5, 2)", r"\left(\frac12, 2\right)", "exact"),
    (r"(-3,\infty)\cup(-\infty,-14)", r"(-\infty,-14)\cup(-3,+\infty)", "elements"),
    ("(3,4)", "P(3,4)", "structure"),
    ("(1,2)", "(x,y)=(1,2)", "structure"),
    ("(1,2)", "x=1, y=2", "exact"),
    ("[[1,2],[3,4]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "structure"),
    (r"\begin{bmatrix}0.5\\x+1\end{bmatrix}", r"\begin{pmatrix}1/2\\1+x\end{pmatrix}", "structure"),
    ("+\\infty", r"\infty", "structure"),
    (r"\frac{\sqrt3}{3} \approx 0.577", r"\frac{\sqrt{3}}{3}", "structure"),
]


@pytest.mark.parametrize(("a", "b", "kind"), EQUAL)
def test_equal(a: str, b: str, kind: str) -> None:
    verdict = same(a, b)
    assert (verdict.outcome, verdict.score) == (Outcome.CORRECT, 1.0), verdict
    assert verdict.extracted == a
    assert verdict.kind in (kind, "structure", "text"), verdict


UNEQUAL = [
    (r"\frac{12}{3}", r"\frac{1}{23}"),
    ("31/2", "3 1/2"),
    ("5.001", "5"),
    ("9999", "10000"),
    ("2432902008176640001", "20!"),
    (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
    (r"\frac{1}{3^{61}}", r"\frac{1}{3^{60}}"),
    ("2^{1/2^{1000}}", "1"),
    ("1.41", r"\sqrt{2}"),
    ("22/7", r"\pi"),
    ("1.50000001", "1.5"),
    ("10^{10^9}", "10^{10^{10}}"),
    ("9^{9^8}", "9^{9^9}"),
    ("9^9^9^9", "1"),
    ("(((4!)!)!)!", "1"),
    ("0", "10^{-999999999}"),
    ("1", r"\frac{0}{0}"),
    ("(2,5)", "[2,5)"),
    ("[1,-1]", "[-1,1]"),
    ("(3,9)", "(9,3)"),
    ("1,2", "1,2,3"),
    ("5, 7", "5"),
    ("7=5", "5"),
    (r"\pm 5", "5"),
    (r"\{(2,1)\}", r"\{(1,2)\}"),
    ("x=2", "x^2=4"),
    ("x=2y+3", "y=2x+3"),
    ("x>-3", "-x>3"),
    (r"x\ge 3", "x>3"),
    ("t+1", "x+1"),
    ("(a+b+c+d+e+f)^{1000}", "1"),
    ("x^2+x+1", "x(x+1)"),
    (r"\sqrt{x^2}", "x"),
    (r"\sin x^2", r"\sin^2 x"),
    (r"-\infty", r"\infty"),
    ("0", r"\emptyset"),
    ("17 inches", r"17\text{ cm}"),
    ("odd", r"\text{even}"),
    ("A, B, C, D", "A"),
    ("C", "B"),
    ("1.5", r"15\%"),
    (r"\begin{pmatrix}1&2&0\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    ("", "4"),
    ("]]", "4"),
]


@pytest.mark.parametrize(("a", "b"), UNEQUAL)
def test_unequal(a: str, b: str) -> None:
    verdict = same(a, b)
    assert (verdict.outcome, verdict.score) == (Outcome.INCORRECT, 0.0), verdict


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ("4", "", "no_answer"),
        ("4", "what & where", "reference_unparsable"),
        ("12", "1 2", "reference_unparsable"),
        ("4", "1" * 20_001, "limit"),
        ("1" * 100_000, "1", "limit"),
        (r"e^{9^{9^{9^9}}}+\pi", "9^9^9^9 + e", "limit"),
        (r"\operatorname{foo}", r"\Gamma(3)", "asked"),
    ],
)
def test_undecided_is_never_a_zero(a: str, b: str, kind: str) -> None:
    verdict = same(a, b)
    assert verdict.outcome in (Outcome.UNDECIDED, Outcome.INCORRECT)
    if verdict.outcome is Outcome.UNDECIDED:
        assert (verdict.score, verdict.kind) == (None, kind)


def test_unreadable_texts_that_are_the_same_are_equal() -> None:
    assert same("what & where", "what & where").kind == "text"
    assert same("1" * 100_000, "1" * 100_000).score == 1.0
    assert same("nan", "nan").score == 1.0


def test_policies() -> None:
    assert same("50", r"50\%", percent="strict").score == 0.0
    assert same("2, 1", "1, 2", ordered_lists=True).score == 0.0
    assert same("1, 2", "(1, 2)").score == 1.0
    assert same("1, 2", "(1, 2)", lists_as_tuples=False).score == 0.0
    assert same("17 inches", r"17\text{ cm}", differing_units=True).score == 1.0
    assert same("x>3", r"(3,\infty)", relations_as_intervals=False).score == 0.0
    assert same("x=2", "2", drop_labels=False).score == 0.0
    assert same("1.41", r"\sqrt{2}", response_digits=3).score == 1.0
    assert same("1.5", "1.52", reference_digits=2).score == 0.0
    with pytest.raises(ConfigError, match="percent"):
        EqualityPolicy(percent="maybe")
    with pytest.raises(ConfigError, match="response_digits"):
        EqualityPolicy(response_digits=0)


def test_canonical_text_keeps_what_separates() -> None:
    assert canonical_text(r"$\left( 1 , 2 \right)$.") == "(1,2)"
    assert canonical_text("3 1/2") == "3 1/2"
    assert canonical_text(r"\text{ p.m.}") == "pm"


whole = st.integers(-(10**6), 10**6)


@given(whole, st.integers(1, 9999))
def test_fractions_equal_their_finite_decimals(upper: int, twos: int) -> None:
    lower = 2 ** (twos % 7) * 5 ** (twos % 5)
    text = format(Decimal(upper) / Decimal(lower), "f")
    assert same(text, rf"\frac{{{upper}}}{{{lower}}}").score == 1.0
    assert same(rf"\frac{{{upper}}}{{{lower}}}", text).score == 1.0


@given(whole, whole.filter(bool))
def test_reflexive_and_sensitive(upper: int, lower: int) -> None:
    text = f"{upper}/{lower}" if lower > 0 else f"{upper}/({lower})"
    assert same(text, text).score == 1.0
    value = Fraction(upper, lower)
    other = value + Fraction(1, abs(lower))
    assert same(f"{other.numerator}/{other.denominator}", text).score == 0.0
    if upper:
        assert same(f"-({text})", text).score == 0.0


atoms = st.sampled_from(["2", "3", "7", r"\sqrt{2}", r"\pi", "x", "0.5", r"\frac{1}{3}", "y^2", "-4", r"\sin x"])
sums = st.lists(atoms, min_size=1, max_size=4).map("+".join)


@settings(max_examples=50)
@given(sums, sums)
def test_symmetric(a: str, b: str) -> None:
    assert same(a, b).score == same(b, a).score


@settings(max_examples=40)
@given(st.lists(atoms, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_sums_and_sets_do_not_depend_on_order(parts: list[str], draw: object) -> None:
    mixed = list(parts)
    draw.shuffle(mixed)  # type: ignore[attr-defined]
    assert same("+".join(mixed), "+".join(parts)).score == 1.0
    assert same(", ".join(mixed), ", ".join(parts)).score == 1.0


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_two_texts_have_a_verdict(a: str, b: str) -> None:
    assert same(a, b).reason
    assert same(a, a).score != 0.0 or not canonical_text(a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("9^{9^{9^{9}}}", "9^{9^{9^{8}}}"),
        ("2^{" * 150 + "2" + "}" * 150, "3"),
        ("(x+y+z+w)^{200}", "(x+y+z+w)^{201}"),
        ("x^{10^{100}}", "x^{10^{100}}+1"),
        ("=".join(["1"] * 5_000), "1"),
        (",".join(map(str, range(1_000))), ",".join(map(str, range(1, 1_001)))),
        (r"\binom{10^8}{5*10^7}", "7"),
        ("+".join(rf"\sqrt{{{n}}}" for n in range(2, 600)), "1"),
        ("*".join(["9^{9999}"] * 200), "1"),
        ("1e3999", "1"),
    ],
)
def test_hostile_pairs_are_bounded(a: str, b: str) -> None:
    start = time.process_time()
    assert same(a, b).reason
    assert time.process_time() - start < 3.0
