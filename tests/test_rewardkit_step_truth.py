"""Step truth against solutions worked and judged by hand, and its laws over drawn problems."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardkit.playground import problem
from rewardkit.step_truth import StepTruth, _equations, first_wrong, judge_steps
from verifiers.core import Problem
from verifiers.errors import DataError


def story(given: list[str], nodes: list[list[str]], answer: str, *, result: str, side: tuple[int, ...] = ()) -> Problem:
    program = {"given": given, "nodes": nodes, "side": list(side), "answer": answer}
    return Problem(id="by hand", prompt="", answer=result, metadata={"program": program})


# Ana has 14 apples. Ben has 5 baskets with 7 pears each. Ana buys 3 bags of 6. How many?
APPLES = story(
    ["14", "5", "7", "3", "6"],
    [["*", "g1", "g2"], ["*", "g3", "g4"], ["+", "g0", "n1"]],
    "n2",
    result="32",
    side=(0,),
)
# 2 groups of 2, then 3 more.
TWOS = story(["2", "2", "3"], [["*", "g0", "g1"], ["+", "n0", "g2"]], "n1", result="7")
# 40, of which 1/4 goes; then 3 come.
QUARTER = story(["40", "1/4", "3"], [["*", "g0", "g1"], ["-", "g0", "n0"], ["+", "n1", "g2"]], "n2", result="33")
# 3/2 cups and 1/2 cup, then three times that.
CUPS = story(["3/2", "1/2", "3"], [["+", "g0", "g1"], ["*", "n0", "g2"]], "n1", result="6")
# 20 shared among 4, then minus 2.
SHARE = story(["20", "4", "2"], [["/", "g0", "g1"], ["-", "n0", "g2"]], "n1", result="3")
# 5 + 5 - 5: every number coincides.
FIVES = story(["5", "5", "5"], [["+", "g0", "g1"], ["-", "n0", "g2"]], "n1", result="5")

R, W, U = "right", "wrong", "useless"


@pytest.mark.parametrize(
    ("task", "steps", "kinds"),
    [
        pytest.param(APPLES, ["Part: 3 * 6 = 18.", "Apples: 14 + 18 = 32. \\boxed{32}"], [R, R], id="as worked"),
        pytest.param(APPLES, ["Part: 3 * 6 = 19.", "Apples: 14 + 19 = 33. \\boxed{33}"], [W, W], id="wrong arithmetic"),
        pytest.param(
            APPLES, ["Part: 3 * 8 = 24.", "Apples: 14 + 24 = 38. \\boxed{38}"], [W, W], id="number from nowhere"
        ),
        pytest.param(
            APPLES,
            ["Part: 3 * 6 = 19.", "Part: 3 * 6 = 18.", "Apples: 14 + 19 = 33.", "Apples: 14 + 18 = 32. \\boxed{32}"],
            [W, R, W, R],
            id="a number inherited from a wrong step stays wrong, a mended one is right",
        ),
        pytest.param(
            APPLES,
            ["Pears: 5 * 7 = 35.", "Part: 3 * 6 = 18.", "Apples: 14 + 18 = 32. \\boxed{32}"],
            [U, R, R],
            id="side quantity",
        ),
        pytest.param(
            APPLES, ["Pears: 5 * 7 = 35.", "Apples: 14 + 35 = 49. \\boxed{49}"], [U, W], id="side quantity used"
        ),
        pytest.param(
            APPLES,
            ["Part: 3 * 6 = 18.", "Again: 6 * 3 = 18.", "Apples: 18 + 14 = 32. \\boxed{32}"],
            [R, U, R],
            id="repeated step, reordered operands",
        ),
        pytest.param(APPLES, ["Apples: 14 + 3 * 6 = 32. \\boxed{32}"], [R], id="combined equation"),
        pytest.param(APPLES, ["Apples: (3 * 6) + 14 = 32. \\boxed{32}"], [R], id="combined with brackets"),
        pytest.param(APPLES, ["Apples: (14 + 3) * 6 = 102. \\boxed{102}"], [W], id="true but not asked for"),
        pytest.param(APPLES, ["Apples: 14 = 14.", "Apples: 14 + 3 * 6 = 32. \\boxed{32}"], [U, R], id="states a given"),
        pytest.param(
            APPLES, ["Part: 3 * 6 = 18.", "Apples: 14 + 18 = 32. \\boxed{33}"], [R, W], id="boxed wrong value"
        ),
        pytest.param(APPLES, ["Part: 3 * 6 = 18. \\boxed{32}", "Apples: 14 + 18 = 32."], [W, R], id="boxed too early"),
        pytest.param(
            APPLES,
            ["Part: 3 * 6 = 18.", "Apples: 14 + 18 = 32. \\boxed{32} \\boxed{31}"],
            [R, W],
            id="second box wrong",
        ),
        pytest.param(APPLES, ["Let us think.", "\\boxed{32}"], [W, W], id="no equation"),
        pytest.param(
            APPLES, ["Part: 3 6 = 18.", "Apples: 14 + * 18 = 32.", "Part: (3 * 6 = 18."], [W, W, W], id="malformed"
        ),
        pytest.param(APPLES, ["Part: 3 * 6 = 18. Apples: 14 + 18 = 32. \\boxed{32}"], [W], id="two equations"),
        pytest.param(APPLES, ["Part: 3 * 6 = 18 = 18."], [R], id="a chain is one equation and a tail"),
        pytest.param(
            APPLES, ["Part: 6 / (14 - 14) = 6.", "Part: 3 / 0 = 0.", "Part: 3/0 = 0."], [W, W, W], id="by zero"
        ),
        pytest.param(TWOS, ["A: 2 + 2 = 4.", "A: 4 + 3 = 7. \\boxed{7}"], [W, W], id="2 + 2 is not 2 * 2"),
        pytest.param(TWOS, ["A: 2 * 2 = 4.", "A: 4 + 3 = 7. \\boxed{7}"], [R, R], id="2 * 2"),
        pytest.param(
            QUARTER,
            ["Part: 40 * 1/4 = 10.", "A: 40 - 10 = 30.", "A: 30 + 3 = 33. \\boxed{33}"],
            [R, R, R],
            id="fraction of an amount",
        ),
        pytest.param(QUARTER, ["Part: 40 * 2/8 = 20/2.", "A: 40 - 10 = 30."], [R, R], id="unreduced fractions"),
        pytest.param(
            QUARTER, ["A: 40 - 40 * 1/4 = 30.", "A: 3 + 30 = 33. \\boxed{33}"], [R, R], id="amount used twice"
        ),
        pytest.param(
            CUPS, ["C: 3/2 + 1/2 = 4/2.", "C: 2 * 3 = 6. \\boxed{12/2}"], [R, R], id="unreduced result and box"
        ),
        pytest.param(CUPS, ["C: 3/2 + 1/2 = 2.", "C: 2 + 3 = 5. \\boxed{6}"], [R, W], id="wrong operation"),
        pytest.param(SHARE, ["S: 20 / 4 = 5.", "S: 5 - 2 = 3. \\boxed{3}"], [R, R], id="division"),
        pytest.param(SHARE, ["S: 4 / 20 = 1/5."], [W], id="division the other way round"),
        pytest.param(FIVES, ["F: 5 + 5 = 10.", "F: 10 - 5 = 5. \\boxed{5}"], [R, R], id="equal numbers"),
        pytest.param(
            FIVES, ["F: 5 * 5 = 25.", "F: 10 - 5 = 5. \\boxed{5}"], [W, W], id="equal numbers, wrong operation"
        ),
    ],
)
def test_solutions_judged_by_hand(task: Problem, steps: list[str], kinds: list[str]) -> None:
    truths = judge_steps(task, "\n\n".join(steps))
    assert [truth.kind.value for truth in truths] == kinds, [truth.reason for truth in truths]
    first = kinds.index(W) if W in kinds else -1
    assert first_wrong(truths) == first
    assert [truth.sound for truth in truths] == [first < 0 or n < first for n in range(len(kinds))]
    assert all(truth.reason for truth in truths)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), index=st.integers(0, 10**6))
def test_the_worked_solution_is_right_throughout(seed: int, index: int) -> None:
    task = problem(seed, "train", index)
    truths = judge_steps(task, task.metadata["solution"])
    assert [truth.kind.value for truth in truths] == [R] * len(truths)
    assert first_wrong(truths) == -1


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), index=st.integers(0, 10**6), data=st.data())
def test_one_changed_digit_makes_its_step_the_first_wrong_one(seed: int, index: int, data: st.DataObject) -> None:
    task = problem(seed, "train", index)
    steps = task.metadata["solution"].split("\n\n")
    place = data.draw(st.integers(0, len(steps) - 1))
    left, right = steps[place].split(" = ")
    digits = [m.start() for m in re.finditer(r"\d", right.split(".")[0])]
    at = data.draw(st.sampled_from(digits))
    new = data.draw(st.sampled_from([d for d in "123456789" if d != right[at]]))
    steps[place] = f"{left} = {right[:at]}{new}{right[at + 1 :]}"
    truths = judge_steps(task, "\n\n".join(steps))
    assert truths[place].kind.value == W
    assert first_wrong(truths) == place


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), index=st.integers(0, 10**6))
def test_said_twice_is_useless_the_second_time(seed: int, index: int) -> None:
    task = problem(seed, "test", index)
    steps = task.metadata["solution"].split("\n\n")
    truths = judge_steps(task, "\n\n".join([*steps, steps[-1]]))
    # Where numbers coincide the same line may be an equation of its own; it is never wrong.
    assert first_wrong(truths) == -1
    assert [t.kind.value for t in truths[:-1]] == [R] * len(steps)
    assert truths[-1].kind.value == U


_SLOW = re.compile(r"([\d+\-*/() ]*\d[\d+\-*/() ]*) = (\d+(?:/\d+)?)(?![\d/])")


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="12 =+*/(x.", max_size=24)
    | st.lists(st.sampled_from(["1", " = ", "23", " + ", "x", "/", "."]), max_size=12).map("".join)
)
def test_equations_are_those_of_the_regular_expression_it_replaces(text: str) -> None:
    assert _equations(text) == _SLOW.findall(text)


@pytest.mark.parametrize(
    "text",
    [
        "1 " * 5000,
        "1" * 10_000,
        " = " * 3333,
        " = 1" * 2500,
        "(" * 10_000,
        "\\boxed{" * 1500,
        "14 + " * 2000 + "1 = 2",
        "*".join(["999999999"] * 1000) + " = 1",
        " * ".join(["14"] * 64) + " = 1",
        "1/999999999 + " * 60 + "1 = 3",
        " + ".join(["5"] * 64) + " = 320",
        "3 * 6 = 18 " * 900,
    ],
    ids=lambda text: text[:12],
)
def test_ten_thousand_characters_are_judged_at_once(text: str) -> None:
    started = time.process_time()
    truths = judge_steps(FIVES, text)
    assert time.process_time() - started < 1.0
    assert all(truth.kind.value == W for truth in truths)


def test_a_text_without_steps_has_no_truths() -> None:
    assert judge_steps(APPLES, " \n\n ") == []
    assert first_wrong([]) == -1


def test_first_wrong_goes_by_soundness() -> None:
    truths = [StepTruth(kind="useless", reason="", sound=True), StepTruth(kind="right", reason="", sound=False)]  # type: ignore[arg-type]
    assert first_wrong(truths) == 1


def test_a_problem_without_a_program_is_refused() -> None:
    with pytest.raises(DataError, match="'mine' has no metadata field 'program'"):
        judge_steps(Problem(id="mine", prompt="1 + 1"), "2")
