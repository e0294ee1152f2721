"""One token a row, by inverting the cumulative distribution at the row's own random number.

The number is u(row seed, number of the draw) in [0, 1), the same on every machine; the token is the first whose
cumulative probability, after top-k and top-p, exceeds u times the total. Log-probabilities are those of the softmax at
the sampling temperature, before the cut.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch

from search.engines.randomness import uniforms
from verifiers.core import Sampling


def draw(
    logits_RV: torch.Tensor, seeds_R: np.ndarray, positions_R: np.ndarray, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row and its log-probability at the sampling temperature. Shapes (R,), (R,)."""
    logits_RV = logits_RV.float()
    if sampling.temperature == 0.0:
        logprobs_RV = logits_RV.log_softmax(-1)
        tokens_R = logits_RV.argmax(-1)
        return tokens_R, logprobs_RV.gather(1, tokens_R[:, None])[:, 0]
    logprobs_RV = (logits_RV / sampling.temperature).log_softmax(-1)
    probs_RV = cut(logprobs_RV.exp(), sampling)
    cumulative_RV = probs_RV.double().cumsum(-1)
    points = torch.from_numpy(uniforms(seeds_R, positions_R.astype(np.uint64))).to(cumulative_RV.device)
    tokens_R = torch.searchsorted(cumulative_RV, points[:, None] * cumulative_RV[:, -1:], right=True)[:, 0]
    # u < 1 times the total can still round up to the total: then the last token with any mass is meant.
    last_R = (probs_RV > 0).long().mul_(torch.arange(probs_RV.shape[1], device=probs_RV.device)).amax(-1)
    tokens_R = torch.minimum(tokens_R, last_R)
    return tokens_R, logprobs_RV.gather(1, tokens_R[:, None])[:, 0]


def cut(probs_RV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Zero what top-k and top-p exclude; the rest keeps its proportions."""
    if sampling.top_k and sampling.top_k < probs_RV.shape[1]:
        floor = probs_RV.topk(sampling.top_k, dim=-1).values[:, -1:]
        probs_RV = probs_RV.masked_fill(probs_RV < floor, 0.0)
    if sampling.top_p < 1.0:
        ordered, order = probs_RV.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        # The likeliest tokens whose mass reaches top_p; the first is always kept.
        dropped = before >= sampling.top_p * ordered.sum(-1, keepdim=True)
        probs_RV = probs_RV.scatter(-1, order, ordered.masked_fill(dropped, 0.0))
    return probs_RV
