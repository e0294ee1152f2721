"""What every benchmark shares: its flags, its last line, its result file, and exit code 3 for a missed floor."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from rewardkit.runs import environment

RESULTS = Path(__file__).parent / "results"


def arguments(doc: str | None) -> argparse.Namespace:
    """The flags of every benchmark."""
    parser = argparse.ArgumentParser(description=(doc or "").strip().splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit with 3 when a floor is missed")
    parser.add_argument("--quick", action="store_true", help="both arms, small, under a minute")
    parser.add_argument("--save", action="store_true", help="write the figures to benchmarks/results/")
    return parser.parse_args()


def figure(
    name: str, value: float, *, floor: float | None = None, ceiling: float | None = None, unit: str = "", **more: Any
) -> dict[str, Any]:
    """One claimed figure: held when it is at least its floor and at most its ceiling."""
    value = float(value)
    held = bool((floor is None or value >= floor) and (ceiling is None or value <= ceiling))
    bounds = {name: bound for name, bound in (("floor", floor), ("ceiling", ceiling)) if bound is not None}
    return {"name": name, "value": value, **bounds, "unit": unit, "held": held, **more}


def finish(claim: str, figures: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table and the JSON line, save if asked, and exit."""
    for row in figures:
        interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
        mark = "" if row["held"] else "   MISSED"
        bounds = " ".join(f"{bound} {row[bound]:.3f}" for bound in ("floor", "ceiling") if bound in row)
        print(f"  {row['name']:58} {row['value']:9.3f}{interval}  {bounds} {row['unit']}{mark}")
    found = environment(f"benchmarks/{claim}")
    record = {
        "claim": claim,
        "quick": options.quick,
        "date": datetime.date.today().isoformat(),
        "git": found["git"],
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "gpu": found["machine"]["gpu"]},
        "figures": figures,
    }
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{claim}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))
    sys.exit(3 if options.check and not all(row["held"] for row in figures) else 0)
