"""Step scores -> one score, and -> marginal rewards."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.credit import REDUCTIONS, marginal, response_score
from verifiers.errors import ConfigError

SCORES = [0.9, 0.5, 0.8]


@pytest.mark.parametrize(("reduction", "wanted"), [("min", 0.5), ("product", 0.36), ("last", 0.8), ("mean", 2.2 / 3)])
def test_reductions_by_hand(reduction: str, wanted: float) -> None:
    assert response_score(SCORES, reduction) == pytest.approx(wanted, abs=1e-12)  # type: ignore[arg-type]
    assert response_score([0.3], reduction) == pytest.approx(0.3)  # type: ignore[arg-type]
    assert response_score([], reduction) == 0.0  # type: ignore[arg-type]


def test_the_four_reductions_are_all_there_are() -> None:
    assert REDUCTIONS == ("min", "product", "last", "mean")
    assert response_score(SCORES) == 0.5
    with pytest.raises(ConfigError, match="one of min, product, last, mean; got 'max'"):
        response_score(SCORES, "max")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [[1.1], [-0.1], [math.nan], [0.5, math.inf]])
def test_scores_outside_the_unit_interval_are_refused(bad: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"must lie in \[0, 1\]"):
        response_score(bad)


@given(st.lists(st.floats(0, 1), max_size=9), st.floats(0, 1))
def test_marginals_telescope(scores: list[float], start: float) -> None:
    rewards = marginal(scores, start=start)
    assert len(rewards) == len(scores)
    assert math.fsum(rewards) == pytest.approx((scores[-1] if scores else start) - start, abs=1e-9)


def test_marginals_by_hand() -> None:
    assert marginal([0.5, 0.75, 0.25], start=0.25) == [0.25, 0.25, -0.5]
    assert marginal([], start=0.5) == []
