"""What RL reaches on the playground: outcomes alone, with step rewards, with a critic, with a weak PRM.

All arms begin at the shipped policy, take train problems in the same order, 32 responses a step, to 8 problems unless
it is said otherwise, AdamW at the same rate, and answer the same held-out test problems every few steps. A seed is
another order and other responses.

    outcome only        GRPO on the verifier
    step rewards        prm_step: marginal rewards of the shipped PRM, anchored to the verifier, with lambda 0, without
                        the group's deviation, Phi_0 from the group's first scores: of the settings tried on validation
                        problems what learned soonest
    .. as the preset    the same with lambda 0.5, the deviation, and Phi_0 from the group's outcomes
    .. that are true    as "step rewards", but Phi is 1 as long as every step is sound and 0 from the first one that is
                        not, as the playground knows it: what a PRM of soundness would say at its best
    .. two a problem    "outcome only" and "step rewards" with 16 problems a step, for each two responses
    .. one a problem    with 32 problems a step: outcomes alone by REINFORCE++, which compares over the batch, and step
                        rewards with the policy's first pass@1 as Phi_0; GRPO cannot compare one response with others
    critic              PPO, two passes a batch
    weak PRM, plain     marginal rewards of a PRM hardly trained, without the anchor: its last score is the goal
    weak PRM, anchored  the same PRM, anchored to the verifier, with the guards' fallback

With the environment variable KEEP every run is written to that folder, and taken up from there with `--resume`. Steps
to an accuracy are read off the mean curve over seeds, made monotone (isotonic regression) and linear between
measurements; the target is what outcomes alone reach in the end. Intervals are bootstraps over seeds and problems.
"""

from __future__ import annotations

import functools
import itertools
import operator
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from claims import figure, finish
from rl_runs import kept, options
from sklearn.isotonic import IsotonicRegression

from rewardkit import playground
from rewardkit.rl.config import RlConfig
from rewardkit.rl.credit.step_config import StepChoice
from rewardkit.rl.loop import Loop
from rewardkit.rl.rewards.functions import RewardList, as_part, reward_list
from rewardkit.rl.rewards.specs import RewardConfig
from rewardkit.step_truth import judge_steps
from search.engines.transformers_engine import TransformersEngine
from search.scorers import TrueScores
from search.strategies.best_of_n import draw, judge
from verifiers.checkpoints import load_tokenizer
from verifiers.core import Problem, Sampling
from verifiers.maths import MathVerifier

Curve = npt.NDArray[np.float64]
"""Share of right responses at every measurement, for every seed and problem. Shape (S, M, P)."""
POLICY = str(playground.asset("policy"))
OUTCOME = "outcome only"
STEPS = "step rewards"
TRUE = f"{STEPS} that are true"
TWO, ONE = "two a problem", "one a problem"
SAMPLES = 2
DRAWS = 1000
"""Of a bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to learn."""

    preset: str
    change: tuple[str, ...] = ()
    rewards: tuple[str, ...] = ("math",)
    """As on the command line; "truth" stands for the playground's own steps."""
    steps: StepChoice | None = None
    prompts: int = 8
    group: int = 4
    epochs: int = 1
    part: float = 1.0
    """Share of the steps that it runs."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of it."""

    steps: int
    every: int
    problems: int
    seeds: int


def arms(weak: Path) -> dict[str, Arm]:
    """What is compared."""
    shipped = f"prm:{playground.asset('prm')}"
    plain = StepChoice(anchor=False, outcome_weight=0.0)
    bold = Arm(
        preset="prm_step",
        change=("advantage.lam=0", "advantage.scale=none"),
        rewards=("math", shipped),
        steps=StepChoice(start_from="scores"),
    )
    outcome = Arm(preset="grpo", change=("kl=null",))
    two, one = {"prompts": 16, "group": 2}, {"prompts": 32, "group": 1}
    return {
        OUTCOME: outcome,
        f"{OUTCOME}, {TWO}": replace(outcome, **two),
        f"{OUTCOME}, {ONE}": replace(outcome, preset="reinforce_pp", **one),
        STEPS: bold,
        f"{STEPS}, {TWO}": replace(bold, **two),
        f"{STEPS}, {ONE}": replace(bold, steps=StepChoice(start=0.47), **one),
        f"{STEPS}, as the preset": Arm(preset="prm_step", rewards=("math", shipped)),
        TRUE: replace(bold, rewards=("math", "truth")),
        "critic": Arm(preset="ppo", epochs=2),
        "weak PRM, plain": Arm(preset="prm_step", rewards=("math", f"prm:{weak}"), steps=plain, part=0.6),
        "weak PRM, anchored": Arm(preset="prm_step", rewards=("math", f"prm:{weak}"), part=0.6),
    }


