"""One arm of `rl_step_time.py` in a process of its own, under the Python that has its library.

    python rl_step_time_arms.py time {rewardkit,trl} JOB.json

The same model, prompts, reward, batch and optimiser in both arms; each library draws, scores, reads and updates as it
does by itself. A batch is one generation with all updates on it. The first `warmup` batches do not count; of the others
the median processor seconds (with those of reward processes), seconds and drawn tokens are printed as one JSON object.
Only this file runs under TRL's environment, which does not have RewardKit.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Job = dict[str, Any]
"""model, prompts, group, tokens (most new ones), batches, warmup, updates, epochs, beta, constant (share), threads."""
RATE = 1e-5


def prompt_of(number: int) -> str:
    """Six words, the first of which tells problems apart."""
    return " ".join(f"w{(number * step + step) % 480}" for step in (1, 7, 11, 13, 17, 19))


def reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """The share of even words; for problems whose `flat` is true, always 0."""
    found = []
    for text, flat in zip(completions, columns["flat"], strict=True):
        words = text.split()
        found.append(0.0 if flat else sum(int(w[1:] or 0) % 2 == 0 for w in words if w[:1] == "w") / max(1, len(words)))
    return found


def flat(number: int, job: Job) -> bool:
    """Whether a problem's reward says nothing: the first part of every batch of problems."""
    return number % job["prompts"] < job["constant"] * job["prompts"]


def result(batches: list[dict[str, float]], job: Job) -> Job:
    """Medians of what counts."""
    kept = batches[job["warmup"] :]
    return {name: statistics.median(row[name] for row in kept) for name in kept[0]} | {"batches": len(kept)}


def time_rewardkit(job: Job) -> Job:
    """Our loop, a reward function in its worker process."""
    import psutil

    from rewardkit.rl.config import RlConfig
    from rewardkit.rl.loop import Loop
    from rewardkit.rl.rewards.functions import RewardList, as_part
    from verifiers.core import Problem

    change = ["kl=null"] if not job["beta"] else [f"kl.coefficient={job['beta']}"]
    config = RlConfig(
        init=job["model"],
        preset="grpo",
        change=("aggregation=token", *change),
        steps=job["batches"],
        prompts=job["prompts"],
        group=job["group"],
        epochs=job["epochs"],
        updates=job["updates"],
        rate=RATE,
        max_new_tokens=job["tokens"],
        seed=job["seed"],
    )
    problems = [
        Problem(id=str(n), prompt=prompt_of(n), answer=None, metadata={"flat": flat(n, job)})
        for n in range(job["prompts"] * job["batches"])
    ]
    rewards = RewardList([as_part("even", f"{__file__}:reward")])
    loop = Loop(config, problems, rewards, outcome="even")
    loop.supply.order = InOrder(problems)
    rewards.start()
    workers = psutil.Process().children(recursive=True)

    def clock() -> tuple[float, float]:
        own = [times for worker in workers for times in [worker.cpu_times()]]
        return time.process_time() + sum(t.user + t.system for t in own), time.perf_counter()

    batches = []
    try:
        for _ in range(job["batches"]):
            cpu, wall = clock()
            report = loop.step()
            cpu_end, wall_end = clock()
            phases = {f"    {name[8:]}": v for name, v in report.metrics.items() if name.startswith("seconds/")}
            batches.append(
                {"cpu": cpu_end - cpu, "wall": wall_end - wall, "tokens": report.metrics["tokens"], **phases}
            )
    finally:
        rewards.close()
    return result(batches, job)


class InOrder:
    """Problems as they stand."""

    def __init__(self, problems: Any) -> None:
        self.problems, self.position = problems, 0

    def take(self, count: int) -> Any:
        """The next ones."""
        self.position += count
        return self.problems[self.position - count : self.position]


def time_trl(job: Job) -> Job:
    """GRPOTrainer with its defaults for what the job does not say; its loss 'dapo' is the mean over all tokens."""
    import contextlib

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    steps_a_batch = job["updates"] * job["epochs"]
    tokens = [0]

    class Marks(TrainerCallback):  # type: ignore[misc]
        """The time before every optimiser step."""

        def __init__(self) -> None:
            self.at: list[tuple[float, float, int]] = []

        def note(self) -> None:
            self.at.append((time.process_time(), time.perf_counter(), tokens[0]))

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.note()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.note()

    class InOrderTrainer(GRPOTrainer):  # type: ignore[misc]
        """Counts what it draws."""

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            out = super()._generate_single_turn(*args, **kwargs)
            tokens[0] += sum(map(len, out[0]))
            return out

    count = job["prompts"] * job["batches"]
    data = Dataset.from_list([{"prompt": prompt_of(n), "flat": flat(n, job)} for n in range(count)])
    marks = Marks()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            shuffle_dataset=False,
            per_device_train_batch_size=job["prompts"] * job["group"] // job["updates"],
            gradient_accumulation_steps=1,
            steps_per_generation=job["updates"],
            num_iterations=job["epochs"],
            num_generations=job["group"],
            max_completion_length=job["tokens"],
            max_steps=job["batches"] * steps_a_batch,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            beta=job["beta"],
            temperature=1.0,
            logging_steps=1,
            seed=job["seed"],
            gradient_checkpointing=False,
        )
        trainer = InOrderTrainer(
            model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
            reward_funcs=reward,
            args=config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(job["model"]),
            callbacks=[marks],
        )
        trainer.train()
    ends = marks.at[::steps_a_batch]
    rows = [
        {"cpu": b[0] - a[0], "wall": b[1] - a[1], "tokens": float(b[2] - a[2])} for a, b in itertools.pairwise(ends)
    ]
    return result(rows, job)


def main() -> None:
    """Run one arm."""
    _, library, path = sys.argv[1:]
    job = json.loads(Path(path).read_text())
    import torch

    torch.set_num_threads(int(job["threads"]))
    done = (time_rewardkit if library == "rewardkit" else time_trl)(job)
    print(json.dumps(done))


if __name__ == "__main__":
    main()
