"""How many roll-outs a step needs: rules that look at what came so far and ask for more or decide.

    fixed       K roll-outs, always.
    early stop  as fixed, but stops once no outcome of the rest of the K could change the hard label: "any success"
                at the first success; "a share of at least theta" once successes / (successes + failures + rest) is at
                least theta, or (successes + rest) / (that) is below. The label is that of the same K roll-outs.
    sequential  Wald's test of V <= low against V >= high, V the chance of success: with
                L = s log(high / low) + f log((1 - high) / (1 - low)), good once L >= log(1 / error), bad once
                L <= log(error). exp(L) is a martingale under V = low and exp(-L) under V = high, so by Ville's
                inequality each wrong decision has a chance of at most `error`, whatever the number of looks (Wald's
                usual bounds (1 - b) / a hold only approximately). After K roll-outs without a decision: no label.

Both may draw several roll-outs between looks: always the same number, or (`doubling`) as many again as were drawn so
far, so that a step of K failures waits for log2 K rounds and not for K, at the price of a few roll-outs too many.

An undecided verdict counts neither way. `characteristic` computes exactly, by dynamic programming over (successes,
failures), what a rule does at a given V.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Protocol

from verifiers.core import Outcome
from verifiers.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What the roll-outs from one step came to."""

    successes: int = 0
    failures: int = 0
    undecided: int = 0

    @property
    def drawn(self) -> int:
        """All roll-outs."""
        return self.successes + self.failures + self.undecided

    @property
    def decided(self) -> int:
        """Roll-outs with a verdict."""
        return self.successes + self.failures

    def plus(self, outcome: Outcome) -> Tally:
        """With one more."""
        if outcome is Outcome.CORRECT:
            return replace(self, successes=self.successes + 1)
        if outcome is Outcome.INCORRECT:
            return replace(self, failures=self.failures + 1)
        return replace(self, undecided=self.undecided + 1)


class StoppingRule(Protocol):
    """Decides one step. Implementations are values: equal tallies give equal answers."""

    def more(self, tally: Tally) -> int:
        """How many roll-outs to draw next; 0 when there is nothing more to learn."""
        ...

    def label(self, tally: Tally) -> bool | None:
        """The hard label; None when there is none."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedTrials:
    """K roll-outs. `threshold` 0 means any success; above 0, at least that share."""

    trials: int
    threshold: float = 0.0

    def more(self, tally: Tally) -> int:
        """What is left of K."""
        return self.trials - tally.drawn

    def label(self, tally: Tally) -> bool | None:
        """By the share of successes among decided roll-outs."""
        if not tally.decided:
            return None
        return tally.successes > 0 if self.threshold == 0 else tally.successes >= self.threshold * tally.decided


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlyStop:
    """The label of `FixedTrials`, from as few of its roll-outs as settle it. `at_once` are drawn at a time, or more."""

    trials: int
    threshold: float = 0.0
    at_once: int = 1
    doubling: bool = False

    def more(self, tally: Tally) -> int:
        """The next few, while the rest could still change the label."""
        rest = self.trials - tally.drawn
        if not rest or self._settled(tally, rest):
            return 0
        return min(_next(self, tally), rest)

    def _settled(self, tally: Tally, rest: int) -> bool:
        if self.threshold == 0:
            return tally.successes > 0
        most = tally.decided + rest
        return tally.successes >= self.threshold * most or tally.successes + rest < self.threshold * most

    def label(self, tally: Tally) -> bool | None:
        """That of all K roll-outs."""
        rest = self.trials - tally.drawn
        if rest and self.threshold:
            return tally.successes >= self.threshold * (tally.decided + rest)
        return FixedTrials(trials=self.trials, threshold=self.threshold).label(tally)


@dataclass(frozen=True, kw_only=True, slots=True)
class SequentialTest:
    """Is V at most `low`, or at least `high`? Each wrong answer has a chance of at most `error`."""

    trials: int
    low: float = 0.05
    high: float = 0.3
    error: float = 0.05
    at_once: int = 1
    doubling: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < 1:
            raise ConfigError(f"the test needs 0 < low < high < 1; got low={self.low!r} and high={self.high!r}")
        if not 0 < self.error < 0.5:
            raise ConfigError(f"the test's error must lie between 0 and 0.5; got {self.error!r}")

    def _evidence(self, tally: Tally) -> float:
        won, lost = math.log(self.high / self.low), math.log((1 - self.high) / (1 - self.low))
        return tally.successes * won + tally.failures * lost

    def more(self, tally: Tally) -> int:
        """The next few, while neither bound is reached and K is not used up."""
        if abs(self._evidence(tally)) >= -math.log(self.error):
            return 0
        return min(_next(self, tally), self.trials - tally.drawn)

    def label(self, tally: Tally) -> bool | None:
        """The decision, or None when K roll-outs brought none."""
        evidence = self._evidence(tally)
        return evidence > 0 if abs(evidence) >= -math.log(self.error) else None


def _next(rule: EarlyStop | SequentialTest, tally: Tally) -> int:
    return max(rule.at_once, tally.drawn) if rule.doubling else rule.at_once


@dataclass(frozen=True, kw_only=True, slots=True)
class Characteristic:
    """What a rule does with a step whose chance of success is known."""

    good: float
    bad: float
    unlabelled: float
    rollouts: float
    """Expected number drawn."""


def characteristic(rule: StoppingRule, value: float) -> Characteristic:
    """Exact chances of each label and expected roll-outs at V = `value`, with no undecided verdicts."""
    if not 0 <= value <= 1:
        raise ConfigError(f"a chance of success lies in [0, 1]; got {value!r}")
    reached: dict[tuple[int, int], float] = {(0, 0): 1.0}
    ends: dict[bool | None, float] = defaultdict(float)
    rollouts = 0.0
    while reached:
        following: dict[tuple[int, int], float] = defaultdict(float)
        for (won, lost), chance in reached.items():
            tally = Tally(successes=won, failures=lost)
            count = rule.more(tally)
            if not count:
                ends[rule.label(tally)] += chance
                rollouts += chance * tally.drawn
            for more in range(count + 1) if count else ():
                weight = math.comb(count, more) * value**more * (1 - value) ** (count - more)
                if weight:
                    following[won + more, lost + count - more] += chance * weight
        reached = following
    return Characteristic(good=ends[True], bad=ends[False], unlabelled=ends[None], rollouts=rollouts)
