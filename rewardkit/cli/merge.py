"""`rewardkit merge`: the weighted average of models, without training."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MergeJob:
    """What `merge` averages."""

    models: Annotated[tuple[str, ...], Parameter(negative="")] = field(kw_only=False)
    """Checkpoint folders or hub ids of the same model, fitted differently."""
    weights: Annotated[tuple[float, ...], Parameter(consume_multiple=True, negative="")] = field(kw_only=True)
    """One a model: its share of the average, after division by their sum."""
    out: Path | None = field(default=None, kw_only=True)
    """Run folder; runs/merge-DATE by default. The model goes to its folder model/."""


def merge(job: MergeJob) -> int:
    """Average the weights of models of one architecture and tokenizer.

    Examples
    --------
    rewardkit merge runs/long/model runs/short/model --weights 0.5 0.5 --out runs/merged
    """
    from rewardkit.offline.merge import prepare
    from rewardkit.report import write_report
    from rewardkit.runs import RunFolder

    merging = prepare(job.models, job.weights)
    with RunFolder.create("merge", job, out=job.out) as run:
        report = asdict(merging.write(run.path / "model"))
        run.write_json("results.json", {"title": "Merged models", "facts": report})
        print(json.dumps(report))
        print(f"model in {run.path / 'model'}, report in {write_report(run.path)}")
    return 0
