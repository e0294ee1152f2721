"""The arithmetic judge, the filter, and counts from what a search drew."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.consensus import check_arithmetic, consensus
from prm.formats import StepRow
from prm.search_labels import labels_from_responses
from rewardkit import playground
from rewardkit.step_truth import StepKind, judge_steps
from verifiers.core import Problem, Response, Verdict
from verifiers.errors import ConfigError
from verifiers.steps import split_steps


@pytest.mark.parametrize(
    ("step", "wrong"),
    [
        ("Pages: 119 - 50 = 69.", False),
        ("Pages: 119 - 50 = 68.", True),
        ("So 12 * 3 + 4 = 36 + 4 = 40 apples.", False),
        ("So 12 * 3 + 4 = 36 + 4 = 41 apples.", True),
        ("He pays $1,200 / 4 = $300 a month.", False),
        ("He pays $1,200 / 4 = $400 a month.", True),
        (r"$3 \times 4 = 12$ and $12 \div 5 = 2.4$", False),
        (r"$3 \times 4 = 13$", True),
        ("3 x 4 = 12", False),
        ("(2 + 3) * 4 = 20", False),
        ("(2 + 3) * 4 = 14", True),
        (r"\frac{1}{2} + \frac{1}{4} = \frac{3}{4}", False),
        (r"\frac{1}{2} + \frac{1}{4} = \frac{2}{6}", True),
        ("0.1 + 0.2 = 0.3", False),
        ("50% + 10% = 60%", False),
        # No opinion: nothing is computed between numbers alone.
        ("There are 12 apples.", None),
        ("x = 5", None),
        ("x + 2 = 5", None),
        ("2x + 3 = 7", None),
        ("Let f(2) = 4 + 1", None),
        ("2^3 + 1 = 9", None),
        ("5 = 5", None),
        ("a1 + 2 = 3", None),
        ("12 / 7 = 1.71...", False),
        ("12 / 7 = 1.71", False),
        ("12 / 7 = 1.73", True),
    ],
)
def test_equations_of_a_step(step: str, wrong: bool | None) -> None:
    found = check_arithmetic(step)
    assert found.wrong is wrong
    assert bool(found.equation) == (wrong is True)


@given(a=st.integers(0, 500), b=st.integers(1, 500), off=st.integers(-3, 3), sign=st.sampled_from("+-*"))
def test_every_slip_is_found(a: int, b: int, off: int, sign: str) -> None:
    value = {"+": a + b, "-": a - b, "*": a * b}[sign] + off
    assert check_arithmetic(f"Books: {a} {sign} {b} = {value}.").wrong is (off != 0)


def test_no_right_step_of_the_playground_is_called_wrong() -> None:
    for problem in playground.problems(150, split="validation", seed=3):
        for step in split_steps(str(problem.metadata["solution"])):
            assert check_arithmetic(step.text).wrong is not True
    # And a changed result is found wherever the computable truth finds it.
    rng = random.Random(0)
    for problem in playground.problems(60, split="validation", seed=4):
        steps = [step.text for step in split_steps(str(problem.metadata["solution"]))]
        at = rng.randrange(len(steps))
        head, tail = steps[at].split(" = ", 1)
        digits = "".join(ch for ch in tail if ch.isdigit() or ch == "/").split("/")[0]
        steps[at] = f"{head} = {int(tail.split('.')[0].split('/')[0] or digits) + 1}."
        truths = judge_steps(problem, "\n\n".join(steps))
        if "/" not in tail and truths[at].kind is StepKind.WRONG:
            assert check_arithmetic(steps[at]).wrong is True


ROWS = [
    StepRow(prompt="q", completions=("1 + 1 = 2", "2 + 2 = 5", "so 5"), successes=(3, 0, 0), trials=(4, 4, 4)),
    StepRow(prompt="q", completions=("1 + 1 = 3", "so 3", "end"), successes=(1, 0, 2), trials=(4, 4, 4)),
    StepRow(prompt="q", completions=("1 + 1 = 2", "so 3"), successes=(4, 0), trials=(4, 4)),
]


def test_conflicts_are_dropped_or_mended() -> None:
    found = consensus(ROWS)
    assert (found.rows, found.agreed, found.conflicts, found.errors) == ([ROWS[0], ROWS[2]], 2, 1, 2)
    steps = consensus(ROWS, on_conflict="drop_steps").rows[1]
    assert steps.labels("hard") == [None, False, None]
    bad = consensus(ROWS, on_conflict="relabel").rows[1]
    assert bad.labels("hard") == [False, False, False]
    assert (bad.successes, bad.trials) == (ROWS[1].successes, ROWS[1].trials)
    with pytest.raises(ConfigError, match="on_conflict must be drop_row, drop_steps or relabel; got 'keep'"):
        consensus(ROWS, on_conflict="keep")  # type: ignore[arg-type]


RIGHT, WRONG, OPEN = Verdict.correct("r"), Verdict.incorrect("w"), Verdict.undecided("u")


def test_counts_from_a_search_are_those_of_its_tree() -> None:
    texts = ["a\n\nb\n\n1", "a\n\nb\n\n2", "a\n\nc\n\n1", "a\n\nb\n\n1", "d\n\n?", ""]
    verdicts = [RIGHT, WRONG, RIGHT, RIGHT, OPEN, WRONG]
    responses = [Response(problem_id="p", text=text, sample=n) for n, text in enumerate(texts)]
    rows = labels_from_responses(Problem(id="p", prompt="q"), responses, verdicts, provenance={"policy": "x"})
    found = [(row.completions, row.successes, row.trials, row.undecided) for row in rows]
    assert found == [
        (("a", "b", "1"), (3, 2, 2), (4, 3, 2), ()),
        (("a", "b", "2"), (0, 0, 0), (0, 0, 1), ()),
        (("a", "c", "1"), (0, 1, 1), (0, 1, 1), ()),
        (("d", "?"), (0, 0), (0, 0), (1, 1)),
    ]
    assert rows[0].provenance == {"method": "search", "selected": False, "policy": "x"}
    with pytest.raises(ConfigError, match="one verdict a response; got 1 for 6"):
        labels_from_responses(Problem(id="p", prompt="q"), responses, verdicts[:1])


@given(st.lists(st.tuples(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), st.booleans()), max_size=12))
def test_every_response_is_counted_once_at_each_of_its_steps(drawn: list[tuple[list[str], bool]]) -> None:
    responses = [Response(problem_id="p", text="\n\n".join(path)) for path, _ in drawn]
    rows = labels_from_responses(Problem(id="p", prompt="q"), responses, [RIGHT if won else WRONG for _, won in drawn])
    assert sum(sum(row.trials) for row in rows) == sum(len(path) for path, _ in drawn)
    assert sum(sum(row.successes) for row in rows) == sum(len(path) for path, won in drawn if won)
