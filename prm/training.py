"""Fitting a process reward model to step labels, through the transformers Trainer.

With z = logit_1 - logit_0 at a step's last token, s successes in n trials and sigma the logistic function, a
step's loss is the binomial negative log-likelihood of its count (constant left out),

    -[ s log sigma(z) + (n - s) log sigma(-z) ] / m

where m is the mean number of trials in the data (weighting `counts`: a step seen in more trials counts for
more), or n itself (weighting `steps`: every step counts the same, the label is the share s / n). Labels `hard`
replace (s, n) by (1 if any success else 0, 1).

Beside it may stand, with weight `lm_weight`, the next-token loss of those steps from which some roll-out
succeeded: it keeps the arithmetic that the policy had learned, which a step label alone does not teach. And, with
weight `surprisal_weight`, a helper on every response token: a linear read-out of the first added layer is fitted to
1 - p(token), p being the probability that the language model under it gave the token, and one of the last layer to
1 - the least p in the response so far. A slip stands out in them; without help a small model needs very long to find
that comparison. They use no labels, and the read-outs are thrown away.

Sums are divided by the number of labelled steps of the whole optimiser batch, so gradients do not depend on how the
batch is cut into micro-batches or spread over processes.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from prm.backbone import ModelCard, check_steps, context_of, encode_steps, pad_right, start_from
from prm.formats import StepRow
from prm.growth import add_layers, look_back
from prm.train_config import TrainConfig
from verifiers.errors import ConfigError, DataError, ModelError


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What a fit used and reached."""

    rows: int
    labelled_steps: int
    cut_rows: int
    """Rows longer than the context, cut behind their last whole step that fits."""
    dropped_rows: int
    """Rows without a labelled step that fits."""
    final_loss: float
    """Mean step loss over the last tenth of the steps."""
    seconds: float


