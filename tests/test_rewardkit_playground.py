"""The problem generator: what it must contain, what it must never change, and that its solutions are right."""

from __future__ import annotations

import random
import re
from collections import Counter
from fractions import Fraction

import pytest

from rewardkit import playground
from rewardkit.playground import LARGEST, number_text, problem, problems, split_of
from rewardkit.stories import OPERATIONS, STORIES
from verifiers.core import Problem, Response
from verifiers.errors import ConfigError, MissingFileError
from verifiers.maths import MathVerifier

HOW_MANY = {"train": 2000, "validation": 600, "test": 600}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Problem]]:
    return {split: problems(count, split=split, seed=0) for split, count in HOW_MANY.items()}  # type: ignore[arg-type]


def test_there_are_sixteen_kinds_and_all_of_them_are_drawn(drawn: dict[str, list[Problem]]) -> None:
    kinds = {story.kind for story in STORIES}
    assert len(STORIES) == len(kinds) == 16
    for rows in drawn.values():
        assert {p.metadata["kind"] for p in rows} == kinds


def test_solutions_have_two_to_eight_equations_and_each_number_occurs(drawn: dict[str, list[Problem]]) -> None:
    lengths = Counter(len(p.metadata["solution"].split("\n\n")) for p in drawn["train"])
    assert set(lengths) == set(range(2, 9))
    for row in drawn["train"]:
        program = row.metadata["program"]
        assert len(row.metadata["solution"].split("\n\n")) == len(program["nodes"]) - len(program["side"])


def test_integers_fractions_distractors_and_all_operators_occur(drawn: dict[str, list[Problem]]) -> None:
    rows = drawn["test"]
    answers = [row.answer or "" for row in rows]
    assert any("/" in answer for answer in answers)
    assert sum("/" not in answer for answer in answers) > len(rows) / 2
    products = sum(bool(row.metadata["program"]["side"]) for row in rows)
    unused = 0
    for row in rows:
        program = row.metadata["program"]
        used = {name for node in program["nodes"] for name in node[1:]}
        unused += any(f"g{place}" not in used for place in range(len(program["given"])))
    assert products > 25  # an aside with a product of its own
    assert unused > 25  # an aside with a lone number
    assert {node[0] for row in rows for node in row.metadata["program"]["nodes"]} == set("+-*/")


def test_a_problem_is_pinned_word_for_word() -> None:
    first = problem(0, "test", 2)
    assert first.id == "test-0-2"
    assert first.prompt == (
        "A factory fills 8 boxes with 10 toys each. It ships 3 boxes of 24 toys. The factory has 4 workers. "
        "A check removes 1/4 of the toys. How many toys does the factory have?\n"
    )
    assert first.answer == "6"
    assert first.metadata == {
        "kind": "factory",
        "solution": "Toys: 8 * 10 = 80.\n\nPart: 3 * 24 = 72.\n\nToys: 80 - 72 = 8.\n\nPart: 8 * 1/4 = 2.\n\n"
        "Toys: 8 - 2 = 6. \\boxed{6}",
        "program": {
            "given": ["8", "10", "3", "24", "4", "1/4"],
            "nodes": [["*", "g0", "g1"], ["*", "g2", "g3"], ["-", "n0", "n1"], ["*", "n2", "g5"], ["-", "n2", "n3"]],
            "side": [],
            "answer": "n4",
        },
    }
    second = problem(3, "train", 7)
    assert second.prompt == (
        "A garden has 5 beds with 18 flowers each. Leo picks 52 flowers. Leo plants 52 flowers. "
        "Leo plants 21 flowers. How many flowers are in the garden?\n"
    )
    assert second.metadata["solution"] == (
        "Flowers: 5 * 18 = 90.\n\nFlowers: 90 - 52 = 38.\n\nFlowers: 38 + 52 = 90.\n\n"
        "Flowers: 90 + 21 = 111. \\boxed{111}"
    )


def test_drawing_is_a_function_of_its_arguments() -> None:
    state = random.getstate()
    rows = problems(20, split="validation", seed=5)
    assert random.getstate() == state
    assert problems(20, split="validation", seed=5) == rows
    assert problems(5, split="validation", seed=5, start=15) == rows[15:]
    assert problem(5, "validation", 3) == rows[3]
    assert problems(20, split="validation", seed=6) != rows


