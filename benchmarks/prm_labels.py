"""Step labels at a fraction of the roll-outs: early stop, first-error search, posterior labels, and wall time.

All on responses of the shipped policy to playground test problems, whose step truth is computable; a seed is another
set of problems and other roll-outs. One log of K = 16 roll-outs a step serves every method that labels from it: they
all read the same streams, so labels are compared roll-out by roll-out. Intervals are bootstraps over seeds.

    hard labels    fixed K against early stop; labels must be identical
    first error    wrong responses of eight steps; the linear scan names the first step all of whose K roll-outs failed
    soft labels    mean squared error against V from the other 56 of 64 roll-outs a step (their own variance taken off);
                   "equivalent roll-outs": plain K=8's error over the posterior's, as errors fall with 1 / K

Wall time is in prm_label_time.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from claims import arguments, figure, finish

from prm.formats import StepRow
from prm.labelling import LabelConfig, label
from prm.model import ProcessModel
from prm.posterior import with_prior
from prm.rollouts import MemoryLog
from rewardkit import playground
from rewardkit.step_truth import judge_steps
from search.engines.transformers_engine import TransformersEngine
from search.strategies.best_of_n import draw
from verifiers.core import Outcome, Problem, Response
from verifiers.maths import MathVerifier
from verifiers.steps import split_steps

BASE = LabelConfig(trials=16, temperature=playground.TEMPERATURE, max_new_tokens=playground.MAX_NEW_TOKENS)
Pairs = list[tuple[Problem, Response]]


def responses(
    engine: TransformersEngine, count: int, seed: int, *, steps: int = 0, wrong: bool = False, split: Any = "test"
) -> Pairs:
    """Responses to `count` test problems; with `steps`, only those of as many steps, wrong ones if asked."""
    found: Pairs = []
    for start in itertools.count(0, 400 if steps else count):
        problems = playground.problems(400 if steps else count, split=split, seed=seed + 900, start=start)
        if steps:
            problems = [p for p in problems if len(split_steps(str(p.metadata["solution"]))) == steps]
        pools = draw(problems, engine=engine, n=2 if steps else 1, sampling=BASE.sampling, seed=seed)
        for problem, response in ((pool.problem, response) for pool in pools for response in pool.responses):
            if steps and len(split_steps(response.text)) != steps:
                continue
            if wrong and MathVerifier().verify(response.text, problem.answer or "").outcome is not Outcome.INCORRECT:
                continue
            found.append((problem, response))
        if len(found) >= count or not steps:
            return found[:count]
    raise AssertionError


def labelled(pairs: Pairs, engine: Any, config: LabelConfig, **more: Any) -> list[StepRow]:
    """The responses' own rows."""
    problems, texts = [p for p, _ in pairs], [r for _, r in pairs]
    found = label(problems, texts, engine=engine, verifier=MathVerifier(), config=config, chunk=len(pairs), **more)
    return [rows[0] for rows in found]


def drawn(rows: Sequence[StepRow]) -> int:
    """Roll-outs; the last step's cost nothing."""
    return sum(sum(row.trials[:-1]) + sum(row.undecided[:-1]) for row in rows)


def hard_labels(engine: TransformersEngine, count: int, seed: int) -> dict[str, float]:
    """Fixed K against early stop on one log."""
    pairs, log = responses(engine, count, seed), MemoryLog()
    config = replace(BASE, seed=seed)
    fixed = labelled(pairs, engine, config, log=log)
    early = labelled(pairs, engine, replace(config, method="early_stop"), log=log)
    half = [labelled(pairs, engine, replace(config, method=m, threshold=0.5), log=log) for m in ("fixed", "early_stop")]
    same = [
        a.labels("hard") == b.labels("hard")
        for one, two in ((fixed, early), half)
        for a, b in zip(one, two, strict=True)
    ]
    return {
        "ratio": drawn(fixed) / drawn(early),
        "ratio half": drawn(half[0]) / drawn(half[1]),
        "identical": float(np.mean(same)),
    }