class StepDataset(Dataset[dict[str, Any]]):
    """Labelled responses as token ids with counts at the steps' last tokens."""

    def __init__(self, rows: Sequence[StepRow], tokenizer: Any, config: TrainConfig, limit: int) -> None:
        self.items: list[dict[str, Any]] = []
        self.cut = self.dropped = 0
        for row in rows:
            self._add(row, tokenizer, config, limit)
        if not self.items:
            raise DataError(
                f"none of the {len(rows)} rows has a labelled step that fits into {limit} tokens; "
                "check the labels, or use a model with a longer context"
            )
        counts = [n for item in self.items for n in item["trials"] if n]
        self.labelled = len(counts)
        self.mean_trials = sum(counts) / len(counts)

    def _add(self, row: StepRow, tokenizer: Any, config: TrainConfig, limit: int) -> None:
        encoded = encode_steps(tokenizer, row.prompt, row.response)
        if len(encoded.ends) != len(row.completions):
            raise DataError(
                f"problem {row.problem_id!r}, sample {row.sample}: {len(row.completions)} labelled steps, but the "
                f"text splits into {len(encoded.ends)}; a step must not hold a blank line"
            )
        check_steps(encoded, f"problem {row.problem_id!r}, sample {row.sample},")
        fitting = sum(end < limit for end in encoded.ends)
        self.cut += fitting < len(encoded.ends)
        trials, successes = row.trials[:fitting], row.successes[:fitting]
        if config.labels == "hard":
            successes = tuple(float(s > 0) for s in successes)
            trials = tuple(int(n > 0) for n in trials)
        if not any(trials):
            self.dropped += 1
            return
        good = [end for end, s in zip(encoded.ends, successes, strict=False) if s > 0]
        self.items.append(
            {
                "input_ids": encoded.ids[: encoded.ends[fitting - 1] + 1],
                "ends": encoded.ends[:fitting],
                "successes": successes,
                "trials": trials,
                "prompt_length": encoded.prompt_length,
                "lm_span": (encoded.prompt_length, good[-1] + 1 if good else encoded.prompt_length),
            }
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


def collate(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch: ids (B, T), successes and trials (B, T) at step ends and 0 elsewhere, lm_mask (B, T)."""
    ids_BT = pad_right([item["input_ids"] for item in items])
    successes_BT = torch.zeros(ids_BT.shape)
    trials_BT = torch.zeros(ids_BT.shape)
    lm_mask_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    response_mask_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for number, item in enumerate(items):
        successes_BT[number, list(item["ends"])] = torch.tensor(item["successes"], dtype=torch.float32)
        trials_BT[number, list(item["ends"])] = torch.tensor(item["trials"], dtype=torch.float32)
        response_mask_BT[number, item["prompt_length"] : len(item["input_ids"])] = True
        lm_mask_BT[number, item["lm_span"][0] : item["lm_span"][1]] = True
    # Trainer counts what is not -100 in "labels" over the whole optimiser batch and all processes.
    labels_BT = torch.where(trials_BT > 0, 1, -100)
    return {
        "input_ids": ids_BT,
        "successes": successes_BT,
        "trials": trials_BT,
        "lm_mask": lm_mask_BT,
        "response_mask": response_mask_BT,
        "labels": labels_BT,
    }


def step_loss(
    margins_BT: torch.Tensor, successes_BT: torch.Tensor, trials_BT: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Summed binomial negative log-likelihood over all steps; divided by `scale`, or by n where it is None."""
    per_step_BT = successes_BT * F.softplus(-margins_BT) + (trials_BT - successes_BT) * F.softplus(margins_BT)
    return (per_step_BT / (trials_BT.clamp(min=1.0) if scale is None else scale)).sum()


class StepTrainer(Trainer):  # type: ignore[misc]
    """Trainer with the loss of this module."""

    loss_is_scaled_for_ga = True

    def __init__(
        self, *, lm_head: Any, settings: TrainConfig, scale: float | None, base_layers: int, **options: Any
    ) -> None:
        # A loss function must be given for Trainer to count labels over the optimiser batch; ours is below.
        super().__init__(compute_loss_func=step_loss, **options)
        self.lm_head, self.settings, self.scale, self.base_layers = lm_head, settings, scale, base_layers
        self._step_losses: list[float] = []

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Step loss plus the weighted helpers, all per labelled step of the optimiser batch."""
        helped = self.settings.lm_weight > 0 or self.settings.surprisal_weight > 0
        output = model(input_ids=inputs["input_ids"], output_hidden_states=helped, use_cache=False)
        logits = output.logits.float()
        margins_BT = logits[..., 1] - logits[..., 0]
        loss = step_loss(margins_BT, inputs["successes"], inputs["trials"], self.scale)
        self._step_losses.append(loss.item() / max(1, int((inputs["trials"] > 0).sum())))
        if self.settings.lm_weight > 0:
            loss = loss + self.settings.lm_weight * self._lm_loss(output.hidden_states[-1], inputs)
        if self.settings.surprisal_weight > 0:
            loss = loss + self.settings.surprisal_weight * self._surprisal_loss(output.hidden_states, inputs)
        counted = (inputs["trials"] > 0).sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / counted * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def _lm_loss(self, hidden_BTD: torch.Tensor, inputs: Any) -> torch.Tensor:
        """Summed next-token loss over `lm_mask`."""
        wanted = inputs["lm_mask"][:, 1:]
        targets = inputs["input_ids"][:, 1:][wanted]
        return F.cross_entropy(self.lm_head(hidden_BTD[:, :-1][wanted]).float(), targets, reduction="sum")

    def _surprisal_loss(self, hidden_states: Any, inputs: Any) -> torch.Tensor:
        """Summed cross-entropies of both read-outs against their targets over `response_mask`."""
        wanted = inputs["response_mask"][:, 1:]
        norm = self.model.base_model.norm
        with torch.no_grad():
            logits = self.lm_head(norm(hidden_states[self.base_layers])[:, :-1][wanted]).float()
            likely_BT = torch.ones(wanted.shape, device=wanted.device)
            likely_BT[wanted] = logits.softmax(-1).gather(1, inputs["input_ids"][:, 1:][wanted][:, None])[:, 0]
            least_BT = likely_BT.cummin(1).values
        token, so_far = self.model.surprisal
        said_token = token(norm(hidden_states[self.base_layers + 1])[:, 1:][wanted])[:, 0].float()
        said_so_far = so_far(hidden_states[-1][:, 1:][wanted])[:, 0].float()
        return F.binary_cross_entropy_with_logits(
            said_token, 1.0 - likely_BT[wanted], reduction="sum"
        ) + F.binary_cross_entropy_with_logits(said_so_far, 1.0 - least_BT[wanted], reduction="sum")

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logged rows carry the step loss by itself beside the sum."""
        if "loss" in logs and self._step_losses:
            logs["step_loss"] = sum(self._step_losses) / len(self._step_losses)
            self._step_losses.clear()
        super().log(logs, *args, **kwargs)


class _Log(TrainerCallback):  # type: ignore[misc]
    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.write = write
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["step_loss"]))
            self.write({"step": state.global_step, **{k: v for k, v in logs.items() if k != "epoch"}})