def test_splits_share_no_text(drawn: dict[str, list[Problem]]) -> None:
    texts = {split: {row.prompt for row in rows} for split, rows in drawn.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["test"] & texts["validation"]
    for split, rows in drawn.items():
        assert all(split_of(row.prompt) == split for row in rows)  # type: ignore[arg-type]
    # Shares of the whole text space: the hash gives train 8 of 10.
    shares = Counter(split_of(f"text {n}") for n in range(5000))
    assert 0.77 < shares["train"] / 5000 < 0.83
    assert 0.08 < shares["test"] / 5000 < 0.12


def test_every_equation_is_exact_and_every_number_stays_small(drawn: dict[str, list[Problem]]) -> None:
    for row in drawn["train"]:
        fractional = row.metadata["kind"] in ("recipe", "tank")
        steps = row.metadata["solution"].split("\n\n")
        for step in steps:
            left, operator, right, result = re.fullmatch(
                r"[A-Z][a-z]+: (\S+) ([-+*/]) (\S+) = ([\d/]+)\.(?: \\boxed\{[\d/]+\})?", step
            ).groups()  # type: ignore[union-attr]
            a, b, c = Fraction(left), Fraction(right), Fraction(result)
            assert c == {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operator]
            assert all(number_text(Fraction(text)) == text for text in (left, right, result))  # lowest terms
            assert 0 < c <= (20 if fractional else LARGEST)
            assert c.denominator in ((1, 2, 4) if fractional else (1,))
        assert all(0 < Fraction(text) <= 150 for text in row.metadata["program"]["given"])
        assert "boxed" not in "".join(steps[:-1])


def test_given_numbers_stand_in_the_text(drawn: dict[str, list[Problem]]) -> None:
    for row in drawn["test"]:
        told = re.findall(r"\d+(?:/\d+)?", str(row.prompt))
        assert Counter(told) == Counter(row.metadata["program"]["given"])
        assert "{" not in row.prompt
        assert str(row.prompt).endswith("?\n")


def test_the_worked_solution_is_judged_correct(drawn: dict[str, list[Problem]]) -> None:
    rows = drawn["test"][:200]
    verdicts = MathVerifier().judge(rows, [Response(problem_id=row.id, text=row.metadata["solution"]) for row in rows])
    assert all(
        verdict.score == 1.0 and verdict.extracted == row.answer for verdict, row in zip(verdicts, rows, strict=True)
    )
    wrong = MathVerifier().judge(
        rows[:50],
        [
            Response(problem_id=row.id, text=re.sub(r"boxed\{.*\}", "boxed{1001}", row.metadata["solution"]))
            for row in rows[:50]
        ],
    )
    assert all(verdict.score == 0.0 for verdict in wrong)


def test_every_event_names_the_slots_of_its_operation() -> None:
    for story in STORIES:
        for operation, sentence in story.events:
            wanted = {name for equation in OPERATIONS[operation] for name in equation} & {"x", "y"}
            assert set(re.findall(r"\{([xy])\}", sentence)) == wanted, sentence


@pytest.mark.parametrize(
    ("operator", "left", "right", "result"),
    [("+", 2, 3, "5"), ("-", 2, 3, "-1"), ("*", 2, 3, "6"), ("/", 2, 3, "2/3"), ("/", 4, 2, "2")],
)
def test_apply(operator: str, left: int, right: int, result: str) -> None:
    assert number_text(playground.apply(operator, Fraction(left), Fraction(right))) == result


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="train, validation or test; got 'dev'"):
        problems(1, split="dev")  # type: ignore[arg-type]


def test_assets(playground_policy: object, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (playground.asset("policy") / "config.json").exists()
    with pytest.raises(MissingFileError, match="'nothing' is missing: looked in") as caught:
        playground.asset("nothing")
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("REWARDKIT_PLAYGROUND", str(tmp_path))
    with pytest.raises(MissingFileError, match="'policy' is missing"):
        playground.asset("policy")
