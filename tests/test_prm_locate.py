"""The search for the first bad step, on responses whose bad steps are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.locate import GOOD_COST, LocateBy, Probe, first_error_weights, locate


def answer(steps: int, good: Callable[[Probe], bool], **options: object) -> tuple[int, list[Probe]]:
    """Run a search against an oracle; the find and the probes."""
    search = locate(steps, trials=16, **options)  # type: ignore[arg-type]
    probes = []
    try:
        probe = next(search)
        while True:
            probes.append(probe)
            probe = search.send(good(probe))
    except StopIteration as end:
        return int(end.value), probes


@pytest.mark.parametrize("by", ["binary", "cheapest"])
@pytest.mark.parametrize("neighbour", [0, 4])
@given(steps=st.integers(1, 20), at=st.integers(0, 19), weights=st.randoms(use_true_random=False))
def test_a_first_bad_step_behind_which_all_is_bad_is_found(
    by: LocateBy, neighbour: int, steps: int, at: int, weights: object
) -> None:
    at %= steps
    scores = [weights.random() for _ in range(steps)] if neighbour else None  # type: ignore[attr-defined]
    found, probes = answer(steps, lambda p: p.step < at, by=by, neighbour=neighbour, scores=scores)
    assert found == at
    asked = [p.step for p in probes]
    assert len(set(asked)) == len(asked)
    assert all(0 <= step < steps - 1 for step in asked)
    if by == "binary":
        assert len(probes) <= math.ceil(math.log2(max(1, steps))) + (neighbour > 0)


def test_binary_search_by_hand() -> None:
    found, probes = answer(8, lambda p: p.step < 5, by="binary")
    assert (found, [p.step for p in probes]) == (5, [3, 5, 4])
    assert all(p.trials == 16 for p in probes)


def test_a_success_behind_a_find_sends_the_search_on() -> None:
    # Step 2 fails by bad luck; step 3 is saved, so the error is later: at 5.
    found, probes = answer(8, lambda p: p.step in (0, 1, 3, 4), by="cheapest", neighbour=4)
    assert found == 5
    assert [(p.step, p.trials) for p in probes if p.trials == 4] == [(3, 4), (6, 4)]
    assert answer(8, lambda p: p.step in (0, 1, 3, 4), by="cheapest")[0] == 2


def expected_cost(steps: int, by: LocateBy, weights: list[float], bad: float = 16.0) -> float:
    total = 0.0
    scores = None
    for at in range(steps):
        _, probes = answer(steps, lambda p, at=at: p.step < at, by=by, scores=scores)  # type: ignore[misc]
        total += weights[at] * sum(GOOD_COST if p.step < at else bad for p in probes)
    return total / sum(weights)


def best_tree(low: int, high: int, bad: float) -> float:
    """Least total cost over e in low..high of any decision tree, by trying them all."""
    if low == high:
        return 0.0
    return min(
        (high - m) * GOOD_COST + (m + 1 - low) * bad + best_tree(low, m, bad) + best_tree(m + 1, high, bad)
        for m in range(low, high)
    )


@pytest.mark.parametrize("steps", [2, 3, 5, 8])
def test_the_cheapest_search_is_the_cheapest_tree(steps: int) -> None:
    uniform = [1.0] * steps
    found = expected_cost(steps, "cheapest", uniform)
    assert found == pytest.approx(best_tree(0, steps - 1, 16.0) / steps)
    assert found <= expected_cost(steps, "binary", uniform)


def test_scores_point_to_the_step() -> None:
    scores = [0.9, 0.88, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1]
    weights = first_error_weights(8, scores)
    # The drops are 0, 0.02, 0, 0, 0.8, 0, 0 and 0.1 at the end, each plus 0.2/8.
    assert weights == pytest.approx([0.025, 0.045, 0.025, 0.025, 0.825, 0.025, 0.025, 0.125])
    found, probes = answer(8, lambda p: p.step < 4, by="cheapest", scores=scores)
    assert (found, {p.step for p in probes}) == (4, {3, 4})
    assert sum(first_error_weights(5)) == 5.0


def test_every_oracle_ends() -> None:
    """Whatever a noisy oracle says, the search ends with a step that was bad, or the last one."""
    for by, neighbour in itertools.product(("binary", "cheapest"), (0, 2)):
        for pattern in itertools.product([True, False], repeat=6):
            found, probes = answer(7, lambda p, pattern=pattern: pattern[p.step], by=by, neighbour=neighbour)  # type: ignore[misc]
            assert found == 6 or not pattern[found]
            assert len(probes) <= 6
            if found and (found - 1) in {p.step for p in probes}:
                assert pattern[found - 1]
