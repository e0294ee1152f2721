"""The online loop: draw, score, estimate, update; one step after another, and again after a kill.

    draw      `prompts` groups of `group` responses with the model as it is, or ahead by a second process
              (`sampling/supply.py`); groups that the table's filter leaves out are drawn anew, at most `rounds` times
    score     the reward list, outcomes, step scores (`rewards/functions.py`, `steps.py`), guards
    estimate  advantages of all rows of the step (`loss/advantages.py`)
    update    `epochs` x `updates` optimiser steps; each weighs its rows once (`loss/weights.py`), then reads them in
              micro-batches sorted by length; rows that change nothing are not read

The sampler's log-probabilities are the old ones, so there is no second forward pass, except for weights e^(o - mu) of
the table, which compare the two. How far they are from the trainer's at the same weights is measured in every step, and
a run whose gap passes the limit stops (`sampling/sampler_gap.py`). Several processes draw and score their own problems;
sums, gradients and figures are added up over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rewardkit.rl import checkpoint
from rewardkit.rl.clock import Clock
from rewardkit.rl.config import RlConfig
from rewardkit.rl.credit.guards import Alarm, Guards
from rewardkit.rl.credit.implicit import ImplicitRewards
from rewardkit.rl.credit.step_config import StepChoice
from rewardkit.rl.history import History
from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.loss.batch import Batch
from rewardkit.rl.loss.kl import measured, next_coefficient
from rewardkit.rl.loss.tally import Tally
from rewardkit.rl.policy.keeping import keep_sampling
from rewardkit.rl.policy.models import Models
from rewardkit.rl.policy.ptx import PtxText
from rewardkit.rl.policy.reader import Drawn
from rewardkit.rl.policy.routing import with_routes
from rewardkit.rl.policy.sharding import check_launch, gathered, module_state, optimiser_state
from rewardkit.rl.rewards.functions import RewardList
from rewardkit.rl.sampling.collect import collect
from rewardkit.rl.sampling.drawing import Order
from rewardkit.rl.sampling.sampler import Sampler, sampler_for
from rewardkit.rl.sampling.sampler_gap import GapGuard
from rewardkit.rl.sampling.supply import supply_for
from rewardkit.rl.settings.table import Table
from rewardkit.rl.steps import Sampled, batch_of, check_problems, outcome_of
from rewardkit.rl.update import Updater
from search.strategies.best_of_n import check_prompts
from verifiers.core import Problem

SUMMED = ("draw/groups", "draw/kept", "seconds/reward_work")
"""Figures that are added up over processes; of others the mean is told."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step did."""

    step: int
    metrics: dict[str, float]
    sampled: Sampled
    alarms: tuple[Alarm, ...] = ()
    """What the guards say."""