def first_errors(engine: TransformersEngine, scorer: ProcessModel, count: int, seed: int) -> dict[str, float]:
    """The linear scan against searches, all on one log."""
    pairs, log = responses(engine, count, seed, steps=8, wrong=True), MemoryLog()
    config = replace(BASE, seed=seed)
    scan = labelled(pairs, engine, config, log=log)
    named = [row.labels("hard").index(False) for row in scan]
    truth = [next((t for t, step in enumerate(judge_steps(p, r.text)) if not step.sound), 7) for p, r in pairs]
    found = {"linear accuracy": float(np.mean(np.equal(named, truth)))}
    for name, method, guide, neighbour in (
        ("binary", "binary_search", None, 0),
        ("binary, neighbour", "binary_search", None, 4),
        ("cheapest", "cheapest_search", None, 0),
        ("cheapest, neighbour", "cheapest_search", None, 4),
        ("cheapest, PRM", "cheapest_search", scorer, 0),
        ("cheapest, PRM, neighbour", "cheapest_search", scorer, 4),
    ):
        settings = replace(config, method=method, neighbour=neighbour)  # type: ignore[arg-type]
        rows = labelled(pairs, engine, settings, log=log, scorer=guide)
        errors = [row.provenance["first_error"] for row in rows]
        found[f"{name} ratio"] = drawn(scan) / drawn(rows)
        found[f"{name} agreement"] = float(np.mean(np.equal(errors, named)))
        found[f"{name} accuracy"] = float(np.mean(np.equal(errors, truth)))
    return found


def soft_labels(engine: TransformersEngine, scorer: ProcessModel, count: int, seed: int) -> dict[str, float]:
    """Errors of K = 8 with and without the prior; 64 roll-outs give eight sets of 8, each judged by the rest."""
    pairs, log = responses(engine, count, seed), MemoryLog()
    rows = labelled(pairs, engine, replace(BASE, trials=64, seed=seed), log=log)
    odds = scorer.log_odds([p for p, _ in pairs], [r for _, r in pairs])
    plain, posterior, kappas = [], [], []
    for part in range(0, 64, 8):
        some = []
        for (problem, response), row in zip(pairs, rows, strict=True):
            streams = [log.known((problem.id, str(response.sample), t)) for t in range(len(row.completions) - 1)]
            wins = [float(sum(r.outcome is Outcome.CORRECT for r in stream[part : part + 8])) for stream in streams]
            some.append(replace(row, successes=(*wins, 0.0), trials=(8,) * len(wins) + (0,), undecided=()))
        found = with_prior(some, odds)
        kappas += found.kappas
        for eight, mixed, row in zip(some, found.rows, rows, strict=True):
            for t in range(len(row.completions) - 1):
                value = (row.successes[t] - eight.successes[t]) / 56
                noise = value * (1 - value) / 55
                plain.append((eight.successes[t] / 8 - value) ** 2 - noise)
                label_ = mixed.labels("soft")[t]
                assert label_ is not None
                posterior.append((label_ - value) ** 2 - noise)
    return {"equivalent": float(np.mean(plain) / np.mean(posterior)), "kappa": float(np.median(kappas))}


def interval(values: list[float]) -> dict[str, float]:
    """Mean over seeds with a bootstrap interval."""
    picks = np.random.default_rng(0).integers(0, len(values), size=(2000, len(values)))
    low, high = np.quantile(np.array(values)[picks].mean(1), [0.025, 0.975])
    return {"value": float(np.mean(values)), "low": float(low), "high": float(high), "seeds": len(values)}


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__)
    engine = TransformersEngine.load(playground.asset("policy"), dtype="float32")
    scorer = ProcessModel.load(playground.asset("prm"), dtype="float32")
    seeds = range(2 if options.quick else 5)
    small = options.quick
    hard = [hard_labels(engine, 20 if small else 60, seed) for seed in seeds]
    errors = [first_errors(engine, scorer, 10 if small else 40, seed) for seed in seeds]
    soft = [soft_labels(engine, scorer, 20 if small else 40, seed) for seed in seeds]

    def row(name: str, source: list[dict[str, float]], key: str, **more: Any) -> dict[str, Any]:
        return figure(name, **interval([one[key] for one in source]), **more)

    figures = [
        row("hard labels, any success: roll-outs of fixed K=16 / early stop", hard, "ratio", floor=1.8, unit="x"),
        row("hard labels, at least half: the same", hard, "ratio half", unit="x"),
        row("share of responses with identical labels", hard, "identical", floor=1.0),
    ]
    for name in (
        "binary",
        "binary, neighbour",
        "cheapest",
        "cheapest, neighbour",
        "cheapest, PRM",
        "cheapest, PRM, neighbour",
    ):
        floors = (4.0, 0.97) if name == "cheapest" else (None, None)
        figures += [
            row(
                f"first error, {name}: roll-outs of the scan / of the search", errors, f"{name} ratio", floor=floors[0]
            ),
            row("    agreement with the scan", errors, f"{name} agreement", floor=floors[1]),
            row("    accuracy against the computable truth", errors, f"{name} accuracy"),
        ]
    figures += [
        row("first error, linear scan: accuracy against the computable truth", errors, "linear accuracy"),
        row("soft labels at K=8 with the prior: worth so many times the roll-outs", soft, "equivalent", floor=1.3),
        row("    the prior's weight in roll-outs", soft, "kappa"),
    ]
    finish("prm_labels", figures, options)


if __name__ == "__main__":
    main()
