"""The page: tables and figures of a run put into `page.html.j2`, written as one self-contained `report.html`.

Nothing is loaded: styles and scripts are inline, plotly.js is inlined once and packed (only where there is a figure),
fonts are the system's, and a content security policy in the page forbids every request. Equal run folders give equal
bytes. Every accuracy stands with its interval and its number of problems, every quality table is followed by the
costs, and what a run folder does not hold is said in the place where it would stand.
"""

from __future__ import annotations

import base64
import gzip
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from rewardkit.report import figures, heatmap, measures, rl_samples, rl_section, search_section, trees, words
from rewardkit.report.contents import Cost, Curve, Results, Run
from rewardkit.report.fields import is_number
from rewardkit.report.reading import read_run

MOST_TEXT = 100_000
"""Characters of config.yaml on the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleRow:
    """One rule at its largest n; `left`, `width` and `dot` place its interval on a strip, in percent."""

    rule: str
    meaning: str
    kind: str
    n: int
    mean: str
    interval: str
    problems: int
    left: float
    width: float
    dot: float


def write_report(run: Path) -> Path:
    """Read the run folder and write its `report.html`; returns the file's path.

    Raises MissingFileError where there is no run folder or no config.yaml in it, DataError for a broken file.
    """
    folder = Path(run)
    text = render(read_run(folder))
    target = folder / "report.html"
    temporary = folder / f".report.html.{secrets.token_hex(4)}.tmp"
    try:
        temporary.write_text(text, "utf-8", errors="replace")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def render(run: Run) -> str:
    """The whole page as text."""
    results = run.results
    rl = rl_section.section(run)
    series = {} if rl else figures.metric_series(run.metrics)
    accuracy, training = figures.accuracy_charts(results.curves), figures.training_charts(series)
    reliability = measures.reliability_charts(results.steps.reliability if results.steps else ())
    search = search_section.section(run)
    charts = [*accuracy, *reliability, *training, *(rl.charts if rl else [])]
    if search and search.chart:
        charts.append(search.chart)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_file),
    )
    environment.filters.update(number=words.number, plain=words.plain, seconds=words.seconds)
    return environment.get_template("page.html.j2").render(
        title=results.title or f"Run {run.name}",
        run=run.name,
        notes=dict(run.notes),
        summary=results.summary,
        gates=results.gates,
        facts=rl.facts if rl else [(name, words.plain(value)) for name, value in results.facts],
        rl=rl,
        rl_other=_metrics(rl.other) if rl else [],
        rl_style=Markup(_file("rl.css")) if rl else "",
        rollouts=rl_samples.rollouts(run.rollouts),
        accuracy=accuracy,
        rules=_rule_rows(results.curves),
        search=search,
        glyphs=search_section.GLYPHS,
        search_style=Markup(_file("search.css")) if search else "",
        tree_data=Markup(trees.script_json(search.trees)) if search and search.trees else "",
        tree_script=Markup(_file("trees.js")) if search and search.trees else "",
        every_n=_every_n(results.curves),
        comparisons=_comparisons(results),
        costs=_with_total(results.costs),
        measures=measures.measure_rows(results.steps),
        reliability=reliability,
        training=training,
        metrics=_metrics(series),
        undrawn=list(series)[figures.MOST_PANELS :],
        stepless=sum(not is_number(row.get("step")) for row in run.metrics),
        samples=heatmap.heatmap(run.samples),
        sample_count=len(run.samples),
        scale=heatmap.scale(),
        env=words.flatten(run.env) if run.env is not None else [],
        config=run.config[:MOST_TEXT],
        config_cut=max(0, len(run.config) - MOST_TEXT),
        charts=[{"id": chart.id, "json": Markup(chart.json)} for chart in charts],
        plotly=_plotly() if charts else "",
        chart_script=Markup(_file("charts.js")) if charts else "",
    )


def _file(name: str) -> str:
    """A template, style or script that lies beside this module."""
    return resources.files("rewardkit.report").joinpath(name).read_text("utf-8")


@cache
def _plotly() -> Markup:
    """plotly.js, gzip in base64: 2 MB where it would be 4.8; the page unpacks it. Equal bytes every time."""
    from plotly.offline import get_plotlyjs

    return Markup(base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode())


def _rule_rows(curves: Sequence[Curve]) -> list[RuleRow]:
    """Every rule at its largest n, placed on one common strip."""
    if not curves:
        return []
    last = [(curve.rule, *curve.points[-1]) for curve in curves]
    ends = [value for _, _, e in last for value in (e.mean, e.low, e.high) if value is not None]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    return [
        RuleRow(
            rule=rule,
            meaning=words.meaning(rule),
            kind=words.kind_of(rule),
            n=n,
            mean=words.percent(e.mean),
            interval=words.interval(e.low, e.high),
            problems=e.problems,
            left=place(e.mean if e.low is None else e.low),
            width=0.0 if e.low is None or e.high is None else round(place(e.high) - place(e.low), 2),
            dot=place(e.mean),
        )
        for rule, n, e in last
    ]


def _every_n(curves: Sequence[Curve]) -> Mapping[str, Any]:
    """All values of all curves as a table: columns are n, cells mean and interval (None where not measured)."""
    ns = sorted({n for curve in curves for n, _ in curve.points})
    rows = []
    for curve in curves:
        cells = {n: (words.percent(e.mean), words.interval(e.low, e.high)) for n, e in curve.points}
        problems = sorted({e.problems for _, e in curve.points})
        rows.append((curve.rule, [cells.get(n) for n in ns], " / ".join(f"{count:,}" for count in problems)))
    return {"ns": ns, "rows": rows}


def _comparisons(results: Results) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    for row in results.comparisons:
        e = row.difference
        bounds = "no interval"
        if e.low is not None and e.high is not None:
            bounds = f"{words.points(e.low)} to {words.points(e.high)}"
        rows.append(
            {
                "first": row.first,
                "second": row.second,
                "n": row.n,
                "difference": words.points(e.mean),
                "interval": bounds,
                "problems": e.problems,
                "verdict": words.verdict(e, row.first, row.second),
            }
        )
    return rows


def _with_total(costs: Sequence[Cost]) -> list[tuple[Cost, bool]]:
    """Costs with a last row that adds them up, unless there is one part only or the run added them itself."""
    rows = [(cost, False) for cost in costs]
    if len(costs) < 2 or any(cost.part.lower() in ("total", "all", "sum") for cost in costs):
        return rows
    total = Cost(
        part="all parts",
        prefill_tokens=sum(cost.prefill_tokens for cost in costs),
        decoded_tokens=sum(cost.decoded_tokens for cost in costs),
        scored_tokens=sum(cost.scored_tokens for cost in costs),
        judged=sum(cost.judged for cost in costs),
        seconds=sum(cost.seconds for cost in costs),
        flops=sum(cost.flops for cost in costs),
    )
    return [*rows, (total, True)]


def _metrics(series: Mapping[str, Sequence[figures.Series]]) -> list[Mapping[str, Any]]:
    """First, last, lowest and highest value of every logged number, by phase."""
    return [
        {
            "name": name,
            "phase": one.phase,
            "rows": len(one.values),
            "first": words.number(one.values[0]),
            "last": words.number(one.values[-1]),
            "lowest": words.number(min(one.values)),
            "highest": words.number(max(one.values)),
        }
        for name, phases in series.items()
        for one in phases
    ]
