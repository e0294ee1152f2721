"""Length rewards: the published values at their break points, and the laws between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.core import Outcome, Problem, Response, Scorer, Verdict
from verifiers.errors import ConfigError
from verifiers.length import CosineLength, GroupLength, LinearLength, SoftOverlong, TargetLength, length_of


class Marked:
    """Reads right, wrong or undecided off a text that begins with r, w or u."""

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        made = {
            "r": Verdict.correct("said so", extracted="7"),
            "w": Verdict.incorrect("said so"),
            "u": Verdict.undecided("nobody knows"),
        }
        return [made[response.text[0]] for response in responses]


class Graded:
    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        return [Verdict.graded(0.5, "half") for _ in responses]


def judge(scorer: Scorer, *rows: tuple[str, int], ids: Sequence[str] = ()) -> list[Verdict]:
    names = list(ids) or ["p"] * len(rows)
    problems = [Problem(id=name, prompt="?") for name in names]
    responses = [
        Response(problem_id=name, text=text, token_ids=(1,) * length)
        for name, (text, length) in zip(names, rows, strict=True)
    ]
    return scorer.judge(problems, responses)


def scores(scorer: Scorer, *rows: tuple[str, int], ids: Sequence[str] = ()) -> list[float | None]:
    return [verdict.score for verdict in judge(scorer, *rows, ids=ids)]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (101, -1.0), (10_000, -1.0)],
)
def test_soft_overlong_at_dapos_break_points(length: int, expected: float) -> None:
    """L = 100, c = 20: (80 - 81) / 20 = -0.05 and (80 - 90) / 20 = -0.5, TRL's documented example."""
    assert scores(SoftOverlong(limit=100, margin=20), ("x", max(length, 1))) == [expected if length else 0.0]


def test_soft_overlong_without_a_margin_is_a_cut() -> None:
    assert scores(SoftOverlong(limit=3, margin=0), ("x", 3), ("x", 4)) == [0.0, -1.0]


@given(limit=st.integers(1, 50), data=st.data(), length=st.integers(1, 80))
def test_soft_overlong_falls_steadily(limit: int, data: st.DataObject, length: int) -> None:
    scorer = SoftOverlong(limit=limit, margin=data.draw(st.integers(0, limit)))
    now, after = scores(scorer, ("x", length), ("x", length + 1))
    assert now is not None and after is not None
    assert -1.0 <= after <= now <= 0.0


def test_units() -> None:
    response = Response(problem_id="p", text="two words", token_ids=(1, 2, 3))
    assert [length_of(response, unit) for unit in ("tokens", "characters", "words")] == [3, 9, 2]
    assert length_of(Response(problem_id="p", text=""), "tokens") == 0
    with pytest.raises(ConfigError) as caught:
        SoftOverlong(limit=9, margin=1).judge([], [Response(problem_id="q", text="text")])
    assert str(caught.value) == (
        "SoftOverlong has unit 'tokens', but the response to problem 'q' carries no token ids; set unit to "
        "'characters' or 'words', or pass responses with token_ids"
    )
    assert scores(SoftOverlong(limit=4, margin=2, unit="characters"), ("xxx", 0)) == [-0.5]


def test_linear_length() -> None:
    # -0.01 * 30 = -0.3; the floor holds from 50 on
    scorer = LinearLength(rate=0.01, floor=-0.5)
    assert scores(scorer, ("x", 30), ("x", 50), ("x", 900)) == pytest.approx([-0.3, -0.5, -0.5], abs=1e-12)
    assert scores(LinearLength(rate=-0.1), ("x", 5)) == [0.5]


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("r", 1, 0.75 + 0.25 * math.cos(math.pi / 1000)),
        ("r", 500, 0.75),  # half way: the mean of 1 and 0.5
        ("r", 1000, 0.5),
        ("r", 1500, 0.5),  # open-r1's formula would climb back to 0.75 here
        ("r", 2000, 0.5),  # and to 1 here
        ("w", 250, -0.75 - 0.25 * math.sqrt(0.5)),  # cos(pi / 4)
        ("w", 500, -0.75),
        ("w", 1000, -0.5),
        ("w", 3000, -0.5),
    ],
)
def test_cosine_length(text: str, length: int, expected: float) -> None:
    (verdict,) = judge(CosineLength(correctness=Marked(), limit=1000), (text, length))
    assert verdict.score == pytest.approx(expected, abs=1e-12)
    assert verdict.outcome is Outcome.GRADED
    assert verdict.parts["correctness"].score == float(text == "r")


def test_cosine_length_beyond_the_limit_and_undecided() -> None:
    scorer = CosineLength(correctness=Marked(), limit=10, beyond=-2.0)
    assert scores(scorer, ("r", 10), ("r", 11), ("w", 11), ("u", 5)) == [0.5, -2.0, -2.0, None]


