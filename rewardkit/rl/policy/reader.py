"""What the loop asks of models: log-probabilities of drawn tokens, entropies, values, of many responses at once.

Responses of one prompt stand behind it in one row (`rewardkit/shared_prompt.py`) while that saves work (`best_row`) or
the row has at most `row_tokens` tokens, so the prompt is read once for several of them. Hidden states are taken at the
positions that predict response tokens; only those N go through the head, in pieces of at most `PIECE` logits, which are
computed again in the backward pass: for a vocabulary of 150,000 it is the logits and not the model that fill the
memory. Log-probabilities are those of softmax(logits / temperature), as the sampler reports them.

The value of a state is read at the same positions, by a linear head on the policy's own trunk or on another one; so
is the KL to another model over the whole vocabulary (`kl.divergence`), whose logits are cut in the same pieces. Both
models then have the ids that the smaller of their heads has.

Two more ways of reading: with `layer`, layers above it are left out, and its hidden states go through the final norm
and the head; where rows say which ids the sampler chose from (`Kept`), probabilities are those among them alone.

Legend: B responses, T tokens of the longest, N tokens of all responses, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rewardkit.rl.loss.kl import divergence
from rewardkit.rl.policy.routing import replayed
from rewardkit.shared_prompt import Family, one_row
from search.engines.draws import cut
from search.engines.routers import Routers
from verifiers.core import Sampling
from verifiers.errors import ModelError

PIECE = 2**25
"""Most logits that are in memory at once."""


FAR = -1e30
"""Stands for log 0 in logits: its probability is 0, and what is multiplied with it stays finite."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The token ids that each token of a response was chosen from, K in all."""

    ids_K: torch.Tensor
    counts_T: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A response to read: prompt ids and response ids."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    kept: Kept | None = field(default=None, compare=False)
    """None: the sampler chose from all ids."""
    routes: torch.Tensor | None = field(default=None, compare=False)
    """Experts that the sampler took at every position but the last (`routing.py`); None: the router's own choice."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """Another model to take the KL over the vocabulary to."""

    reader: TokenReader
    mix: float = 1.0
    """See `kl.divergence`."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read, padded on the right. Shapes (B, T)."""

    logprobs: torch.Tensor
    entropies: torch.Tensor | None
    values: torch.Tensor | None
    divergences: torch.Tensor | None = None


def best_row(prompt: int, width: int) -> int:
    """Tokens of a row at which a response behind a shared prompt costs least: P + sqrt(P^2 + 6 D P).

    A layer takes about 12 D^2 multiplications a token and 2 D a pair of tokens that may see each other, so a row of T
    costs T + T^2 / 6 D. With k responses of r tokens behind a prompt of P, T = P + k r; the cost of one of them,
    (T + T^2 / 6 D) / k, is least where (T - P)^2 = P^2 + 6 D P, whatever r is.
    """
    return prompt + math.isqrt(prompt * prompt + 6 * width * prompt)


def families_of(rows: Sequence[Drawn], *, most: Callable[[int], int]) -> list[Family]:
    """Responses of one prompt that follow each other, together while a row has at most `most(prompt)` tokens."""
    found: list[Family] = []
    for row in rows:
        last = found[-1] if found else None
        if last is not None and last.prompt == row.prompt and last.tokens + len(row.response) <= most(len(row.prompt)):
            found[-1] = Family(prompt=row.prompt, responses=(*last.responses, row.response))
        else:
            found.append(Family(prompt=row.prompt, responses=(row.response,)))
    return found


