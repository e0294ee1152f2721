"""`rewardkit quickstart` from start to report: wall time at most 600 s, peak memory under 4 GiB, all floors held.

Runs the command as a user would, in a process of its own, and reads its memory from the operating system.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import arguments, figure, finish

QUICK = ["--problems", "40", "--label-problems", "10", "--train-steps", "10", "--shipped-rows", "300"]


def main() -> None:
    """Run and read off."""
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable,
            "-m",
            "rewardkit",
            "quickstart",
            "--out",
            str(run),
            *(QUICK if options.quick else []),
        ]
        begin = time.perf_counter()
        done = subprocess.run(command, check=False)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        results = json.loads((run / "results.json").read_text())
    figures = [
        figure("600 s - wall seconds", 600 - seconds, floor=0.0, seconds=seconds, exit_code=done.returncode),
        figure("4 GiB - peak memory", 4 - peak, floor=0.0, unit="GiB", peak_gib=peak),
    ]
    figures += [figure(gate["name"], gate["value"], floor=gate["floor"]) for gate in results["gates"]]
    final = {c["rule"]: c["points"][-1] for c in results["curves"]}
    for rule in ("first", "majority", "best by PRM min", "weighted by PRM min", "any (pass@n)"):
        point = final[rule]
        figures.append(
            figure(
                f"accuracy at N={point['n']}: {rule}",
                point["mean"],
                floor=0.0,
                low=point["low"],
                high=point["high"],
                problems=point["problems"],
            )
        )
    finish("quickstart", figures, options)


if __name__ == "__main__":
    main()
