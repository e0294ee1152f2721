"""Repetition: the n-gram penalty, and loops found while a row is still being drawn.

`NgramPenalty` is max_penalty * (1 - unique / total) over the n-grams of a response (Yeo et al., arXiv
2502.03373, appendix C.2; TRL counts token ids, open-r1 lower-case words), 0 for fewer than n units.

A row x ends in a loop of period p when x[j] = x[j - p] for its last r positions j; the loop then covers
r + p units, (r + p) / p repeats. `find_loop` asks whether a finished row ends in one: the matches of every
shift p against the reversed row are its Z-function, of which only the first max_period entries are needed, so
that the whole costs O(n + max_period) comparisons. `LoopDetector` asks the same after every token. Let q_p be
the matches that complete a loop of period p. Any q_p positions in a row hold exactly one multiple of q_p, so
it is enough to probe shift p there, one comparison each: sum_p 1 / q_p of them a token, about
ln(max_period) / (min_repeats - 1) however the row looks. A probe that matches is followed back to where its
run began, which tells the one moment at which the loop can complete; there, one slice comparison settles it.
The answer is that of `find_loop` on every prefix, at the first prefix that has a loop.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from verifiers.core import Problem, Response, Verdict
from verifiers.errors import ConfigError
from verifiers.length import Unit, check_unit, token_ids_of


def _units(owner: str, response: Response, unit: Unit) -> Sequence[Hashable]:
    if unit == "tokens":
        return token_ids_of(owner, response)
    return list(response.text) if unit == "characters" else response.text.lower().split()


@dataclass(frozen=True, kw_only=True)
class NgramPenalty:
    """max_penalty * (1 - unique n-grams / n-grams), in [max_penalty, 0]."""

    size: int = 3
    """n."""
    max_penalty: float = -1.0
    """What a response of nothing but repeats approaches; negative."""
    unit: Unit = "tokens"
    """What n-grams are made of; words are compared in lower case."""

    def __post_init__(self) -> None:
        check_unit("NgramPenalty", self.unit)
        if self.size < 1:
            raise ConfigError(f"NgramPenalty.size must be 1 or more; got {self.size}")
        if not (math.isfinite(self.max_penalty) and self.max_penalty < 0.0):
            raise ConfigError(
                f"NgramPenalty.max_penalty must be finite and negative, 0 would have no effect; got {self.max_penalty}"
            )

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Graded verdicts. Raises ConfigError where tokens are asked for and absent."""
        return [self._penalise(_units("NgramPenalty", response, self.unit)) for response in responses]

    def _penalise(self, units: Sequence[Hashable]) -> Verdict:
        total = len(units) - self.size + 1
        if total < 1:
            return Verdict.graded(0.0, f"shorter than {self.size} {self.unit}", kind="ngram")
        unique = len(set(zip(*(units[i:] for i in range(self.size)), strict=False)))
        # The product with 1 - 1 would be -0.0.
        score = 0.0 if unique == total else self.max_penalty * (1.0 - unique / total)
        return Verdict.graded(score, f"{unique} of {total} {self.size}-grams are different", kind="ngram")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A row's tail that repeats itself."""

    start: int
    """Index of the first unit that belongs to it."""
    period: int
    """Units in one repeat."""
    repeats: int
    """Whole repeats; a partial one may precede them."""


