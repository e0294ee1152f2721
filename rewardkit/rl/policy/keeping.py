"""Keep sampling: probabilities among the tokens that top-p and top-k left to the sampler (DeepSeek-V3.2, 2512.02556).

With S_t the set that token t was drawn from, fixed by the policy that drew it,

    log pi(y_t | S_t) = log pi(y_t) - log sum over v in S_t of pi(v)

for the new policy, the old one and the reference alike. At the old parameters every ratio is then exactly 1, whereas
without the sets the sampler's probability is above the trainer's by the mass that was cut. S_t is found from the old
policy's logits by the very function that the engine cuts with, in one pass before the first update; where rounding
puts the token that was drawn outside, it is put inside. An engine that reports log-probabilities before the cut has
them set over S_t too, so that the gap between sampler and trainer means the same with every engine.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from rewardkit.rl.loss.batch import Batch
from rewardkit.rl.policy.reader import Drawn, TokenReader
from verifiers.core import Sampling


@torch.no_grad()
def keep_sampling(
    reader: TokenReader,
    rows: Sequence[Drawn],
    batch: Batch,
    sampling: Sampling,
    *,
    micro_rows: int,
    autocast: Callable[[], AbstractContextManager[None]],
    cut_reported: bool,
) -> tuple[list[Drawn], Batch]:
    """Rows with their sets, and the batch with the old policy's and the sampler's log-probabilities over them.

    `cut_reported` says that the engine reports log-probabilities after the cut.
    """
    kept: list[Drawn] = []
    old_BT, sampler_BT = torch.zeros_like(batch.old_BT), torch.zeros_like(batch.old_BT)
    for start in range(0, len(rows), micro_rows):
        part = rows[start : start + micro_rows]
        with autocast():
            sets = reader.keep(part, sampling)
            own = [replace(row, kept=one) for row, one in zip(part, sets, strict=True)]
            inside, whole = reader.read(own).logprobs, reader.read(part).logprobs
        place = (slice(start, start + len(part)), slice(0, inside.shape[1]))
        old_BT[place] = inside
        # inside - whole is minus the logarithm of the mass that was kept.
        sampler_BT[place] = batch.sampler_BT[place] + (0 if cut_reported else inside - whole)
        kept += own
    return kept, replace(batch, old_BT=old_BT, sampler_BT=sampler_BT)
