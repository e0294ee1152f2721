"""Relatives of GRPO on the playground: distillation from a teacher, KDRL with k2 and k3, Clip-Cov and KL-Cov.

All runs begin at the shipped policy and take 8 x 4 responses a step to train problems, or where it is said one response
to each of 32; a seed is another order of the problems and other responses. Held-out test problems are answered from the
same random streams everywhere. Intervals are bootstraps over seeds and problems, the same in all arms.

    teacher          GRPO of another seed for twice as many steps as any student gets; its cost is told by itself
    GRPO             one update a step, no KL: the reference of what follows
    distillation     preset opd, the teacher's log-ratio of every token as its advantage, no reward
    .., vocabulary   the same with the KL over all of the vocabulary at every token, in the loss
    .., right        that from a teacher trained better than GRPO trains here: the shipped policy as it was before
      teacher        it learned to slip (`data/playground/policy-right`); with three passes over a step's responses,
                     which learned soonest on validation problems
    .., one a        each of these four with 32 problems a step: a teacher compares no responses to one problem, so it
      problem        needs no groups; GRPO does, and learned less with 16 x 2 (`rl_learning.py`)
    KDRL, k2 and k3  GRPO with a term to the teacher on responses that are not right, whose coefficient falls from 0.1
                     to 0.02: k2's gradient is then about as large as GRPO's at first; with the preset's 5e-3, made
                     for models of billions of parameters, both would be GRPO here
    2 x 4 responses an update: four updates a step at a third of the rate, so that the policy leaves the old one
        GRPO         again, as their reference
        Clip-Cov     a hundredth of the tokens without gradient, KL-Cov a hundredth of them held: the preset's share
        KL-Cov       of 2e-4 would be a tenth of a token of these batches

Steps to an accuracy are read off the mean curve over seeds, made monotone and linear between measurements
(`rl_learning.py`). pass@16 at equal pass@1: on every arm's line through its measurements, (pass@1, pass@16) with pass@1
made monotone, at the lowest of the arms' last pass@1.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from claims import figure, finish
from rl_learning import Curve, mean, resampled, steps_to
from rl_runs import POLICY, answered, kept, online, options, pass_rates, right_of, table, told, verified
from sklearn.isotonic import isotonic_regression

from rewardkit import playground
from rewardkit.rl.config import RlConfig
from search.engines.transformers_engine import TransformersEngine

REFERENCE = "GRPO"
SAMPLED, STUDENT = "distillation", "distillation, right teacher"
WHOLE = "distillation, vocabulary"
RIGHT = str(playground.asset("policy-right"))
THRICE = f"{STUDENT}, 3 passes"
IN_GROUPS = (SAMPLED, WHOLE, STUDENT, THRICE)
ONE = "one a problem"
STUDENTS = (*IN_GROUPS, *(f"{name}, {ONE}" for name in IN_GROUPS))
FOUR = "GRPO, 4 updates"
PLAIN = ("kl=null",)
TO_TEACHER = ("kl.coefficient=0.1", "kl.final=0.02")


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of it."""

    steps: int = 50
    student_steps: int = 20
    many_steps: int = 40
    """Of the arms with four updates a step."""
    problems: int = 200
    """Answered twice."""
    many_problems: int = 100
    """Answered 16 times, by the arms with four updates a step."""
    many: int = 16
    seeds: int = 3


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to learn."""

    preset: str
    steps: int
    every: int
    """Steps between measurements."""
    change: tuple[str, ...] = ()
    teacher: bool = False
    updates: int = 1
    rate: float = 3e-4
    epochs: int = 1
    prompts: int = 8
    group: int = 4
    right: bool = False
    """Whether its teacher is the one that never learned to slip."""


def arms(size: Size) -> dict[str, Arm]:
    """What is compared."""
    half = max(1, size.steps // 2)
    fall = f"kl.steps={size.steps}"
    four: dict[str, Any] = {"steps": size.many_steps, "every": max(1, size.many_steps // 2), "updates": 4, "rate": 1e-4}
    whole = ("kl.estimator=full", "kl.place=loss")
    opd: dict[str, Any] = {"preset": "opd", "steps": size.student_steps, "every": max(1, size.student_steps // 10)}
    students = {
        SAMPLED: Arm(teacher=True, **opd),
        WHOLE: Arm(teacher=True, change=whole, **opd),
        STUDENT: Arm(teacher=True, right=True, change=whole, **opd),
        THRICE: Arm(teacher=True, right=True, change=whole, epochs=3, **opd),
    }
    kdrl: dict[str, Any] = {"preset": "kdrl", "steps": size.steps, "every": half, "teacher": True}
    return {
        REFERENCE: Arm(preset="grpo", steps=size.steps, every=max(1, size.steps // 10), change=PLAIN),
        **students,
        **{f"{name}, {ONE}": replace(arm, prompts=32, group=1) for name, arm in students.items()},
        "KDRL, k2": Arm(change=(*TO_TEACHER, fall), **kdrl),
        "KDRL, k3": Arm(change=(*TO_TEACHER, fall, "kl.estimator=k3"), **kdrl),
        FOUR: Arm(preset="grpo", change=PLAIN, **four),
        "Clip-Cov": Arm(preset="clip_cov", change=("masks.clip_cov=0.01",), **four),
        "KL-Cov": Arm(preset="kl_cov", change=("kl.share=0.01",), **four),
    }


def measured_on(arm: Arm, size: Size) -> dict[str, Any]:
    """Held-out problems and responses to each."""
    many = arm.updates > 1
    problems = playground.problems(size.many_problems if many else size.problems, split="test")
    return {"tests": problems, "samples": size.many if many else 2}


def learn(arm: Arm, seed: int, size: Size, teacher: Path, *, out: Path | None = None) -> dict[str, Any]:
    """One run; its measurements are those behind the first step."""
    config = RlConfig(
        init=POLICY,
        preset=arm.preset,
        change=arm.change,
        teacher=str(teacher) if arm.teacher else None,
        steps=arm.steps,
        prompts=arm.prompts,
        group=arm.group,
        updates=arm.updates,
        epochs=arm.epochs,
        rate=arm.rate,
        max_new_tokens=playground.MAX_NEW_TOKENS,
        seed=seed,
    )
    problems = playground.problems(2000, split="train")
    at = range(arm.every, arm.steps + 1, arm.every)
    return online(config, problems, verified(), at=at, out=out, **measured_on(arm, size)).to_json()


@functools.cache
def start(problems: int, samples: int, policy: str = POLICY) -> Any:
    """What the start, or another policy, gets right."""
    engine = TransformersEngine.load(policy, dtype="float32")
    return right_of(answered(engine, playground.problems(problems, split="test"), samples))


def teach(size: Size, folder: Path, *, resume: bool) -> tuple[dict[str, Any], Path]:
    """The teacher's run and its checkpoint, in $KEEP where that is given."""
    place = Path(os.environ.get("KEEP", folder), "teacher")
    arm = Arm(preset="grpo", steps=2 * size.steps, every=2 * size.steps, change=PLAIN)
    made = resume and (place / "model.safetensors").exists()
    row = kept(
        "relatives-teacher", [asdict(arm), asdict(size)], lambda: learn(arm, 100, size, place, out=place), resume=made
    )
    return row, place


