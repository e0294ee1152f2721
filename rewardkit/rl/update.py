"""The optimiser steps on one step's responses: weighed once, read in micro-batches, added up over processes.

An optimiser batch is a part of the step's rows, whole groups. Its weights are built before it is cut, so micro-batches
and processes add up to the same gradient however it is cut. Rows of one prompt follow each other and share it; rows
that change nothing are not read. The first pass of a step also measures how far the sampler's log-probabilities are
from the trainer's, which nothing has changed in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.functional import pad

from rewardkit.rl.config import RlConfig
from rewardkit.rl.loss.advantages import Estimate
from rewardkit.rl.loss.batch import Batch, Prepared, micro_batches, take
from rewardkit.rl.loss.filters import policy_rows, value_rows
from rewardkit.rl.loss.objective import Loss, policy_loss, value_loss
from rewardkit.rl.loss.picks import Look
from rewardkit.rl.loss.tally import Tally
from rewardkit.rl.loss.weights import mismatch, prepare
from rewardkit.rl.policy.adamw import adamw
from rewardkit.rl.policy.models import Models
from rewardkit.rl.policy.ptx import PtxText
from rewardkit.rl.policy.reader import Drawn
from rewardkit.rl.policy.sharding import clip_gradients, is_cut
from rewardkit.rl.settings.table import Table


class Updater:
    """Optimiser and passes over models that others hold."""

    def __init__(self, config: RlConfig, models: Models, accelerator: Accelerator, ptx: PtxText | None = None) -> None:
        self.config, self.models, self.accelerator, self.ptx = config, models, accelerator, ptx
        self.trained = models.trained()
        # Shares and whole tensors cannot be stepped in one go.
        kinds = [[p for p in self.trained if is_cut(p) is cut] for cut in (True, False)]
        self.optimiser = adamw(kinds, rate=config.rate, weight_decay=config.weight_decay)
        self.done = 0
        """Optimiser steps so far."""
        self._touched = False

    def over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over processes."""
        if self.accelerator.num_processes == 1:
            return value
        summed: torch.Tensor = self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum")
        return summed

    def run(
        self,
        batch: Batch,
        rows: Sequence[Drawn],
        found: Estimate,
        table: Table,
        *,
        beta: float,
        off_policy: bool = False,
    ) -> Tally:
        """`epochs` x `updates` optimiser steps; their figures added up over all of them.

        Unless it is `off_policy`, these responses were drawn from the weights as they are.
        """
        self._touched = off_policy
        tally = mismatch(batch, table)
        if table.layer is not None:
            tally = tally + self._whole_gap(batch, rows)
        groups = batch.group_B.unique_consecutive()  # type: ignore[no-untyped-call]
        parts = torch.tensor_split(groups, self.config.updates)
        for _ in range(self.config.epochs):
            for part in parts:
                if not len(part) and self.accelerator.num_processes == 1:
                    # Fewer groups than updates: a step is as long as there are groups.
                    continue
                index_N = torch.isin(batch.group_B, part).nonzero()[:, 0]
                tally = tally + self._optimise(batch, rows, found, table, index_N, beta=beta)
        return tally

    def _optimise(
        self,
        batch: Batch,
        rows: Sequence[Drawn],
        found: Estimate,
        table: Table,
        index_N: torch.Tensor,
        *,
        beta: float,
    ) -> Tally:
        own = [rows[n] for n in index_N.tolist()]
        prepared = prepare(
            take(batch, index_N),
            take(found, index_N),
            table,
            limit=self.config.max_new_tokens,
            over_ranks=self.over_ranks,
            look=self._look(own, batch.mask_BT.shape[1], table),
            salt=self.done,
        )
        # The gap to the sampler is only known while nothing has been learned from this step's responses.
        clean = not self._touched
        if clean and table.kl.target == "old":
            # The policy is still the old one; what |l - o| would follow is the sign of rounding.
            beta = 0.0
        self.optimiser.zero_grad(set_to_none=True)
        tally = self._pass(
            own,
            prepared,
            policy_rows(prepared, table, kl_coefficient=beta),
            lambda read, part: self._policy(read, part, table, beta, clean=clean),
            idle=lambda: self.models.idle_pass(rows[0], layer=table.layer),
        )
        if self.models.critic is not None:
            # A critic of its own is whole everywhere, and waits for nobody.
            shared = self.models.critic is self.models.reader
            idle = (lambda: self.models.idle_pass(rows[0])) if shared else None
            tally = tally + self._pass(own, prepared, value_rows(prepared), self._value, idle=idle)
        if self.ptx is not None:
            tally = tally + self.ptx.backward(self.accelerator)
        self._add_up()
        norm = clip_gradients(self.trained, self.config.max_grad_norm)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.rate * min(1.0, (self.done + 1) / max(1, self.config.warmup))
        self.optimiser.step()
        self.done += 1
        self._touched = True
        return tally + Tally(greatest={"gradient": norm.detach()})

    def _add_up(self) -> None:
        """Add gradients up over processes, but for shares, whose backward pass has done it already.

        A parameter that no process has a gradient of keeps none: to the optimiser a 0 is something else.
        """
        if self.accelerator.num_processes == 1:
            return
        own = [parameter for parameter in self.trained if not is_cut(parameter)]
        given = self.over_ranks(torch.tensor([float(parameter.grad is not None) for parameter in own]))
        for parameter, count in zip(own, given.tolist(), strict=True):
            if count:
                grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                parameter.grad = self.over_ranks(grad)

    def _pass(
        self,
        rows: Sequence[Drawn],
        prepared: Prepared,
        needed_B: torch.Tensor,
        loss_of: Callable[[Sequence[Drawn], Prepared], Loss],
        *,
        idle: Callable[[], None] | None,
    ) -> Tally:
        """Forward and backward over the needed rows in micro-batches, rows of one prompt together.

        `idle` is what a process does while another one still has rows, where weights are cut; None for a model that
        is not.
        """
        tally = Tally()
        by_length = sorted(range(len(rows)), key=lambda n: (len(rows[n].prompt), rows[n].prompt, len(rows[n].response)))
        order = [n for n in by_length if bool(needed_B[n])]
        own = -(-len(order) // self.config.micro_rows)
        lacking = 0 if idle is None else self.models.passes(own) - own
        for places_N, part in micro_batches(prepared, self.config.micro_rows, order=order):
            with self.models.autocast():
                loss = loss_of([rows[n] for n in places_N.tolist()], part)
            loss.total.backward()  # type: ignore[no-untyped-call]
            tally = tally + loss.tally
        for _ in range(lacking):
            assert idle is not None
            idle()
        return tally

    @torch.no_grad()
    def _look(self, rows: Sequence[Drawn], width: int, table: Table) -> Look | None:
        """The policy as it is now, where tokens are picked by it; None where the old one still is and is enough."""
        entropies = table.masks.entropy_top is not None
        if not table.looks or not (entropies or self._touched):
            return None
        found: list[list[torch.Tensor]] = []
        with self.models.whole():
            for start in range(0, len(rows), self.config.micro_rows):
                with self.models.autocast():
                    read = self.models.reader.read(
                        rows[start : start + self.config.micro_rows], entropies=entropies, layer=table.layer
                    )
                found.append([read.logprobs] if read.entropies is None else [read.logprobs, read.entropies])
        columns = zip(*found, strict=True)
        whole = [torch.cat([pad(one, (0, width - one.shape[1])) for one in column]) for column in columns]
        return Look(logprobs_BT=whole[0], entropies_BT=whole[1] if entropies else None)

    def _policy(self, rows: Sequence[Drawn], part: Prepared, table: Table, beta: float, *, clean: bool) -> Loss:
        read = self.models.reader.read(
            rows, entropies=table.entropy > 0, against=self.models.against(), layer=table.layer
        )
        found = policy_loss(
            read.logprobs,
            part,
            table,
            kl_coefficient=beta,
            entropy_BT=read.entropies,
            divergence_BT=read.divergences,
        )
        # What one layer says is not what the sampler reported.
        if not clean or table.layer is not None:
            return found
        return replace(found, tally=found.tally + _gap(read.logprobs, part.batch))

    @torch.no_grad()
    def _whole_gap(self, batch: Batch, rows: Sequence[Drawn]) -> Tally:
        """The gap to the sampler on some rows, where the update reads one layer alone."""
        some = torch.arange(min(self.config.micro_rows, len(rows)))
        with self.models.whole(), self.models.autocast():
            read = self.models.reader.read(rows[: len(some)])
        return _gap(read.logprobs, take(batch, some, width=read.logprobs.shape[1]))

    def _value(self, rows: Sequence[Drawn], part: Prepared) -> Loss:
        assert self.models.critic is not None
        read: Any = self.models.critic.read(rows, value_head=self.models.value_head)
        return value_loss(read.values, part, self.config.table)


def _gap(logprobs_BT: torch.Tensor, batch: Batch) -> Tally:
    gap_BT = torch.where(batch.mask_BT, (logprobs_BT - batch.sampler_BT).detach().abs(), 0)
    return Tally(totals={"gap_tokens": batch.mask_BT.sum(), "gap_sum": gap_BT.sum()}, greatest={"gap": gap_BT.max()})
