"""The loop that decodes: rows come and go, and the batch stays full while anything waits.

One loop decodes up to `max_rows` rows at once. A prefix is read without its last token (which is every row's first
input) and its keys and values are copied into the rows' slots. It is read once for all samples of a request, and for
all requests of this and later calls whose prefixes begin it (`prefixes.PrefixStore`): roll-outs from every step of a
response cost one reading of that response. A row that ends gives its slot to the next waiting row; if its text is
likely to be gone on with (`keep`), its keys and values are kept as a prefix that was read.

A token is drawn by inverting the cumulative distribution at u(row seed, number of the draw): a row's draws do not
depend on its neighbours. (Floating-point sums do, by about 1e-7 of probability; a draw that falls into such a gap may
differ. Equal batches are bit-identical.) A text drawn in pieces, each request's `offset` being the number of tokens
drawn before, is the text drawn at once.

Log-probabilities are those of the softmax at the sampling temperature, before top-p and top-k cut it (`draws.py`).

A row's last p * m drawn tokens are one pattern of p tokens, m times, exactly when each of the last p * (m - 1) equals
the one p before it. How long that has been so is counted for every p: a `RepetitionRule` costs one comparison a step.

Legend: R rows in the batch, T positions, P lengths of a pattern.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache

from search.engines.draws import draw
from search.engines.prefixes import Block, PrefixStore
from search.engines.routers import Routers, SlotRoutes
from search.engines.rows import RepetitionRule
from search.engines.slots import SlotCache
from verifiers.core import Continuation, GenerationRequest, Sampling, StopReason, Usage, derive_seed
from verifiers.streams import Finished

PREFILL_TOKENS = 16_384
"""Most padded tokens of one prefill batch."""


class Host(Protocol):
    """What the loop needs of the engine it decodes for."""

    model: Any
    max_rows: int
    prefixes: PrefixStore
    eos_ids: set[int]
    repetition: RepetitionRule | None
    routers: Routers | None
    """Where the experts of every token are to be reported."""

    @property
    def context_length(self) -> int:
        """Most tokens of a row."""
        ...

    def check(self, number: int, request: GenerationRequest) -> None:
        """Raise for a request that cannot be answered."""
        ...

    def pay(self, usage: Usage) -> None:
        """Add to what has been paid."""
        ...

    def report(self, ids: tuple[int, ...], routes: torch.Tensor) -> None:
        """Note the experts of a text that ended: all positions that were read, which its last token was not."""
        ...


@dataclass(frozen=True, slots=True)
class _Row:
    """Sample number `sample` of the request with this ticket."""

    ticket: int
    sample: int


@dataclass(slots=True)
class _Open:
    """A request that is not complete."""

    request: GenerationRequest
    found: dict[int, Continuation] = field(default_factory=dict)


class Decoding:
    """Implements `verifiers.streams.Stream`: waiting rows, slots, and per-slot tensors."""

    def __init__(self, engine: Host, sampling: Sampling, *, keep: bool = False) -> None:
        self.engine, self.sampling, self.keep = engine, sampling, keep
        self.model, self.device, self.prefixes = engine.model, engine.model.device, engine.prefixes
        slots, most = engine.max_rows, sampling.max_new_tokens
        self.cache = SlotCache(engine.model.config.num_hidden_layers, slots)
        self.routes = SlotRoutes(engine.routers, slots, self.device) if engine.routers else None
        self.slots = slots
        self.queue: deque[_Row] = deque()
        self.active: list[_Row] = []
        self.passes = self.row_passes = 0
        self._open: dict[int, _Open] = {}
        self._tickets = 0
        self._prefilled = 0
        self._eos = torch.tensor(sorted(engine.eos_ids), dtype=torch.long, device=self.device)
        self._stops = [torch.tensor(stop, device=self.device) for stop in sampling.stop_sequences]
        self._seeds = np.zeros(slots, dtype=np.uint64)
        self._offsets = np.zeros(slots, dtype=np.int64)
        self._lengths = torch.zeros(slots, dtype=torch.long, device=self.device)
        self._counts = torch.zeros(slots, dtype=torch.long, device=self.device)
        self._limits = torch.zeros(slots, dtype=torch.long, device=self.device)
        self._inputs = torch.zeros(slots, dtype=torch.long, device=self.device)
        self._drawn = torch.zeros(slots, most, dtype=torch.long, device=self.device)
        self._logprobs = torch.zeros(slots, most, dtype=torch.float32, device=self.device)
        rule = engine.repetition
        sizes = range(rule.shortest, rule.longest + 1) if rule else ()
        self._sizes_P = torch.tensor(sizes, dtype=torch.long, device=self.device)
        self._enough_P = self._sizes_P * (rule.times - 1 if rule else 0)
        self._runs_RP = torch.zeros(slots, len(sizes), dtype=torch.long, device=self.device)

    def submit(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """See `Stream`. Raises EngineError for a prefix that is empty or too long."""
        for number, request in enumerate(requests):
            self.engine.check(number, request)
        tickets = list(range(self._tickets, self._tickets + len(requests)))
        self._tickets += len(requests)
        for ticket, request in zip(tickets, requests, strict=True):
            self._open[ticket] = _Open(request)
            self.queue.extend(_Row(ticket, sample) for sample in range(request.n))
        self.prefixes.expect(request.prefix_ids[:-1] for request in requests)
        self.engine.pay(Usage(calls=1))
        return tickets

    @property
    def waiting(self) -> int:
        """See `Stream`."""
        return len(self._open)

    @torch.inference_mode()
    def collect(self) -> list[Finished]:
        """See `Stream`."""
        started = time.perf_counter()
        finished: list[Finished] = []
        self._prefilled, before = 0, self.row_passes
        while not finished and self._open:
            free = self.slots - len(self.active)
            if self.queue and (free >= self._enough() or not self.active):
                self._admit(free)
            finished = self._step()
        self.engine.pay(
            Usage(
                prefill_tokens=self._prefilled,
                decoded_tokens=self.row_passes - before,
                seconds=time.perf_counter() - started,
            )
        )
        return finished

    @torch.inference_mode()
    def cancel(self, tickets: Sequence[int]) -> None:
        """See `Stream`. What the rows have drawn so far stays paid."""
        gone = {ticket for ticket in tickets if self._open.pop(ticket, None) is not None}
        if gone:
            self.queue = deque(row for row in self.queue if row.ticket not in gone)
            self._vacate([slot for slot, row in enumerate(self.active) if row.ticket in gone])

    def _enough(self) -> int:
        """How many slots must be free to admit rows: small refills would read few prefixes at a time."""
        known = self._open[self.queue[0].ticket].request.prefix_ids[:-1] in self.prefixes
        return max(1, self.slots // (32 if known else 8))

    def _admit(self, free: int) -> None:
        """Read the prefixes of the next waiting rows and give them slots."""
        rows = [self.queue.popleft() for _ in range(min(free, len(self.queue)))]
        first, last = len(self.active), len(self.active) + len(rows)
        self.active += rows
        requests = [self._open[row.ticket].request for row in rows]
        self._seeds[first:last] = [
            derive_seed(q.seed, q.first + row.sample) for q, row in zip(requests, rows, strict=True)
        ]
        self._offsets[first:last] = [request.offset for request in requests]
        # One copy to the device for all rows.
        state = torch.tensor([(len(q.prefix_ids) - 1, q.prefix_ids[-1], self._limit(q)) for q in requests])
        self._lengths[first:last], self._inputs[first:last], self._limits[first:last] = state.to(self.device).unbind(1)
        self._counts[first:last] = 0
        self._runs_RP[first:last] = 0
        wanted = {row.ticket: self._open[row.ticket].request.prefix_ids[:-1] for row in rows}
        prefixes = {ticket: prefix for ticket, prefix in wanted.items() if prefix}
        for batch in self.prefixes.missing(prefixes.values(), limit=PREFILL_TOKENS):
            self._prefill(batch)
        slots: dict[Block, list[tuple[int, int]]] = {}
        for slot, row in enumerate(rows, start=first):
            if row.ticket in prefixes:
                block, place = self.prefixes.find(prefixes[row.ticket])
                slots.setdefault(block, []).append((slot, place))
        for block, pairs in slots.items():
            width = max(len(prefixes[self.active[slot].ticket]) for slot, _ in pairs)
            targets, sources = (torch.tensor(part, device=self.device) for part in zip(*pairs, strict=True))
            self.cache.store(targets, block.cache, sources, width)
            if self.routes is not None:
                self.routes.store(targets, block.routes[sources], width)
        self.prefixes.trim()

    def _limit(self, request: GenerationRequest) -> int:
        """Most tokens that a row of the request may draw."""
        most = self.sampling.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        return min(most, self.sampling.max_new_tokens, self.engine.context_length - len(request.prefix_ids))

    def _prefill(self, prefixes: list[tuple[int, ...]]) -> None:
        """Read prefixes, padded on the right, and keep their keys and values."""
        ids = torch.zeros(len(prefixes), max(map(len, prefixes)), dtype=torch.long)
        for number, prefix in enumerate(prefixes):
            ids[number, : len(prefix)] = torch.tensor(prefix)
        cache = DynamicCache(config=self.model.config)
        # Padding stands on the right, where a causal model cannot see it: no mask needed.
        with self._reading():
            self.model(input_ids=ids.to(self.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        self._prefilled += sum(map(len, prefixes))
        routes = None if self.routes is None else self.routes.read(len(prefixes))
        self.prefixes.add(cache, prefixes, ids.numel(), routes)

    def _reading(self) -> AbstractContextManager[None]:
        return nullcontext() if self.routes is None else self.routes.reading()

    def _step(self) -> list[Finished]:
        """Draw one token for every active row, then free the slots of those that ended."""
        count = len(self.active)
        lengths = self._lengths[:count]
        seen = self.cache.place(lengths)
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
        mask.masked_fill_(~seen, torch.finfo(self.model.dtype).min)
        with self._reading():
            logits = self.model(
                input_ids=self._inputs[:count, None],
                attention_mask=mask,
                position_ids=lengths[:, None],
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, -1]
        if self.routes is not None:
            self.routes.add(lengths)
        numbers = self._counts[:count].cpu().numpy() + self._offsets[:count]
        tokens, logprobs = draw(logits, self._seeds[:count], numbers, self.sampling)
        rows = torch.arange(count, device=self.device)
        self._drawn[rows, self._counts[:count]] = tokens
        self._logprobs[rows, self._counts[:count]] = logprobs
        self._counts[:count] += 1
        self._lengths[:count] += 1
        self._inputs[:count] = tokens
        self.passes += 1
        self.row_passes += count
        ends = torch.isin(tokens, self._eos)
        stopped = ends.clone()
        for stop in self._stops:
            stopped |= self._ends_with(stop, count)
        full = self._counts[:count] >= self._limits[:count]
        gone = stopped | full
        if len(self._sizes_P):
            gone |= self._loops(tokens, count)
        if not bool(gone.any()):
            return []
        slots = gone.nonzero()[:, 0]
        if self.keep and self.prefixes.positions:
            self._keep(slots[~ends[slots]].tolist())
        return self._retire(slots.tolist(), stopped.tolist(), full.tolist())

    def _loops(self, tokens_R: torch.Tensor, count: int) -> torch.Tensor:
        """Which rows now end with a pattern as often as the rule asks for. Shape (R,)."""
        columns_RP = self._counts[:count, None] - 1 - self._sizes_P
        earlier_RP = self._drawn[:count].gather(1, columns_RP.clamp(min=0))
        same_RP = (earlier_RP == tokens_R[:, None]) & (columns_RP >= 0)
        self._runs_RP[:count] = torch.where(same_RP, self._runs_RP[:count] + 1, 0)
        return (self._runs_RP[:count] >= self._enough_P).any(1)

    def _ends_with(self, stop: torch.Tensor, count: int) -> torch.Tensor:
        """Which rows' drawn tokens end with the stop sequence. Shape (R,)."""
        columns = self._counts[:count, None] - len(stop) + torch.arange(len(stop), device=self.device)
        tail = self._drawn[:count].gather(1, columns.clamp(min=0))
        return (tail == stop).all(1) & (columns[:, 0] >= 0)

    def _keep(self, slots: list[int]) -> None:
        """Keep what was computed of texts that may be gone on with; their last tokens were not read yet."""
        texts = [
            (
                *self._open[self.active[slot].ticket].request.prefix_ids,
                *self._drawn[slot, : self._counts[slot]].tolist(),
            )
            for slot in slots
        ]
        if texts:
            width = max(map(len, texts)) - 1
            cache = self.cache.take(torch.tensor(slots, device=self.device), width)
            routes = None if self.routes is None else self.routes.held_RTLK[slots, :width]
            self.prefixes.add(cache, [text[:-1] for text in texts], len(texts) * width, routes)

    def _retire(self, gone: list[int], stopped: list[bool], full: list[bool]) -> list[Finished]:
        """The requests that these rows complete; their slots are free afterwards."""
        finished: list[Finished] = []
        for slot in gone:
            row, length = self.active[slot], int(self._counts[slot])
            state = self._open[row.ticket]
            cut = StopReason.LENGTH if full[slot] else StopReason.REPETITION
            state.found[row.sample] = Continuation(
                token_ids=tuple(self._drawn[slot, :length].tolist()),
                logprobs=tuple(self._logprobs[slot, :length].tolist()),
                stop_reason=StopReason.STOP if stopped[slot] else cut,
            )
            if self.routes is not None:
                ids = (*state.request.prefix_ids, *state.found[row.sample].token_ids)
                self.engine.report(ids, self.routes.held_RTLK[slot, : len(ids) - 1].to("cpu", copy=True))
            if len(state.found) == state.request.n:
                del self._open[row.ticket]
                finished.append((row.ticket, [state.found[sample] for sample in range(state.request.n)]))
        self._vacate(gone)
        return finished

    def _vacate(self, gone: list[int]) -> None:
        """Free slots by moving the last rows into them."""
        left, ended = len(self.active) - len(gone), set(gone)
        targets = [slot for slot in gone if slot < left]
        sources = [slot for slot in range(left, len(self.active)) if slot not in ended]
        if targets:
            to, source = (torch.tensor(s, dtype=torch.long, device=self.device) for s in (targets, sources))
            self.cache.move(source, to, int(self._lengths[source].max()))
            if self.routes is not None:
                self.routes.move(source, to)
            rows = (self._lengths, self._counts, self._limits, self._inputs, self._drawn, self._logprobs, self._runs_RP)
            for state in rows:
                state[to] = state[source]
            self._seeds[targets] = self._seeds[sources]
            self._offsets[targets] = self._offsets[sources]
            for target, origin in zip(targets, sources, strict=True):
                self.active[target] = self.active[origin]
        del self.active[left:]
