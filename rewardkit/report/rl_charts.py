"""The curves of a reinforcement-learning run, in small panels: one look says whether it learns, and what goes wrong.

A panel (`rl_panels.py`) draws the metrics that its lines name. A line without data is left out, as is one that says
nothing (a share that was 0 throughout), and so is a panel without lines. What is not a metric of its own:

    share of a count     advantage/<count> / advantage/responses, draw/kept / draw/groups
    tokens a second      tokens learned from / seconds of the step's phases
    seconds a phase      stacked; means over stretches of steps, so that the areas add up

Curves have at most 400 points, lows and highs among them; a dashed upright marks the step at which an alarm began.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from markupsafe import escape

from rewardkit.report import words
from rewardkit.report.fields import is_number
from rewardkit.report.figures import PALETTE, Chart, Series, add_series, blank_figure, kept_points, metric_series
from rewardkit.report.rl_panels import PANELS, Line, Panel, lines_of
from rewardkit.report.rl_reading import Alarmed, Measured

MOST = 400
"""Points of a curve."""
STRETCHES = 200
"""Points of a stacked area."""
MARKED = 30
"""Most measurements that are drawn with points."""
HEIGHT = 230
DASHES = ("solid", "dash", "dot")
SECONDS = "seconds/"
HELD_OUT = "seconds/heldout"
ASIDE = (HELD_OUT, "seconds/reward_work")
"""Spent beside the steps, or while another phase ran."""
ALARM_COLOUR = "#9c3b00"

Row: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Panels that belong together."""

    heading: str
    charts: tuple[Chart, ...]


def groups(
    steps: Sequence[Row], measured: Sequence[Measured], alarmed: Sequence[Alarmed]
) -> tuple[list[Group], frozenset[str]]:
    """The panels that have data, and the names of the metrics drawn."""
    series = {
        name: _rounded(one[0]) for name, one in metric_series([{**row, **_derived(row)} for row in steps]).items()
    }
    drawn: set[str] = set()
    found: list[tuple[str, list[Chart]]] = []
    for heading, own in PANELS.items():
        charts = [chart for panel in own if (chart := _chart(panel, series, alarmed, drawn)) is not None]
        if not found:
            charts = [chart for chart in (_held_out(measured, drawn),) if chart is not None] + charts
        found.append((heading, charts))
    found.append(("Time", [chart for chart in (_seconds(steps, drawn), _speed(series, drawn)) if chart is not None]))
    return [Group(heading=heading, charts=tuple(charts)) for heading, charts in found if charts], frozenset(drawn)


def phases(row: Row) -> dict[str, float]:
    """Seconds of a step by phase."""
    return {
        name.removeprefix(SECONDS): float(value)
        for name, value in row.items()
        if name.startswith(SECONDS) and name not in ASIDE and is_number(value)
    }


def _derived(row: Row) -> dict[str, float]:
    """Shares, and tokens a second."""
    over = {"share/kept": ("draw/kept", "draw/groups"), "tokens/second": ("tokens", "")}
    for count in ("constant", "lone"):
        over[f"share/{count}"] = (f"advantage/{count}", "advantage/responses")
    found = {}
    for name, (part, whole) in over.items():
        total = row.get(whole) if whole else sum(phases(row).values())
        if is_number(row.get(part)) and is_number(total) and total > 0:
            found[name] = row[part] / total
    return found


def _rounded(series: Series) -> Series:
    """Six digits are enough for a curve, and keep the page small."""
    return replace(series, values=tuple(float(f"{value:.6g}") for value in series.values))


def _named(lines: Sequence[Line], series: Mapping[str, Series]) -> Iterator[tuple[str, Series]]:
    """(metric, series under its label) of each line that has something to say."""
    for line in lines:
        pattern = re.compile(re.escape(line.metric).replace(r"\*", "(.+)"))
        for name, one in series.items():
            match = pattern.fullmatch(name)
            idle = line.idle
            if match is None or (line.moving and len(set(one.values)) == 1):
                continue
            if idle is not None and all(abs(value - idle) <= line.within for value in one.values):
                continue
            label = line.label.replace("*", match[1]) if "*" in line.metric else line.label
            yield name, replace(one, name=label)


def _merged(curves: Sequence[Series]) -> list[Series]:
    """Curves that lie on each other as one, with both names."""
    found: dict[tuple[tuple[float, ...], tuple[float, ...]], Series] = {}
    for one in curves:
        same = found.get((one.steps, one.values))
        found[one.steps, one.values] = one if same is None else replace(one, name=f"{same.name}, {one.name}")
    return list(found.values())


def _chart(panel: Panel, series: Mapping[str, Series], alarmed: Sequence[Alarmed], drawn: set[str]) -> Chart | None:
    named = list(_named(panel.lines, series))
    if not named:
        return None
    drawn |= {name for name, _ in named}
    curves = _merged([one for _, one in named])
    figure = _blank(panel.axis, [value for one in curves for value in one.values])
    if panel.band is not None and all(name in series for name in panel.band):
        drawn |= set(panel.band)
        low, high = (series[name] for name in panel.band)
        _add_band(figure, low.steps, low.values, high.values, PALETTE[0])
    for index, one in enumerate(curves):
        colour, dash = PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]
        add_series(figure, one, colour, dash=dash, most=MOST, pale=len(curves) <= 2)
    for alarm in alarmed:
        if alarm.name in panel.alarms and alarm.first is not None:
            line = {"color": ALARM_COLOUR, "width": 1.5, "dash": "dash"}
            figure.add_shape(type="line", x0=alarm.first, x1=alarm.first, y0=0, y1=1, yref="paper", line=line)
    figure.update_layout(showlegend=len(curves) > 1)
    return Chart(
        id=f"rl-{panel.id}", heading=panel.heading, spoken=_spoken(curves), figure=figure, caption=panel.caption
    )


