"""Batched sampling with a plain transformers causal LM, on whatever device it is.

One loop decodes up to `max_rows` rows at once. A prefix is read without its last token (which is every row's first
input) and its keys and values are copied into the rows' slots. It is read once for all samples of a request, and for
all requests of this and later calls whose prefixes begin it (`prefixes.PrefixStore`): roll-outs from every step of a
response cost one reading of that response. A row that ends gives its slot to the next waiting row. A token is drawn by
inverting the cumulative distribution at u(row seed, position): a row's draws do not depend on its neighbours.
(Floating-point sums do, by about 1e-7 of probability; a draw that falls into such a gap may differ. Equal batches are
bit-identical.)

Log-probabilities are those of the softmax at the sampling temperature, before top-p and top-k cut it.

Legend: R rows in the batch, V vocabulary, T positions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from search.engines.prefixes import Block, PrefixStore
from search.engines.randomness import uniforms
from search.engines.slots import SlotCache
from verifiers.core import Continuation, GenerationRequest, Sampling, StopReason, Usage, derive_seed
from verifiers.errors import ConfigError, EngineError, ModelError

PREFILL_TOKENS = 16_384
"""Most padded tokens of one prefill batch."""
PREFIX_TOKENS = 131_072
"""Most padded positions of prefixes kept in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """Sample number `sample` of request number `request`."""

    request: int
    sample: int


class TransformersEngine:
    """Implements `verifiers.core.Engine` over a loaded model.

    `model` is any decoder-only transformers model with full attention in every layer; it is put into
    evaluation mode. `max_rows` bounds the batch (memory grows with it and with the longest row). Up to
    `prefix_tokens` (padded) positions of prefixes that were read stay in memory for later calls; 0 keeps none, and
    then every request's prefix is read on its own.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_rows: int = 256, prefix_tokens: int = PREFIX_TOKENS) -> None:
        if max_rows < 1:
            raise ConfigError(f"TransformersEngine.max_rows must be 1 or more; got {max_rows!r}")
        if prefix_tokens < 0:
            raise ConfigError(f"TransformersEngine.prefix_tokens must be 0 or more; got {prefix_tokens!r}")
        kinds = set(getattr(model.config, "layer_types", None) or [_attention(model.config)])
        if kinds != {"full_attention"}:
            raise ModelError(
                f"TransformersEngine needs full attention in every layer; {type(model).__name__} has "
                f"{', '.join(sorted(kinds))}; use the vLLM engine for it"
            )
        self.model = model.eval()
        self._tokenizer = tokenizer
        self._max_rows = max_rows
        self._prefixes = PrefixStore(prefix_tokens)
        self._usage = Usage()
        stops = model.generation_config.eos_token_id if model.generation_config else None
        if stops is None:
            stops = tokenizer.eos_token_id
        self._eos = {stops} if isinstance(stops, int) else set(stops or ())
        if tokenizer.eos_token_id is not None:
            self._eos.add(tokenizer.eos_token_id)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        dtype: str = "auto",
        max_rows: int = 256,
        prefix_tokens: int = PREFIX_TOKENS,
    ) -> TransformersEngine:
        """Load a checkpoint folder or hub id; `device` defaults to cuda where there is one.

        Raises ModelError, in one sentence, for a folder that is missing, has no weights or no tokenizer.
        """
        from verifiers.checkpoints import load_tokenizer, loading, refuse_missing

        tokenizer = load_tokenizer(path)
        with loading(path, "a causal language model"):
            from transformers import AutoModelForCausalLM

            model, report = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
        refuse_missing(path, "a causal language model", report["missing_keys"])
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, tokenizer, max_rows=max_rows, prefix_tokens=prefix_tokens)

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens a row may have, by the model's position limit."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    @property
    def parameters(self) -> int:
        """Parameter count, for compute accounting."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def usage(self) -> Usage:
        """Paid since the engine was made."""
        return self._usage

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[list[Continuation]]:
        """Draw all continuations; see the module's first paragraph. Raises EngineError for a prompt too long."""
        started = time.perf_counter()
        for number, request in enumerate(requests):
            self._check(number, request)
        results: list[list[Continuation | None]] = [[None] * request.n for request in requests]
        run = _Decoding(self, requests, sampling)
        for row, continuation in run.results():
            results[row.request][row.sample] = continuation
        done = [[c for c in row if c is not None] for row in results]
        assert [len(row) for row in done] == [request.n for request in requests]
        self._usage += Usage(
            prefill_tokens=run.prefilled,
            decoded_tokens=sum(len(c.token_ids) for row in done for c in row),
            calls=1,
            seconds=time.perf_counter() - started,
        )
        return done

    def _check(self, number: int, request: GenerationRequest) -> None:
        if request.n < 1:
            raise ConfigError(f"GenerationRequest.n must be 1 or more; got {request.n!r} in request {number}")
        if request.first < 0:
            raise ConfigError(f"GenerationRequest.first must be 0 or more; got {request.first!r} in request {number}")
        if not request.prefix_ids:
            raise EngineError(f"request {number} has an empty prefix; give at least one token to go on from")
        if len(request.prefix_ids) >= self.context_length:
            raise EngineError(
                f"the prefix of request {number} has {len(request.prefix_ids)} tokens, but the model's context "
                f"holds {self.context_length}; shorten the prompt or use a model with a longer context"
            )


