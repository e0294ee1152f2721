"""Answers of the MATH kind: every one equals itself and its renderings, and none equals a perturbed one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from renderings import perturbations, renderings

from verifiers.equality import math_equal

ANSWERS = [
    "42", "-7", "1.25", r"\frac{3}{4}", r"-\dfrac{12}{5}", r"2\sqrt{3}", r"\frac{\sqrt{6}-\sqrt{2}}{4}", "10,\\!080",
    "12345", "(3,-1)", "[2,5)", r"(-\infty, 2] \cup [7,\infty)", "1,-2,3", r"\left(\frac{1}{2}, 4\right)", "x^2-3x+2",
    r"\frac{x+1}{x-1}", "y = 2x + 1", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"15\%", r"\$4.50", r"30^\circ",
    r"\text{east}", r"5\text{ cm}", "3:4", r"7\pi", "2+3i", r"\sqrt[3]{2}", "101_2", r"x \ge -3",
]  # fmt: skip
WHOLE = st.integers(-999, 999).filter(bool)
FORMS = st.one_of(
    WHOLE.map(str),
    st.tuples(WHOLE, st.integers(2, 99)).map(lambda t: rf"\frac{{{t[0]}}}{{{t[1]}}}"),
    st.tuples(st.integers(2, 99), st.integers(2, 99)).map(lambda t: rf"{t[0]}\sqrt{{{t[1]}}}"),
    st.tuples(WHOLE, WHOLE).map(lambda t: f"({t[0]},{t[1]})"),
    st.tuples(st.integers(-99, 0), st.integers(1, 99)).map(lambda t: f"[{t[0]},{t[1]})"),
    st.tuples(WHOLE, st.integers(1, 9)).map(lambda t: f"{t[0]}+{t[1]}x"),
)


def misjudged(answer: str) -> list[tuple[str, str]]:
    """Renderings of an answer that are not equal to it, and perturbations that are, in either direction."""
    wanted = {("itself", answer): 1.0}
    wanted |= dict.fromkeys(renderings(answer).items(), 1.0)
    wanted |= dict.fromkeys(perturbations(answer).items(), 0.0)
    return [
        (way, text)
        for (way, text), score in wanted.items()
        if not math_equal(text, answer).score == math_equal(answer, text).score == score
    ]


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_same_answer_and_another(answer: str) -> None:
    assert renderings(answer)
    assert misjudged(answer) == []


@given(FORMS)
def test_any_answer_equals_its_renderings_and_no_perturbation(answer: str) -> None:
    assert misjudged(answer) == []


def test_every_reference_of_math(shared_data: Path) -> None:
    path = shared_data / "math_answers.jsonl"
    answers = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    texts = [(text, answer) for answer in answers for text in renderings(answer).values() if answer]
    missed = [pair for pair in texts if math_equal(*pair).score != 1.0]
    assert len(texts) > 30_000
    assert missed == []
