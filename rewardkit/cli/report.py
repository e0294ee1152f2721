"""`rewardkit report`: one self-contained HTML file from a run folder."""

from __future__ import annotations

from pathlib import Path


def report(run: Path) -> int:
    """Write RUN/report.html again from what the run folder holds.

    Examples
    --------
    rewardkit report runs/quickstart

    Parameters
    ----------
    run
        The run folder.
    """
    from rewardkit.report import write_report

    print(f"written to {write_report(run)}")
    return 0
