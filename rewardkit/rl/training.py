"""A whole run: the loop with its held-out measurements, log, samples and checkpoints, and the policy it ends with.

Every step gives one row of figures and the responses of its first group; every `eval_every` steps, before the first
and after the last one, held-out problems are answered and judged by the verifier: pass@1 and pass@k, exact for the
samples drawn (`search/estimators.py`), so that a policy that narrows shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardkit.rl import checkpoint
from rewardkit.rl.config import RlConfig
from rewardkit.rl.credit.guards import Guards
from rewardkit.rl.credit.step_config import StepChoice
from rewardkit.rl.loop import Loop, StepReport
from rewardkit.rl.rewards.functions import RewardList, as_part
from search.estimators import pass_at
from search.strategies.best_of_n import draw, judge
from verifiers.core import Outcome, Problem, Scorer
from verifiers.errors import ConfigError
from verifiers.maths import MathVerifier


@dataclass(frozen=True, kw_only=True)
class RlReport:
    """What a run reached."""

    steps: int
    updates: int
    resumed_at: int
    processes: int
    outcome_first: float | None
    """Mean outcome of the run's first step, or the first in which one was known; None where none was."""
    outcome_last: float | None
    """Of the last one."""
    held_out_first: float | None
    """pass@1 before the first step; None without held-out problems."""
    held_out_last: float | None
    alarms: tuple[str, ...]
    """Names of the guards' alarms that rang."""


def train(
    config: RlConfig,
    problems: Sequence[Problem],
    rewards: RewardList | Mapping[str, Any],
    *,
    out: str | Path,
    work: str | Path,
    outcome: str | None = None,
    held_out: Sequence[Problem] = (),
    verifier: Scorer | None = None,
    steps: StepChoice | None = None,
    guards: Guards | None = None,
    on_log: Callable[[dict[str, Any]], None] = lambda row: None,
    on_samples: Callable[[dict[str, Any]], None] = lambda row: None,
    on_say: Callable[[str], None] = lambda text: None,
    resume: bool = False,
) -> RlReport:
    """Train `config.init` on problems by `rewards` (a reward list, or name -> function, scorer, model); save to `out`.

    `outcome` names the reward that is the verifier's (the first one unless told); filters, guards and anchors look at
    it. `held_out` problems must have reference answers. Raises ConfigError for settings and rewards that do not fit,
    DataError for problems that the rewards cannot judge, RewardError where too few responses get a reward, EngineError
    where the sampler drifts from the trainer.
    """
    if config.eval_every and not held_out:
        raise ConfigError("eval_every has no effect without held-out problems; give some, or set it to 0")
    if held_out and not config.eval_every:
        raise ConfigError("held_out has no effect with eval_every=0; say after how many steps to measure on it")
    shared = {problem.id for problem in problems} & {problem.id for problem in held_out}
    if shared:
        raise ConfigError(f"problem {min(shared)!r} is learned from and held out; hold out others")
    if resume:
        config.check_resume()
    if not isinstance(rewards, RewardList | Mapping):
        raise ConfigError(f"rewards must be a RewardList, or a mapping of names to rewards; got {rewards!r:.60}")
    if not isinstance(rewards, RewardList):
        from verifiers.checkpoints import load_tokenizer

        tokenizer = load_tokenizer(config.init)
        rewards = RewardList([as_part(name, one, tokenizer=tokenizer) for name, one in rewards.items()])
    loop = Loop(config, problems, rewards, outcome=outcome, steps=steps, guards=guards)
    main = loop.accelerator.is_main_process
    if resume and (saved := checkpoint.load_last(work)) is not None:
        loop.restore(saved)
    resumed_at = loop.done
    on_say(f"{config.regime}; rewards {rewards.about}")
    if loop.ptx is not None:
        on_say(loop.ptx.about)
    cautions = list(config.table.cautions())
    if rewards.has_steps and loop.table.advantage.kind not in ("step", "step_min"):
        cautions.append(
            f"advantage.kind={loop.table.advantage.kind!r} credits no steps: their scores go to the guards alone"
        )
    for caution in cautions:
        on_say(f"note: {caution}")

    def measure() -> dict[str, Any]:
        if not config.eval_every:
            return {}
        since = time.perf_counter()
        with loop.models.whole():
            found = held_out_figures(loop, held_out, verifier or MathVerifier(), n=config.eval_samples)
        found["seconds/heldout"] = time.perf_counter() - since
        loop.history.note("held_out", found["heldout/pass@1"])
        return found

    def on_step(report: StepReport) -> None:
        if "outcome/mean" in report.metrics:
            loop.history.note("outcome", report.metrics["outcome/mean"])
        due = config.eval_every and (report.step % config.eval_every == 0 or report.step == config.steps)
        for alarm in report.alarms:
            loop.history.alarms.setdefault(alarm.name, report.step)
            if alarm.new and main:
                on_say(f"step {report.step}: {alarm.message}")
        row = {"step": report.step, **report.metrics, **(measure() if due else {})}
        if report.alarms:
            row["alarms"] = [{"name": alarm.name, "message": alarm.message} for alarm in report.alarms]
        lam = loop.table.advantage.lam
        if loop.table.advantage.kind == "step" and lam is not None:
            row["guard/lambda"] = loop.guards.lam(lam)
        if main:
            on_log(row)
            on_samples(sample_row(report))

    rewards.start()
    try:
        if not loop.done:
            row = measure()
            if row and main:
                on_log({"step": 0, **row})
        loop.run(work=work, on_step=on_step)
    finally:
        rewards.close()
    loop.models.save(out, write=main)
    loop.accelerator.wait_for_everyone()
    return RlReport(
        steps=loop.done,
        updates=loop.updater.done,
        resumed_at=resumed_at,
        processes=loop.accelerator.num_processes,
        outcome_first=loop.history.first.get("outcome"),
        outcome_last=loop.history.last.get("outcome"),
        held_out_first=loop.history.first.get("held_out"),
        held_out_last=loop.history.last.get("held_out"),
        alarms=tuple(loop.history.alarms),
    )


