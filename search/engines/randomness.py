"""Random numbers that belong to a row and a position, not to a batch.

u(seed, i) = mix(seed + (i + 1) * golden) / 2^64 with the SplitMix64 finaliser (Steele, Lea and Flood 2014,
doi:10.1145/2660193.2660195). Draw i of a row is the same whatever else runs beside it, in whatever order,
and however often the row was interrupted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniforms(seeds_R: npt.NDArray[np.uint64], positions_R: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) a row, from its seed and the position of the token to be drawn. Shape (R,)."""
    with np.errstate(over="ignore"):
        state = seeds_R + (positions_R + np.uint64(1)) * _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        state ^= state >> np.uint64(31)
    draws: npt.NDArray[np.float64] = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return draws