def curve_of(row: Mapping[str, Any], arm: Arm, size: Size) -> Curve:
    """pass@1 and pass@N at the start and at every measurement. Shape (2, M, P)."""
    on = measured_on(arm, size)
    right = [start(len(on["tests"]), on["samples"]), *(row["right"][str(step)] for step in steps_of(row))]
    return np.stack([pass_rates(one) for one in right], axis=1)


def steps_of(row: Mapping[str, Any]) -> list[int]:
    """When it was measured."""
    return sorted(map(int, row["right"]))


def reach(student: str, every: Mapping[str, int]) -> Callable[[Mapping[str, Curve]], float]:
    """Steps of an arm with a teacher over those of GRPO, to the accuracy that GRPO ends with."""

    def of(curves: Mapping[str, Curve]) -> float:
        own = mean(curves[REFERENCE])
        target = float(isotonic_regression(own)[-1])
        both = (steps_to(curves[name], target, every[name]) for name in (student, REFERENCE))
        return next(both) / max(next(both), 0.5)

    return of


def last(name: str, other: str | None = None, place: int = -1) -> Callable[[Mapping[str, Curve]], float]:
    """Mean of a curve at a measurement, the last one unless told, less that of another curve."""
    return lambda curves: float(mean(curves[name])[place] - (0.0 if other is None else mean(curves[other])[place]))


def at_equal_pass_1(name: str, names: tuple[str, ...], other: str | None = None) -> Callable[..., float]:
    """pass@N of an arm where its pass@1 is the lowest of the arms' last ones, less that of another arm."""

    def of(curves: Mapping[str, Curve]) -> float:
        lines = {}
        for one in names:
            first = mean(curves[one])
            lines[one] = isotonic_regression(first), mean(curves[many_of(one)])
        equal = min(line[0][-1] for line in lines.values())
        found = [float(np.interp(equal, *lines[one])) for one in (name, other) if one is not None]
        return found[0] - sum(found[1:])

    return of


def many_of(name: str) -> str:
    """Name of the pass@N curve beside that of pass@1."""
    return f"{name}, pass@N"


