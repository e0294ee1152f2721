"""Step scores -> one score for a response, and -> marginal rewards.

    min      the weakest step                                  (Lightman et al. 2023, arXiv 2305.20050)
    product  probability that every step is good, were they independent     (the same)
    last     the score after the last step                     (Snell et al. 2024, arXiv 2408.03314)
    mean     the average step

`marginal` gives r_t = Phi_t - Phi_{t-1} with Phi_0 given: the sum telescopes to Phi_T - Phi_0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from verifiers.errors import ConfigError

Reduction: TypeAlias = Literal["min", "product", "last", "mean"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)


def response_score(step_scores: Sequence[float], reduction: Reduction = "min") -> float:
    """One score for a response. A response without steps scores 0: nothing in it was found good."""
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    if any(not 0.0 <= score <= 1.0 for score in step_scores):
        raise ConfigError(f"step scores must lie in [0, 1]; got {list(step_scores)!r}")
    if not step_scores:
        return 0.0
    if reduction == "min":
        return min(step_scores)
    if reduction == "product":
        return math.prod(step_scores)
    if reduction == "last":
        return step_scores[-1]
    return sum(step_scores) / len(step_scores)


def marginal(step_scores: Sequence[float], *, start: float) -> list[float]:
    """r_t = Phi_t - Phi_{t-1}, one a step, with Phi_0 = `start`."""
    before = [start, *step_scores][:-1]
    return [after - previous for previous, after in zip(before, step_scores, strict=True)]