def still_sound(problem: Problem, text: str) -> list[bool]:
    """Of each step, whether it and all before it are sound."""
    return list(itertools.accumulate((step.sound for step in judge_steps(problem, text)), operator.and_))


def rewards_of(arm: Arm) -> RewardList:
    """The arm's rewards, not started."""
    tokenizer = load_tokenizer(POLICY)
    if "truth" not in arm.rewards:
        return reward_list(RewardConfig(rewards=arm.rewards), tokenizer=tokenizer)
    truth = TrueScores(verifier=MathVerifier(), sound=still_sound)
    return RewardList([as_part("math", MathVerifier()), as_part("truth", truth, tokenizer=tokenizer)])


def weak_prm(folder: Path) -> Path:
    """A PRM of the shipped labels that saw few of them, for a few steps."""
    from prm import TrainConfig, fit
    from prm.formats import read_stepwise

    rows = read_stepwise(playground.asset("labels.jsonl.gz"))
    fit(rows[:64], TrainConfig(init=POLICY, steps=12, rows=8, micro_rows=8, rate=1e-4), folder, work=folder / "work")
    return folder


def learn(arm: Arm, seed: int, size: Size) -> dict[str, Any]:
    """One run: curve, right shares (M, P); rows, metrics of every step; rang, (step, alarm) as they first did."""
    config = RlConfig(
        init=POLICY,
        preset=arm.preset,
        change=arm.change,
        steps=round(arm.part * size.steps),
        prompts=arm.prompts,
        group=arm.group,
        epochs=arm.epochs,
        rate=3e-4,
        max_new_tokens=playground.MAX_NEW_TOKENS,
        seed=seed,
    )
    rewards = rewards_of(arm)
    loop = Loop(config, playground.problems(2000, split="train"), rewards, outcome="math", steps=arm.steps)
    tests = playground.problems(size.problems, split="test")
    rows: list[dict[str, Any]] = []
    rang: dict[str, int] = {}

    def measured() -> npt.NDArray[np.float64]:
        engine = TransformersEngine(loop.models.policy, loop.models.tokenizer, max_rows=256)
        sampling = Sampling(temperature=1.0, max_new_tokens=playground.MAX_NEW_TOKENS)
        pools = judge(draw(tests, engine=engine, n=SAMPLES, sampling=sampling, seed=77), MathVerifier())[0]
        return np.array([np.mean([bool(one) for one in pool.right]) for pool in pools])

    found = [measured()]
    rewards.start()
    try:
        for step in range(1, config.steps + 1):
            report = loop.step()
            scored = report.sampled.scored.steps
            last = [] if scored is None else [own.values[-1] for own in scored if own is not None and own.values]
            rows.append({"step": step, **report.metrics, **({"last_score": float(np.mean(last))} if last else {})})
            for alarm in report.alarms:
                rang.setdefault(alarm.name, step)
            if step % size.every == 0:
                found.append(measured())
    finally:
        rewards.close()
    return {"curve": np.stack(found).tolist(), "rows": rows, "rang": [(step, name) for name, step in rang.items()]}


def resampled(curves: Mapping[str, Curve], of: Callable[[Mapping[str, Curve]], float]) -> dict[str, float]:
    """A figure of the arms' curves with a 95 % bootstrap interval over seeds and problems, the same in all arms."""
    pick = random.Random(0)
    seeds, _, problems = next(iter(curves.values())).shape
    drawn = []
    for _ in range(DRAWS):
        s, p = pick.choices(range(seeds), k=seeds), pick.choices(range(problems), k=problems)
        drawn.append(of({name: curve[s][:, :, p] for name, curve in curves.items()}))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": of(curves), "low": float(low), "high": float(high)}


def mean(curve: Curve) -> npt.NDArray[np.float64]:
    """Over seeds and problems. Shape (M,)."""
    return np.asarray(curve.mean((0, 2)))


def steps_to(curve: Curve, target: float, every: int) -> float:
    """First step at which the monotone mean curve reaches the target; 1.5 times the last where it does not."""
    means = mean(curve)
    fitted = IsotonicRegression().fit_transform(np.arange(len(means)), means)
    if fitted[-1] < target:
        return 1.5 * every * (len(means) - 1)
    at = int(np.argmax(fitted >= target))
    if at == 0:
        return 0.0
    return every * (at - 1 + (target - fitted[at - 1]) / (fitted[at] - fitted[at - 1]))


