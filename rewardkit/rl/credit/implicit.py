r"""PRIME's implicit process reward model, learned online (arXiv 2502.01456): a copy phi of the first policy.

    token reward   r_t = beta [ log phi(y_t) - log pi_init(y_t) ]
    what phi learns, a step of each batch, from the verifier's outcomes alone:
                   mean over responses of the cross entropy of sigma(sum_t r_t) and the outcome

With order "before", phi first learns from a batch and then rewards it, as the authors run it; with "after" its rewards
are those of the pass that it learns in. Responses without an outcome are rewarded and not learned from. phi has its own
optimiser; its loss is divided by the responses of all processes, and is `prm.objectives.step_loss` with one step a
response.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch.nn.functional import pad

from prm.objectives import step_loss
from rewardkit.rl.config import RlConfig
from rewardkit.rl.loss.batch import Batch
from rewardkit.rl.loss.groups import OverRanks
from rewardkit.rl.policy.adamw import adamw
from rewardkit.rl.policy.models import Models
from rewardkit.rl.policy.reader import Drawn


class ImplicitRewards:
    """phi's optimiser, and the passes over it and its reference."""

    def __init__(self, config: RlConfig, models: Models, accelerator: Accelerator, over_ranks: OverRanks) -> None:
        assert config.table.implicit is not None and models.implicit is not None
        self.config, self.settings, self.models = config, config.table.implicit, models
        self.accelerator, self.over_ranks = accelerator, over_ranks
        self.parameters = list(models.implicit.model.parameters())
        self.optimiser = adamw([self.parameters], rate=config.implicit_rate)

    def step(self, batch: Batch, rows: Sequence[Drawn]) -> tuple[Batch, dict[str, float]]:
        """One step of phi on the batch; the batch with its token rewards, and figures of the step."""
        rewards_BT, figures = self.learn(batch, rows)
        if self.settings.order == "before":
            rewards_BT = self._pass(batch, rows)
        return replace(batch, token_rewards_BT=rewards_BT), figures

    def learn(self, batch: Batch, rows: Sequence[Drawn]) -> tuple[torch.Tensor, dict[str, float]]:
        """One optimiser step; the token rewards before it, and its figures."""
        known_B = ~batch.outcome_B.isnan()
        number = float(self.over_ranks(known_B.sum().double()))
        self.optimiser.zero_grad(set_to_none=True)
        sums = torch.zeros(2, dtype=torch.float64, device=batch.mask_BT.device)
        rewards_BT = self._pass(batch, rows, per_response=max(number, 1.0), sums=sums)
        if self.accelerator.num_processes > 1:
            for parameter in self.parameters:
                own = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                parameter.grad = self.over_ranks(own)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        self.optimiser.step()
        loss, right = self.over_ranks(sums).tolist()
        return rewards_BT, {"implicit/loss": loss, "implicit/accuracy": right / max(number, 1.0)}

    def _pass(
        self,
        batch: Batch,
        rows: Sequence[Drawn],
        *,
        per_response: float | None = None,
        sums: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token rewards of all rows; with `per_response`, gradients of the loss over so many responses as well."""
        assert self.models.implicit is not None and self.models.implicit_reference is not None
        found_BT = torch.zeros_like(batch.old_BT)
        size, width = self.config.micro_rows, batch.mask_BT.shape[1]
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            with self.models.autocast():
                with torch.no_grad():
                    base = self.models.implicit_reference.read(part).logprobs
                with nullcontext() if per_response is not None else torch.no_grad():
                    rewards_BT = self.settings.beta * (self.models.implicit.read(part).logprobs - base)
            found_BT[start : start + len(part)] = pad(rewards_BT.detach(), (0, width - rewards_BT.shape[1]))
            outcome_B = batch.outcome_B[start : start + len(part)]
            if per_response is None or sums is None or bool(outcome_B.isnan().all()):
                continue
            known_B = ~outcome_B.isnan()
            margins_B1 = rewards_BT.sum(1, keepdim=True)[known_B]
            said_B1 = outcome_B[known_B, None].clamp(0.0, 1.0).to(margins_B1.dtype)
            loss = step_loss(margins_B1, said_B1, torch.ones_like(said_B1), None) / per_response
            loss.backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([loss.detach(), ((margins_B1 > 0) == (said_B1 > 0.5)).sum()]).double()
        return found_BT