@given(length=st.integers(1, 300))
def test_cosine_length_rewards_short_right_and_long_wrong(length: int) -> None:
    scorer = CosineLength(correctness=Marked(), limit=200)
    right, longer, wrong, wrong_longer = scores(
        scorer, ("r", length), ("r", length + 1), ("w", length), ("w", length + 1)
    )
    assert right is not None and longer is not None and wrong is not None and wrong_longer is not None
    assert 0.5 <= longer <= right <= 1.0
    assert -1.0 <= wrong <= wrong_longer <= -0.5


@pytest.mark.parametrize(
    ("form", "text", "length", "expected"),
    [
        ("exact", "r", 900, 0.97),  # 1 - 0.0003 * 100
        ("exact", "r", 1100, 0.97),
        ("exact", "w", 1100, -0.03),
        ("max", "r", 1000, 0.5),
        ("max", "r", 900, 0.53),  # 0.0003 * 100 + 0.5
        ("max", "r", 4000, 0.0),  # 0.5 - 0.9, clipped
        ("max", "w", 900, 0.0),
    ],
)
def test_target_length(form: str, text: str, length: int, expected: float) -> None:
    scorer = TargetLength(correctness=Marked(), target=1000, form=form)  # type: ignore[arg-type]
    assert scores(scorer, (text, length)) == [pytest.approx(expected, abs=1e-12)]


def test_kimi_group_length() -> None:
    """Lengths 10, 20, 30: lambda = 0.5, 0, -0.5; a short wrong answer gets no bonus."""
    scorer = GroupLength(correctness=Marked())
    assert scores(scorer, ("r", 10), ("r", 20), ("r", 30)) == [0.5, 0.0, -0.5]
    assert scores(scorer, ("w", 10), ("w", 20), ("w", 30)) == [0.0, 0.0, -0.5]
    assert scores(scorer, ("r", 10), ("u", 5), ("w", 15)) == [0.0, None, -0.5]
    assert scores(scorer, ("r", 7), ("w", 7)) == [0.0, 0.0]
    # two problems: each group has its own ends
    assert scores(scorer, ("r", 1), ("r", 9), ("r", 2), ("r", 4), ids=("a", "b", "a", "b")) == [
        0.5,
        -0.5,
        -0.5,
        0.5,
    ]


@given(rows=st.lists(st.tuples(st.sampled_from("rw"), st.integers(1, 99)), min_size=1, max_size=12))
def test_kimi_limits_sum_and_scale(rows: list[tuple[str, int]]) -> None:
    scorer = GroupLength(correctness=Marked())
    made = [score for score in scores(scorer, *rows) if score is not None]
    lengths = [length for _, length in rows]
    low, high = min(lengths), max(lengths)
    for (text, length), score in zip(rows, made, strict=True):
        assert -0.5 <= score <= (0.5 if text == "r" else 0.0)
        if length == high and high > low:
            assert score == -0.5
        if length == low and high > low:
            assert score == (0.5 if text == "r" else 0.0)
    # all right: the terms add up to n/2 - sum(len - min) / (max - min)
    total = sum(score or 0.0 for score in scores(scorer, *[("r", length) for length in lengths]))
    spread = sum(length - low for length in lengths) / (high - low) if high > low else len(rows) / 2
    assert total == pytest.approx(len(rows) / 2 - spread, abs=1e-9)
    # lengths in another unit of measure change nothing
    doubled = scores(scorer, *[(text, 2 * length) for text, length in rows])
    assert doubled == pytest.approx(made, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SoftOverlong(limit=10, margin=11),
            "SoftOverlong.margin must be in [0, limit=10]; got 11",
        ),
        (
            lambda: SoftOverlong(limit=10, margin=1, unit="bytes"),  # type: ignore[arg-type]
            "SoftOverlong.unit must be 'tokens', 'characters' or 'words'; got 'bytes'",
        ),
        (
            lambda: LinearLength(rate=0.0),
            "LinearLength.rate 0 would have no effect; set what one unit of length costs",
        ),
        (
            lambda: LinearLength(rate=1.0, floor=0.0),
            "LinearLength.floor must be negative and goes with a positive rate; got floor 0 with rate 1",
        ),
        (
            lambda: CosineLength(correctness=Marked(), limit=9, right_at_limit=1.0, wrong_at_limit=-1.0),
            "CosineLength with equal scores at zero and at the limit would not depend on length; set "
            "right_at_zero and right_at_limit, or wrong_at_zero and wrong_at_limit, apart",
        ),
        (
            lambda: TargetLength(correctness=Marked(), target=9, offset=0.2),
            "TargetLength.offset would have no effect with form 'exact'; leave it out",
        ),
        (
            lambda: scores(GroupLength(correctness=Graded()), ("x", 3)),
            "GroupLength.correctness must say right or wrong; got a graded score (0.5: half); use a "
            "verifier, or from_trl(..., correct_from=...)",
        ),
    ],
)
def test_impossible_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == message
