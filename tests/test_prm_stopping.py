"""Stopping rules against exhaustive enumeration of every sequence of outcomes."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.stopping import EarlyStop, FixedTrials, SequentialTest, StoppingRule, Tally, characteristic
from verifiers.core import Outcome
from verifiers.errors import ConfigError

RIGHT, WRONG, NONE = Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNDECIDED


def play(rule: StoppingRule, outcomes: list[Outcome]) -> Tally:
    """What a rule draws from a stream."""
    tally, rest = Tally(), list(outcomes)
    while count := rule.more(tally):
        for outcome in rest[:count]:
            tally = tally.plus(outcome)
        rest = rest[count:]
    return tally


@given(
    outcomes=st.lists(st.sampled_from([RIGHT, WRONG, WRONG, NONE]), min_size=1, max_size=24),
    threshold=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 2 / 3, 0.9, 1.0]),
    at_once=st.integers(1, 5),
)
@settings(max_examples=500, deadline=None)
def test_early_stop_has_the_label_of_all_roll_outs(outcomes: list[Outcome], threshold: float, at_once: int) -> None:
    count = len(outcomes)
    fixed = FixedTrials(trials=count, threshold=threshold)
    early = EarlyStop(trials=count, threshold=threshold, at_once=min(at_once, count))
    whole, part = play(fixed, outcomes), play(early, outcomes)
    assert whole.drawn == count
    assert early.label(part) is fixed.label(whole)
    assert part.drawn <= count


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_early_stop_never_draws_one_that_cannot_matter(threshold: float) -> None:
    """At every look that goes on, two ends of the stream give different labels."""
    fixed, early = FixedTrials(trials=7, threshold=threshold), EarlyStop(trials=7, threshold=threshold)
    for outcomes in itertools.product([RIGHT, WRONG], repeat=7):
        drawn = play(early, list(outcomes)).drawn
        labels = {
            fixed.label(play(fixed, [*outcomes[: drawn - 1], *rest]))
            for rest in itertools.product([RIGHT, WRONG], repeat=7 - drawn + 1)
        }
        assert labels == {True, False}


def enumerate_ends(rule: StoppingRule, value: float, longest: int) -> tuple[float, float, float, float]:
    ends = {True: 0.0, False: 0.0, None: 0.0}
    drawn = 0.0
    for outcomes in itertools.product([RIGHT, WRONG], repeat=longest):
        wins = outcomes.count(RIGHT)
        chance = value**wins * (1 - value) ** (longest - wins)
        tally = play(rule, list(outcomes))
        ends[rule.label(tally)] += chance
        drawn += chance * tally.drawn
    return ends[True], ends[False], ends[None], drawn


@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    "rule",
    [
        FixedTrials(trials=6),
        EarlyStop(trials=9),
        EarlyStop(trials=9, threshold=0.5, at_once=2),
        EarlyStop(trials=9, threshold=0.5, doubling=True),
        SequentialTest(trials=10, low=0.2, high=0.7, error=0.1),
        SequentialTest(trials=10, low=0.2, high=0.7, error=0.1, at_once=2, doubling=True),
    ],
)
def test_characteristic_is_that_of_all_sequences(rule: StoppingRule, value: float) -> None:
    longest = {"FixedTrials": 6, "EarlyStop": 9, "SequentialTest": 10}[type(rule).__name__]
    found = characteristic(rule, value)
    assert (found.good, found.bad, found.unlabelled, found.rollouts) == pytest.approx(
        enumerate_ends(rule, value, longest), abs=1e-12
    )


def test_early_stop_costs_the_known_expectation() -> None:
    """Geometric, cut at K: (1 - (1 - V)^K) / V roll-outs; all K fail with chance (1 - V)^K."""
    for value in (0.05, 0.3, 1.0):
        found = characteristic(EarlyStop(trials=16), value)
        assert found.rollouts == pytest.approx((1 - (1 - value) ** 16) / value)
        assert found.bad == pytest.approx((1 - value) ** 16)
    assert characteristic(EarlyStop(trials=16), 0.0).rollouts == 16


def test_doubling_looks_log_times_and_costs_a_little_more() -> None:
    rule = EarlyStop(trials=16, doubling=True)
    tally, looks = Tally(), []
    while count := rule.more(tally):
        looks.append(count)
        tally = Tally(failures=tally.drawn + count)
    assert looks == [1, 1, 2, 4, 8]
    assert [EarlyStop(trials=16, at_once=3, doubling=True).more(Tally(failures=n)) for n in (0, 3, 6, 12)] == [
        3,
        3,
        6,
        4,
    ]
    # By hand at V = 1/2: drawn 1, 2, 4, 8, 16 with chances 1/2, 1/4, 3/16, 15/256, 1/256.
    assert characteristic(rule, 0.5).rollouts == pytest.approx(
        1 / 2 + 2 / 4 + 4 * 3 / 16 + 8 * 15 / 256 + 16 / 256, abs=1e-12
    )
    assert characteristic(rule, 0.5).bad == characteristic(EarlyStop(trials=16), 0.5).bad


@given(
    low=st.floats(0.01, 0.5), gap=st.floats(0.05, 0.45), error=st.floats(0.01, 0.3), away=st.floats(0, 1),
    trials=st.integers(1, 60), at_once=st.integers(1, 4), doubling=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_sequential_test_keeps_its_stated_error(
    low: float, gap: float, error: float, away: float, trials: int, at_once: int, doubling: bool
) -> None:
    rule = SequentialTest(
        trials=trials, low=low, high=low + gap, error=error, at_once=min(at_once, trials), doubling=doubling
    )
    assert characteristic(rule, low * away).good <= error + 1e-12
    assert characteristic(rule, rule.high + (1 - rule.high) * away).bad <= error + 1e-12


def test_the_sequential_test_by_hand() -> None:
    rule = SequentialTest(trials=40, low=0.05, high=0.3, error=0.05)
    # log(6) = 1.79 a success, log(0.7 / 0.95) = -0.305 a failure; bounds at -+ log 20 = 2.996.
    assert rule.more(Tally(successes=1)) == 1
    assert (rule.more(Tally(successes=2)), rule.label(Tally(successes=2))) == (0, True)
    assert (rule.more(Tally(failures=9)), rule.label(Tally(failures=9))) == (1, None)
    assert (rule.more(Tally(failures=10)), rule.label(Tally(failures=10))) == (0, False)
    assert 10 * math.log(0.7 / 0.95) < -math.log(20) < 9 * math.log(0.7 / 0.95)
    # Undecided verdicts bring no evidence, but are paid for.
    assert rule.more(Tally(failures=5, undecided=35)) == 0
    assert rule.label(Tally(failures=5, undecided=35)) is None


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"low": 0.3, "high": 0.2}, "0 < low < high < 1; got low=0.3 and high=0.2"),
        ({"high": 1.0}, "0 < low < high < 1"),
        ({"error": 0.5}, "error must lie between 0 and 0.5; got 0.5"),
    ],
)
def test_settings_are_checked(settings_: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SequentialTest(trials=8, **settings_)
    with pytest.raises(ConfigError, match=r"lies in \[0, 1\]; got 1.5"):
        characteristic(FixedTrials(trials=2), 1.5)
