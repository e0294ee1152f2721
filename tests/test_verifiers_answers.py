"""Where answers are found: one case a rule, the policies, hostile texts in linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.answers import AnswerPolicy, FoundAnswer, extract_answer, find_answer
from verifiers.errors import ConfigError


@pytest.mark.parametrize(
    ("response", "answer", "rule"),
    [
        (r"so \boxed{42}.", "42", "boxed"),
        (r"\boxed{\frac{1}{2}} and 99", r"\frac{1}{2}", "boxed"),
        (r"\fbox{7}", "7", "boxed"),
        (r"\boxed 5.", "5", "boxed"),
        (r"\boxed{\boxed{8\sqrt{6}}}", r"8\sqrt{6}", "boxed"),
        (r"a stray { then \boxed{3}", "3", "boxed"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}", "boxed"),
        (r"\boxed{4} but no: \boxed{}", "4", "boxed"),
        (r"first \boxed{42}, then \boxed{277}", "277", "boxed"),
        (r"\boxed{5}\text{ or }\boxed{7}", "5, 7", "boxed"),
        (r"$\boxed{3}$, $\boxed{4}$", "3, 4", "boxed"),
        ("work\n#### 1,234", "1,234", "hashes"),
        ("####: 55", "55", "hashes"),
        ("2+2=4\nA: 4", "4", "phrase"),
        ("The answer is 42 because geometry proves it", "42", "phrase"),
        ("The answer is: $-7$", "-7", "phrase"),
        ("Final answer: 42", "42", "phrase"),
        ("The answer is 4 4/9.", "4 4/9", "phrase"),
        ("The answer is 72, in total, so the farmer earns it.", "72", "phrase"),
        ("So the answer is 3. No, the answer is 5.", "5", "phrase"),
        ("The answer is that Jane has 3 hours left.", "3", "phrase"),
        (r"\frac{3}{4}", r"\frac{3}{4}", "whole"),
        ("**C**", "C", "whole"),
        ("I think it's (D).", "D", "choice"),
        ("Alina and the others and\n(C) Cecile", "C", "choice"),
        ("We find that the value is at most $x < 3$.", "x < 3", "math"),
        ("Step 1: we take 42 apples. Step 2: we have 17 left.", "17", "number"),
        ("they have got a total of -1,250.50 dollars", "-1,250.50", "number"),
    ],
)
def test_each_rule(response: str, answer: str, rule: str) -> None:
    found = find_answer(response)
    assert found is not None
    assert (found.text, found.rule) == (answer, rule)
    assert extract_answer(response) == answer


def test_place() -> None:
    assert find_answer(r"so \boxed{ 42 }.") == FoundAnswer(text="42", rule="boxed", start=11, end=13)


@pytest.mark.parametrize(
    "text", ["", "   ", r"\boxed{}", r"start \boxed{never closes", "no idea at all, sorry about it"]
)
def test_nothing_to_find(text: str) -> None:
    assert extract_answer(text) is None


def test_thinking() -> None:
    assert extract_answer(r"<think>\boxed{42}</think> so \boxed{43}") == "43"
    assert extract_answer(r"<think>it is \boxed{42}") is None
    assert extract_answer(r"<think>\boxed{42}</think>") is None
    assert extract_answer(r"<think>a</think> \boxed{1} <think>\boxed{2}") is None
    open_policy = AnswerPolicy(unfinished_thinking=True)
    assert extract_answer(r"<think>it is \boxed{42}", policy=open_policy) == "42"


def test_box_policies() -> None:
    text = r"\boxed{1} then \boxed{2}"
    assert extract_answer(text, policy=AnswerPolicy(boxes="first")) == "1"
    assert extract_answer(text, policy=AnswerPolicy(boxes="only")) is None
    assert extract_answer(r"\boxed{2} yes \boxed{2}", policy=AnswerPolicy(boxes="only")) == "2"
    assert extract_answer(r"\boxed{1} and \boxed{2}", policy=AnswerPolicy(join_boxes=False)) == "2"
    assert extract_answer(r"\boxed{\frac{1}{2}", policy=AnswerPolicy(unclosed_box=True)) == r"\frac{1}{2}"
    assert extract_answer("#### 5", policy=AnswerPolicy(require_box=True)) is None
    assert extract_answer("we have a lot of 5 here", policy=AnswerPolicy(last_number=False)) is None


def test_policy_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"AnswerPolicy\.boxes"):
        AnswerPolicy(boxes="all")
    with pytest.raises(ConfigError, match="capital letters"):
        AnswerPolicy(choices="abc")


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 50_000,
        r"\boxed{1} then " * 20_000,
        "{" * 100_000 + "}" * 100_000,
        "the answer is " * 20_000,
        "A: \n" * 50_000,
        "####" * 50_000,
        "$1" * 50_000,
        "answer" + " " * 100_000,
        "1/" * 50_000,
        "\n(A" * 50_000,
        "word " * 100_000,
    ],
)
def test_hostile_texts_take_linear_time(text: str) -> None:
    start = time.process_time()
    find_answer(text)
    assert time.process_time() - start < 2.0  # quadratic behaviour would take minutes


@given(st.text(alphabet="ab1 {}\\$\n.", max_size=40), st.integers(-999, 999))
def test_a_last_box_always_wins(before: str, value: int) -> None:
    text = before.replace("\\", "").replace("{", "") + f" so \\boxed{{{value}}}"
    assert extract_answer(text) == str(value)


@given(st.text(max_size=200))
def test_any_text_is_answered(text: str) -> None:
    found = find_answer(text)
    assert found is None or (found.text and 0 <= found.start < found.end <= len(text))
