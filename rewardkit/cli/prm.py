"""`rewardkit prm label | train | eval`; `score` and `calibrate` are in `prm_score.py`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from prm.label_config import LabelConfig
from prm.train_config import TrainConfig
from rewardkit.cli.fits import run_fit_job
from rewardkit.cli.prm_score import ModelChoice, load
from verifiers.errors import ConfigError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LabelJob:
    """What `prm label` labels."""

    policy: str
    """Checkpoint folder or hub id of the policy whose responses are labelled."""
    problems: str
    """Problems with reference answers: a file, a hub id, or playground:SPLIT:COUNT[:SEED]."""
    samples: int = 4
    """Responses drawn and labelled a problem."""
    limit: int | None = None
    """Use the first problems only."""
    prompt_column: str | None = None
    """Column of the prompts, where it is not found by itself."""
    answer_column: str | None = None
    """Column of the reference answers, where it is not found by itself."""
    max_rows: int = 256
    """Rows decoded at once."""
    scorer: str | None = None
    """Process reward model that guides --method cheapest_search."""
    label: Annotated[LabelConfig, Parameter(name="*")] = field(default_factory=LabelConfig)
    """How labels are made."""
    out: Path | None = None
    """Run folder; runs/prm-label-DATE by default."""
    resume: bool = False
    """Go on with the run in --out."""


def label(job: LabelJob) -> int:
    """Label the steps of sampled responses by Monte-Carlo roll-outs (labels.jsonl in the run folder).

    Examples
    --------
    rewardkit prm label --policy data/playground/policy --problems playground:train:200 --out runs/labels
    rewardkit prm label --policy Qwen/Qwen2.5-Math-1.5B-Instruct --problems gsm8k.jsonl --trials 16 --method early_stop
    """
    from prm.formats import read_stepwise
    from prm.model import ProcessModel
    from rewardkit.cli.progress import Progress
    from rewardkit.labels import make_labels, noise, summary
    from rewardkit.runs import RunFolder
    from rewardkit.sources import as_chat, problems_from
    from search.engines.transformers_engine import TransformersEngine
    from search.strategies.best_of_n import check_prompts
    from verifiers.maths import MathVerifier

    problems = problems_from(
        job.problems, limit=job.limit, prompt_column=job.prompt_column, answer_column=job.answer_column
    )
    engine = TransformersEngine.load(job.policy, max_rows=job.max_rows)
    scorer = ProcessModel.load(job.scorer) if job.scorer else None
    problems = as_chat(problems, engine.tokenizer)
    check_prompts(problems, engine)
    with RunFolder.create("prm label", job, out=job.out, resume=job.resume) as run:
        path = run.path / "labels.jsonl"
        with Progress("labelled problems", len(problems)) as progress:
            make_labels(
                problems,
                engine=engine,
                verifier=MathVerifier(),
                config=job.label,
                samples=job.samples,
                path=path,
                policy=str(job.policy),
                scorer=scorer,
                on_progress=progress,
            )
        rows = read_stepwise(path)
        found = summary(rows) | {"label noise": noise(rows, trials=job.label.trials)}
        run.write_json(
            "results.json",
            {"title": "Step labels", "facts": {**found, "policy usage": asdict(engine.usage)}},
        )
        print(json.dumps(found))
        print(f"written to {path}")
    return 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What `prm train` learns from."""

    data: tuple[Path, ...]
    """Files of labelled steps (.jsonl or .jsonl.gz); may be given several times."""
    layout: str = "stepwise"
    """stepwise (TRL's or ours), math_shepherd, prm800k, math_aps, math_aps_tree, processbench, rlhflow, openrlhf,
    er_prm or openr; `prm convert` has their options."""
    train: Annotated[TrainConfig, Parameter(name="*")]
    """How it is fitted."""
    prior: str | None = None
    """Process reward model whose calibrated, cross-fitted score becomes the prior of soft labels (posterior means)."""
    consensus: Literal["off", "drop_row", "drop_steps", "relabel"] = "off"
    """What becomes of rows whose labels contradict the arithmetic of their equations."""
    out: Path | None = None
    """Run folder; runs/prm-train-DATE by default. The model goes to its folder model/."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint (--save-steps)."""


def train(job: TrainJob) -> int:
    """Train a process reward model on labelled steps.

    Examples
    --------
    rewardkit prm train --init data/playground/policy --data runs/labels/labels.jsonl --out runs/prm
    rewardkit prm train --init runs/prm/model --data new.jsonl --steps 200 --lm-weight 0.5
    torchrun --nproc_per_node 4 -m rewardkit prm train --init Qwen/Qwen2.5-Math-7B --data labels.jsonl --out runs/big
    """
    from prm.training import fit
    from rewardkit.sources import labelled_rows

    rows, facts = _prepared(job, labelled_rows(job.data, job.layout))
    return run_fit_job(
        "prm train",
        job,
        "Process reward model",
        lambda model, **more: fit(rows, job.train, model, **more),
        provenance={"rows": len(rows), **facts},
        facts=facts,
    )


