"""What the training of a process reward model minimises, as sums over a batch.

z is the margin at a step's last token: logit_1 - logit_0 of a two-label head, the logit of a scalar one; sigma is the
logistic function.

**bce.** The binomial negative log-likelihood of s successes in n trials, its constant left out,

    -[ s log sigma(z) + (n - s) log sigma(-z) ] / m

where m is the mean number of trials in the data (weighting `counts`: a step seen in more trials counts for more), or
n itself (weighting `steps`: every step counts the same, the label is the share s / n). Counts keep the gradient
unbiased where sampling stopped depending on what came (by Wald's identity E[s] = p E[n]); the share does not.

**pqm.** The ranking of Li & Li 2024 (arXiv 2410.11287, equation 10, the practical form that does not order the wrong
steps among each other). With right steps c_1..c_m in their order, c_0 the prompt, whose score is 0, and wrong steps W,

    -(1 / |terms|) sum_t log [ exp z_ct / ( sum_{q <= t} exp z_cq + sum_{w in W} exp(z_w + zeta) ) ]

over t = 1..m, and t = 0 where W is not empty. As in the authors' code the mean is over the terms there are; unlike it
(WindyLee0822/Process_Q_Model, train_main.py) no 1e-5 is added and exp z_ct stands once in the denominator, where the
code counts it twice from the second right step on. The sum is taken in log space and does not overflow.

**implicit.** Yuan et al. 2024 (arXiv 2412.01981): the reward of a response y is r = beta log(pi(y) / pi_ref(y)), and
bce holds with r in place of z and the response's outcome in place of a step's label.

**Helpers.** `next_token_loss` keeps the arithmetic that the policy had learned, which a step label alone does not
teach. `surprisal_loss` fits a linear read-out of the first added layer to 1 - p(token), p being the probability that
the language model under it gave the token, and one of the last layer to 1 - the least p in the response so far: a slip
stands out in them, and without help a small model needs very long to find that comparison. They use no labels.

Legend: B rows, T tokens, L labels, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

_FAR = -1e9
"""Stands for log 0: exp of it is 0, and unlike -inf it has a gradient (0) where nothing else is in the sum."""


def margins(logits_BTL: torch.Tensor) -> torch.Tensor:
    """The margin z at every position, in float32. Shape (B, T)."""
    logits_BTL = logits_BTL.float()
    return logits_BTL[..., 0] if logits_BTL.shape[-1] == 1 else logits_BTL[..., 1] - logits_BTL[..., 0]


def step_loss(
    margins_BT: torch.Tensor, successes_BT: torch.Tensor, trials_BT: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Summed binomial negative log-likelihood over all steps; divided by `scale`, or by n where it is None."""
    per_step_BT = successes_BT * F.softplus(-margins_BT) + (trials_BT - successes_BT) * F.softplus(margins_BT)
    if scale is None:
        return (per_step_BT / torch.where(trials_BT > 0, trials_BT, 1.0)).sum()
    return (per_step_BT / scale).sum()


def pqm_loss(
    margins_BT: torch.Tensor, successes_BT: torch.Tensor, trials_BT: torch.Tensor, zeta: float
) -> torch.Tensor:
    """Ranking loss summed over rows; a step is right where it has a success, wrong where it has trials only."""
    right_BT = (trials_BT > 0) & (successes_BT > 0)
    wrong_BT = (trials_BT > 0) & (successes_BT <= 0)
    prompt_B1 = torch.zeros_like(margins_BT[:, :1])
    up_to = torch.cat([prompt_B1, torch.where(right_BT, margins_BT, _FAR)], dim=1).logcumsumexp(1)
    wrong_B1 = torch.where(wrong_BT, margins_BT + zeta, _FAR).logsumexp(1, keepdim=True)
    terms = torch.logaddexp(up_to, wrong_B1) - torch.cat([prompt_B1, margins_BT], dim=1)
    counted = torch.cat([wrong_BT.any(1, keepdim=True), right_BT], dim=1)
    return (torch.where(counted, terms, 0.0).sum(1) / counted.sum(1).clamp(min=1)).sum()


def response_logprobs(model: Any, ids_BT: torch.Tensor, response_mask_BT: torch.Tensor) -> torch.Tensor:
    """Log-probability that a causal language model gives each response, in float32. Shape (B,)."""
    wanted = response_mask_BT[:, 1:]
    logits = model(input_ids=ids_BT, use_cache=False).logits[:, :-1][wanted].float()
    logprobs_BT = torch.zeros(wanted.shape, device=ids_BT.device)
    logprobs_BT[wanted] = -F.cross_entropy(logits, ids_BT[:, 1:][wanted], reduction="none")
    return logprobs_BT.sum(1)


def next_token_loss(
    lm_head: Any, hidden_BTD: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """Summed next-token loss over the tokens in the mask."""
    wanted = mask_BT[:, 1:]
    targets = ids_BT[:, 1:][wanted]
    return F.cross_entropy(lm_head(hidden_BTD[:, :-1][wanted]).float(), targets, reduction="sum")


def surprisal_loss(
    model: Any, lm_head: Any, base_layers: int, hidden_states: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor
) -> torch.Tensor:
    """Summed cross-entropies of both read-outs (`model.surprisal`) against their targets, over the mask."""
    wanted = mask_BT[:, 1:]
    norm = model.base_model.norm
    with torch.no_grad():
        logits = lm_head(norm(hidden_states[base_layers])[:, :-1][wanted]).float()
        likely_BT = torch.ones(wanted.shape, device=wanted.device)
        likely_BT[wanted] = logits.softmax(-1).gather(1, ids_BT[:, 1:][wanted][:, None])[:, 0]
        least_BT = likely_BT.cummin(1).values
    token, so_far = model.surprisal
    said_token = token(norm(hidden_states[base_layers + 1])[:, 1:][wanted])[:, 0].float()
    said_so_far = so_far(hidden_states[-1][:, 1:][wanted])[:, 0].float()
    return F.binary_cross_entropy_with_logits(
        said_token, 1.0 - likely_BT[wanted], reduction="sum"
    ) + F.binary_cross_entropy_with_logits(said_so_far, 1.0 - least_BT[wanted], reduction="sum")