def held_out_figures(loop: Loop, problems: Sequence[Problem], verifier: Scorer, *, n: int) -> dict[str, Any]:
    """pass@1, pass@n, length, right responses of each held-out problem (None: undecided); always the same streams."""
    config = loop.config
    pools = draw(
        problems,
        engine=loop.sampler.engine(),
        n=n,
        sampling=config.sampling,
        seed=config.seed,
    )
    pools = judge(pools, verifier)[0]
    unclear = {m for m, p in enumerate(pools) if any(v.outcome is Outcome.UNDECIDED for v in p.verdicts)}
    decided = [pool for number, pool in enumerate(pools) if number not in unclear]
    if not decided:
        raise ConfigError("no held-out problem has a verdict on all its responses; check their reference answers")
    lengths = [len(response.token_ids) for pool in pools for response in pool.responses]
    found = {f"heldout/pass@{k}": sum(pass_at(p.right, k) for p in decided) / len(decided) for k in {1, n}}
    right = [None if number in unclear else sum(pool.right) for number, pool in enumerate(pools)]
    found |= {"heldout/length": sum(lengths) / len(lengths), "heldout/problems": float(len(decided))}
    return {**found, "heldout/samples": float(n), "heldout/right": right}


def sample_row(report: StepReport) -> dict[str, Any]:
    """The first group of a step, for people: what was asked, what was said, what it earned and why not."""
    group, scored = report.sampled.groups[0], report.sampled.scored
    prompt = group.problem.prompt
    return {
        "step": report.step,
        "problem_id": group.problem.id,
        "prompt": prompt if isinstance(prompt, str) else [dict(message) for message in prompt],
        "answer": group.problem.answer,
        "responses": [
            {
                "text": response.text,
                "reward": scored.rewards[n],
                "parts": {name: values[n] for name, values in scored.parts.items()},
                "unscored": None if (reason := scored.reasons[n]) is None else reason.detail,
                "stop_reason": response.stop_reason.value,
            }
            for n, response in enumerate(group.responses)
        ],
    }
