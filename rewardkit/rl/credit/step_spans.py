"""Steps as spans over the tokens of a response: every token belongs to one, and a step's number goes to its tokens.

What follows the last end belongs to the last step, as the end mark does. Only in a truncated response is it a step of
its own, which nobody scored.

Legend: S steps, T tokens of one response.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rewardkit.rl.rewards.scored import StepRewards
from verifiers.errors import ConfigError

Array: TypeAlias = npt.NDArray[np.float64]


def tile(steps: StepRewards | None, length: int, *, truncated: bool) -> tuple[list[float | None], tuple[int, ...]]:
    """(values, ends) of steps that cover all tokens of a response; a step that nobody scored has no value."""
    if steps is not None and (fault := steps.fault(length)):
        raise ConfigError(f"step scores do not fit their response of {length} tokens: {fault}")
    if not length:
        return [], ()
    if steps is None or not steps.ends:
        return [None], (length - 1,)
    if steps.ends[-1] == length - 1:
        return list(steps.values), steps.ends
    if truncated:
        return [*steps.values, None], (*steps.ends, length - 1)
    return list(steps.values), (*steps.ends[:-1], length - 1)


def over_tokens(values_S: Array, ends: Sequence[int], length: int) -> Array:
    """Each token has the value of its step. Shape (T,)."""
    sizes = np.array([after - before for before, after in zip((-1, *ends), ends, strict=False)], dtype=np.int64)
    assert sizes.sum() == length, "steps must cover all tokens"
    spread_T: Array = np.repeat(values_S, sizes)
    return spread_T


def at_ends(values_S: Array, ends: Sequence[int], length: int) -> Array:
    """Each step's value at its last token, 0 elsewhere. Shape (T,)."""
    values_T = np.zeros(length)
    values_T[list(ends)] = values_S
    return values_T