def _attention(config: Any) -> str:
    """The kind of every layer where the configuration has no list of kinds (as transformers infers it)."""
    if getattr(config, "sliding_window", None) is not None:
        return "sliding_attention"
    return "chunked_attention" if getattr(config, "attention_chunk_size", None) else "full_attention"


class _Decoding:
    """One call's state: waiting rows, slots, and per-slot tensors."""

    def __init__(self, engine: TransformersEngine, requests: Sequence[GenerationRequest], sampling: Sampling) -> None:
        self.model = engine.model
        self.device = engine.model.device
        self.requests = requests
        self.sampling = sampling
        self.context = engine.context_length
        self.waiting = deque(_Row(request=r, sample=s) for r, q in enumerate(requests) for s in range(q.n))
        self.slots = min(engine._max_rows, len(self.waiting))
        self.cache = SlotCache(engine.model.config.num_hidden_layers, self.slots)
        self.active: list[_Row] = []
        self.prefixes = engine._prefixes
        self.ahead = self.prefixes.longest(request.prefix_ids[:-1] for request in requests)
        self.prefilled = 0
        most = sampling.max_new_tokens
        self.eos = torch.tensor(sorted(engine._eos), device=self.device)
        self.stops = [torch.tensor(stop, device=self.device) for stop in sampling.stop_sequences]
        self.seeds = np.zeros(self.slots, dtype=np.uint64)
        self.lengths = torch.zeros(self.slots, dtype=torch.long, device=self.device)
        self.counts = torch.zeros(self.slots, dtype=torch.long, device=self.device)
        self.limits = torch.zeros(self.slots, dtype=torch.long, device=self.device)
        self.inputs = torch.zeros(self.slots, dtype=torch.long, device=self.device)
        self.drawn = torch.zeros(self.slots, most, dtype=torch.long, device=self.device)
        self.logprobs = torch.zeros(self.slots, most, dtype=torch.float32, device=self.device)

    def results(self) -> Iterator[tuple[_Row, Continuation]]:
        """Yield (row, continuation) as rows end."""
        while self.waiting or self.active:
            free = self.slots - len(self.active)
            # Small refills would read few prefixes at a time; wait until an eighth of the slots is free.
            if self.waiting and (free >= max(1, self.slots // 8) or not self.active):
                self._admit(free)
            yield from self._step()

    def _admit(self, free: int) -> None:
        """Read the prefixes of the next waiting rows and give them slots."""
        rows = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        first = len(self.active)
        self.active += rows
        for slot, row in enumerate(rows, start=first):
            request = self.requests[row.request]
            prefix = request.prefix_ids
            self.seeds[slot] = derive_seed(request.seed, request.first + row.sample)
            self.lengths[slot] = len(prefix) - 1
            self.inputs[slot] = prefix[-1]
            self.limits[slot] = min(self.sampling.max_new_tokens, self.context - len(prefix))
            self.counts[slot] = 0
        wanted = sorted({row.request for row in rows})
        prefixes = {r: self.requests[r].prefix_ids[:-1] for r in wanted if len(self.requests[r].prefix_ids) > 1}
        for batch in self.prefixes.missing(prefixes.values(), ahead=self.ahead, limit=PREFILL_TOKENS):
            self._prefill(batch)
        slots: dict[Block, list[tuple[int, int]]] = {}
        for slot, row in enumerate(rows, start=first):
            if row.request in prefixes:
                block, place = self.prefixes.find(prefixes[row.request])
                slots.setdefault(block, []).append((slot, place))
        for block, pairs in slots.items():
            width = max(len(prefixes[self.active[slot].request]) for slot, _ in pairs)
            targets, sources = (torch.tensor(part, device=self.device) for part in zip(*pairs, strict=True))
            self.cache.store(targets, block.cache, sources, width)
        self.prefixes.trim()

    def _prefill(self, prefixes: list[tuple[int, ...]]) -> None:
        """Read prefixes, padded on the right, and keep their keys and values."""
        ids = torch.zeros(len(prefixes), max(map(len, prefixes)), dtype=torch.long)
        for number, prefix in enumerate(prefixes):
            ids[number, : len(prefix)] = torch.tensor(prefix)
        cache = DynamicCache(config=self.model.config)
        # Padding stands on the right, where a causal model cannot see it: no mask needed.
        self.model(input_ids=ids.to(self.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.prefilled += sum(map(len, prefixes))
        self.prefixes.add(cache, prefixes, ids.numel())

    def _step(self) -> Iterator[tuple[_Row, Continuation]]:
        """Draw one token for every active row, then free the slots of those that ended."""
        count = len(self.active)
        lengths = self.lengths[:count]
        seen = self.cache.place(lengths)
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
        mask.masked_fill_(~seen, torch.finfo(self.model.dtype).min)
        logits = self.model(
            input_ids=self.inputs[:count, None],
            attention_mask=mask,
            position_ids=lengths[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        tokens, logprobs = draw(logits, self.seeds[:count], self.counts[:count].cpu().numpy(), self.sampling)
        rows = torch.arange(count, device=self.device)
        self.drawn[rows, self.counts[:count]] = tokens
        self.logprobs[rows, self.counts[:count]] = logprobs
        self.counts[:count] += 1
        self.lengths[:count] += 1
        self.inputs[:count] = tokens
        stopped = torch.isin(tokens, self.eos)
        for stop in self.stops:
            stopped |= self._ends_with(stop, count)
        ended = stopped | (self.counts[:count] >= self.limits[:count])
        if bool(ended.any()):
            yield from self._retire(ended.cpu(), stopped.cpu())

    def _ends_with(self, stop: torch.Tensor, count: int) -> torch.Tensor:
        """Which rows' drawn tokens end with the stop sequence. Shape (R,)."""
        columns = self.counts[:count, None] - len(stop) + torch.arange(len(stop), device=self.device)
        tail = self.drawn[:count].gather(1, columns.clamp(min=0))
        return (tail == stop).all(1) & (columns[:, 0] >= 0)

    def _retire(self, ended: torch.Tensor, stopped: torch.Tensor) -> Iterator[tuple[_Row, Continuation]]:
        """Yield the rows that ended and move the last rows into their slots."""
        gone = ended.nonzero()[:, 0].tolist()
        for slot in gone:
            length = int(self.counts[slot])
            yield (
                self.active[slot],
                Continuation(
                    token_ids=tuple(self.drawn[slot, :length].tolist()),
                    logprobs=tuple(self.logprobs[slot, :length].tolist()),
                    stop_reason=StopReason.STOP if stopped[slot] else StopReason.LENGTH,
                ),
            )
        left = len(self.active) - len(gone)
        targets = [slot for slot in gone if slot < left]
        sources = [slot for slot in range(left, len(self.active)) if not ended[slot]]
        if targets:
            to, source = (torch.tensor(s, dtype=torch.long, device=self.device) for s in (targets, sources))
            self.cache.move(source, to, int(self.lengths[source].max()))
            for state in (self.lengths, self.counts, self.limits, self.inputs, self.drawn, self.logprobs):
                state[to] = state[source]
            self.seeds[targets] = self.seeds[sources]
            for target, origin in zip(targets, sources, strict=True):
                self.active[target] = self.active[origin]
        del self.active[left:]


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
    probs_RV = _cut(logprobs_RV.exp(), sampling)
    cumulative_RV = probs_RV.double().cumsum(-1)
    points = torch.from_numpy(uniforms(seeds_R, positions_R.astype(np.uint64))).to(cumulative_RV.device)
    tokens_R = torch.searchsorted(cumulative_RV, points[:, None] * cumulative_RV[:, -1:], right=True)[:, 0]
    # u < 1 times the total can still round up to the total: then the last token with any mass is meant.
    last_R = (probs_RV > 0).long().mul_(torch.arange(probs_RV.shape[1], device=probs_RV.device)).amax(-1)
    tokens_R = torch.minimum(tokens_R, last_R)
    return tokens_R, logprobs_RV.gather(1, tokens_R[:, None])[:, 0]


def _cut(probs_RV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
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