def _blank(axis: str, values: Sequence[float]) -> Any:
    least = min(values, default=0.0)
    powers = {"type": "log", "exponentformat": "power", "dtick": 1} if 0 < 20 * least < max(values) else {}
    looks: dict[str, dict[str, Any]] = {
        "share": {"tickformat": ".2~%", "rangemode": "tozero"},
        "unit": {"range": [-0.05, 1.05]},
        "log": powers,
    }
    look = {"zeroline": False, "exponentformat": "power", "nticks": 6, **looks.get(axis, {"tickformat": "~g"})}
    figure = blank_figure(xaxis={"title": {"text": "step", "font": {"size": 12}}, "zeroline": False}, yaxis=look)
    figure.update_layout(height=HEIGHT, margin={"l": 48, "r": 10, "t": 8, "b": 40})
    return figure


def _add_band(figure: Any, steps: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> None:
    """The area between two curves, behind everything else."""
    kept = kept_points(low, MOST)
    shared = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    xs = [steps[i] for i in kept]
    figure.add_scatter(x=xs, y=[high[i] for i in kept], **shared)
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    figure.add_scatter(
        x=xs, y=[low[i] for i in kept], fill="tonexty", fillcolor=f"rgba({red},{green},{blue},0.15)", **shared
    )


def _spoken(curves: Sequence[Series]) -> str:
    return "; ".join(
        f"{one.name}: {words.number(one.values[0])} at step {words.number(one.steps[0])}, "
        f"{words.number(one.values[-1])} at step {words.number(one.steps[-1])}"
        for one in curves
    )


def _held_out(measured: Sequence[Measured], drawn: set[str]) -> Chart | None:
    """pass@1 and pass@k with their intervals over problems."""
    ks = sorted({k for one in measured for k in one.passed})
    if not ks:
        return None
    drawn |= {f"heldout/pass@{k}" for k in ks}
    curves = []
    figure = _blank("share", [])
    banded = False
    for index, k in enumerate(ks):
        own = [(float(one.step), one.passed[k]) for one in measured if k in one.passed]
        ranges = [(step, e.low, e.high) for step, e in own if e.low is not None and e.high is not None]
        colour = PALETTE[index % len(PALETTE)]
        if len(ranges) > 1:
            banded = True
            at, low, high = ([_six(row[n]) for row in ranges] for n in range(3))
            _add_band(figure, at, low, high, colour)
        values = tuple(_six(e.mean) for _, e in own)
        curves.append(Series(name=f"pass@{k}", phase="", steps=tuple(step for step, _ in own), values=values))
        add_series(figure, curves[-1], colour, most=MOST)
        if len(own) <= MARKED:
            figure.data[-1].mode = "lines+markers"
    figure.update_layout(showlegend=len(ks) > 1)
    problems = max(e.problems for one in measured for e in one.passed.values())
    caption = f"{words.number(problems)} problems" + ("; bands are 95 % intervals over them." if banded else ".")
    return Chart(id="rl-heldout", heading="Held-out problems", spoken=_spoken(curves), figure=figure, caption=caption)


def _six(value: float) -> float:
    return float(f"{value:.6g}")


def _seconds(steps: Sequence[Row], drawn: set[str]) -> Chart | None:
    """Seconds a step by phase, stacked."""
    own = [(float(row["step"]), phases(row)) for row in steps if phases(row)]
    names = list(dict.fromkeys(name for _, spent in own for name in spent))
    if not names:
        return None
    drawn |= {SECONDS + name for name in names}
    width = -(-len(own) // STRETCHES)
    stretches = [own[start : start + width] for start in range(0, len(own), width)]
    figure = _blank("number", [])
    curves = []
    for index, name in enumerate(names):
        values = [sum(spent.get(name, 0.0) for _, spent in part) / len(part) for part in stretches]
        curve = Series(
            name=name, phase="", steps=tuple(part[-1][0] for part in stretches), values=tuple(map(_six, values))
        )
        curves.append(curve)
        figure.add_scatter(
            x=curve.steps,
            y=curve.values,
            name=str(escape(name)),
            meta=str(escape(name)),
            stackgroup="all",
            line={"color": PALETTE[index % len(PALETTE)], "width": 1},
            hovertemplate="%{meta}<br>step %{x}: %{y:.3g} s<extra></extra>",
        )
    figure.update_layout(showlegend=len(names) > 1)
    return Chart(id="rl-seconds", heading="Seconds a step", spoken=_spoken(curves), figure=figure)


def _speed(series: Mapping[str, Series], drawn: set[str]) -> Chart | None:
    panel = Panel(
        id="speed",
        heading="Tokens learned from a second",
        lines=lines_of(("tokens/second", "tokens a second")),
    )
    chart = _chart(panel, series, (), drawn)
    if chart is not None:
        drawn.add("tokens")
    return chart