def _prepared(job: TrainJob, rows: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Rows after the consensus filter and with the prior, and what is to be told of both."""
    facts: dict[str, Any] = {}
    if job.consensus != "off":
        from prm.consensus import consensus

        checked = consensus(rows, on_conflict=job.consensus)
        facts |= {"rows against arithmetic": checked.conflicts, "rows with a false equation": checked.errors}
        rows = checked.rows
    if job.prior:
        from prm.model import ProcessModel
        from prm.posterior import with_prior

        if job.train.labels != "soft":
            raise ConfigError("--prior makes soft labels; set --labels soft or leave it out")
        rows = [row for row in rows if any(row.trials)]
        model = ProcessModel.load(job.prior)
        found = with_prior(rows, model.log_odds([row.problem for row in rows], [row.response for row in rows]))
        facts |= {"prior worth, roll-outs": [round(kappa, 2) for kappa in found.kappas]}
        rows = found.rows
    return rows, facts


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvalJob:
    """What `prm eval` measures."""

    choice: Annotated[ModelChoice, Parameter(name="*")]
    """The model."""
    data: tuple[Path, ...] = ()
    """Files whose labels are the truth (a step is bad when none of its trials succeeded)."""
    layout: str = "stepwise"
    """Layout of --data, as in `prm train`."""
    threshold_data: tuple[Path, ...] = ()
    """Files, in the same layout, on which the first-error threshold is picked; 0.5 without them."""
    policy: str | None = None
    """Instead of --data: draw playground responses from this policy and use their computable step truth."""
    problems: str = "playground:test:300"
    """Playground problems to draw on, with --policy."""
    samples: int = 16
    """Responses a problem, with --policy."""
    seed: int = 0
    """Seed of the responses, with --policy."""
    out: Path | None = None
    """Run folder; runs/prm-eval-DATE by default."""

    def __post_init__(self) -> None:
        if bool(self.data) == bool(self.policy):
            raise ConfigError(
                "prm eval needs either --data (labelled steps) or --policy (playground); got both or none"
            )
        if self.threshold_data and not self.data:
            raise ConfigError("--threshold-data goes with --data; with --policy the threshold is 0.5")


def evaluate(job: EvalJob) -> int:
    """Step AUC within problems, first-error F1 and calibration; with --policy also Best-of-N.

    Examples
    --------
    rewardkit prm eval --model data/playground/prm --policy data/playground/policy
    rewardkit prm eval --model my-prm --data heldout.jsonl
    """
    from rewardkit.measure import step_figures
    from rewardkit.report import write_report
    from rewardkit.runs import RunFolder

    model = load(job.choice)
    facts = {"model": job.choice.model, "adapter": model.adapter, "calibrated": model.calibration is not None}
    results: dict[str, Any] = {"title": "Process reward model, measured", "facts": facts}
    if job.policy:
        from rewardkit.measure import (
            comparison,
            cost_figures,
            curve_figures,
            curves_of,
            sample_rows,
            step_results,
        )

        searched, engine = _playground_pools(job, model)
        curves = curves_of(searched.pools, seed=job.seed)
        results |= {
            **step_results(searched.pools),
            "curves": curve_figures(curves),
            "comparisons": [
                comparison(curves, "weighted by PRM min", "majority"),
                comparison(curves, "best by PRM min", "majority"),
                comparison(curves, "best by PRM min", "best by random"),
            ],
            "costs": cost_figures(
                searched.costs, policy_parameters=engine.parameters, scorer_parameters=model.parameters
            ),
        }
        samples = sample_rows(searched.pools)
    else:
        held_out = _labelled_steps(job.threshold_data, job.layout, model)
        results["steps"] = step_figures(_labelled_steps(job.data, job.layout, model), held_out=held_out)
        samples = []
    with RunFolder.create("prm eval", job, out=job.out) as run:
        run.write_json("results.json", results)
        if samples:
            run.append("samples.jsonl", *samples)
        print(json.dumps({key: results[key] for key in ("steps", "summary") if key in results}, indent=1))
        print(f"report in {write_report(run.path)}")
    return 0


def _playground_pools(job: EvalJob, model: Any) -> tuple[Any, Any]:
    from rewardkit import playground
    from rewardkit.cli.progress import Progress
    from rewardkit.measure import run_search
    from rewardkit.sources import is_playground, problems_from
    from search.engines.transformers_engine import TransformersEngine
    from verifiers.core import Sampling
    from verifiers.maths import MathVerifier

    if not is_playground(job.problems):
        raise ConfigError(f"--policy measures on playground problems, whose truth is computable; got {job.problems!r}")
    engine = TransformersEngine.load(str(job.policy))
    problems = problems_from(job.problems)
    sampling = Sampling(temperature=playground.TEMPERATURE, max_new_tokens=playground.MAX_NEW_TOKENS)
    with Progress("problems", len(problems)) as progress:
        searched = run_search(
            problems,
            engine=engine,
            n=job.samples,
            sampling=sampling,
            verifier=MathVerifier(),
            scorer=model,
            seed=job.seed,
            on_progress=progress,
        )
    return searched, engine


def _labelled_steps(paths: tuple[Path, ...], layout: str, model: Any) -> list[Any]:
    """Scores beside labels, labelled steps alone; once a step is bad, all after it are unsound."""
    from prm.evaluate import ScoredSteps
    from rewardkit.sources import labelled_rows

    rows = [row for row in labelled_rows(paths, layout) if any(label is not None for label in row.labels("hard"))]
    scores = model.score_steps([row.problem for row in rows], [row.response for row in rows])
    found = []
    for row, values in zip(rows, scores, strict=True):
        labels = row.labels("hard")
        labelled = [t for t, label in enumerate(labels) if label is not None]
        sound = tuple(all(labels[s] for s in labelled if s <= t) for t in labelled)
        name = row.problem_id or str(row.prompt)
        found.append(ScoredSteps(problem_id=name, scores=tuple(values[t] for t in labelled), sound=sound))
    return found
