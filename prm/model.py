"""ProcessModel: the steps of a response -> one score in [0, 1] each, read in one forward pass.

Rows are sorted by length and batched by padded tokens, so scoring thousands of responses wastes little. Scores
are sigmoid(logit_1 - logit_0) computed in float32; `log_odds` gives the difference itself, which neither
underflows nor saturates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prm.backbone import (
    ModelCard,
    StepInput,
    check_length,
    check_steps,
    context_of,
    encode_steps,
    good_logits,
    load_backbone,
    pad_right,
)
from verifiers.core import Problem, Prompt, Response, Usage
from verifiers.errors import ConfigError
from verifiers.steps import text_response


class ProcessModel:
    """A process reward model. Implements `verifiers.core.StepScorer`."""

    def __init__(self, model: Any, tokenizer: Any, card: ModelCard | None = None, *, batch_tokens: int = 16_384):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.card = card or ModelCard()
        self.batch_tokens = batch_tokens
        self._usage = Usage()

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | None = None, dtype: str = "auto", batch_tokens: int = 16_384
    ) -> ProcessModel:
        """Load a checkpoint folder or hub id with a two-label token-classification head."""
        return cls(*load_backbone(path, device=device, dtype=dtype), batch_tokens=batch_tokens)

    def save(self, folder: str | Path) -> None:
        """Write model, tokenizer and card."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.card.save(folder)

    @property
    def parameters(self) -> int:
        """Parameter count, for compute accounting."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def usage(self) -> Usage:
        """Tokens read and seconds spent since loading."""
        return self._usage

    def score(self, prompt: Prompt, steps: Sequence[str]) -> list[float]:
        """Scores in [0, 1] of the steps of one finished response, given as texts."""
        return self.score_batch([prompt], [steps])[0]

    def score_batch(self, prompts: Sequence[Prompt], steps: Sequence[Sequence[str]]) -> list[list[float]]:
        """`score` for many responses: row i answers `prompts[i]` with `steps[i]`."""
        if len(prompts) != len(steps):
            raise ConfigError(f"there must be one prompt a row of steps; got {len(prompts)} and {len(steps)}")
        problems = [Problem(id=f"row {number}", prompt=prompt) for number, prompt in enumerate(prompts)]
        responses = [
            text_response(problem.id, row, separator=self.card.separator)
            for problem, row in zip(problems, steps, strict=True)
        ]
        return [list(scores) for scores in self.score_steps(problems, responses)]

    def score_steps(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        """One score in [0, 1] a step of each response. Raises DataError for a response that does not fit."""
        return [tuple(torch.sigmoid(torch.tensor(row)).tolist()) for row in self.log_odds(problems, responses)]

    @torch.inference_mode()
    def log_odds(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        """Natural logarithm of P(good) / P(bad) a step, in float32."""
        if len(problems) != len(responses):
            raise ConfigError(f"there must be one problem a response; got {len(problems)} and {len(responses)}")
        started = time.perf_counter()
        rows = [self._encode(p, r) for p, r in zip(problems, responses, strict=True)]
        results: list[tuple[float, ...]] = [()] * len(rows)
        order = sorted((n for n, row in enumerate(rows) if row.ends), key=lambda n: len(rows[n].ids))
        read = sum(len(rows[n].ids) for n in order)
        while order:
            count = 1
            while count < len(order) and (count + 1) * len(rows[order[count]].ids) <= self.batch_tokens:
                count += 1
            batch, order = order[:count], order[count:]
            margins_BT = good_logits(
                self.model, pad_right([rows[n].ids for n in batch], device=self.model.device)
            ).cpu()
            for place, number in enumerate(batch):
                results[number] = tuple(margins_BT[place, list(rows[number].ends)].tolist())
        self._usage += Usage(prefill_tokens=read, calls=1, seconds=time.perf_counter() - started)
        return results

    def _encode(self, problem: Problem, response: Response) -> StepInput:
        row = encode_steps(self.tokenizer, problem.prompt, response, separator=self.card.separator)
        name = f"response {response.sample} to problem {problem.id!r}"
        check_length(row, context_of(self.model), name)
        check_steps(row, name)
        return row
