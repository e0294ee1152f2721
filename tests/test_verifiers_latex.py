"""The parser: hand-written trees, readings that are policy, limits, and laws over generated texts."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.latex import parse
from verifiers.lexer import tokenize
from verifiers.spelling import respell
from verifiers.trees import LimitError, UnparsableError, decode, encode, key, measure
from verifiers.units import unit_of, units_differ
from verifiers.values import TooLarge, exact


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", "42"),
        ("-3.50", "-7/2"),
        (".5", "1/2"),
        ("7/2.", "7/2"),
        (r"\frac12", "1/2"),
        (r"\frac1{72}", "1/72"),
        (r"\dfrac{-3}{8}", "-3/8"),
        ("½", "1/2"),
        (r"3\frac{1}{2}", "7/2"),
        ("4 4/9", "40/9"),
        ("-4 4/9", "-40/9"),
        ("3½", "7/2"),
        ("11 - 4/9", "95/9"),
        ("1,234,567", "1234567"),
        ("1{,}234", "1234"),
        (r"1,\!234", "1234"),
        (r"12\,345", "12345"),
        ("1 234 567", "1234567"),
        ("12,345.00", "12345"),
        (r"\$3.60", "18/5"),
        (r"50\%", "1/2"),
        ("12.5%", "1/8"),
        ("33.5 percent", "67/200"),
        ("1.5e3", "1500"),
        (r"5 \times 10^{-3}", "1/200"),
        (r"0.\overline{3}", "1/3"),
        (r"0.1\overline{6}", "1/6"),
        ("1011_2", "11"),
        ("2A_{16}", "42"),
        ("(1011)_2", "11"),
        ("0.11_2", "3/4"),
        ("5!", "120"),
        (r"\binom{5}{2}", "10"),
        (r"\sqrt{16}", "4"),
        (r"\sqrt[3]{27}", "3"),
        ("√9/2", "3/2"),
        ("2^3^2", "512"),
        ("2^{-2}", "1/4"),
        ("2^-2", "1/4"),
        ("(-1)^{1000000007}", "-1"),
        ("−3", "-3"),
        ("\uff11\uff12", "12"),
        ("3²", "9"),
        ("|-5|", "5"),
        (r"\left|-5\right|", "5"),
        (r"\lfloor 3.2\rfloor", "3"),
        (r"\lceil 3.2\rceil", "4"),
        (r"7 \bmod 4", "3"),
        (r"10\text{ cm}^2", "10"),
        ("10 weeks", "10"),
        ("8 - 2 - 1", "5"),
        ("8/2/2", "2"),
        ("2*-3", "-6"),
        ("{{((7))}}", "7"),
        ("$7$.", "7"),
    ],
)
def test_values(text: str, value: str) -> None:
    assert exact(parse(text)) == Fraction(value)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        (r"\sin^2 2x \cos y", "mul[](call[cos](s:y),pow[](call[sin](mul[](2/1,s:x)),2/1))"),
        (r"\sin x^2", "call[sin](pow[](s:x,2/1))"),
        (r"\tan^{-1}(2)", "call[arctan](2/1)"),
        (r"\log_2 8", "call[log](8/1,2/1)"),
        ("(100,200)", "group[()](64/1,c8/1)"),
        (r"\left[0,1\right)", "group[[)](0/1,1/1)"),
        (r"\{1,2\}", "group[{}](1/1,2/1)"),
        ("1 and 2", "list[](1/1,2/1)"),
        ("1,23", "list[](1/1,17/1)"),
        (r"1 \pm \sqrt{2}", "pm[+-](1/1,pow[](2/1,1/2))"),
        (r"-2 \le x < 7", "rel[<= <](neg[](2/1),s:x,7/1)"),
        (r"x \in \{1\}\cup[0,7)", "rel[in](s:x,union[](group[[)](0/1,7/1),group[{}](1/1)))"),
        ("x_1", "s:x_1"),
        ("x_{12}", "s:x_12"),
        ("2e^{i\\pi}", "mul[](2/1,pow[](c:e,mul[](c:i,c:pi)))"),
        ("3:4", "ratio[](3/1,4/1)"),
        (r"45^\circ", "degree[](2d/1)"),
        (r"\frac{45^\circ}{2}", "div[](degree[](2d/1),2/1)"),
        (r"45^{\circ}", "degree[](2d/1)"),
        (r"3\text{ miles per hour}", "unit[miles per hour](3/1)"),
        (r"\text{odd}", "t:odd"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", "matrix[pmatrix](group[row](1/1,2/1),group[row](3/1,4/1))"),
        (r"\sum_{k=1}^{n} k", "call[sum](s:k,s:k,1/1,s:n)"),
        (r"\sum_{i=1}^{3} i", "call[sum](s:i,s:i,1/1,3/1)"),
        (r"\emptyset", "c:empty"),
        (r"-\infty", "neg[](c:inf)"),
    ],
)
def test_trees(text: str, tree: str) -> None:
    assert key(parse(text)) == tree


@pytest.mark.parametrize("text", ["", "3 4", "1+", "(1", "1)", r"\begin{cases}1&2\end{cases}", r"\frac{1}", "@", "}{"])
def test_no_mathematics(text: str) -> None:
    with pytest.raises(UnparsableError):
        parse(text)


def test_code_is_text_or_nothing() -> None:
    with pytest.raises(UnparsableError):
        parse("__import__('os').system('true')")


@pytest.mark.parametrize("depth", [1_000, 9_000])
@pytest.mark.parametrize("pair", ["{}", "()"])
def test_redundant_brackets_collapse(depth: int, pair: str) -> None:
    assert key(parse(pair[0] * depth + "1" + pair[1] * depth)) == "1/1"


@pytest.mark.parametrize(
    "text",
    [
        "1" * 20_001,
        "1" * 10_001,
        r"\sqrt{" * 2_000 + "2" + "}" * 2_000,
        "(1+" * 3_000 + "1" + ")" * 3_000,
        "1^" * 9_000 + "1",
        "-" * 15_000 + "1",
        "1e99999999",
        r"\{" * 3_000 + "1" + r"\}" * 3_000,
    ],
)
def test_limits_are_counters(text: str) -> None:
    with pytest.raises(LimitError):
        parse(text)


def test_limits_of_values() -> None:
    for text in ("9^9^9^9", "10000000!", "2^{10000000000}", r"\binom{10^8}{5*10^7}", "9^{99999}*9^{99999}"):
        with pytest.raises(TooLarge):
            exact(parse(text))


def test_long_integers() -> None:
    assert exact(parse("1" + "0" * 9_000)) == 10**9_000


def test_respelling() -> None:
    assert respell("x²₁−½") == r"x^{2}_{1}-\frac{1}{2}"
    assert respell(r"\\frac{1}{2}") == r"\frac{1}{2}"
    assert [token.kind for token in tokenize("2x")] == ["num", "sym"]


def test_units() -> None:
    assert unit_of("square centimeters") == unit_of("cm^2") == (("cm", 2),)
    assert unit_of("miles per hour") == unit_of("mph") == (("h", -1), ("mi", 1))
    assert unit_of("edges") == ()
    assert units_differ("cm", "inches") and not units_differ("cm", "boxes")


numbers = st.fractions(max_denominator=999).filter(lambda value: abs(value) < 10**6)


@given(numbers)
def test_fractions_read_back(value: Fraction) -> None:
    upper, lower = value.numerator, value.denominator
    for text in (f"{upper}/{lower}", rf"\frac{{{upper}}}{{{lower}}}", rf"\dfrac{{{upper}}}{{{lower}}}"):
        assert exact(parse(text)) == value


@given(st.integers(0, 10**12))
def test_thousands_separators(value: int) -> None:
    for separator in (",", "{,}", r",\!", r"\,", " "):
        assert exact(parse(f"{value:,}".replace(",", separator))) == value


expressions = st.recursive(
    st.integers(0, 99).map(str) | st.sampled_from(["x", "y", r"\pi"]),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", r"\cdot ", "/"]), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})")
        | inner.map(lambda t: rf"\sqrt{{{t}}}")
    ),
    max_leaves=12,
)


@given(expressions)
def test_trees_survive_the_wire(text: str) -> None:
    tree = parse(text)
    assert key(decode(encode(tree))) == key(tree)
    nodes, depth = measure(tree)
    assert 1 <= depth <= nodes <= len(text)


@given(st.text(alphabet="01(){}[]\\frac sqrt^_+-*/,.=<>$%!|xe", max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        assert measure(parse(text))[0] >= 1
    except UnparsableError as error:
        assert str(error)
