"""One arm of `prm_training.py` in a process of its own, under the Python that has its library.

    python prm_training_arms.py {time,losses} {rewardkit,trl} JOB.json

`time` trains and prints the seconds from the middle step to the last one, taken at the end of optimiser steps by the
same transformers callback in both arms, so that loading, tokenising, and the first, slower steps do not count.
`losses` prints every row's ids and loss under the starting model, each arm by its own tokenising, collating and loss.
The last line is a JSON object. Only this file runs under TRL's environment, which does not have RewardKit.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers import trainer as transformers_trainer

Job = dict[str, Any]
"""model, rows (a file), out, seed, batch, steps, rate, warmup, log_every, order (own or given), checkpointing."""


class Clock(TrainerCallback):
    """The time, and the processor time of all threads, at the end of every optimiser step."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the time."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def second_half(self) -> dict[str, float]:
        """Seconds from the middle step to the last one."""
        (begin, cpu_begin), (end, cpu_end) = self.ends[len(self.ends) // 2 - 1], self.ends[-1]
        return {"seconds": end - begin, "cpu_seconds": cpu_end - cpu_begin}


def time_rewardkit(job: Job) -> dict[str, Any]:
    """`prm.fit` with hard labels, every step counting once."""
    from prm import TrainConfig, fit
    from prm.formats import read_stepwise

    clock = Clock()
    transformers_trainer.DEFAULT_CALLBACKS.append(clock)  # `fit` makes its own Trainer; every Trainer takes these
    logged: list[dict[str, Any]] = []
    config = TrainConfig(
        init=job["model"],
        steps=job["steps"],
        rows=job["batch"],
        micro_rows=job["batch"],
        rate=job["rate"],
        warmup=job["warmup"],
        labels="hard",
        weighting="steps",
        seed=job["seed"],
    )
    fit(read_stepwise(job["rows"]), config, Path(job["out"], "model"), work=Path(job["out"]), on_log=logged.append)
    return {**clock.second_half(), "losses": [row["step_loss"] for row in logged]}


def losses_rewardkit(job: Job) -> dict[str, Any]:
    """The parts that `fit` puts together, a row at a time."""
    import torch

    from prm import TrainConfig
    from prm.backbone import context_of, start_from
    from prm.formats import read_stepwise
    from prm.objectives import margins, step_loss
    from prm.step_data import StepDataset, collate

    model, tokenizer, _ = start_from(job["model"])
    config = TrainConfig(init=job["model"], labels="hard", weighting="steps")
    data = StepDataset(read_stepwise(job["rows"]), tokenizer, config, context_of(model))
    losses = []
    with torch.no_grad():
        for item in data.items:
            batch = collate([item])
            margins_BT = margins(model(input_ids=batch["input_ids"]).logits)
            loss = step_loss(margins_BT, batch["successes"], batch["trials"], None)
            losses.append(loss.item() / len(item["counted"]))
    return {"ids": [list(item["input_ids"]) for item in data.items], "losses": losses}


class Counting:
    """A collator that notes how many positions, padding included, it made."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.positions: list[int] = []

    def __call__(self, features: Any) -> Any:
        """Collate and count."""
        batch = self.inner(features)
        self.positions.append(batch["input_ids"].numel())
        return batch


def _trl(job: Job) -> Any:
    """A PRMTrainer; what is set is what `fit` sets too, the rest is TRL's default."""
    from datasets import Dataset
    from transformers import AutoModelForTokenClassification, AutoTokenizer
    from trl.experimental.prm import PRMConfig, PRMTrainer

    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    arguments = PRMConfig(
        output_dir=job["out"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=job["checkpointing"],
        step_separator="\n\n",
        max_steps=job["steps"],
        per_device_train_batch_size=job["batch"],
        learning_rate=job["rate"],
        lr_scheduler_type="cosine",
        warmup_steps=job["warmup"],
        adam_beta2=0.98,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential" if job["order"] == "given" else "random",
        seed=job["seed"],
        data_seed=job["seed"],
        logging_steps=job["log_every"],
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    columns = [{key: row[key] for key in ("prompt", "completions", "labels")} for row in rows]
    return PRMTrainer(
        model=AutoModelForTokenClassification.from_pretrained(job["model"]),
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        train_dataset=Dataset.from_list(columns),
    )


def time_trl(job: Job) -> dict[str, Any]:
    """PRMTrainer.train."""
    trainer, clock = _trl(job), Clock()
    trainer.add_callback(clock)
    trainer.data_collator = counting = Counting(trainer.data_collator)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    positions = counting.positions[: job["steps"]]
    return {**clock.second_half(), "losses": losses, "positions": sum(positions[len(positions) // 2 :])}


def losses_trl(job: Job) -> dict[str, Any]:
    """Its tokenize_row, its collator and its loss, a row at a time."""
    import torch

    trainer = _trl(job)
    items = list(trainer.train_dataset)
    with torch.no_grad():
        losses = [trainer.compute_loss(trainer.model, trainer.data_collator([item])).item() for item in items]
    return {"ids": [item["input_ids"] for item in items], "losses": losses}


if __name__ == "__main__":
    what, arm, path = sys.argv[1:]
    run = {
        ("time", "rewardkit"): time_rewardkit,
        ("time", "trl"): time_trl,
        ("losses", "rewardkit"): losses_rewardkit,
        ("losses", "trl"): losses_trl,
    }[what, arm]
    print(json.dumps(run(json.loads(Path(path).read_text()))))
