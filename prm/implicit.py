"""Implicit process reward models: two language models, and no head.

With r_t = beta * sum over the response's tokens up to the end of step t of [log pi(token) - log pi_ref(token)], a model
trained on outcomes alone has step values for free (Yuan et al. 2024, arXiv 2412.01981): r_t is the log-odds that is
compared with the outcome in training, so r_t itself is given as `log_odds` and its logistic as score. Published scores
of EurusPRM are r_t.

Legend: B rows, T tokens, N steps of all rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from prm.adapters import Parts
from prm.backbone import ModelCard, StepInput, pad_right
from prm.model import ProcessModel
from prm.readings import Reading


class ImplicitModel(ProcessModel):
    """A language model read against its reference. Implements `verifiers.core.StepScorer`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        card: ModelCard | None = None,
        *,
        reference: Any,
        beta: float,
        reading: Reading | None = None,
        batch_tokens: int = 16_384,
    ):
        super().__init__(model, tokenizer, card, reading=reading, head=torch.nn.Identity(), batch_tokens=batch_tokens)
        self.reference = reference.eval()
        self.beta = beta

    @classmethod
    def assemble(cls, parts: Parts, *, device: str, batch_tokens: int) -> Self:
        """See `ProcessModel.assemble`."""
        return cls(
            parts.model.to(device),
            parts.tokenizer,
            parts.card,
            reference=parts.reference.to(device),
            beta=parts.beta,
            reading=parts.reading,
            batch_tokens=batch_tokens,
        )

    @property
    def parameters(self) -> int:
        """Of both models."""
        return super().parameters + int(sum(p.numel() for p in self.reference.parameters()))

    def _read(self, rows: Sequence[StepInput]) -> torch.Tensor:
        ids_BT = pad_right([row.ids for row in rows], device=self.model.device)
        ratios_BT = token_logprobs(self.model, ids_BT) - token_logprobs(self.reference, ids_BT)
        found = []
        for ratio_T, row in zip(ratios_BT, rows, strict=True):
            # Entry t belongs to token t + 1. Double precision: hundreds of terms are summed and differences matter.
            first = max(1, row.prompt_length)
            sums_T = ratio_T[first - 1 :].double().cumsum(0)
            found.append(self.beta * sums_T[[end - first for end in row.ends]])
        return torch.cat(found).float().cpu()


def token_logprobs(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of P(token t + 1 | tokens up to t), in float32. Shape (B, T - 1)."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
    chosen_BT: torch.Tensor = logits_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0]
    logprobs_BT: torch.Tensor = chosen_BT - logits_BTV.logsumexp(-1)
    return logprobs_BT
