"""What a reinforcement-learning run says of itself: its logged steps, alarms, held-out measurements and responses.

    steps       rows of metrics.jsonl with an outcome or a held-out measurement
    alarms      of each name the training steps at which it rang, from the rows' `alarms`
    held out    pass@1 and pass@k of a row; from its right responses of each problem (`heldout/right`) a 95 % bootstrap
                interval over problems (Wilson's where all problems are alike, as none right of 20 is not exactly 0),
                and of first and last measurement the paired difference over problems
    responses   rows of rollouts.jsonl: of the first, middle and last step, and of steps at which an alarm began

A log without right responses a problem gives measurements without intervals; one without alarm rows, alarms without
messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardkit.report.contents import Estimate, RolloutResponse, RolloutStep
from rewardkit.report.fields import Fields, is_number, rows
from rewardkit.report.words import wilson
from search.estimators import bootstrap, paired_difference, pass_at

MOST_BEGUN = 3
"""Steps at which an alarm began whose responses are shown."""
RESAMPLES = 500
"""Of the interval of one measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarmed:
    """A guard's alarm over the whole run."""

    name: str
    """Empty where the log does not tell which one."""
    message: str
    """Of its first step; empty where the log has none."""
    first: int | None
    """Step at which it began to ring; None where the log does not say."""
    last: int | None
    steps: int
    """At how many steps it rang."""
    end: int
    """The run's last logged step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One measurement on held-out problems."""

    step: int
    passed: Mapping[int, Estimate]
    """k -> pass@k."""
    samples: int | None
    """Responses a problem."""
    right: tuple[int | None, ...]
    """Right responses of each problem, None: undecided. Empty where the log has none."""


def rl_rows(metrics: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of a reinforcement-learning run, by rising step; empty for another run."""
    found = [
        row
        for row in metrics
        if is_number(row.get("step")) and ("outcome/mean" in row or any(name.startswith("heldout/") for name in row))
    ]
    return sorted(found, key=lambda row: float(row["step"]))


def alarms(steps: Sequence[Mapping[str, Any]], named: Sequence[str] = ()) -> tuple[Alarmed, ...]:
    """Every alarm that rang, a collapse first, then by its first step. `named` are names that a log may not tell of."""
    last = max((int(row["step"]) for row in steps), default=0)
    rang: dict[str, list[tuple[int, str]]] = {}
    silent: list[int] = []
    for row in steps:
        said = [one for one in row.get("alarms") or () if isinstance(one, Mapping)]
        for one in said:
            rang.setdefault(str(one.get("name", "")), []).append((int(row["step"]), str(one.get("message", ""))))
        if not said and is_number(row.get("guard/alarms")) and row["guard/alarms"] > 0:
            silent.append(int(row["step"]))
    found = [
        Alarmed(name=name, message=said[0][1], first=said[0][0], last=said[-1][0], steps=len(said), end=last)
        for name, said in rang.items()
    ]
    untold = [name for name in named if name not in rang]
    if not rang and (untold or silent):
        first, until = (silent[0], silent[-1]) if silent else (None, None)
        found += [
            Alarmed(name=name, message="", first=first, last=until, steps=len(silent), end=last)
            for name in untold or [""]
        ]
    return tuple(sorted(found, key=lambda one: (one.name != "reward_collapse", one.first or 0)))


def held_out(steps: Sequence[Mapping[str, Any]]) -> tuple[Measured, ...]:
    """The measurements on held-out problems, by rising step."""
    found = []
    for row in steps:
        ks = {int(match[1]): name for name in row if (match := re.fullmatch(r"heldout/pass@(\d+)", name))}
        if not ks:
            continue
        samples, counts = row.get("heldout/samples"), row.get("heldout/right")
        size = int(samples) if is_number(samples) else None
        right: tuple[int | None, ...] = ()
        if size and isinstance(counts, list) and all(one is None or one in range(size + 1) for one in counts):
            right = tuple(counts)
        found.append(
            Measured(
                step=int(row["step"]),
                passed={k: _estimate(row, ks[k], _rates(right, size, k)) for k in sorted(ks) if is_number(row[ks[k]])},
                samples=size,
                right=right,
            )
        )
    return tuple(found)


def gained(first: Measured, last: Measured, k: int) -> Estimate | None:
    """pass@k of the last minus the first measurement over problems that both decided; None where none can be paired."""
    before, after = (_rates(one.right, one.samples, k) for one in (first, last))
    pairs = [(b, a) for b, a in zip(before, after, strict=False) if b is not None and a is not None]
    if len(before) != len(after) or not pairs:
        return None
    found = paired_difference([after for _, after in pairs], [before for before, _ in pairs])
    return Estimate(mean=found.mean, low=found.low, high=found.high, problems=found.n)


def _rates(right: Iterable[int | None], samples: int | None, k: int) -> list[float | None]:
    """pass@k of each problem."""
    if samples is None or not 1 <= k <= samples:
        return []
    return [None if n is None else pass_at([True] * n + [False] * (samples - n), k) for n in right]


def _estimate(row: Mapping[str, Any], name: str, rates: Sequence[float | None]) -> Estimate:
    known = [rate for rate in rates if rate is not None]
    problems = row.get("heldout/problems")
    count = int(problems) if is_number(problems) else len(known)
    if not known:
        return Estimate(mean=float(row[name]), low=None, high=None, problems=count)
    found = bootstrap(known, resamples=RESAMPLES)
    low, high = (found.low, found.high) if len(set(known)) > 1 else wilson(known[0], len(known))
    return Estimate(mean=float(row[name]), low=low, high=high, problems=count)


def read_rollouts(path: Path, begun: Sequence[int], notes: dict[str, str]) -> tuple[RolloutStep, ...]:
    """The responses of first, middle and last step in rollouts.jsonl and of the first few of the steps `begun`."""
    present = [row.whole("step") for row in rows(path, notes)]
    if not present:
        return ()
    known = sorted(set(present))
    reasons: dict[int, str] = {known[0]: "first step"}
    if len(known) > 2:
        reasons[known[len(known) // 2]] = "in the middle"
    reasons.setdefault(known[-1], "last step")
    for step in [step for step in dict.fromkeys(begun) if step in known][:MOST_BEGUN]:
        reasons[step] = f"{reasons[step]}; an alarm began" if step in reasons else "an alarm began"
    # A step that was written twice counts as it was written last.
    wanted = {step: place for place, step in enumerate(present) if step in reasons}
    found = [_rollout_step(row, reasons) for place, row in enumerate(rows(path, notes)) if place in wanted.values()]
    return tuple(sorted(found, key=lambda one: one.step))


def _rollout_step(row: Fields, reasons: Mapping[int, str]) -> RolloutStep:
    return RolloutStep(
        step=row.whole("step"),
        why=reasons[row.whole("step")],
        problem_id=row.plain("problem_id"),
        prompt=row.prompt("prompt"),
        answer=row.plain("answer"),
        responses=row.all("responses", _response, optional=False),
    )


def _response(row: Fields) -> RolloutResponse:
    parts = row.take("parts", "an object", lambda value: isinstance(value, dict), optional=True) or {}
    own = Fields(parts, f"{row.where}: parts")
    return RolloutResponse(
        text=row.text("text"),
        reward=row.maybe_number("reward"),
        parts=tuple((name, own.maybe_number(name)) for name in parts),
        unscored=row.maybe_text("unscored"),
        stop_reason=row.text("stop_reason"),
    )
