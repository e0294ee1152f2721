"""Composition: sums do not depend on order, undecided parts follow the stated rule, parts are kept."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.compose import Clip, FirstDecided, Gate, Part, Shared, WeightedSum, is_group_relative
from verifiers.core import Outcome, Problem, Response, Scorer, Verdict
from verifiers.errors import ConfigError, RewardError
from verifiers.length import GroupLength


class Says:
    """Answers row i with the i-th of the given values: a number, True / False, or None for undecided."""

    def __init__(self, *values: float | bool | None) -> None:
        self.values = values
        self.seen: list[list[str]] = []

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        self.seen.append([response.text for response in responses])
        return [self.verdict(self.values[int(response.text)]) for response in responses]

    def verdict(self, value: float | bool | None) -> Verdict:
        if value is None:
            return Verdict.undecided("no idea")
        if isinstance(value, bool):
            return Verdict.correct("yes", extracted="7") if value else Verdict.incorrect("no")
        return Verdict.graded(value, "so much")


def judge(scorer: Scorer, count: int) -> list[Verdict]:
    problems = [Problem(id=f"p{i}", prompt="?") for i in range(count)]
    responses = [Response(problem_id=f"p{i}", text=str(i)) for i in range(count)]
    return scorer.judge(problems, responses)


def scores(scorer: Scorer, count: int) -> list[float | None]:
    return [verdict.score for verdict in judge(scorer, count)]


def test_weighted_sum_with_its_breakdown() -> None:
    total = WeightedSum(
        parts=(
            Part(name="right", scorer=Says(True, False)),
            Part(name="length", scorer=Says(-0.5, -0.25), weight=0.2),
        )
    )
    first, second = judge(total, 2)
    assert first.score == pytest.approx(0.9, abs=1e-15)  # 1 + 0.2 * -0.5
    assert second.score == pytest.approx(-0.05, abs=1e-15)  # 0 + 0.2 * -0.25
    assert first.outcome is Outcome.GRADED
    assert first.reason == "1*right(1) + 0.2*length(-0.5)"
    assert {name: part.score for name, part in first.parts.items()} == {"right": 1.0, "length": -0.5}


FINITE = st.floats(-1e6, 1e6, allow_nan=False)
WEIGHT = FINITE.filter(lambda weight: weight != 0.0)


@given(
    rows=st.lists(st.tuples(WEIGHT, st.none() | FINITE), min_size=1, max_size=6),
    data=st.data(),
    rule=st.sampled_from(["undecided", "renormalise"]),
)
def test_a_weighted_sum_does_not_depend_on_order(
    rows: list[tuple[float, float | None]], data: st.DataObject, rule: str
) -> None:
    parts = [Part(name=f"s{i}", scorer=Says(score), weight=weight) for i, (weight, score) in enumerate(rows)]
    shuffled = data.draw(st.permutations(parts))
    one = WeightedSum(parts=tuple(parts), undecided=rule)  # type: ignore[arg-type]
    other = WeightedSum(parts=tuple(shuffled), undecided=rule)  # type: ignore[arg-type]
    assert scores(one, 1) == scores(other, 1)  # to the last bit


def test_order_does_not_change_the_last_bit() -> None:
    """0.1 + 0.2 + 0.3 is 0.6000000000000001 from left to right and 0.6 from right to left."""
    parts = [Part(name=str(value), scorer=Says(value)) for value in (0.1, 0.2, 0.3)]
    assert scores(WeightedSum(parts=tuple(parts)), 1) == [0.6]
    assert scores(WeightedSum(parts=tuple(reversed(parts))), 1) == [0.6]


def test_undecided_parts() -> None:
    parts = (
        Part(name="a", scorer=Says(1.0, None, None), weight=3.0),
        Part(name="b", scorer=Says(0.5, 0.5, None), weight=-1.0),
    )
    first, second, third = judge(WeightedSum(parts=parts), 3)
    assert (first.score, second.score, third.score) == (2.5, None, None)  # 3 * 1 - 0.5
    assert second.reason == "a is undecided: no idea"
    assert second.parts["b"].score == 0.5
    # without a: -0.5 * (3 + 1) / 1 = -2
    verdicts = judge(WeightedSum(parts=parts, undecided="renormalise"), 3)
    assert [verdict.score for verdict in verdicts] == [2.5, -2.0, None]
    assert verdicts[1].reason == "-1*b(0.5), renormalised without a"


def test_renormalised_weights_that_sum_to_one_are_a_mean() -> None:
    parts = tuple(Part(name=str(i), scorer=Says(value), weight=0.25) for i, value in enumerate([0.2, None, 0.6, None]))
    # the mean of 0.2 and 0.6
    assert scores(WeightedSum(parts=parts, undecided="renormalise"), 1) == [pytest.approx(0.4, abs=1e-15)]


def test_gate() -> None:
    inner = Says(True, True, True, False)
    gate = Gate(condition=Says(True, False, None, True), then=inner)
    verdicts = judge(gate, 4)
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, None, 0.0]
    assert [verdict.outcome.value for verdict in verdicts] == [
        "correct",
        "incorrect",
        "undecided",
        "incorrect",
    ]
    assert inner.seen == [["0", "3"]]  # it is asked about the rows that pass only
    assert [sorted(verdict.parts) for verdict in verdicts] == [
        ["condition", "then"],
        ["condition"],
        ["condition"],
        ["condition", "then"],
    ]
    assert verdicts[0].extracted == "7"
    assert verdicts[1].reason == "the gate is closed: no"


def test_gate_with_a_threshold_and_a_price() -> None:
    gate = Gate(condition=Says(0.4, 0.5), then=Says(0.0, 0.3), threshold=0.5, closed=-1.0)
    verdicts = judge(gate, 2)
    assert [verdict.score for verdict in verdicts] == [-1.0, 0.3]
    assert verdicts[0].outcome is Outcome.GRADED
    with pytest.raises(ConfigError, match=r"graded score \(0.4: so much\); set Gate.threshold to the least"):
        judge(Gate(condition=Says(0.4), then=Says(1.0)), 1)


def test_first_decided() -> None:
    second = Says(0.1, 0.2, None)
    chain = FirstDecided(parts=(Part(name="rule", scorer=Says(True, None, None)), Part(name="model", scorer=second)))
    verdicts = judge(chain, 3)
    assert [verdict.score for verdict in verdicts] == [1.0, 0.2, None]
    assert second.seen == [["1", "2"]]
    assert [sorted(verdict.parts) for verdict in verdicts] == [["rule"], ["model", "rule"], ["model", "rule"]]
    assert verdicts[2].reason == "nobody decided: rule: no idea; model: no idea"


def test_clip() -> None:
    verdicts = judge(Clip(scorer=Says(2.0, 0.5, -3.0, None, True), low=-1.0, high=0.75), 5)
    assert [verdict.score for verdict in verdicts] == [0.75, 0.5, -1.0, None, 0.75]
    assert verdicts[0].parts["unclipped"].score == 2.0
    assert verdicts[0].reason == "so much; clipped from 2"
    assert (verdicts[1].parts, verdicts[4].outcome) == ({}, Outcome.CORRECT)


@given(value=FINITE, low=st.floats(-10, 0), width=st.floats(0.1, 10))
def test_clipping_twice_is_clipping_once(value: float, low: float, width: float) -> None:
    once = Clip(scorer=Says(value), low=low, high=low + width)
    assert scores(Clip(scorer=once, low=low, high=low + width), 1) == scores(once, 1)
    assert scores(once, 1) == [sorted([low, value, low + width])[1]]


def test_shared_judges_a_batch_once() -> None:
    inner = Says(True, False)
    shared = Shared(scorer=inner)
    total = WeightedSum(
        parts=(Part(name="right", scorer=shared), Part(name="again", scorer=Clip(scorer=shared, high=0.5)))
    )
    assert scores(total, 2) == [1.5, 0.0]
    assert len(inner.seen) == 1
    assert scores(total, 1) == [1.5]  # other objects: judged anew
    assert inner.seen == [["0", "1"], ["0"]]


def test_compositions_pickle() -> None:
    shared = Shared(scorer=Says(True))
    scorer = Gate(condition=shared, then=WeightedSum(parts=(Part(name="a", scorer=shared, weight=0.5),)))
    assert scores(scorer, 1) == [0.5]
    assert scores(pickle.loads(pickle.dumps(scorer)), 1) == [0.5]


def test_group_relative_shows_through() -> None:
    group = GroupLength(correctness=Says(True))
    plain = Says(True)
    for wrapped in (
        Clip(scorer=group, high=0.1),
        Shared(scorer=group),
        Gate(condition=plain, then=group),
        WeightedSum(parts=(Part(name="a", scorer=plain), Part(name="b", scorer=group))),
        FirstDecided(parts=(Part(name="a", scorer=plain), Part(name="b", scorer=group))),
    ):
        assert is_group_relative(wrapped)
    assert not is_group_relative(Clip(scorer=plain, high=0.1))


class TooFew:
    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        return []


class Numbers:
    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        return [1.0 for _ in responses]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSum(parts=()), "WeightedSum needs at least 1 part; got 0"),
        (
            lambda: FirstDecided(parts=(Part(name="a", scorer=Says()),)),
            "FirstDecided needs at least 2 parts; got 1",
        ),
        (
            lambda: WeightedSum(parts=(Part(name="a", scorer=Says()), Part(name="a", scorer=Says()))),
            "WeightedSum has two parts named 'a'; give each part a name of its own",
        ),
        (
            lambda: Part(name="a", scorer=Says(), weight=math.nan),
            "part 'a' needs a finite weight other than 0; got nan; a part that is not to count is left out",
        ),
        (
            lambda: Part(name="a", scorer=Says(), weight=0.0),
            "part 'a' needs a finite weight other than 0; got 0.0; a part that is not to count is left out",
        ),
        (
            lambda: Part(name="a", scorer=len),  # type: ignore[arg-type]
            "part 'a' needs a scorer with judge(problems, responses); got builtin_function_or_method; wrap a "
            "reward function with from_trl",
        ),
        (
            lambda: FirstDecided(parts=(Part(name="a", scorer=Says(), weight=2.0), Part(name="b", scorer=Says()))),
            "FirstDecided takes a verdict as it is, so the weight 2 of part 'a' would have no effect; leave "
            "it out, or use WeightedSum",
        ),
        (
            lambda: Clip(scorer=Says()),
            "a Clip without low and high would have no effect; set at least one of them",
        ),
        (lambda: Clip(scorer=Says(), low=1.0, high=1.0), "Clip needs low < high; got low 1 and high 1"),
        (lambda: Clip(scorer=Says(), low=math.nan), "Clip.low must be a finite score or None; got nan"),
        (
            lambda: WeightedSum(parts=(Part(name="a", scorer=Says()),), undecided="zero"),  # type: ignore[arg-type]
            "WeightedSum.undecided must be 'undecided' or 'renormalise'; got 'zero'",
        ),
    ],
)
def test_impossible_compositions_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (
            TooFew(),
            "scorer a returned 0 verdicts for 1 responses; judge() must return one verdict a response, in order",
        ),
        (
            Numbers(),
            "scorer a returned float for response 0; judge() must return verifiers.Verdict objects (use "
            "from_trl for functions that return numbers)",
        ),
        (
            Says(math.inf),
            "scorer a gave response 0 the score inf; return a finite score, or Verdict.undecided(...) to abstain",
        ),
    ],
)
def test_a_part_that_breaks_its_contract_is_named(scorer: Scorer, message: str) -> None:
    with pytest.raises(RewardError) as caught:
        judge(WeightedSum(parts=(Part(name="a", scorer=scorer),)), 1)
    assert str(caught.value) == message
