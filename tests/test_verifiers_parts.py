"""Number words, sets and matrices, by hand and against sympy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.latex import parse
from verifiers.matrices import evaluate
from verifiers.number_words import spell_out
from verifiers.sets import as_set, is_described
from verifiers.trees import key
from verifiers.values import exact

TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("twenty-five", "25"),
        ("one hundred and six", "106"),
        ("two thousand thirty", "2030"),
        ("one million two hundred thousand", "1200000"),
        ("two thirds", "2/3"),
        ("three halves", "3/2"),
        ("a quarter", "1/4"),
        ("half", "1/2"),
        ("three and a half", "7/2"),
        ("Seven apples", "7 apples"),
        ("someone", "someone"),
        ("tenth", "tenth"),
        (r"\one", r"\one"),
    ],
)
def test_number_words(text: str, digits: str) -> None:
    assert spell_out(text) == digits


@pytest.mark.parametrize(("word", "value"), TENS.items())
def test_every_ten_with_every_unit(word: str, value: int) -> None:
    for unit, name in enumerate(["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]):
        assert spell_out(f"{word}-{name}" if name else word) == str(value + unit)
        assert spell_out(f"three hundred {word} {name}".strip()) == str(300 + value + unit)


@pytest.mark.parametrize(
    ("text", "variable", "parts"),
    [
        ("x > 3", "x", [r"(3,\infty)"]),
        ("3 > x", "x", [r"(-\infty,3)"]),
        (r"-2 \le t < 5", "t", ["[-2,5)"]),
        ("5 > t > -2", "t", ["(-2,5)"]),
        (r"x \ne 2", "x", [r"(-\infty,2)", r"(2,\infty)"]),
        (r"|x| \le 2", "x", ["[-2,2]"]),
        ("|x| > 2", "x", [r"(-\infty,-2)", r"(2,\infty)"]),
        ("x<0 or x>2", "x", [r"(-\infty,0)", r"(2,\infty)"]),
        ("x>1, x<3", "x", ["(1,3)"]),
        ("x<1, x>3", "x", [r"(-\infty,1)", r"(3,\infty)"]),
        (r"x < -2 \cup x > 2", "x", [r"(-\infty,-2)", r"(2,\infty)"]),
        (r"x \in [1,2] \cup \{7\}", "x", ["[1,2]", "7"]),
        (r"\mathbb{R}", "", [r"(-\infty,\infty)"]),
        (r"\mathbb{R}\setminus\{2,1\}", "", [r"(-\infty,1)", "(1,2)", r"(2,\infty)"]),
    ],
)
def test_sets(text: str, variable: str, parts: list[str]) -> None:
    tree = parse(text)
    found = as_set(tree)
    assert found is not None and is_described(tree)
    assert found[0] == variable
    assert [key(part) for part in found[1]] == [key(parse(part)) for part in parts]


@pytest.mark.parametrize("text", ["x > y", "x+1 > 3", "5", "x = 5", "x<1, y>3", r"\mathbb{Z}", "1 < x > 0"])
def test_no_sets(text: str) -> None:
    assert as_set(parse(text)) is None


SQUARE = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(st.integers(-5, 5), min_size=n, max_size=n), min_size=n, max_size=n)
)


def latex(rows: list[list[int]], name: str = "pmatrix") -> str:
    return rf"\begin{{{name}}}" + r"\\".join("&".join(map(str, row)) for row in rows) + rf"\end{{{name}}}"


def values(text: str) -> list[list[str]]:
    tree = evaluate(parse(text))
    assert tree.op == "matrix"
    return [[str(exact(cell)) for cell in row.args] for row in tree.args]


@settings(deadline=None)
@given(SQUARE)
def test_matrix_arithmetic_against_sympy(rows: list[list[int]]) -> None:
    import sympy

    matrix, text = sympy.Matrix(rows), latex(rows)
    assert str(exact(evaluate(parse(latex(rows, "vmatrix"))))) == str(matrix.det())
    wanted = {
        f"{text}{text}": matrix * matrix,
        f"2{text}": 2 * matrix,
        f"{text}+{text}": matrix + matrix,
        f"-{text}": -matrix,
        f"{text}^3": matrix**3,
        f"{text}^T": matrix.T,
        rf"\frac{{{text}}}{{3}}": matrix / 3,
    }
    if matrix.det() != 0:
        wanted[f"{text}^{{-1}}"] = matrix.inv()
    for expression, result in wanted.items():
        assert values(expression) == [[str(cell) for cell in result.row(n)] for n in range(len(rows))], expression


@pytest.mark.parametrize("text", [r"\begin{pmatrix}1&2\end{pmatrix}\begin{pmatrix}1&2\end{pmatrix}", r"x+1"])
def test_what_is_no_matrix_stays(text: str) -> None:
    assert evaluate(parse(text)).op == parse(text).op
