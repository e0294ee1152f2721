"""Calibration of the shipped process reward model on problems that neither training nor fitting saw.

Two readings of a step's score. As the chance that the policy goes on to a right answer: train problems are labelled
here with K = 16 and give the maps; test problems, labelled with K = 24, judge them, each roll-out one trial. As the
chance that no step so far is wrong, judged by the computable truth. A seed is another set of train and test problems.

Beside it the same for a model that is sure of everything (the shipped one with its head multiplied by 4), as models
trained on hard labels are: what calibration can mend depends on what is broken.
"""

from __future__ import annotations

from typing import Any

import torch
from claims import arguments, figure, finish
from prm_labels import BASE, Pairs, interval, labelled, replace, responses

from prm.calibration import fit_calibration
from prm.evaluate import brier_score, expected_calibration_error
from prm.formats import StepRow
from prm.model import ProcessModel
from rewardkit import playground
from rewardkit.calibrating import by_trial, calibration_steps
from rewardkit.step_truth import judge_steps
from search.engines.transformers_engine import TransformersEngine


def unfinished(rows: list[StepRow]) -> list[StepRow]:
    """Without last steps, whose outcome is known."""
    return [
        replace(row, successes=(*row.successes[:-1], 0.0), trials=(*row.trials[:-1], 0), undecided=())
        for row in rows
        if len(row.completions) > 1
    ]


def by_truth(pairs: Pairs, rows: list[StepRow]) -> list[StepRow]:
    """The same responses with one trial a step: is everything sound so far."""
    found = []
    for (problem, response), row in zip(pairs, rows, strict=True):
        sound = tuple(float(step.sound) for step in judge_steps(problem, response.text))
        found.append(replace(row, successes=sound, trials=(1,) * len(sound), undecided=()))
    return found


def bold(model: ProcessModel) -> ProcessModel:
    """The same model, four times as sure."""
    copy = ProcessModel.load(playground.asset("prm"), dtype="float32")
    with torch.no_grad():
        for parameter in copy.model.score.parameters():
            parameter.mul_(4)
    return copy


def measured(model: ProcessModel, fit_on: list[StepRow], judge_on: list[StepRow]) -> dict[str, float]:
    """ECE and Brier score before and after, on the judging rows."""
    calibration = fit_calibration(calibration_steps(model, fit_on), method="isotonic", parts=3)
    raw, mended, truth = by_trial(calibration_steps(model, judge_on), calibration)
    ece = [expected_calibration_error(scores, truth) for scores in (raw, mended)]
    return {
        "before": ece[0],
        "after": ece[1],
        "ratio": ece[0] / ece[1],
        "brier before": brier_score(raw, truth),
        "brier after": brier_score(mended, truth),
    }


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__)
    engine = TransformersEngine.load(playground.asset("policy"), dtype="float32")
    model = ProcessModel.load(playground.asset("prm"), dtype="float32")
    sure = bold(model)
    names = ("chance of success", "soundness", "chance of success, sure model", "soundness, sure model")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in range(2 if options.quick else 5):
        train = responses(engine, 30 if options.quick else 100, seed, split="train")
        test = responses(engine, 20 if options.quick else 60, seed)
        fit_on = labelled(train, engine, replace(BASE, seed=seed + 1))
        judge_on = labelled(test, engine, replace(BASE, trials=24, seed=seed))
        for name, one in (("", model), (", sure model", sure)):
            found[f"chance of success{name}"].append(measured(one, unfinished(fit_on), unfinished(judge_on)))
            found[f"soundness{name}"].append(measured(one, by_truth(train, fit_on), by_truth(test, judge_on)))
    figures: list[dict[str, Any]] = []
    for name, rows in found.items():
        for key, floor in (
            ("before", None), ("after", None), ("ratio", 2.0), ("brier before", None), ("brier after", None)
        ):  # fmt: skip
            what = {"ratio": "ECE before / after", "before": "ECE before", "after": "ECE after"}.get(key, key)
            figures.append(figure(f"{name}: {what}", **interval([row[key] for row in rows]), floor=floor))
    finish("prm_calibration", figures, options)


if __name__ == "__main__":
    main()
