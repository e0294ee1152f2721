"""`rewardkit prm convert`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import Parameter

from verifiers.errors import ConfigError, ExistingRunError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ConvertJob:
    """What `prm convert` reads and writes."""

    data: tuple[Path, ...]
    """Files of step labels."""
    layout: str = "stepwise"
    """Their layout: stepwise, math_shepherd, prm800k, math_aps, math_aps_tree, processbench, rlhflow, openrlhf, er_prm
    or openr."""
    to: str = "stepwise"
    """Layout to write: stepwise, math_shepherd, prm800k, math_aps, math_aps_tree, processbench or rlhflow."""
    out: Path
    """File to write; .gz compresses."""
    lossy: bool = False
    """Write what the layout can say of rows that it cannot hold whole, instead of refusing them."""
    neutral: Literal["good", "bad", "drop"] | None = None
    """prm800k: what a rating of 0 means; good (the paper) unless given."""
    branches: Literal["terminal", "chosen", "cross"] | None = None
    """prm800k: alternatives as rows of their own (TRL; the default), left out, or in all combinations (openr)."""
    quality_control: bool = False
    """prm800k: keep rows of quality control and screening."""
    trials: int | None = None
    """math_aps, math_aps_tree: roll-outs behind every share; the fewest that make counts whole unless given."""

    def __post_init__(self) -> None:
        for name in ("neutral", "branches", "quality_control"):
            if getattr(self, name) and self.layout != "prm800k":
                raise ConfigError(f"--{name.replace('_', '-')} is about prm800k; it has no effect on {self.layout!r}")
        if self.trials is not None and not self.layout.startswith("math_aps"):
            raise ConfigError(f"--trials is about math_aps and math_aps_tree; it has no effect on {self.layout!r}")

    @property
    def options(self) -> dict[str, Any]:
        """What the reader is told."""
        given = {"neutral": self.neutral, "branches": self.branches, "trials": self.trials}
        given |= {"quality_control": self.quality_control or None}
        return {name: value for name, value in given.items() if value is not None}


def convert(job: ConvertJob) -> int:
    """Step labels from one layout to another; refuses what the new layout cannot express.

    Examples
    --------
    rewardkit prm convert --data phase2_train.jsonl --layout prm800k --neutral bad --out train.jsonl
    rewardkit prm convert --data labels.jsonl --to math_shepherd --out shepherd.jsonl --lossy
    """
    from prm.public_formats import read_public
    from prm.public_writers import write_public

    if job.out.exists():
        raise ExistingRunError(f"the file {job.out} exists already; choose another --out")
    rows = [row for path in job.data for row in read_public(path, job.layout, **job.options)]
    lines = write_public(job.out, rows, job.to, lossy=job.lossy)
    steps = sum(label is not None for row in rows for label in row.labels("hard"))
    print(json.dumps({"rows": len(rows), "labelled steps": steps, "lines": lines}))
    print(f"written to {job.out}")
    return 0