@dataclass(frozen=True, kw_only=True)
class LoopRule:
    """What counts as a loop."""

    max_period: int = 200
    """Longest repeat looked for, in units."""
    min_period: int = 1
    """Shortest repeat looked for. A run of one unit repeats with every period that fits into it."""
    min_repeats: int = 4
    """Whole repeats that make a loop."""
    min_length: int = 32
    """Units the loop must cover, so that 10000, 0.3333333333333333 or a ruled line is none."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_period <= self.max_period:
            raise ConfigError(
                f"a loop rule needs 1 <= min_period <= max_period; got {self.min_period} and {self.max_period}"
            )
        if self.min_repeats < 2:
            raise ConfigError(f"min_repeats must be 2 or more; got {self.min_repeats}")
        if self.min_length < 1:
            raise ConfigError(f"min_length must be 1 or more units; got {self.min_length}")

    def matches(self, period: int) -> int:
        """q_p: how many positions in a row must equal the one `period` before them."""
        return max(period * self.min_repeats, self.min_length) - period


def find_loop(
    tokens: Sequence[Hashable],
    *,
    max_period: int = 200,
    min_period: int = 1,
    min_repeats: int = 4,
    min_length: int = 32,
) -> Loop | None:
    """The loop a row ends in, of the shortest period that has one, or None; settings as in `LoopRule`.

    Takes anything with an equality: token ids, words, a string. O(len(tokens) + max_period).
    Raises ConfigError for an impossible rule.
    """
    rule = LoopRule(max_period=max_period, min_period=min_period, min_repeats=min_repeats, min_length=min_length)
    row = tokens[::-1]
    size = len(row)
    z = [0] * (min(rule.max_period, size) + 1)
    left = right = 0  # row[left:right] is the prefix match that reaches furthest
    for period in range(1, min(rule.max_period, size) + 1):
        run = min(z[period - left], right - period) if period < right else 0
        while period + run < size and row[run] == row[period + run]:
            run += 1
        z[period] = run
        if period + run > right:
            left, right = period, period + run
        if period >= rule.min_period and run >= rule.matches(period):
            return Loop(start=size - run - period, period=period, repeats=(run + period) // period)
    return None


class LoopDetector:
    """Watches a row token by token and says when it has gone into a loop.

        detector = LoopDetector()
        if detector.push(token):        # True from the token that completes a loop
            print(detector.loop)

    `push` agrees with `find_loop` on every prefix up to the first that has a loop and stays True after it;
    `reset` begins a new row. Settings as in `LoopRule`; ConfigError for an impossible rule.
    """

    def __init__(
        self, *, max_period: int = 200, min_period: int = 1, min_repeats: int = 4, min_length: int = 32
    ) -> None:
        self.rule = LoopRule(
            max_period=max_period, min_period=min_period, min_repeats=min_repeats, min_length=min_length
        )
        self._need = {p: self.rule.matches(p) for p in range(min_period, max_period + 1)}
        self.reset()

    def reset(self) -> None:
        """Forget the row."""
        self.loop: Loop | None = None
        self._row: list[Hashable] = []
        # Position -> the shifts to look at there. A negative entry -p is no probe: it completes a run of p.
        self._due: dict[int, list[int]] = {}
        for period, need in self._need.items():
            first = -(-period // need) * need  # the first multiple of need that has a unit one period back
            self._due.setdefault(first, []).append(period)

    def push(self, token: Hashable) -> bool:
        """Take the next token; True when the row has ended in a loop now or before."""
        now = len(self._row)
        self._row.append(token)
        due = self._due.pop(now, None)
        if due is not None and self.loop is None:
            self._look(now, due)
        return self.loop is not None

    def _look(self, now: int, due: list[int]) -> None:
        row, found = self._row, []
        for shift in due:
            if shift < 0:
                # The run began need - 1 positions ago; what the probe had not seen yet is compared here.
                period, need = -shift, self._need[-shift]
                seen = now - now % need
                if row[seen + 1 :] == row[seen + 1 - period : now + 1 - period]:
                    found.append(period)
                continue
            need = self._need[shift]
            self._due.setdefault(now + need, []).append(shift)
            if row[now] != row[now - shift]:
                continue
            begin, least = now, max(now - need + 1, shift)
            while begin > least and row[begin - 1] == row[begin - 1 - shift]:
                begin -= 1
            end = begin + need - 1
            if end == now:
                found.append(shift)
            else:
                self._due.setdefault(end, []).append(-shift)
        if found:
            period, need = min(found), self._need[min(found)]
            self.loop = Loop(start=now + 1 - need - period, period=period, repeats=(need + period) // period)


@dataclass(frozen=True, kw_only=True)
class LoopPenalty:
    """`penalty` for a response that ends in a loop, 0 for any other."""

    penalty: float = -1.0
    """Score of a response that ends in a loop; negative."""
    unit: Unit = "tokens"
    """What periods count; words are compared in lower case."""
    rule: LoopRule = field(default_factory=LoopRule)
    """What counts as a loop."""

    def __post_init__(self) -> None:
        check_unit("LoopPenalty", self.unit)
        if not (math.isfinite(self.penalty) and self.penalty < 0.0):
            raise ConfigError(
                f"LoopPenalty.penalty must be finite and negative, 0 would have no effect; got {self.penalty}"
            )

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Graded verdicts. Raises ConfigError where tokens are asked for and absent."""
        return [self._penalise(_units("LoopPenalty", response, self.unit)) for response in responses]

    def _penalise(self, units: Sequence[Hashable]) -> Verdict:
        rule = self.rule
        loop = find_loop(
            units,
            max_period=rule.max_period,
            min_period=rule.min_period,
            min_repeats=rule.min_repeats,
            min_length=rule.min_length,
        )
        if loop is None:
            return Verdict.graded(0.0, "does not end in a loop", kind="loop")
        reason = f"ends in {loop.repeats} repeats of {loop.period} {self.unit} from {loop.start} on"
        return Verdict.graded(self.penalty, reason, kind="loop")
