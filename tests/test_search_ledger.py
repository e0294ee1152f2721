"""Costs add, in any order, and the estimate of operations is the formula."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from search.ledger import Ledger
from verifiers.core import Usage

COUNTS = st.integers(0, 10**9)
# Multiples of 1/64 add without rounding, so that laws hold exactly.
SECONDS = COUNTS.map(lambda ticks: ticks / 64)
USAGES = st.builds(Usage, prefill_tokens=COUNTS, decoded_tokens=COUNTS, calls=COUNTS, seconds=SECONDS)
LEDGERS = st.builds(
    Ledger,
    policy=USAGES,
    scored_tokens=COUNTS,
    scorer_calls=COUNTS,
    scorer_seconds=SECONDS,
    judged=COUNTS,
    verifier_seconds=SECONDS,
)


@given(LEDGERS, LEDGERS, LEDGERS)
def test_ledgers_add_like_numbers(a: Ledger, b: Ledger, c: Ledger) -> None:
    assert a + Ledger() == a
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)


@given(USAGES, USAGES)
def test_usages_subtract_what_was_added(a: Usage, b: Usage) -> None:
    assert (a + b) - b == a
    assert a - a == Usage()


def test_every_field_is_added_and_subtracted() -> None:
    one = Usage(prefill_tokens=1, decoded_tokens=2, calls=3, seconds=4.0)
    two = Usage(prefill_tokens=10, decoded_tokens=20, calls=30, seconds=40.0)
    assert one + two == Usage(prefill_tokens=11, decoded_tokens=22, calls=33, seconds=44.0)
    assert two - one == Usage(prefill_tokens=9, decoded_tokens=18, calls=27, seconds=36.0)
    ledger = Ledger(policy=one, scored_tokens=5, scorer_calls=6, scorer_seconds=7.0, judged=8, verifier_seconds=9.0)
    assert ledger + ledger == Ledger(
        policy=one + one, scored_tokens=10, scorer_calls=12, scorer_seconds=14.0, judged=16, verifier_seconds=18.0
    )


def test_scored_and_verified_add_one_call() -> None:
    ledger = Ledger(policy=Usage(decoded_tokens=5)).scored(tokens=100, seconds=0.5)
    ledger = ledger.scored(tokens=20, seconds=0.25).verified(responses=8, seconds=2.0)
    assert ledger == Ledger(
        policy=Usage(decoded_tokens=5),
        scored_tokens=120,
        scorer_calls=2,
        scorer_seconds=0.75,
        judged=8,
        verifier_seconds=2.0,
    )


def test_flops_are_two_a_parameter_and_token() -> None:
    ledger = Ledger(policy=Usage(prefill_tokens=30, decoded_tokens=70), scored_tokens=11)
    assert ledger.flops(policy_parameters=1000) == 2 * 1000 * 100
    assert ledger.flops(policy_parameters=1000, scorer_parameters=500) == 2 * (1000 * 100 + 500 * 11)