def main() -> None:
    """Learn and report."""
    chosen = options(__doc__)
    size = Size()
    if chosen.quick:
        size = Size(steps=2, student_steps=2, many_steps=2, problems=6, many_problems=6, many=4, seeds=1)
    compared = arms(size)
    curves: dict[str, Curve] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        taught, teacher = teach(size, Path(folder), resume=chosen.resume)
        (right,) = taught["right"].values()
        print(f"teacher: pass@1 {pass_rates(right)[0].mean():.3f}, {taught['seconds']:.0f} processor s", flush=True)
        for seed in range(size.seeds):
            for name, arm in compared.items():
                what = [name, asdict(arm), seed, asdict(size), taught["tokens"]]
                make = functools.partial(learn, arm, seed, size, Path(RIGHT) if arm.right else teacher)
                row = kept(f"relatives-{name}-{seed}", what, make, resume=chosen.resume)
                rows.setdefault(name, []).append(row)
                line = curve_of(row, arm, size).mean(2).round(3).tolist()
                print(f"{name}, seed {seed}: {line}, {row['seconds']:.0f} s, {row['alarms']}", flush=True)
    for name, arm in compared.items():
        found = np.stack([curve_of(row, arm, size) for row in rows[name]])
        curves[name], curves[many_of(name)] = found[:, 0], found[:, 1]
    finish("rl_relatives", [*distilled(curves, rows, compared, taught, size), *entropy(curves, rows, size)], chosen)


def about(curves: Mapping[str, Curve], rows: Mapping[str, list[dict[str, Any]]], name: str) -> dict[str, Any]:
    """What stands beside an arm's figure."""
    cost = {key: float(np.mean([row[key] for row in rows[name]])) for key in ("seconds", "tokens", "steps")}
    return {**cost, "seeds": len(rows[name]), "curve": mean(curves[name]).round(4).tolist()}


def distilled(
    curves: Mapping[str, Curve],
    rows: Mapping[str, list[dict[str, Any]]],
    compared: Mapping[str, Arm],
    taught: Mapping[str, Any],
    size: Size,
) -> list[dict[str, Any]]:
    """Figures of the arms with a teacher; the table is printed."""
    own = {name: curves[name] for name, arm in compared.items() if arm.updates == 1}
    (right,) = taught["right"].values()
    figures = [
        figure("held-out pass@1 at the start", float(mean(own[REFERENCE])[0])),
        figure("teacher: pass@1", float(pass_rates(right)[0].mean()), seconds=taught["seconds"], steps=taught["steps"]),
        figure("right teacher: pass@1", float(pass_rates(start(size.problems, 2, RIGHT))[0].mean())),
    ]
    lines = []
    for name in own:
        end = resampled(own, last(name))
        figures.append(figure(f"{name}: pass@1 at the end", **end, **about(own, rows, name)))
        cost = about(own, rows, name)
        lines.append([name, f"{cost['steps']:.0f}", told(end), f"{cost['tokens']:,.0f}", f"{cost['seconds']:.0f}"])
    print(table(["arm", "steps", "pass@1", "tokens drawn", "processor s"], lines))
    every = {name: arm.every for name, arm in compared.items()}
    a_step = {name: sum(row["seconds"] / row["steps"] for row in rows[name]) for name in (*STUDENTS, REFERENCE)}
    for name in STUDENTS:
        ceiling: dict[str, float] = {"ceiling": 0.2} if compared[name].right else {}
        ratio = resampled(own, reach(name, every))
        figures.append(figure(f"steps of {name} / GRPO, to GRPO's last pass@1", **ratio, **ceiling))
        figures.append(figure("    processor seconds of a step", a_step[name] / a_step[REFERENCE]))
    half = max(1, size.steps // 2)
    for name, other in (("KDRL, k2", "KDRL, k3"), ("KDRL, k2", REFERENCE), ("KDRL, k3", REFERENCE)):
        figures.append(figure(f"{name} minus {other}, at the end", **resampled(own, last(name, other))))
    midway = {
        name: own[name][:, [0, list(range(0, size.steps + 1, compared[name].every)).index(half), -1]]
        for name in own
        if compared[name].steps == size.steps
    }
    for name in ("KDRL, k2", "KDRL, k3"):
        found = resampled(midway, last(name, REFERENCE, 1))
        figures.append(figure(f"{name} minus {REFERENCE}, at step {half}", **found))
    return figures


def entropy(curves: Mapping[str, Curve], rows: Mapping[str, list[dict[str, Any]]], size: Size) -> list[dict[str, Any]]:
    """Figures of the arms that hold entropy; the table is printed."""
    names = (FOUR, "Clip-Cov", "KL-Cov")
    own = {key: curves[key] for name in names for key in (name, many_of(name))}
    figures, lines = [], []
    for name in names:
        one, many = (resampled(own, last(key)) for key in (name, many_of(name)))
        equal = resampled(own, at_equal_pass_1(name, names))
        figures.append(figure(f"{name}: pass@1 at the end", **one, **about(own, rows, name)))
        figures.append(
            figure(f"    pass@{size.many} at the end", **many, curve=mean(own[many_of(name)]).round(4).tolist())
        )
        figures.append(figure(f"    pass@{size.many} at equal pass@1", **equal))
        lines.append([name, told(one), told(many), told(equal)])
        if name != FOUR:
            gain = resampled(own, at_equal_pass_1(name, names, FOUR))
            figures.append(figure(f"    minus {FOUR}, at equal pass@1", **gain))
            figures.append(figure("    pass@1 minus that one's, at the end", **resampled(own, last(name, FOUR))))
    print(table(["arm", "pass@1", f"pass@{size.many}", f"pass@{size.many} at equal pass@1"], lines))
    return figures


if __name__ == "__main__":
    main()
