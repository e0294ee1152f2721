"""Repetition: TRL's n-gram numbers by hand, and a loop detector that agrees with its definition."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.core import Problem, Response
from verifiers.errors import ConfigError
from verifiers.repetition import Loop, LoopDetector, LoopPenalty, LoopRule, NgramPenalty, find_loop


def score(scorer: NgramPenalty | LoopPenalty, text: str = "x", ids: tuple[int, ...] = ()) -> float | None:
    response = Response(problem_id="p", text=text, token_ids=ids)
    (verdict,) = scorer.judge([Problem(id="p", prompt="?")], [response])
    return verdict.score


@pytest.mark.parametrize(
    ("size", "penalty", "ids", "expected"),
    [
        (2, -1.0, (1, 2, 3, 4), 0.0),  # 12 23 34: 3 of 3 different
        (2, -1.0, (5, 5, 5, 5, 5), -0.75),  # 55 four times: 1 - 1/4
        (3, -1.0, (1, 2, 3, 1, 2, 3, 1), -0.4),  # 123 231 312 123 231: 1 - 3/5
        (1, -0.5, (1, 1, 2, 2), -0.25),  # half of two of four
        (3, -1.0, (1, 2), 0.0),  # shorter than n
        (3, -1.0, (1, 2, 3), 0.0),
    ],
)
def test_ngram_penalty_on_tokens(size: int, penalty: float, ids: tuple[int, ...], expected: float) -> None:
    assert score(NgramPenalty(size=size, max_penalty=penalty), ids=ids) == pytest.approx(expected, abs=1e-12)


def test_ngram_penalty_on_words_and_characters() -> None:
    # a b, b a, a b, b a in lower case: 1 - 2/4
    assert score(NgramPenalty(size=2, unit="words"), "A b a\nB A") == -0.5
    # ab, ba, ab: 1 - 2/3
    assert score(NgramPenalty(size=2, unit="characters"), "abab") == pytest.approx(-1 / 3, abs=1e-12)


@given(ids=st.lists(st.integers(0, 3), max_size=20), size=st.integers(1, 4))
def test_ngram_penalty_by_its_definition(ids: list[int], size: int) -> None:
    grams = [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)]
    expected = -1.0 * (1 - len(set(grams)) / len(grams)) if grams else 0.0
    assert score(NgramPenalty(size=size), "x" if ids else "", tuple(ids)) == pytest.approx(expected, abs=1e-12)


def defined_loop(row: list[int], rule: LoopRule) -> Loop | None:
    """The definition, read off."""
    for period in range(rule.min_period, rule.max_period + 1):
        run = 0
        while run + period < len(row) and row[-1 - run] == row[-1 - run - period]:
            run += 1
        covered = run + period
        if run and covered >= max(period * rule.min_repeats, rule.min_length):
            return Loop(start=len(row) - covered, period=period, repeats=covered // period)
    return None


@st.composite
def rules(draw: st.DrawFn) -> LoopRule:
    longest = draw(st.integers(1, 8))
    return LoopRule(
        max_period=longest,
        min_period=draw(st.integers(1, longest)),
        min_repeats=draw(st.integers(2, 4)),
        min_length=draw(st.sampled_from([1, 5, 12])),
    )


@settings(max_examples=200, deadline=None)
@given(
    rule=rules(),
    head=st.lists(st.integers(0, 2), max_size=20),
    block=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    length=st.integers(0, 40),
    tail=st.lists(st.integers(0, 2), max_size=6),
)
def test_detector_and_finder_agree_with_the_definition_on_every_prefix(
    rule: LoopRule, head: list[int], block: list[int], length: int, tail: list[int]
) -> None:
    row = head + (block * 40)[:length] + tail
    kwargs = {
        "max_period": rule.max_period,
        "min_period": rule.min_period,
        "min_repeats": rule.min_repeats,
        "min_length": rule.min_length,
    }
    detector = LoopDetector(**kwargs)
    first: Loop | None = None
    for end in range(1, len(row) + 1):
        expected = defined_loop(row[:end], rule)
        assert find_loop(row[:end], **kwargs) == expected
        first = first or expected
        assert detector.push(row[end - 1]) is (first is not None)
        assert detector.loop == first


@settings(max_examples=150, deadline=None)
@given(period=st.integers(1, 200), repeats=st.integers(4, 6), extra=st.integers(0, 199), head=st.integers(0, 300))
def test_every_suffix_loop_up_to_200_is_found(period: int, repeats: int, extra: int, head: int) -> None:
    """Blocks of different tokens: the loop's place, period and repeats are known by construction."""
    extra %= period
    block = list(range(period))
    row = [-i - 1 for i in range(head)] + block[period - extra :] + block * repeats
    loop = find_loop(row, min_length=1)
    assert loop == Loop(start=head, period=period, repeats=repeats)
    detector = LoopDetector(min_length=1)
    flags = [detector.push(token) for token in row]
    assert flags.index(True) == head + 4 * period - 1  # the moment the fourth repeat is whole
    assert detector.loop == Loop(start=head, period=period, repeats=4)


