"""What is told of the step scores: a table of measures, and the reliability plot of scores against outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewardkit.report import words
from rewardkit.report.contents import Auc, Bounded, ReliabilityPoint, StepQuality
from rewardkit.report.figures import PALETTE, Chart, blank_figure


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureRow:
    """One measure of the step scores as shown."""

    name: str
    value: str
    interval: str
    counted: str
    meaning: str


def measure_rows(steps: StepQuality | None) -> list[MeasureRow]:
    """The step measures there are, the honest ones first."""
    if steps is None:
        return []
    rows = []

    def auc(name: str, measured: Auc | None, meaning: str) -> None:
        if measured is not None:
            rows.append(
                MeasureRow(
                    name=name,
                    value=f"{measured.auc:.3f}",
                    interval=_bounds(measured.low, measured.high) or "no interval",
                    counted=f"{measured.pairs:,} pairs, {measured.problems:,} problems",
                    meaning=meaning,
                )
            )

    def plain(name: str, value: float | None, meaning: str, bounds: Bounded | None = None) -> None:
        if value is not None:
            interval = _bounds(bounds.low, bounds.high) if bounds else ""
            rows.append(
                MeasureRow(
                    name=name, value=f"{value:.3f}", interval=interval or "–", counted="all steps", meaning=meaning
                )
            )

    auc(
        "AUC within a problem",
        steps.auc_within,
        "Of two responses to one problem, does the one that is still right at a step score higher there? "
        "0.5 is chance.",
    )
    auc("AUC at the first error", steps.auc_first_error, "The same, only up to and at the first wrong step.")
    rows += _first_error(steps)
    plain(
        "Calibration error (ECE)",
        steps.ece,
        "How far scores are from the share of right steps, on average; 0 is best.",
        steps.ece_bounds,
    )
    if steps.brier is not None:
        plain("Brier score", steps.brier.value, "Mean squared distance of score and truth; 0 is best.", steps.brier)
    plain(
        "AUC pooled",
        steps.auc_pooled,
        "Over all steps of all problems; inflated, because early steps are mostly right. Not a measure of skill.",
    )
    return rows


def _bounds(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} – {high:.3f}"


def _first_error(steps: StepQuality) -> list[MeasureRow]:
    f1 = steps.first_error_f1
    if f1 is None:
        return []
    below = "" if f1.threshold is None else f" (first score below {words.number(f1.threshold)})"
    protocol = f" {f1.protocol}" if f1.protocol else ""
    rows = [
        MeasureRow(
            name="First-error F1",
            value=f"{f1.f1:.3f}",
            interval=_bounds(f1.low, f1.high) or "–",
            counted=f"{f1.erroneous + f1.correct:,} responses",
            meaning=f"Harmonic mean of the two accuracies below{below}.{protocol}",
        )
    ]
    halves = (
        ("… on responses with an error", f1.on_erroneous, f1.erroneous, "The first wrong step was named."),
        ("… on responses without", f1.on_correct, f1.correct, "No step was called wrong."),
    )
    for name, rate, count, meaning in halves:
        rows.append(
            MeasureRow(
                name=name,
                value=words.percent(rate),
                interval=words.interval(*words.wilson(rate, count)) + " (Wilson)",
                counted=f"{count:,} responses",
                meaning=meaning,
            )
        )
    return rows


def reliability_charts(points: Sequence[ReliabilityPoint]) -> list[Chart]:
    """Share of right steps against score, one point a bin with its Wilson interval; none without points."""
    if not points:
        return []
    import plotly.graph_objects as go

    axis = {"range": [-0.02, 1.02], "tickformat": ".1f", "dtick": 0.2}
    figure = blank_figure(
        {**axis, "title": {"text": "mean score of the bin"}}, {**axis, "title": {"text": "share of right steps"}}
    )
    figure.add_trace(
        go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line={"dash": "dash", "color": "#6b6b6b"},
            hoverinfo="skip",
        )
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[point.score for point in points],
            y=[point.outcome for point in points],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [point.high - point.outcome for point in points],
                "arrayminus": [point.outcome - point.low for point in points],
            },
            mode="lines+markers",
            name="these scores",
            line={"color": PALETTE[0]},
            text=[f"{point.count:,} steps" for point in points],
            hovertemplate="score %{x:.3f}: %{y:.3f} right<br>%{text}<extra></extra>",
        )
    )
    worst = max(points, key=lambda point: abs(point.score - point.outcome))
    return [
        Chart(
            id="reliability",
            heading="Reliability of the step scores",
            spoken=(
                f"Share of right steps against score in {len(points)} bins; the largest gap is at score "
                f"{worst.score:.2f}, where {worst.outcome:.0%} are right."
            ),
            figure=figure,
            caption="Below the dashed line scores promise too much. Bars are 95 % Wilson intervals, each step a trial.",
        )
    ]
