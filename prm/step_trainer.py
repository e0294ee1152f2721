"""The transformers Trainer with the losses of `prm/objectives.py`, and the same in any number of processes.

A loss is a sum over what a process has in its micro-batch. It is divided by the number of labelled steps (of rows, for
pqm and implicit) in the whole optimiser batch, over all micro-batches and processes, and multiplied by the number of
processes P, since gradients and logged losses are averaged over them:

    (1 / P) sum_p  P * loss_p / N  =  sum_p loss_p / N

So neither gradients nor the log depend on how a batch is cut. The rows of an optimiser batch are those of
`step_data.RowStream` for any P.

Logged rows hold `loss` and, by itself, the `step_loss` (the objective without its helpers). A log row is written at
every checkpoint, so that no unfinished mean is lost with an interrupted run.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from prm.objectives import margins, next_token_loss, pqm_loss, response_logprobs, step_loss, surprisal_loss
from prm.step_data import RowStream, collate
from prm.train_config import TrainConfig


class StepTrainer(Trainer):  # type: ignore[misc]
    """Trainer for the heads and losses of a process reward model."""

    loss_is_scaled_for_ga = True

    def __init__(
        self, *, lm_head: Any, settings: TrainConfig, scale: float | None, base_layers: int, **options: Any
    ) -> None:
        # A loss function must be given for Trainer to count labels over the optimiser batch; ours is below.
        super().__init__(compute_loss_func=step_loss, **options)
        self.lm_head, self.settings, self.scale, self.base_layers = lm_head, settings, scale, base_layers
        self._step_losses: list[torch.Tensor] = []

    def get_train_dataloader(self) -> Any:
        """The stream of rows in micro-batches; of P processes each gets every P-th one."""
        settings = self.settings
        stream = RowStream(self.train_dataset, rows=settings.rows, steps=settings.steps, seed=settings.seed)
        return self.accelerator.prepare(
            DataLoader(self.train_dataset, batch_size=settings.micro_rows, sampler=stream, collate_fn=collate)
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective plus the weighted helpers, all per counted place of the optimiser batch."""
        counted = (inputs["labels"] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        share = self.accelerator.num_processes / counted
        loss, output = self._objective(model, inputs)
        self._step_losses.append(loss.detach() * share)
        if self.settings.lm_weight > 0:
            loss = loss + self.settings.lm_weight * next_token_loss(
                self.lm_head, output.hidden_states[-1], inputs["input_ids"], inputs["lm_mask"]
            )
        if self.settings.surprisal_weight > 0:
            loss = loss + self.settings.surprisal_weight * surprisal_loss(
                self.model,
                self.lm_head,
                self.base_layers,
                output.hidden_states,
                inputs["input_ids"],
                inputs["response_mask"],
            )
        return (loss * share, output) if return_outputs else loss * share

    def _objective(self, model: Any, inputs: Any) -> tuple[torch.Tensor, Any]:
        """Summed loss of the labels, and what the model gave out."""
        settings, successes_BT, trials_BT = self.settings, inputs["successes"], inputs["trials"]
        if settings.head == "implicit":
            logprobs_B = response_logprobs(model, inputs["input_ids"], inputs["response_mask"])
            rewards_B = settings.beta * (logprobs_B - inputs["reference"])
            return step_loss(rewards_B, successes_BT.sum(1), trials_BT.sum(1), self.scale), None
        helped = settings.lm_weight > 0 or settings.surprisal_weight > 0
        output = model(input_ids=inputs["input_ids"], output_hidden_states=helped, use_cache=False)
        margins_BT = margins(output.logits)
        if settings.loss == "pqm":
            return pqm_loss(margins_BT, successes_BT, trials_BT, settings.pqm_margin), output
        return step_loss(margins_BT, successes_BT, trials_BT, self.scale), output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logged rows carry the objective by itself beside the sum."""
        if "loss" in logs and self._step_losses:
            steps = len(self._step_losses) / self.args.gradient_accumulation_steps
            mean = torch.stack(self._step_losses).sum() / steps
            logs["step_loss"] = self.accelerator.gather(mean[None]).mean().item()
            self._step_losses.clear()
        super().log(logs, *args, **kwargs)


class LogRows(TrainerCallback):  # type: ignore[misc]
    """Hands every logged row on, in the first process alone; a resumed run hands on all rows from the first again."""

    def __init__(self, write: Callable[[dict[str, Any]], None], *, save_steps: int) -> None:
        self.write, self.save_steps = write, save_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Repeat what a checkpoint remembers."""
        for row in state.log_history:
            self._hand_on(row, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Log wherever a checkpoint is written."""
        if self.save_steps and state.global_step % self.save_steps == 0:
            control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Hand on one row."""
        self._hand_on({**(logs or {}), "step": state.global_step}, state)

    def _hand_on(self, row: dict[str, Any], state: Any) -> None:
        if "loss" in row and state.is_world_process_zero:
            self.write({"step": row["step"], **{k: v for k, v in row.items() if k not in ("epoch", "step")}})