class TokenReader:
    """Reads responses with a causal language model."""

    def __init__(
        self,
        model: Any,
        *,
        temperature: float = 1.0,
        row_tokens: int | None = None,
        routers: Routers | None = None,
    ) -> None:
        self.model, self.temperature, self.row_tokens = model, temperature, row_tokens
        self.routers = routers
        """Those of the model, where it is to take the experts that rows come with."""
        self.enter: Callable[[Callable[[], Any]], Any] = lambda work: work()
        """Does a reading; where weights are cut over processes, while they are there (`sharding.py`)."""
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.trunk, self.head = plain.base_model, plain.get_output_embeddings()
        if self.head is None:
            raise ModelError(f"{type(plain).__name__} has no language-model head to read tokens by")
        self.plain = plain

    def check(self, ids: Sequence[int]) -> None:
        """Raise ModelError where logits are not the head's (scaled, capped): they would be computed wrongly here."""
        with torch.no_grad():
            ids_BT = torch.tensor([list(ids)], device=self.plain.device)
            own = self.head(self.trunk(input_ids=ids_BT, use_cache=False).last_hidden_state)
            gap = (own - self.plain(input_ids=ids_BT, use_cache=False).logits).abs().max().item()
        if gap > 1e-3:
            raise ModelError(
                f"{type(self.plain).__name__} changes its logits behind the head (by {gap:.2g}), which reading by "
                "the head alone would miss; it cannot be trained here"
            )

    def read(
        self,
        rows: Sequence[Drawn],
        *,
        entropies: bool = False,
        value_head: torch.nn.Module | None = None,
        against: Against | None = None,
        layer: int | None = None,
    ) -> Reading:
        """Log-probabilities of every response token and, where asked for, what stands before it.

        That is its entropy, value and KL over the vocabulary. `layer` is the last layer that is read (from 0).
        """

        def work() -> tuple[torch.Tensor | None, ...]:
            hidden_ND = self.hidden(rows, layer=layer)
            own = _Work(
                reader=self,
                hidden_ND=hidden_ND,
                targets_N=torch.tensor([token for row in rows for token in row.response], device=hidden_ND.device),
                kept=_kept_of(rows),
                entropies=entropies,
                against=against,
            )
            if against is not None:
                with torch.no_grad():
                    own.other_ND = against.reader.hidden(rows)
            values_N = None if value_head is None else value_head(hidden_ND.float())[:, 0]
            return *own.all(), values_N

        logprobs_N, entropies_N, divergences_N, values_N = self.enter(work)
        lengths = [len(row.response) for row in rows]
        found = (entropies_N, values_N, divergences_N)
        further = [None if one_N is None else padded(one_N, lengths) for one_N in found]
        return Reading(
            logprobs=padded(logprobs_N, lengths), entropies=further[0], values=further[1], divergences=further[2]
        )

    def hidden(self, rows: Sequence[Drawn], *, layer: int | None = None) -> torch.Tensor:
        """Hidden states, behind the final norm, that predict each response token, row after row. Shape (N, D)."""
        families = families_of(rows, most=self.most)
        inputs = {name: value.to(self.plain.device) for name, value in one_row(families).items()}
        with self._up_to(layer), replayed(self.routers, rows, families):
            hidden_BTD = self.trunk(**inputs, use_cache=False).last_hidden_state
        places, columns = positions_before(families)
        found: torch.Tensor = hidden_BTD[places, columns]
        return found

    def most(self, prompt: int) -> int:
        """Most tokens of a row behind a prompt of so many."""
        return best_row(prompt, self.head.weight.shape[1]) if self.row_tokens is None else self.row_tokens

    @torch.no_grad()
    def keep(self, rows: Sequence[Drawn], sampling: Sampling) -> list[Kept]:
        """Which ids top-p and top-k leave at every token, by this model; the token drawn is always one of them."""
        hidden_ND = self.hidden(rows)
        size = max(1, PIECE // self.head.weight.shape[0])
        ids, counts = [], []
        drawn_N = torch.tensor([token for row in rows for token in row.response], device=hidden_ND.device)
        for at in range(0, len(drawn_N), size):
            logits_NV = self.head(hidden_ND[at : at + size]).float() / self.temperature
            kept_NV = cut(logits_NV.softmax(-1), sampling) > 0
            # Where rounding puts the last id of a set on the other side than the sampler did.
            kept_NV.scatter_(1, drawn_N[at : at + size, None], True)
            ids.append(kept_NV.nonzero()[:, 1].int().cpu())
            counts.append(kept_NV.sum(1).cpu())
        ids_K, counts_N = torch.cat(ids), torch.cat(counts)
        found, first, token = [], 0, 0
        for row in rows:
            counts_T = counts_N[token : token + len(row.response)]
            last = first + int(counts_T.sum())
            found.append(Kept(ids_K=ids_K[first:last], counts_T=counts_T))
            first, token = last, token + len(row.response)
        return found

    def layers(self) -> Any:
        """The trunk's layers. Raises ModelError for a model whose layers stand elsewhere."""
        found = getattr(self.trunk, "layers", None)
        if not isinstance(found, torch.nn.ModuleList):
            raise ModelError(f"{type(self.plain).__name__} has no list of layers to read one of; leave layer out")
        return found

    @contextlib.contextmanager
    def _up_to(self, layer: int | None) -> Iterator[None]:
        if layer is None:
            yield
            return
        whole = self.layers()
        if layer >= len(whole):
            raise ModelError(f"layer must be one of the model's {len(whole)}, from 0 to {len(whole) - 1}; got {layer}")
        self.trunk.layers = whole[: layer + 1]
        try:
            yield
        finally:
            self.trunk.layers = whole


@dataclass(kw_only=True)
class _Work:
    """Logits of all positions, a piece at a time, and what is computed of them."""

    reader: TokenReader
    hidden_ND: torch.Tensor
    targets_N: torch.Tensor
    kept: Kept | None
    entropies: bool
    against: Against | None
    other_ND: torch.Tensor | None = None

    def all(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """(log-probabilities, entropies, divergences) of all positions."""
        models = 1 if self.against is None else 3
        size = max(1, PIECE // (models * self.reader.head.weight.shape[0]))
        pieces = range(0, len(self.targets_N), size)
        again = len(pieces) > 1 and torch.is_grad_enabled()
        found = []
        for at in pieces:
            piece = slice(at, at + size)
            if again:
                found.append(checkpoint(self._piece, self.hidden_ND[piece], piece, use_reentrant=False))
            else:
                found.append(self._piece(self.hidden_ND[piece], piece))
        columns = [[one for one in column if one is not None] for column in zip(*found, strict=True)]
        joined = [torch.cat(column) if column else None for column in columns]
        assert joined[0] is not None
        return joined[0], joined[1], joined[2]

    def _piece(
        self, hidden_ND: torch.Tensor, piece: slice
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        logits_NV = self.reader.head(hidden_ND).float()
        if self.reader.temperature != 1.0:
            logits_NV = logits_NV / self.reader.temperature
        whole_NV = logits_NV
        if self.kept is not None:
            logits_NV = logits_NV.masked_fill(~self._kept(piece, logits_NV.shape), FAR)
        # One kernel forward and one back: a logsumexp and a gather go over the logits three times as often.
        logprobs_N = -functional.cross_entropy(logits_NV, self.targets_N[piece], reduction="none")
        entropies_N = divergences_N = None
        if self.entropies:
            all_NV = logits_NV.log_softmax(-1)
            entropies_N = -(all_NV.exp() * all_NV).sum(-1)
        if self.against is not None:
            assert self.other_ND is not None
            other = self.against.reader
            with torch.no_grad():
                other_NV = other.head(self.other_ND[piece]).float() / other.temperature
            shared = min(other_NV.shape[1], whole_NV.shape[1])
            divergences_N = divergence(whole_NV[:, :shared], other_NV[:, :shared], self.against.mix)
        return logprobs_N, entropies_N, divergences_N

    def _kept(self, piece: slice, shape: torch.Size) -> torch.Tensor:
        assert self.kept is not None
        counts_N = self.kept.counts_T[piece]
        first = int(self.kept.counts_T[: piece.start].sum())
        ids_K = self.kept.ids_K[first : first + int(counts_N.sum())].long().to(self.targets_N.device)
        rows_K = torch.arange(len(counts_N)).repeat_interleave(counts_N).to(self.targets_N.device)
        kept_NV = torch.zeros(shape, dtype=torch.bool, device=self.targets_N.device)
        kept_NV[rows_K, ids_K] = True
        return kept_NV


def _kept_of(rows: Sequence[Drawn]) -> Kept | None:
    """The sets of all rows one after another; None where the sampler chose from all ids."""
    given = [row.kept for row in rows if row.kept is not None]
    if not given:
        return None
    assert len(given) == len(rows)
    return Kept(ids_K=torch.cat([one.ids_K for one in given]), counts_T=torch.cat([one.counts_T for one in given]))


def positions_before(families: Sequence[Family]) -> tuple[list[int], list[int]]:
    """Row and column of the position before each response token: the prompt's last one before the first."""
    places: list[int] = []
    columns: list[int] = []
    for number, family in enumerate(families):
        for start, response in zip(family.starts, family.responses, strict=True):
            places += [number] * len(response)
            columns += [len(family.prompt) - 1, *range(start, start + len(response) - 1)]
    return places, columns


def padded(values_N: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Values of responses one after another as rows, 0 behind their ends. Shape (B, T)."""
    pieces = torch.split(values_N, list(lengths))
    return torch.nn.utils.rnn.pad_sequence(list(pieces), batch_first=True)
