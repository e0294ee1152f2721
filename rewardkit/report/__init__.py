"""One self-contained HTML report of a run folder: accuracy and its cost, step scores, training, solutions.

`write_report(run)` reads what the folder holds and writes `report.html` into it. Plotly and jinja2 are imported
only then.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_report"]


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises MissingFileError where there is no run folder or no config.yaml in it, DataError for a broken file.
    """
    from rewardkit.report import page

    return page.write_report(run)