def _grow(model: Any, config: TrainConfig) -> int:
    """Add layers and read-outs, freeze; returns how many layers belong to the language model underneath."""
    before = model.config.num_hidden_layers
    base_layers = ModelCard.load(config.init).base_layers or before
    add_layers(model, config.extra_layers)
    layers = model.base_model.layers if hasattr(model.base_model, "layers") else []
    if config.freeze_init:
        if len(layers) == base_layers:
            raise ConfigError("freeze_init leaves no layer to train; add some with extra_layers, or set it to false")
        model.base_model.requires_grad_(False)
        for layer in layers[base_layers:]:
            layer.requires_grad_(True)
    if config.surprisal_weight > 0:
        if len(layers) < base_layers + 2:
            raise ConfigError(
                f"surprisal_weight needs at least two layers above the language model; {config.init} with "
                f"extra_layers={config.extra_layers} has {len(layers) - base_layers}"
            )
        if before == base_layers:
            look_back(model, base_layers, max(1, model.config.num_attention_heads * 3 // 4))
        model.surprisal = torch.nn.ModuleList(torch.nn.Linear(model.config.hidden_size, 1) for _ in range(2))
    return base_layers


def fit(
    rows: Sequence[StepRow],
    config: TrainConfig,
    out: str | Path,
    *,
    work: str | Path,
    on_log: Callable[[dict[str, Any]], None] = lambda row: None,
    provenance: dict[str, Any] | None = None,
) -> FitReport:
    """Train from `config.init` on labelled rows and write a checkpoint with its card to `out`.

    `work` holds the Trainer's own files. Rows longer than the context are cut behind the last step that fits and
    counted. Raises DataError when nothing can be learned from the rows, ModelError for the checkpoint.
    """
    model, tokenizer, lm_head = start_from(config.init, seed=config.seed)
    if (config.lm_weight > 0 or config.surprisal_weight > 0) and lm_head is None:
        raise ModelError(
            f"lm_weight and surprisal_weight need a language-model head, and {config.init} has none; start from the "
            "causal language model, or set them to 0"
        )
    base_layers = _grow(model, config)
    data = StepDataset(rows, tokenizer, config, context_of(model))
    log = _Log(on_log)
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=config.steps,
        per_device_train_batch_size=config.micro_rows,
        gradient_accumulation_steps=config.rows // config.micro_rows,
        learning_rate=config.rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        bf16=config.bf16,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=max(1, config.steps // 50),
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        train_sampling_strategy="group_by_length",
    )
    trainer = StepTrainer(
        lm_head=None if lm_head is None else lm_head.to(arguments.device),
        settings=config,
        base_layers=base_layers,
        scale=data.mean_trials if config.weighting == "counts" else None,
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        callbacks=[log],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    if config.surprisal_weight > 0:
        del model.surprisal
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    ModelCard(
        label_rule=config.labels,
        base_layers=base_layers if base_layers < model.config.num_hidden_layers else 0,
        provenance={**asdict(config), **(provenance or {})},
    ).save(out)
    tail = log.losses[-max(1, math.ceil(len(log.losses) / 10)) :]
    return FitReport(
        rows=len(data),
        labelled_steps=data.labelled,
        cut_rows=data.cut,
        dropped_rows=data.dropped,
        final_loss=sum(tail) / len(tail),
        seconds=float(result.metrics["train_runtime"]),
    )
