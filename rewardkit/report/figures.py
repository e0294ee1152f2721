"""The plotly figures of a report: accuracy against the number of responses, and the training curves.

Accuracy: log2 x axis, one line a rule with its 95 % intervals as error bars; rules are shifted sideways by a few
percent so that the bars can be told apart. With many rules there are two figures with one y axis, "pick one
response" and "vote on the answer"; majority stands in both, and so do the controls, dashed and grey. Colours are
Okabe and Ito's, told apart by people with any colour blindness; each rule has its own marker as well.

Training: one figure a logged number. Up to 1,500 points are drawn, lows and highs among them; over the raw values of
a noisy one with 60 points or more lies a trailing mean over a fortieth of its rows.

Plotly reads a small markup in names and hover texts; everything that comes from a run is escaped for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import escape

from rewardkit.report import words
from rewardkit.report.contents import Curve, Estimate
from rewardkit.report.fields import is_number

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon")
CONTROL_DASHES = {"any": ("longdash", 3.5, "#bdbdbd"), "oracle": ("dash", 1.5, "#6b6b6b")}
MOST_IN_ONE = 4
"""Coloured rules in one figure before it is split in two."""
MOST_POINTS = 1500
MOST_PANELS = 12
LEADING = ("loss", "eval_loss", "learning_rate", "grad_norm")
NOT_CURVES = {"step", "epoch", "time", "seconds", "timestamp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A figure with its id on the page, its heading and one sentence for people who cannot see it."""

    id: str
    heading: str
    spoken: str
    figure: Any
    caption: str = ""
    wide: bool = False

    @property
    def json(self) -> str:
        """The figure as JSON that may stand inside a script element."""
        text: str = self.figure.to_json()
        return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One logged number over the steps of one phase."""

    name: str
    phase: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def accuracy_charts(curves: Sequence[Curve]) -> list[Chart]:
    """One figure, or two with the same y axis when there are many rules; none without curves."""
    if not curves:
        return []
    coloured = [curve for curve in curves if words.kind_of(curve.rule) in ("pick", "vote")]
    picks = [curve for curve in coloured if words.kind_of(curve.rule) == "pick"]
    votes = [curve for curve in coloured if words.kind_of(curve.rule) == "vote"]
    grey = [curve for curve in curves if words.kind_of(curve.rule) in ("first", "control")]
    if len(coloured) <= MOST_IN_ONE or not picks or len(votes) < 2:
        groups = [("accuracy", "Accuracy against the number of responses", coloured)]
    else:
        majority = [curve for curve in votes if curve.rule == "majority"]
        groups = [
            ("accuracy-pick", "Pick one response by its score", majority + picks),
            ("accuracy-vote", "Vote on the answer", votes),
        ]
    low, high = _range(curves)
    counts = sorted({estimate.problems for curve in curves for _, estimate in curve.points})
    caption = f"{' to '.join(f'{count:,}' for count in dict.fromkeys((counts[0], counts[-1])))} problems a point"
    scores = list(dict.fromkeys(_score(curve.rule) for curve in coloured if curve.rule != "majority"))
    charts = []
    for name, heading, members in groups:
        figure = blank_figure(
            xaxis={
                "type": "log",
                "title": {"text": "responses per problem (n)", "font": {"size": 13}},
                **_log2_ticks(curves),
            },
            yaxis={
                "title": {"text": "problems answered right", "font": {"size": 13}},
                "tickformat": ".0%",
                "range": [low, high],
            },
        )
        for curve in grey:
            _add_control(figure, curve)
        for index, curve in enumerate(members):
            shift = 1.0 + 0.028 * (index - (len(members) - 1) / 2)
            look = None if curve.rule == "majority" else scores.index(_score(curve.rule))
            _add_rule(figure, curve, look, shift)
        spoken = "; ".join(_spoken(curve) for curve in (*members, *grey))
        charts.append(
            Chart(id=name, heading=heading, spoken=spoken, figure=figure, caption=caption, wide=len(groups) == 1)
        )
    return charts


def _spoken(curve: Curve) -> str:
    n, estimate = curve.points[-1]
    return f"{curve.rule} at n = {n}: {words.percent(estimate.mean)}"


def _score(rule: str) -> str:
    """The score a rule goes by: "best by PRM min" and "weighted by PRM min" share colour and marker."""
    return rule.removeprefix("best by ").removeprefix("weighted by ")


def _add_rule(figure: Any, curve: Curve, look: int | None, shift: float) -> None:
    """Draw a rule in the colour and marker numbered `look`; None is majority's black cross."""
    colour = "#111111" if look is None else PALETTE[look % len(PALETTE)]
    marker = "x" if look is None else MARKERS[(look + look // len(PALETTE)) % len(MARKERS)]
    means = [estimate.mean for _, estimate in curve.points]
    figure.add_scatter(
        x=[n * shift for n, _ in curve.points],
        y=means,
        name=str(escape(curve.rule)),
        mode="lines+markers",
        line={"color": colour, "width": 2.2},
        marker={"symbol": marker, "size": 8, "color": colour},
        error_y={
            "type": "data",
            "array": [0.0 if e.high is None else max(0.0, e.high - e.mean) for _, e in curve.points],
            "arrayminus": [0.0 if e.low is None else max(0.0, e.mean - e.low) for _, e in curve.points],
            "thickness": 1.3,
            "width": 3,
            "color": colour,
        },
        customdata=[_hover(curve.rule, n, e) for n, e in curve.points],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _add_control(figure: Any, curve: Curve) -> None:
    name = "any" if curve.rule.startswith("any") else curve.rule.removeprefix("best by ")
    dash, width, colour = CONTROL_DASHES.get(name, ("dot", 1.8, "#6b6b6b"))
    if curve.rule == "first":
        dash, colour = "solid", "#a8a8a8"
    figure.add_scatter(
        x=[n for n, _ in curve.points],
        y=[estimate.mean for _, estimate in curve.points],
        name=str(escape(curve.rule)),
        mode="lines" if len(curve.points) > 1 else "markers",
        line={"color": colour, "width": width, "dash": dash},
        legendrank=2000,
        customdata=[_hover(curve.rule, n, e) for n, e in curve.points],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _hover(rule: str, n: int, estimate: Estimate) -> str:
    return (
        f"<b>{escape(rule)}</b>, n = {n}<br>{words.percent(estimate.mean)} "
        f"[{words.interval(estimate.low, estimate.high)}]<br>{estimate.problems:,} problems"
    )


def _range(curves: Sequence[Curve]) -> tuple[float, float]:
    """A y axis that holds all means, and the intervals of all that are drawn with one."""
    values = [
        value
        for curve in curves
        for _, e in curve.points
        for value in ((e.mean,) if words.kind_of(curve.rule) == "control" else (e.mean, e.low, e.high))
        if value is not None
    ]
    low, high = min(values), max(values)
    pad = max(0.02, 0.06 * (high - low))
    return max(min(0.0, low), low - pad), min(max(1.0, high) + 0.015, high + pad)


def _log2_ticks(curves: Sequence[Curve]) -> dict[str, Any]:
    """Ticks at the n that were measured, without those too close to a larger one, and a range around them."""
    measured = sorted({n for curve in curves for n, _ in curve.points}, reverse=True)
    ticks: list[int] = []
    for n in measured:
        if not ticks or ticks[-1] / n > 1.4:
            ticks.append(n)
    first, last = math.log10(measured[-1]), math.log10(measured[0])
    pad = max(0.05, 0.05 * (last - first))
    return {
        "tickmode": "array",
        "tickvals": ticks[::-1],
        "ticktext": [f"{n:,}" for n in ticks[::-1]],
        "range": [first - pad, last + pad],
    }


def metric_series(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Series]]:
    """Every logged number as series by phase; loss first, then as first seen."""
    found: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for row in rows:
        step = row.get("step")
        if not is_number(step):
            continue
        phase = str(row.get("phase") or "")
        for name, value in row.items():
            if name not in NOT_CURVES and is_number(value):
                steps, values = found.setdefault(name, {}).setdefault(phase, ([], []))
                steps.append(float(step))
                values.append(float(value))
    order = sorted(found, key=lambda name: LEADING.index(name) if name in LEADING else len(LEADING))
    return {
        name: [
            Series(name=name, phase=phase, steps=tuple(steps), values=tuple(values))
            for phase, (steps, values) in found[name].items()
        ]
        for name in order
    }


def training_charts(series: Mapping[str, Sequence[Series]]) -> list[Chart]:
    """One figure a logged number, the first MOST_PANELS of them."""
    charts = []
    for place, (name, phases) in enumerate(list(series.items())[:MOST_PANELS]):
        figure = blank_figure(
            xaxis={"title": {"text": "step", "font": {"size": 13}}, "zeroline": False},
            yaxis={"zeroline": False, "exponentformat": "power", "tickformat": "~g" if place else None},
        )
        for index, one in enumerate(phases):
            add_series(figure, one, PALETTE[index % len(PALETTE)])
        figure.update_layout(showlegend=len(phases) > 1, height=320 if place == 0 else 240)
        spoken = "; ".join(
            f"{one.phase or name}: {words.number(one.values[0])} at step {words.number(one.steps[0])}, "
            f"{words.number(one.values[-1])} at step {words.number(one.steps[-1])}"
            for one in phases
        )
        charts.append(Chart(id=f"metric-{place}", heading=name, spoken=spoken, figure=figure, wide=place == 0))
    return charts


def kept_points(values: Sequence[float], most: int) -> list[int]:
    """Rising indices of at most `most` (4 or more) values: first, last, and the lowest and highest of every stretch."""
    count = len(values)
    if count <= most:
        return list(range(count))
    width = -(-count // (most // 2 - 1))
    found = {0, count - 1}
    for start in range(0, count, width):
        stretch = range(start, min(start + width, count))
        found |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    return sorted(found)


def add_series(
    figure: Any, series: Series, colour: str, *, dash: str = "solid", most: int = MOST_POINTS, pale: bool = True
) -> None:
    """Draw a series in up to `most` points; a noisy one as its trailing mean, with itself beneath where `pale`."""
    count = len(series.values)
    label = str(escape(series.phase or series.name))
    smooth = count >= 60 and _noisy(series.values)
    kept = kept_points(series.values, most)
    if pale or not smooth:
        figure.add_scatter(
            x=[series.steps[i] for i in kept],
            y=[series.values[i] for i in kept],
            name=label,
            legendgroup=label,
            showlegend=not smooth,
            mode="lines" if len(kept) > 1 else "markers",
            opacity=0.35 if smooth else 1.0,
            line={"color": colour, "width": 1.0 if smooth else 2.0, "dash": dash},
            meta=label,
            hovertemplate="%{meta}<br>step %{x}: %{y:.4g}<extra></extra>",
        )
    if not smooth:
        return
    window = max(2, count // 40)
    total = [0.0]
    for value in series.values:
        total.append(total[-1] + value)
    means = [(total[i + 1] - total[max(0, i + 1 - window)]) / min(window, i + 1) for i in range(count)]
    figure.add_scatter(
        x=[series.steps[i] for i in kept],
        y=[float(f"{means[i]:.6g}") for i in kept],
        name=label,
        legendgroup=label,
        mode="lines",
        line={"color": colour, "width": 2.2, "dash": dash},
        meta=label,
        hovertemplate=f"%{{meta}}, mean of {window} rows<br>step %{{x}}: %{{y:.4g}}<extra></extra>",
    )


def _noisy(values: Sequence[float]) -> bool:
    """Whether the ups and downs add up to many times the range; a schedule's do not."""
    ups_and_downs = sum(abs(b - a) for a, b in pairwise(values))
    return ups_and_downs > 5 * (max(values) - min(values))


def blank_figure(xaxis: Mapping[str, Any], yaxis: Mapping[str, Any]) -> Any:
    """A figure in the report's look."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": "#e4e4e0",
        "linecolor": "#8a8a85",
        "showline": True,
        "ticks": "outside",
        "tickcolor": "#8a8a85",
        "automargin": True,
        "fixedrange": True,
    }
    return go.Figure(
        layout={
            "template": "none",
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "height": 440,
            "margin": {"l": 56, "r": 14, "t": 12, "b": 44},
            "hoverlabel": {"bgcolor": "white", "font": {"color": "#1b1b1b"}},
            "dragmode": False,
            "legend": {
                "orientation": "h",
                "yref": "container",
                "yanchor": "bottom",
                "y": 0.0,
                "xanchor": "left",
                "x": 0.0,
                "font": {"size": 12},
            },
            "xaxis": {**axis, **xaxis},
            "yaxis": {**axis, **yaxis},
        }
    )