class Loop:
    """A run in memory. `run` takes steps; `state` and `restore` are what a checkpoint holds."""

    def __init__(
        self,
        config: RlConfig,
        problems: Sequence[Problem],
        rewards: RewardList,
        *,
        outcome: str | None = None,
        steps: StepChoice | None = None,
        guards: Guards | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        self.config, self.rewards = config, rewards
        self.outcome = outcome_of(rewards, outcome)
        check_problems(problems)
        rewards.check(problems, group=config.group)
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        ranks = self.accelerator.num_processes
        check_launch(config, self.accelerator.distributed_type.value, ranks)
        self.table = config.table
        self.steps = (steps or StepChoice()).config(self.table, group=config.group)
        self.guards = guards or Guards()
        self.models = Models(config, device=self.accelerator.device)
        self.supply = supply_for(
            config,
            Order(problems, seed=config.seed),
            sampler or sampler_for(config, self.models, processes=ranks),
            self.models,
            processes=ranks,
        )
        with self.models.whole():
            check_prompts(problems, self.sampler.engine())
        self.gaps = GapGuard(config.gap_limit)
        self.ptx = PtxText(config, self.models) if self.table.ptx else None
        self.updater = Updater(config, self.models, self.accelerator, self.ptx)
        self.implicit = None
        if self.table.implicit is not None:
            self.implicit = ImplicitRewards(config, self.models, self.accelerator, self.updater.over_ranks)
        self.beta = self.table.kl.coefficient
        self.done = 0
        self.history = History()
        self._kl: tuple[float, int] | None = None

    @property
    def sampler(self) -> Sampler:
        """Draws with the weights as they are."""
        return self.supply.sampler

    def run(
        self,
        *,
        work: str | Path | None = None,
        resume: bool = False,
        on_step: Callable[[StepReport], None] = lambda report: None,
    ) -> None:
        """Take the steps that are left; with `work`, save every `save_steps` and, with `resume`, go on from there."""
        if resume and work is not None and (saved := checkpoint.load_last(work)) is not None:
            self.restore(saved)
        try:
            while self.done < self.config.steps:
                on_step(self.step())
                if work is not None and self.config.save_steps and self.done % self.config.save_steps == 0:
                    tensors = self.tensors()
                    if self.accelerator.is_main_process:
                        checkpoint.save(work, self.done, tensors=tensors, state=self.state())
                    self.accelerator.wait_for_everyone()
        finally:
            self.close()

    def close(self) -> None:
        """End the process that draws, where there is one; `run` does it by itself."""
        self.supply.close()

    def step(self) -> StepReport:
        """Draw, score, estimate, update."""
        clock = Clock()
        self.beta = self._next_beta()
        with self.models.whole():
            sampled, metrics = collect(
                self.config,
                self.supply,
                self.rewards,
                outcome=self.outcome,
                step=self.done,
                rank=self.accelerator.process_index,
                ranks=self.accelerator.num_processes,
                note=clock.note,
                gather=self._gather,
            )
            table, alarms = self._guarded(sampled, metrics)
            drawn = batch_of(
                sampled,
                table,
                limit=self.config.max_new_tokens,
                steps=self.steps,
                device=self.accelerator.device,
            )
            rows = sampled.rows
            if table.masks.keep_routing:
                rows = with_routes(rows, self.supply.engine)
            if self.config.cuts:
                rows, drawn = keep_sampling(
                    self.models.reader,
                    rows,
                    drawn,
                    self.config.sampling,
                    micro_rows=self.config.micro_rows,
                    autocast=self.models.autocast,
                    cut_reported=self.config.engine == "vllm",
                )
            batch = self._read(drawn, rows, table)
        if self.implicit is not None:
            batch, told = self.implicit.step(batch, rows)
            metrics |= told
        found = estimate(batch, table, kl_coefficient=self.beta, over_ranks=self.updater.over_ranks)
        if batch.ref_BT is not None:
            total, tokens = measured(batch)
            both = self.updater.over_ranks(torch.stack([total.double(), tokens.double()])).tolist()
            self._kl = both[0] / max(both[1], 1.0), self.config.prompts * self.config.group
        clock.note("estimate")
        tally = self.updater.run(batch, rows, found, table, beta=self.beta, off_policy=self.config.off_policy)
        clock.note("update")
        self.done += 1
        metrics |= {f"update/{name}": value for name, value in self._over_ranks(tally).figures().items()}
        metrics |= {f"advantage/{name}": value for name, value in found.tally.figures().items()}
        metrics |= {f"seconds/{name}": value for name, value in clock.spent.items()}
        metrics |= {"kl/coefficient": self.beta, "tokens": float(batch.mask_BT.sum())}
        # The mean of -log p over drawn tokens is an unbiased estimate of the entropy, and costs nothing.
        metrics["entropy/drawn"] = -float(batch.sampler_BT[batch.mask_BT].mean())
        compared, apart = metrics.pop("update/gap_tokens", 0.0), metrics.pop("update/gap_sum", 0.0)
        # Where the weights have moved since, whoever drew has measured it.
        metrics.setdefault("sampler/gap", apart / max(compared, 1.0))
        alarms += self.gaps.observe(metrics["sampler/gap"], self.done)
        return StepReport(step=self.done, metrics=metrics, sampled=sampled, alarms=alarms)

    def _guarded(self, sampled: Sampled, metrics: dict[str, float]) -> tuple[Table, tuple[Alarm, ...]]:
        """The table as the guards allow it, and their alarms; their figures go into the metrics."""
        named = [
            ((self.accelerator.process_index, number), response)
            for number, group in enumerate(sampled.groups)
            for response in group.responses
        ]
        scores: Sequence[float | None] = [None] * len(named)
        if sampled.scored.steps is not None:
            scores = [
                steps.values[-1] if steps is not None and steps.values else None for steps in sampled.scored.steps
            ]
        # All processes see all responses, so that they decide alike.
        groups, texts, lengths, outcomes, last = zip(
            *self._gather(
                [
                    (group, response.text, len(response.token_ids), outcome, score)
                    for (group, response), outcome, score in zip(named, sampled.outcomes, scores, strict=True)
                ]
            ),
            strict=True,
        )
        report = self.guards.observe(
            texts=texts,
            lengths=lengths,
            groups=groups,
            rewards=outcomes,
            last_scores=last if sampled.scored.steps is not None else None,
        )
        everywhere = self._gather([metrics])
        metrics |= {
            name: sum(one.get(name, 0.0) for one in everywhere) / (1 if name in SUMMED else len(everywhere))
            for name in metrics
        }
        metrics |= report.metrics
        known = [value for value in outcomes if value is not None]
        if known:
            metrics["outcome/mean"] = sum(known) / len(known)
        metrics["length/mean"] = sum(lengths) / len(lengths)
        table = self.table.at(self.done)
        if table.advantage.kind != "step":
            return table, report.alarms
        assert table.advantage.lam is not None
        lam = self.guards.lam(table.advantage.lam)
        return replace(table, advantage=replace(table.advantage, lam=lam)), report.alarms

    @torch.no_grad()
    def _read(self, batch: Batch, rows: Sequence[Drawn], table: Table) -> Batch:
        """The batch with what the table needs of the old policy, its inner layer, the reference and the critic."""
        made: dict[str, Any] = {}
        kl = table.kl
        masks = table.masks
        if (masks.importance != "none" or masks.reject is not None) and not self.config.cuts:
            made["old_BT"] = self._in_pieces(rows, lambda part: self.models.reader.read(part).logprobs, batch)
        if table.layer is not None:
            made["old_BT"] = self._in_pieces(
                rows, lambda part: self.models.reader.read(part, layer=table.layer).logprobs, batch
            )
        if kl.other_model and (kl.estimator != "full" or kl.schedule == "adaptive"):
            made["ref_BT"] = self._in_pieces(rows, self.models.reference_logprobs, batch)
        if self.models.critic is not None:
            critic, head = self.models.critic, self.models.value_head

            def values(part: Sequence[Drawn]) -> torch.Tensor:
                found = critic.read(part, value_head=head).values
                assert found is not None
                return found

            made["values_BT"] = self._in_pieces(rows, values, batch)
        return replace(batch, **made) if made else batch

    def _in_pieces(
        self, rows: Sequence[Drawn], read: Callable[[Sequence[Drawn]], torch.Tensor], batch: Batch
    ) -> torch.Tensor:
        found_BT = torch.zeros_like(batch.old_BT)
        for start in range(0, len(rows), self.config.micro_rows):
            with self.models.autocast():
                part = read(rows[start : start + self.config.micro_rows])
            found_BT[start : start + len(part), : part.shape[1]] = part
        return found_BT

    def _gather(self, parts: list[Any]) -> list[Any]:
        return parts if self.accelerator.num_processes == 1 else list(gather_object(parts))

    def _next_beta(self) -> float:
        kl, responses = self._kl or (None, None)
        return next_coefficient(self.table.kl, self.beta, step=self.done, measured=kl, responses=responses)

    def _over_ranks(self, tally: Tally) -> Tally:
        """The figures of all processes together; one that had nothing to read has fewer of them."""
        if self.accelerator.num_processes == 1:
            return tally
        parts: list[Tally] = gather_object([tally.cpu()])
        return reduce(add, parts)

    def tensors(self) -> dict[str, Any]:
        """State dicts of everything that is trained, whole tensors; all processes ask at the same time."""
        found = {name: part.state_dict() for name, part in self.models.parts.items()}
        if self.implicit is not None:
            found["implicit_optimiser"] = self.implicit.optimiser.state_dict()
        found["optimiser"] = self.updater.optimiser.state_dict()
        return found if self.models.shards is None else dict(gathered(found))

    def state(self) -> dict[str, Any]:
        """Plain values: position, guards, KL coefficient."""
        return {
            "done": self.done,
            "updates": self.updater.done,
            "position": self.supply.order.position,
            "ptx": None if self.ptx is None else self.ptx.order.position,
            "beta": self.beta,
            "kl": self._kl,
            "guards": self.guards.to_state(),
            "history": self.history.to_state(),
            "gaps": self.gaps.to_state(),
            "supply": self.supply.to_state(),
        }

    def restore(self, saved: checkpoint.Saved) -> None:
        """Everything as it was."""
        for name, part in self.models.parts.items():
            part.load_state_dict(module_state(part, saved.tensors[name]))
        optimiser = self.updater.optimiser
        optimiser.load_state_dict(optimiser_state(optimiser, saved.tensors["optimiser"]))
        if self.implicit is not None:
            self.implicit.optimiser.load_state_dict(saved.tensors["implicit_optimiser"])
        state = saved.state
        self.done, self.updater.done, self.beta = state["done"], state["updates"], state["beta"]
        self.supply.order.position = state["position"]
        if self.ptx is not None:
            self.ptx.order.position = state["ptx"]
        self._kl = None if state["kl"] is None else (state["kl"][0], state["kl"][1])
        self.guards.from_state(state["guards"])
        self.history = History.from_state(state["history"])
        self.gaps.from_state(state["gaps"])
        self.supply.from_state(state["supply"])
