"""Fitting a process reward model to labels, through the transformers Trainer.

From rows with labels (`prm/formats.py`) and a language model to a plain transformers checkpoint with its card:

    rows -> step_data   ids, labels at step ends, the order of rows
    init -> starting    the model: head, added layers, adapters
            step_trainer with objectives: binomial likelihood, ranking, or an implicit model's outcome likelihood
         -> out         the checkpoint, adapters merged, helpers gone; `reference/` beside an implicit model

Sums are divided by the number of labelled steps of the whole optimiser batch (of rows for pqm and implicit), so
gradients do not depend on how the batch is cut into micro-batches or spread over processes. Several processes are
started by `accelerate launch` or `torchrun`; each calls `fit` alike, the first one writes. `rows` is the batch of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainingArguments

from prm.backbone import ModelCard, context_of
from prm.formats import StepRow
from prm.implicit_training import check_same_tokens, reference_logprobs, reference_of, save_reference, start_implicit
from prm.resuming import note_of, place_to_go_on, write_note
from prm.starting import Start, finish, start
from prm.step_data import StepDataset
from prm.step_trainer import LogRows, StepTrainer
from prm.train_config import TrainConfig
from verifiers.errors import ConfigError

_READ_AS = {
    "two-label": "softmax[1] at the last token of each step",
    "scalar": "sigmoid of the logit at the last token of each step",
    "implicit": "beta times the summed log-ratio to the reference up to the last token of each step",
}


_RANKED = ", trained to rank and not to be a probability"


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What a fit used and reached."""

    rows: int
    labelled_steps: int
    """Labels in the loss: of steps, or of responses for an implicit model."""
    cut_rows: int
    """Rows longer than the context, cut behind their last whole step that fits."""
    dropped_rows: int
    """Rows without a labelled step that fits; for an implicit model, without an outcome or longer than the context."""
    final_loss: float
    """Mean step loss over the last tenth of the steps."""
    seconds: float
    """Of this call; a resumed fit leaves out what was done before."""
    resumed_at: int = 0
    """Optimiser steps that a checkpoint had done already."""
    processes: int = 1
    trained_parameters: int = 0
    """Weights that the optimiser moved."""


def fit(
    rows: Sequence[StepRow],
    config: TrainConfig,
    out: str | Path,
    *,
    work: str | Path,
    on_log: Callable[[dict[str, Any]], None] = lambda row: None,
    provenance: dict[str, Any] | None = None,
    resume: bool = False,
) -> FitReport:
    """Train from `config.init` on labelled rows and write a checkpoint with its card to `out`.

    `work` holds the Trainer's own files. Rows longer than the context are cut behind the last step that fits and
    counted. With `resume` a fit that was interrupted goes on from the last whole checkpoint in `work` (from the start
    where there is none yet) and ends as if it had not been; `on_log` is then told all rows from the first one again.
    In several processes `on_log` is called in the first alone.

    Raises DataError when nothing can be learned from the rows, ModelError for the checkpoint, ConfigError for settings
    that do not fit them or the run that is resumed, ExistingRunError where `work` holds another run's checkpoints.
    """
    if resume and not config.save_steps:
        raise ConfigError("resume has no effect without checkpoints; set save_steps to 1 or more, or leave resume out")
    arguments = _arguments(config, work)
    begun = start(config)
    data = StepDataset(rows, begun.tokenizer, config, context_of(begun.model))
    trainer = StepTrainer(
        lm_head=None if begun.lm_head is None else begun.lm_head.to(arguments.device),
        settings=config,
        base_layers=begun.base_layers,
        scale=data.mean_trials if config.weighting == "counts" else None,
        model=begun.model,
        args=arguments,
        train_dataset=data,
        callbacks=[LogRows(on_log, save_steps=config.save_steps)],
    )
    trainer.remove_callback(PrinterCallback)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError("fit shares out rows, not weights; launch it without FSDP and DeepSpeed")
    if config.head == "implicit":
        _compare(trainer, data, begun.tokenizer)
    checkpoint = None
    if config.save_steps:
        note = note_of(config, data.fingerprint, arguments.world_size)
        checkpoint = place_to_go_on(work, note, resume=resume)
        trainer.accelerator.wait_for_everyone()  # all have looked before one writes
        if trainer.is_world_process_zero():
            write_note(work, note)
    parameters = sum(p.numel() for p in begun.model.parameters() if p.requires_grad)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        _save(begun, config, out, provenance or {})
    trainer.accelerator.wait_for_everyone()
    losses = [row["step_loss"] for row in trainer.state.log_history if "loss" in row]
    tail = losses[-max(1, math.ceil(len(losses) / 10)) :]
    return FitReport(
        rows=len(data),
        labelled_steps=data.labelled,
        cut_rows=data.cut,
        dropped_rows=data.dropped,
        final_loss=sum(tail) / len(tail),
        seconds=float(result.metrics["train_runtime"]),
        resumed_at=int(Path(checkpoint).name.rpartition("-")[2]) if checkpoint else 0,
        processes=arguments.world_size,
        trained_parameters=parameters,
    )


def _arguments(config: TrainConfig, work: str | Path) -> TrainingArguments:
    """The Trainer's settings; ConfigError where the batch cannot be shared out over the processes."""
    if config.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise ConfigError(f"bf16 needs a newer GPU than {torch.cuda.get_device_name()}; leave it out")
    arguments = TrainingArguments(
        output_dir=str(work),
        use_cpu=not torch.accelerator.is_available(),
        max_steps=config.steps,
        per_device_train_batch_size=config.micro_rows,
        learning_rate=config.rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=config.bf16,
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=max(1, config.steps // 50),
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 500,
        save_total_limit=2,
        # Every trained weight has a gradient in every batch; looking for others would miss the helpers' read-outs.
        ddp_find_unused_parameters=False,
        label_names=["labels"],
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    at_once = arguments.world_size * config.micro_rows
    if config.rows % at_once:
        raise ConfigError(
            f"rows={config.rows} responses a step cannot be shared out over {arguments.world_size} processes of "
            f"micro_rows={config.micro_rows}; make rows a multiple of {at_once}, or set micro_rows lower"
        )
    arguments.gradient_accumulation_steps = config.rows // at_once
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # one process trains on one device; DataParallel would multiply the batch
    return arguments


def _compare(trainer: StepTrainer, data: StepDataset, tokenizer: Any) -> None:
    """Let the reference read all rows once; it is the model itself where training starts from it."""
    config = trainer.settings
    source = reference_of(config)
    reference = trainer.model
    if source != config.init:
        check_same_tokens(tokenizer, source)
        reference = start_implicit(source)[0].to(trainer.accelerator.device)
    data.compare_with(reference_logprobs(reference, data.items, trainer.accelerator, rows=config.micro_rows))


def _save(begun: Start, config: TrainConfig, out: str | Path, provenance: dict[str, Any]) -> None:
    implicit = config.head == "implicit"
    reference = save_reference(config, out) if implicit else ""  # before the model: `out` may be where it started from
    model = finish(begun.model, config)
    model.save_pretrained(out)
    begun.tokenizer.save_pretrained(out)
    ModelCard(
        head=config.head,
        beta=config.beta if implicit else 0.0,
        reference=reference,
        score=_READ_AS[config.head] + (_RANKED if config.loss == "pqm" else ""),
        label_rule=config.labels,
        base_layers=begun.base_layers if begun.base_layers < model.config.num_hidden_layers else 0,
        provenance={**asdict(config), **provenance},
    ).save(out)
