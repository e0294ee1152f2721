"""Several responses behind one prompt, as one row whose prompt is read once.

    prompt 0 .. P-1 | first P .. P+A-1 | second P .. P+B-1 | ...          the numbers are positions

A token of a response sees the prompt and its own response, not the others; all responses begin at position P, as if
each stood alone. So a causal model computes what it would from one row a response, for P + A + B + ... tokens; the
results are equal up to rounding (1e-5 is tested). What attends through other ways than the mask (recurrent layers,
sliding windows) does not; `check` compares both ways on real rows before a fit relies on it.

Legend: B rows, K responses of a row, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from verifiers.errors import ModelError

TOLERANCE = 1e-3
"""Greatest difference of results that rounding explains, relative to their size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The ids of a prompt and of responses to it."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens of the one row."""
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each response begins in the one row."""
        found, at = [], len(self.prompt)
        for response in self.responses:
            found.append(at)
            at += len(response)
        return tuple(found)

    @property
    def alone(self) -> tuple[Family, ...]:
        """Each response behind a prompt of its own."""
        return tuple(Family(prompt=self.prompt, responses=(response,)) for response in self.responses)


def one_row(families: Sequence[Family]) -> dict[str, torch.Tensor]:
    """Model inputs of B families, padded on the right: ids (B, T), positions (B, T), what each token sees (B, 1, T, T).

    Where no row has several responses there are ids alone: a causal model needs nothing else.
    """
    width = max(family.tokens for family in families)
    # Filled as numpy arrays: a tensor operation for every response would cost more than all the rest.
    ids, places, parts = (np.zeros((len(families), width), dtype=np.int64) for _ in range(3))
    for number, family in enumerate(families):
        pieces = (family.prompt, *family.responses)
        lengths = np.array([len(piece) for piece in pieces])
        starts = lengths.cumsum() - lengths
        count = family.tokens
        ids[number, :count] = [token for piece in pieces for token in piece]
        # A response's positions go on from the prompt's end, wherever it stands.
        shifts = np.minimum(starts, len(family.prompt)) - starts
        places[number, :count] = np.arange(count) + np.repeat(shifts, lengths)
        parts[number, :count] = np.repeat(np.arange(len(pieces)), lengths)
    ids_BT, places_BT, part_BT = (torch.from_numpy(one) for one in (ids, places, parts))
    if all(len(family.responses) < 2 for family in families):
        return {"input_ids": ids_BT}
    seen_BTT = (part_BT[:, None, :] == 0) | (part_BT[:, None, :] == part_BT[:, :, None])
    seen_BTT &= torch.ones(width, width, dtype=torch.bool).tril()
    return {"input_ids": ids_BT, "position_ids": places_BT, "attention_mask": seen_BTT[:, None]}


@torch.no_grad()
def check(model: Any, families: Sequence[Family], read: Callable[[Any, Sequence[Family]], torch.Tensor]) -> None:
    """Raise ModelError where a model reads responses behind one prompt otherwise than alone.

    `read(model, families)` gives what is computed of every response, in their order.
    """
    training = model.training
    model.eval()
    shared, alone = read(model, families), read(model, [one for family in families for one in family.alone])
    model.train(training)
    worst = (alone - shared).abs().max().item()
    if not worst <= TOLERANCE * (1 + alone.abs().max().item()):
        raise ModelError(
            f"{type(model).__name__} reads responses behind one prompt otherwise than alone (by {worst:.2g}), so it "
            "does not honour the mask between them; set shared_prompt to false"
        )
