"""`rewardkit rl train`: online reinforcement learning with rewards of one's own, step rewards, and any preset."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, default_name_transform

from rewardkit.rl.config import RlConfig
from rewardkit.rl.credit.guard_config import GuardConfig
from rewardkit.rl.credit.step_config import StepChoice
from rewardkit.rl.rewards.specs import RewardConfig
from verifiers.errors import ConfigError


def behind(prefix: str) -> Parameter:
    """The settings of a nested dataclass as flags that begin with a prefix."""
    return Parameter(name="*", name_transform=lambda name: f"{prefix}-{default_name_transform(name)}")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What `rl train` learns from."""

    data: Annotated[str, Parameter(alias="--problems")]
    """Problems: a file, a hub id, or playground:SPLIT:COUNT[:SEED]."""
    train: Annotated[RlConfig, Parameter(name="*")]
    """How it is trained."""
    reward: Annotated[RewardConfig, Parameter(name="*")] = field(default_factory=RewardConfig)
    """What it is rewarded for."""
    step: Annotated[StepChoice, behind("step")] = field(default_factory=StepChoice, metadata={"prefix": "step_"})
    """What a step earns."""
    guard: Annotated[GuardConfig, behind("guard")] = field(default_factory=GuardConfig, metadata={"prefix": "guard_"})
    """When the alarms go off."""
    outcome: str | None = None
    """Name of the reward that says right or wrong, at which filters and guards look; the first one by default."""
    held_out: str | None = None
    """Problems to measure on, as in --data, every --eval-every steps."""
    limit: int | None = None
    """Use the first problems only."""
    prompt_column: str | None = None
    """Column of the prompts, where it is not found by itself."""
    answer_column: str | None = None
    """Column of the reference answers, where it is not found by itself."""
    out: Path | None = None
    """Run folder; runs/rl-train-DATE by default. The policy goes to its folder model/."""
    resume: bool = False
    """Go on with the run in --out from its last checkpoint (--save-steps)."""

    def __post_init__(self) -> None:
        self.step.config(self.train.table, group=self.train.group)
        if self.resume:
            self.train.check_resume()
            if self.out is None:
                raise ConfigError("resume goes on with the run in out; say which one, by --out")


def train(job: TrainJob) -> int:
    """Train a policy by reinforcement learning.

    Examples
    --------
    rewardkit rl train --preset grpo --init data/playground/policy --data playground:train:2000 --rate 1e-4
    rewardkit rl train --preset prm_step --init data/playground/policy --data playground:train:2000
    --rewards math --rewards prm:data/playground/prm --held-out playground:validation:100 --eval-every 20
    rewardkit rl train --preset prm_step --change advantage.lam=1 --step-rule clip --step-eta 0.5 --guard-drift 1.3
    --rewards math --rewards prm:data/playground/prm --init data/playground/policy --data playground:train:2000
    rewardkit rl train --preset ppo --change ptx=0.1 --ptx-text playground:train:500 --init data/playground/policy
    --data playground:train:2000
    rewardkit rl train --preset dapo --init Qwen/Qwen2.5-0.5B --data gsm8k.jsonl --rewards my_rewards.py:reward
    """
    from rewardkit.report import write_report
    from rewardkit.rl.credit.guards import Guards
    from rewardkit.rl.rewards.functions import reward_list
    from rewardkit.rl.training import train as train_policy
    from rewardkit.runs import RunFolder
    from rewardkit.sources import as_chat, problems_from
    from verifiers.checkpoints import load_tokenizer

    tokenizer = load_tokenizer(job.train.init)
    columns: dict[str, Any] = {"prompt_column": job.prompt_column, "answer_column": job.answer_column}
    problems = as_chat(problems_from(job.data, limit=job.limit, **columns), tokenizer)
    held_out = as_chat(problems_from(job.held_out, **columns), tokenizer) if job.held_out else []
    rewards = reward_list(job.reward, tokenizer=tokenizer)
    options: dict[str, Any] = {
        "outcome": job.outcome or rewards.parts[0].name,
        "held_out": held_out,
        "steps": job.step,
        "guards": Guards(job.guard),
    }
    if os.environ.get("RANK", "0") != "0":
        # One of several processes (torchrun, accelerate launch): the first one keeps the run folder.
        if job.out is None:
            raise ConfigError("with several processes --out must be given, so that all of them use one run folder")
        work = job.out / "checkpoints"
        train_policy(job.train, problems, rewards, out=job.out / "model", work=work, resume=job.resume, **options)
        return 0
    with RunFolder.create("rl train", job, out=job.out, resume=job.resume) as run:
        if job.resume:
            forget_behind(run.path)
        report = train_policy(
            job.train,
            problems,
            rewards,
            out=run.path / "model",
            work=run.path / "checkpoints",
            on_log=run.log,
            on_samples=lambda row: run.append("rollouts.jsonl", row),
            on_say=print,
            resume=job.resume,
            **options,
        )
        facts = {"regime": job.train.regime, "rewards": rewards.about, **asdict(report)}
        run.write_json("results.json", {"title": "Reinforcement learning", "facts": facts})
        print(json.dumps(asdict(report)))
        print(f"policy in {run.path / 'model'}, report in {write_report(run.path)}")
    return 0


def forget_behind(folder: Path) -> None:
    """Cut the logs of a run that goes on back to its last checkpoint; the rows behind it come again."""
    from rewardkit.rl.checkpoint import steps
    from verifiers.jsonl import JsonlAppender, write_jsonl

    reached = steps(folder / "checkpoints")
    last = reached[-1] if reached else -1
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        path = folder / name
        if path.exists() and path.stat().st_size:
            with JsonlAppender(path) as opened:  # without the unfinished line that a killed run may leave
                rows = opened.rows
            if kept := [row for row in rows if row["step"] <= last]:
                write_jsonl(path, kept)
            else:
                path.unlink()
