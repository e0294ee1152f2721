"""The part of a page about a reinforcement-learning run: alarms first, a line on where it went, panels, other figures.

where it went    held-out pass@1 before and after with 95 % intervals over problems, and their paired difference;
                 the mean outcome of drawn responses over the first and the last steps, a tenth of the run, ten at most
cost             seconds by phase, tokens learned from
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from rewardkit.report import words
from rewardkit.report.contents import Estimate, Run
from rewardkit.report.fields import is_number
from rewardkit.report.figures import Chart, Series, metric_series
from rewardkit.report.rl_charts import HELD_OUT, Group, Row, groups, phases
from rewardkit.report.rl_reading import Alarmed, Measured, alarms, gained, held_out, rl_rows

ALARMS: Mapping[str, str] = {
    "reward_collapse": "The reward has collapsed",
    "length_drift": "The length of responses has drifted",
    "step_count_drift": "The number of steps in a response has drifted",
    "repeated_steps": "Responses repeat their steps",
    "separators_only": "Responses have no content",
    "step_scorer": "The step scorer is not trusted",
    "sampler_gap": "Sampler and trainer have moved apart",
    "": "An alarm rang",
}
TOLD = ("regime", "rewards", "steps", "outcome_first", "outcome_last", "held_out_first", "held_out_last", "alarms")
"""Facts of results.json that stand elsewhere on the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmLine:
    """An alarm in words."""

    title: str
    when: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What the templates need of the run."""

    alarms: Sequence[AlarmLine]
    lines: Sequence[str]
    regime: str
    facts: Sequence[tuple[str, str]]
    groups: Sequence[Group]
    other: Mapping[str, Sequence[Series]]
    """Logged numbers that no panel draws."""

    @property
    def charts(self) -> list[Chart]:
        """All of them, as they stand."""
        return [chart for group in self.groups for chart in group.charts]


def section(run: Run) -> Section | None:
    """The section, or None for another run."""
    steps = rl_rows(run.metrics)
    if not steps:
        return None
    facts = dict(run.results.facts)
    named = facts.get("alarms")
    rang = alarms(steps, [str(name) for name in named] if isinstance(named, list) else ())
    measured = held_out(steps)
    found, drawn = groups(steps, measured, rang)
    job = _job(run.config)
    return Section(
        alarms=[_alarm_line(alarm) for alarm in rang],
        lines=[line for line in (_what(steps, facts, job), *_where(steps, measured), _cost(steps)) if line],
        regime=str(facts.get("regime") or ""),
        facts=[(name, words.plain(value)) for name, value in facts.items() if name not in TOLD],
        groups=found,
        other={name: one for name, one in metric_series(steps).items() if name not in drawn},
    )


def _job(config: str) -> Mapping[str, Any]:
    """config.yaml as values; empty where it is none."""
    try:
        value = yaml.safe_load(config)
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def _alarm_line(alarm: Alarmed) -> AlarmLine:
    title = ALARMS.get(alarm.name, alarm.name.replace("_", " "))
    message = f"{alarm.message[:1].upper()}{alarm.message[1:]}." if alarm.message else ""
    if alarm.first is None or alarm.last is None:
        return AlarmLine(title=title, when="the log does not say at which step", message=message)
    when = f"at step {words.number(alarm.first)}"
    if alarm.last > alarm.first:
        until = "to the end" if alarm.last == alarm.end else f"last at step {words.number(alarm.last)}"
        when = f"from step {words.number(alarm.first)}, {until} ({words.number(alarm.steps)} steps)"
    return AlarmLine(title=title, when=when, message=message)


def _what(steps: Sequence[Row], facts: Mapping[str, Any], job: Mapping[str, Any]) -> str:
    """Preset, rewards, steps."""
    preset = str(job.get("preset") or str(facts.get("regime") or "").partition(":")[0])
    rewards = facts.get("rewards") or job.get("rewards")
    done, planned = int(steps[-1]["step"]), job.get("steps")
    known = is_number(planned) and planned != done
    reached = f"{words.number(done)} of {words.number(planned)} steps" if known and is_number(planned) else ""
    text = reached or f"{words.number(done)} {'step' if done == 1 else 'steps'}"
    return f"{preset or 'A run'} for {words.plain(rewards)}: {text}." if rewards else f"{preset or 'A run'}: {text}."


def _where(steps: Sequence[Row], measured: Sequence[Measured]) -> list[str]:
    """Where it began and ended."""
    found = []
    if measured:
        first, last = measured[0], measured[-1]
        for k in sorted(set(first.passed) & set(last.passed)):
            found.append(_between(first, last, k))
        other = "" if last.samples is None else f", {words.number(last.samples)} responses each"
        problems = max((one.problems for one in last.passed.values()), default=0)
        if found:
            found[-1] += f" Measured on {words.number(problems)} problems{other}."
    outcomes = [float(row["outcome/mean"]) for row in steps if is_number(row.get("outcome/mean"))]
    if len(outcomes) > 1:
        width = max(1, min(10, len(outcomes) // 10))
        before, after = sum(outcomes[:width]) / width, sum(outcomes[-width:]) / width
        span = "step" if width == 1 else f"{width} steps"
        found.append(
            f"Mean outcome of drawn responses: {_value(before, outcomes)} in the first {span}, "
            f"{_value(after, outcomes)} in the last."
        )
    return found


def _between(first: Measured, last: Measured, k: int) -> str:
    begun = "before the first step" if first.step == 0 else f"after step {words.number(first.step)}"
    text = f"Held-out pass@{k}: {_with_interval(first.passed[k])} {begun}"
    if last is first or last.step == first.step:
        return text + "."
    text += f" → {_with_interval(last.passed[k])} after step {words.number(last.step)}"
    gain = gained(first, last, k)
    if gain is None or gain.low is None or gain.high is None:
        return text + "."
    verdict = "no difference shown" if gain.low <= 0 <= gain.high else ("better" if gain.mean > 0 else "worse")
    return (
        f"{text}: {words.points(gain.mean)} points [{words.points(gain.low)} to {words.points(gain.high)}], {verdict}."
    )


def _with_interval(e: Estimate) -> str:
    return words.percent(e.mean) + (f" [{words.interval(e.low, e.high)}]" if e.low is not None else "")


def _value(value: float, among: Sequence[float]) -> str:
    """Percent where all outcomes are shares."""
    return words.percent(value) if all(0 <= one <= 1 for one in among) else words.number(value)


def _cost(steps: Sequence[Row]) -> str:
    """Time by phase and tokens."""
    spent: dict[str, float] = {}
    for row in steps:
        for name, value in phases(row).items():
            spent[name] = spent.get(name, 0.0) + value
    total = sum(spent.values())
    if not total:
        return ""
    shares = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in spent.items())
    text = f"The steps took {words.seconds(total)} ({shares})"
    tokens = sum(float(row["tokens"]) for row in steps if is_number(row.get("tokens")))
    if tokens:
        text += f" for {tokens:,.0f} tokens of responses, {tokens / total:,.0f} a second"
    aside = sum(float(row[HELD_OUT]) for row in steps if is_number(row.get(HELD_OUT)))
    return text + (f"; held-out measurements took {words.seconds(aside)} more." if aside else ".")
