"""Text of the pretraining kind beside the reward: the next-token loss of PPO-ptx (InstructGPT, arXiv 2203.02155).

Every optimiser step reads `ptx_rows` rows of text, the next ones of shuffled rounds of all rows, and adds

    - gamma sum_t log pi(x_t | x_<t) / N        N: counted tokens of these rows, over all micro-batches and processes

to its loss, gamma the table's `ptx`. N is counted before the rows are cut and shared out, so that neither changes the
gradient. A row of text counts all its tokens but the first, a row of prompt and completion those of the completion, as
in supervised fine-tuning; log-probabilities are at temperature 1 whatever the sampler's is. Which rows come next hangs
on the seed and a position alone: no random state that anything else draws from is touched, and the position is all that
a checkpoint keeps. InstructGPT samples its text anew for every step in the same way; it took gamma = 27.8 with another
scale of both losses, so that value means nothing here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from prm.backbone import context_of
from rewardkit.offline.rows import SftRow, sft_from_json
from rewardkit.offline.sft_config import SftConfig
from rewardkit.offline.sft_data import SftDataset
from rewardkit.rl.config import RlConfig
from rewardkit.rl.loss.objective import ptx_loss
from rewardkit.rl.loss.tally import Tally, over
from rewardkit.rl.policy.models import Models
from rewardkit.rl.policy.reader import Drawn, TokenReader
from rewardkit.rl.sampling.drawing import Order
from rewardkit.sources import is_playground, problems_from
from verifiers.core import Response, derive_seed
from verifiers.errors import DataError
from verifiers.records import open_rows


class PtxText:
    """The rows of a run, the position in them, and their pass."""

    def __init__(self, config: RlConfig, models: Models) -> None:
        """Read `config.ptx_text`. Raises MissingFileError, DataError for rows that cannot be read or learned from."""
        assert config.ptx_text is not None
        self.config = config
        found = text_rows(config.ptx_text)
        self.data = SftDataset(
            found,
            models.tokenizer,
            SftConfig(init=config.init, too_long="cut"),
            min(config.ptx_tokens, context_of(models.policy)),
        )
        self.rows = [drawn(item) for sequence in self.data.sequences for item in sequence]
        self.order = Order(self.rows, seed=derive_seed(config.seed, "ptx"))
        self.models, self.reader = models, TokenReader(models.policy, row_tokens=models.reader.row_tokens)
        self.reader.enter = models.reader.enter

    @property
    def about(self) -> str:
        """One line on what was read."""
        data, gamma = self.data, self.config.table.ptx
        return (
            f"ptx {gamma:g} on {data.rows} rows ({data.counted_tokens} counted tokens) of {self.config.ptx_text}, "
            f"{self.config.ptx_rows} an update; {data.cut} cut, {data.dropped} too long, {data.empty} empty"
        )

    def backward(self, accelerator: Accelerator) -> Tally:
        """Add this process's share of the loss's gradient, in micro-batches; the position moves on by a step's rows."""
        taken = self.order.take(self.config.ptx_rows)
        tokens = float(sum(len(row.response) for row in taken))
        own = taken[accelerator.process_index :: accelerator.num_processes]
        own.sort(key=lambda row: (row.prompt, len(row.response)))
        tally = Tally()
        passes = self.models.passes(-(-len(own) // self.config.micro_rows))
        for start in range(0, len(own), self.config.micro_rows):
            part = own[start : start + self.config.micro_rows]
            with self.models.autocast():
                logprobs_BT = self.reader.read(part).logprobs
                lengths_B = torch.tensor([len(row.response) for row in part], device=logprobs_BT.device)
                mask_BT = torch.arange(logprobs_BT.shape[1], device=logprobs_BT.device) < lengths_B[:, None]
                loss = ptx_loss(logprobs_BT, mask_BT, self.config.table, tokens=tokens)
            loss.total.backward()  # type: ignore[no-untyped-call]
            sums = {"ptx_nll": -torch.where(mask_BT, logprobs_BT, 0).detach().sum()}
            tally = tally + loss.tally + Tally(sums=over(mask_BT.sum(), sums))
            passes -= 1
        for _ in range(passes):
            self.models.idle_pass(taken[0])
        return tally


def drawn(item: dict[str, Any]) -> Drawn:
    """A row of ids and labels as what a reader reads: counted tokens behind those that are not."""
    ids, labels = item["input_ids"], item["labels"]
    first = next(place for place, label in enumerate(labels) if label >= 0)
    return Drawn(prompt=tuple(ids[:first]), response=tuple(ids[first:]))


def text_rows(source: str) -> list[SftRow]:
    """Rows of a file (JSON, JSON Lines, Parquet), a hub id (ID or ID:SPLIT) or playground:SPLIT[:COUNT[:SEED]].

    A row is {"text"}, or any layout that `sft` reads; the playground's are its problems with their worked solutions.
    Raises MissingFileError, ConfigError or DataError in one sentence.
    """
    if is_playground(source):
        return [
            SftRow(
                prompt=problem.prompt,
                response=Response(problem_id=problem.id, text=problem.metadata["solution"]),
                problem_id=problem.id,
            )
            for problem in problems_from(source)
        ]
    name, _, split = (source, "", "") if Path(source).exists() else source.partition(":")
    found = [row_of(row, where) for where, row in open_rows(name, split=split or None)]
    if not found:
        raise DataError(f"{source} holds no rows of text; give some, or leave ptx 0")
    return found


def row_of(row: Any, where: str) -> SftRow:
    """{"text"} as a response without a prompt; anything else as `sft` reads it."""
    if "text" not in row or row.keys() & {"prompt", "messages"}:
        return sft_from_json(row, where=where)
    if not isinstance(row["text"], str):
        raise DataError(f"{where}, field 'text': must be text; got {row['text']!r:.80}")
    return SftRow(prompt="", response=Response(problem_id="", text=row["text"]))
