"""`rewardkit search`: Best-of-N with any process reward model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from verifiers.errors import ConfigError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """What `search` draws and chooses from."""

    policy: str
    """Checkpoint folder or hub id of the policy."""
    problems: str
    """Problems: a file, a hub id, or playground:SPLIT:COUNT[:SEED]."""
    scorer: str | None = None
    """Process reward model that scores the steps; without it only votes are compared."""
    n: int = 16
    """Responses a problem."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Nucleus sampling: the likeliest tokens with this much mass."""
    max_new_tokens: int = 512
    """Longest response."""
    seed: int = 0
    """Seed of all responses."""
    limit: int | None = None
    """Use the first problems only."""
    prompt_column: str | None = None
    """Column of the prompts, where it is not found by itself."""
    answer_column: str | None = None
    """Column of the reference answers, where it is not found by itself."""
    max_rows: int = 256
    """Rows decoded at once."""
    out: Path | None = None
    """Run folder; runs/search-<date> by default."""


def search(job: SearchJob) -> int:
    """Draw N responses a problem, choose by every rule, and compare: first, majority, PRM, weighted, controls.

    Examples
    --------
    rewardkit search --policy data/playground/policy --scorer data/playground/prm --problems playground:test:300
    rewardkit search --policy Qwen/Qwen2.5-Math-1.5B-Instruct --problems gsm8k.jsonl --n 8
    """
    from prm.model import ProcessModel
    from rewardkit.cli.progress import Progress
    from rewardkit.measure import run_search
    from rewardkit.runs import RunFolder
    from rewardkit.sources import as_chat, problems_from
    from search.engines.transformers_engine import TransformersEngine
    from search.strategies.best_of_n import check_prompts
    from verifiers.core import Sampling
    from verifiers.maths import MathVerifier

    problems = problems_from(
        job.problems, limit=job.limit, prompt_column=job.prompt_column, answer_column=job.answer_column
    )
    unanswered = next((p.id for p in problems if p.answer is None), None)
    if unanswered is not None:
        raise ConfigError(
            f"rules are compared by their accuracy, but problem {unanswered!r} has no reference answer; name the "
            "column with --answer-column, or choose from Python with search.best_of_n, which needs none"
        )
    engine = TransformersEngine.load(job.policy, max_rows=job.max_rows)
    scorer = ProcessModel.load(job.scorer) if job.scorer else None
    problems = as_chat(problems, engine.tokenizer)
    check_prompts(problems, engine)
    with RunFolder.create("search", job, out=job.out) as run:
        with Progress("problems", len(problems)) as progress:
            searched = run_search(
                problems,
                engine=engine,
                n=job.n,
                sampling=Sampling(temperature=job.temperature, top_p=job.top_p, max_new_tokens=job.max_new_tokens),
                verifier=MathVerifier(),
                scorer=scorer,
                seed=job.seed,
                on_progress=progress,
            )
        write_search(run, searched, engine=engine, scorer=scorer, seed=job.seed, facts={"policy": job.policy})
    return 0


def write_search(
    run: Any, searched: Any, *, engine: Any, scorer: Any, seed: int, facts: dict[str, Any]
) -> dict[str, Any]:
    """Figures, samples and report of searched pools into a run folder; prints the table at the largest N."""
    from rewardkit.measure import (
        comparison,
        cost_figures,
        curve_figures,
        curves_of,
        left_out,
        sample_rows,
        step_results,
    )
    from rewardkit.report import write_report

    curves = curves_of(searched.pools, seed=seed)
    results: dict[str, Any] = {
        "title": "Best-of-N",
        "summary": left_out(searched.pools),
        "facts": facts,
        "curves": curve_figures(curves),
        "costs": cost_figures(
            searched.costs,
            policy_parameters=engine.parameters,
            scorer_parameters=scorer.parameters if scorer else 0,
        ),
    }
    if scorer is not None:
        results["comparisons"] = [
            comparison(curves, "weighted by PRM min", "majority"),
            comparison(curves, "best by PRM min", "majority"),
            comparison(curves, "best by PRM min", "best by random"),
        ]
        if all("program" in pool.problem.metadata for pool in searched.pools):
            found = step_results(searched.pools)
            results |= {**found, "summary": [*results["summary"], *found.get("summary", [])]}
    run.write_json("results.json", results)
    run.append("samples.jsonl", *sample_rows(searched.pools))
    print_curves(results)
    for sentence in results["summary"]:
        print(f"  {sentence}")
    print(f"report in {write_report(run.path)}")
    return results


def print_curves(results: dict[str, Any]) -> None:
    """The last point of every curve and the comparisons, for people."""
    for curve in results["curves"]:
        point = curve["points"][-1]
        print(
            f"  {curve['rule']:26} N={point['n']:<3} {point['mean']:.3f} "
            f"[{point['low']:.3f}, {point['high']:.3f}]  n={point['problems']}"
        )
    for row in results.get("comparisons", ()):
        print(
            f"  {row['first']} - {row['second']}: {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] (paired)"
        )