def reach(curves: Mapping[str, Curve], name: str, every: int, share: float, against: str = OUTCOME) -> float:
    """Steps of an arm over those of another, to a share of what `outcome only` gains in the end."""
    own = mean(curves[OUTCOME])
    fitted = IsotonicRegression().fit_transform(np.arange(len(own)), own)
    target = float(fitted[0] + share * (fitted[-1] - fitted[0]))
    return steps_to(curves[name], target, every) / max(steps_to(curves[against], target, every), 0.5)


def gain(name: str) -> Callable[[Mapping[str, Curve]], float]:
    """Accuracy at the end minus at the beginning."""
    return lambda curves: float(mean(curves[name])[-1] - mean(curves[name])[0])


def last_scores(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Mean of the PRM's last score over the first and the last five steps."""
    values = [row["last_score"] for row in rows if "last_score" in row]
    return float(np.mean(values[:5])), float(np.mean(values[-5:]))


def main() -> None:
    """Learn and report."""
    chosen = options(__doc__)
    size = Size(steps=50, every=5, problems=200, seeds=3)
    if chosen.quick:
        size = Size(steps=4, every=2, problems=10, seeds=2)
    curves: dict[str, Curve] = {}
    logs: dict[str, list[list[dict[str, Any]]]] = {}
    alarms: dict[str, list[list[tuple[int, str]]]] = {}
    with tempfile.TemporaryDirectory() as made:
        compared = arms(weak_prm(Path(made, "weak")))
        for seed in range(size.seeds):
            for name, arm in compared.items():
                # Without the rewards: the weak model is made anew every time, the same, under another path.
                steps = None if arm.steps is None else asdict(arm.steps)
                layout = arm.prompts, arm.group
                what = [name, arm.preset, arm.change, steps, layout, arm.epochs, arm.part, seed, asdict(size)]
                make = functools.partial(learn, arm, seed, size)
                run = kept(f"learning-{name}-{seed}", what, make, resume=chosen.resume)
                curve = np.array(run["curve"])
                curves[name] = np.concatenate([curves[name], curve[None]]) if seed else curve[None]
                logs.setdefault(name, []).append(run["rows"])
                alarms.setdefault(name, []).append([(step, alarm) for step, alarm in run["rang"]])
                print(f"{name}, seed {seed}: {np.round(curve.mean(1), 3).tolist()} {run['rang']}", flush=True)
    figures = [figure("held-out pass@1 at the start", float(mean(curves[OUTCOME])[0]))]
    for name in curves:
        bounds: dict[str, Any] = {"floor": 0.15} if name == OUTCOME else {}
        if name in ("critic", "weak PRM, anchored"):
            bounds = {"floor": 0.0}
        found = resampled(curves, gain(name))
        curve = [round(float(v), 4) for v in mean(curves[name])]
        figures.append(figure(f"{name}: gain of pass@1", **found, **bounds, curve=curve, seeds=size.seeds))
    shares = 1.0, 0.75, 0.5
    for name in (STEPS, f"{STEPS}, {TWO}", f"{STEPS}, {ONE}", TRUE, f"{OUTCOME}, {TWO}", f"{OUTCOME}, {ONE}"):
        for share in shares:
            found = resampled(curves, functools.partial(reach, name=name, every=size.every, share=share))
            bounds = {"ceiling": 0.8} if share == 1 and name in (STEPS, f"{STEPS}, {TWO}") else {}
            figures.append(figure(f"steps of {name} / {OUTCOME}, to {share:.0%} of the gain", **found, **bounds))
        found = resampled(curves, lambda c, name=name: gain(name)(c) - gain(OUTCOME)(c))
        figures.append(figure(f"{name} minus {OUTCOME}, at the end", **found))
    best = f"{OUTCOME}, {ONE}"
    for name, share in itertools.product((f"{STEPS}, {TWO}", f"{STEPS}, {ONE}"), shares):
        of = functools.partial(reach, name=name, every=size.every, share=share, against=best)
        figures.append(figure(f"steps of {name} / {best}, to {share:.0%} of the gain", **resampled(curves, of)))
    for name in ("weak PRM, plain", "weak PRM, anchored"):
        first, last = zip(*(last_scores(rows) for rows in logs[name]), strict=True)
        rang = [sorted({alarm for _, alarm in run}) for run in alarms[name]]
        at = [min((step for step, _ in run), default=-1) for run in alarms[name]]
        figures.append(figure(f"{name}: rise of the PRM's last score", float(np.mean(last) - np.mean(first))))
        caught = figure(
            "    share of runs in which a guard rang", float(np.mean([bool(r) for r in rang])), rang=rang, at=at
        )
        figures.append({**caught, **({"floor": 1.0, "held": bool(caught["value"] == 1.0)} if "plain" in name else {})})
    finish("rl_learning", figures, chosen)


if __name__ == "__main__":
    main()
