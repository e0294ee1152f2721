"""How far the log-probabilities that a sampler reports are from those that a trainer reads with the same weights.

The gap is the mean of |l - mu| over tokens. It says whether sampler and trainer are one policy, so both must have the
same weights: where a response's weights are those that are about to learn, the first update of a step measures it in
passing; where they are not, it is read here, on a few of the continuations just drawn and with the weights that drew
them. A gap above its limit ends a run. One above three times the median of the last 20 is an alarm even below it,
unless it is less than a hundredth of the limit, where rounding alone may do that.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from rewardkit.rl.credit.guards import Alarm
from rewardkit.rl.policy.reader import Drawn, TokenReader
from verifiers.core import Continuation
from verifiers.errors import EngineError

ROWS = 8
"""Continuations that are read."""
REMEMBERED = 20
"""Gaps whose median a new one is held against."""
FEWEST = 5
"""Of them before there is an alarm."""
JUMP = 3.0
FLOOR = 0.01
"""Share of the limit below which nothing is an alarm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """|l - mu| added up over tokens, and their number."""

    total: float = 0.0
    tokens: int = 0

    def __add__(self, other: Gap) -> Gap:
        return Gap(total=self.total + other.total, tokens=self.tokens + other.tokens)

    @property
    def mean(self) -> float:
        """A token's; 0 without tokens."""
        return self.total / max(1, self.tokens)


@torch.no_grad()
def measure(
    reader: TokenReader,
    drawn: Sequence[tuple[tuple[int, ...], Continuation]],
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Gap:
    """The gap on the first of these continuations behind their prefixes; the reader has the weights that drew them."""
    some = [(prefix, one) for prefix, one in drawn if one.token_ids][:ROWS]
    if not some:
        return Gap()
    with autocast():
        found_BT = reader.read([Drawn(prompt=prefix, response=one.token_ids) for prefix, one in some]).logprobs
    total = 0.0
    for row_T, (_, one) in zip(found_BT.double().cpu(), some, strict=True):
        total += float((row_T[: len(one.logprobs)] - torch.tensor(one.logprobs, dtype=torch.float64)).abs().sum())
    return Gap(total=total, tokens=sum(len(one.token_ids) for _, one in some))


class GapGuard:
    """Ends a run whose gap is too large and rings where it jumps; remembers the last gaps."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._last: list[float] = []
        self._ringing = False

    def observe(self, mean: float, step: int) -> tuple[Alarm, ...]:
        """Look at a step's gap. Raises EngineError for one above the limit, and for one that is no number."""
        if not mean <= self.limit:
            raise EngineError(
                f"the sampler's log-probabilities are {mean:.2g} from the trainer's on average in step {step}, "
                f"more than gap={self.limit:g}: it draws from other weights or at another precision; "
                "mend it, or raise gap"
            )
        usual = statistics.median(self._last) if len(self._last) >= FEWEST else None
        rings = usual is not None and mean > max(JUMP * usual, FLOOR * self.limit)
        new, self._ringing = rings and not self._ringing, rings
        self._last = [*self._last, mean][-REMEMBERED:]
        if not rings:
            return ()
        return (
            Alarm(
                name="sampler_gap",
                message=f"the sampler's log-probabilities are {mean:.2g} from the trainer's on average, more than "
                f"{JUMP:g} times the {usual:.2g} that is usual: look whether they still have the same weights",
                new=new,
            ),
        )

    def to_state(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return {"last": list(self._last), "ringing": self._ringing}

    def from_state(self, state: dict[str, Any]) -> None:
        """What `to_state` gave."""
        self._last, self._ringing = list(state["last"]), state["ringing"]