@settings(max_examples=60, deadline=None)
@given(period=st.integers(1, 200), head=st.integers(0, 50))
def test_one_token_short_of_a_loop_is_none(period: int, head: int) -> None:
    row = [-i - 1 for i in range(head)] + (list(range(period)) * 4)[1:] + [-99]
    detector = LoopDetector(min_length=1)
    assert not any([detector.push(token) for token in row])
    assert find_loop(row[:-1], min_length=1) is None


def test_short_repeats_are_no_loops_by_default() -> None:
    for text in ("10000", "0.3333333333333333", "| --- | --- | --- | --- |", "1 - 1 - 1 - 1"):
        detector = LoopDetector()
        assert not any([detector.push(char) for char in text]), text
    assert find_loop("0" * 32) == Loop(start=0, period=1, repeats=32)
    assert find_loop("0" * 31) is None
    assert find_loop("so " + "again " * 6) == Loop(start=2, period=6, repeats=6)


def test_reset_begins_a_new_row() -> None:
    detector = LoopDetector(min_repeats=2, min_length=1)
    assert [detector.push(token) for token in (1, 2, 1, 2, 3)] == [False, False, False, True, True]
    detector.reset()
    assert [detector.push(token) for token in (1, 1)] == [False, True]
    assert detector.loop == Loop(start=0, period=1, repeats=2)


def rows_of(size: int) -> dict[str, list[int]]:
    draw = random.Random(0)
    thue = [0]
    while len(thue) < size:
        thue += [1 - bit for bit in thue]
    return {
        "random": [draw.randrange(50_000) for _ in range(size)],
        "text-like": [int(draw.paretovariate(1.0)) for _ in range(size)],
        "overlap-free": thue[:size],
        "three repeats": [i % 100 if i % 301 < 300 else -i for i in range(size)],
    }


def lines_run(row: list[int]) -> int:
    """Lines of verifiers/repetition.py that run while a row is read: work that no load on the machine changes."""
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith("verifiers/repetition.py"):
            return None
        count += event == "line"
        return trace

    detector, before = LoopDetector(), sys.gettrace()
    sys.settrace(trace)
    try:
        for token in row:
            detector.push(token)
    finally:
        sys.settrace(before)
    assert detector.loop is None
    return count


def test_work_grows_with_the_row_and_not_with_its_square() -> None:
    """Eight times the tokens take at most twice the lines a token, and few of them."""
    for name, row in rows_of(32_768).items():
        short, long = lines_run(row[:4_096]), lines_run(row)
        assert long < 16 * short, name
        assert long < 200 * len(row), name
        assert find_loop(row) is None


def test_loop_penalty() -> None:
    assert score(LoopPenalty(penalty=-0.5), ids=(1, 2) * 16) == -0.5
    assert score(LoopPenalty(), ids=(1, 2) * 15) == 0.0
    rule = LoopRule(min_repeats=2, min_length=1)
    assert score(LoopPenalty(unit="words", rule=rule), "so Again again") == -1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NgramPenalty(size=0), "NgramPenalty.size must be 1 or more; got 0"),
        (
            lambda: NgramPenalty(max_penalty=0.0),
            "NgramPenalty.max_penalty must be finite and negative, 0 would have no effect; got 0.0",
        ),
        (lambda: LoopDetector(min_repeats=1), "min_repeats must be 2 or more; got 1"),
        (
            lambda: find_loop([1], max_period=2, min_period=3),
            "a loop rule needs 1 <= min_period <= max_period; got 3 and 2",
        ),
        (
            lambda: score(NgramPenalty(), "text"),
            "NgramPenalty has unit 'tokens', but the response to problem 'p' carries no token ids; set unit "
            "to 'characters' or 'words', or pass responses with token_ids",
        ),
    ],
)
def test_impossible_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == message
