"""SplitMix64 against a reference in plain integers, and the statistics that sampling relies on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from search.engines.randomness import uniforms

# The first outputs of SplitMix64 as published with the generator (seeds 0 and 1234567).
PUBLISHED = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC],
    1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431],
}


def splitmix(seed: int, position: int) -> int:
    """The generator's output number `position`, in Python integers."""
    mask = 2**64 - 1
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def drawn(seeds: npt.ArrayLike, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return uniforms(np.asarray(seeds, dtype=np.uint64), np.asarray(positions, dtype=np.uint64))


def test_published_values() -> None:
    for seed, outputs in PUBLISHED.items():
        assert [splitmix(seed, i) for i in range(4)] == outputs
        found = drawn([seed] * 4, range(4))
        assert found.tolist() == [(value >> 11) / 2**53 for value in outputs]


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32)), min_size=1, max_size=20))
def test_rows_are_their_own_and_below_one(rows: list[tuple[int, int]]) -> None:
    found = drawn([seed for seed, _ in rows], [position for _, position in rows])
    assert found.tolist() == [(splitmix(*row) >> 11) / 2**53 for row in rows]
    assert ((found >= 0) & (found < 1)).all()


def correlation(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def test_uniform_over_positions_and_over_neighbouring_seeds() -> None:
    table = drawn(np.arange(300)[:, None].repeat(300, 1), np.arange(300)[None].repeat(300, 0))
    # 90 000 numbers from seeds and positions 0..299, a fixed table: p-values are reproducible.
    assert chisquare(np.bincount((table.ravel() * 100).astype(int), minlength=100)).pvalue > 0.001
    assert kstest(table.ravel(), "uniform").pvalue > 0.001
    # one seed's positions, and one position's seeds: no row or column stands out of 600 tests
    worst = min(kstest(line, "uniform").pvalue for line in [*table, *table.T])
    assert worst > 0.01 / 600


def test_positions_and_seeds_are_independent() -> None:
    table = drawn(np.arange(300)[:, None].repeat(300, 1), np.arange(300)[None].repeat(300, 0))
    limit = 5 / np.sqrt(300 * 299)
    for lag in (1, 2, 7):
        assert abs(correlation(table[:, lag:], table[:, :-lag])) < limit
        assert abs(correlation(table[lag:], table[:-lag])) < limit
        assert abs(correlation(table[lag:, :-lag], table[:-lag, lag:])) < limit
    # pairs fill the unit square evenly
    cells = (table[:, :-1] * 10).astype(int) * 10 + (table[:, 1:] * 10).astype(int)
    assert chisquare(np.bincount(cells[:, ::2].ravel(), minlength=100)).pvalue > 0.001
