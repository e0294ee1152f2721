"""Batched sampling with a plain transformers causal LM, on whatever device it is.

The engine holds the model and the prefixes it has read (`prefixes.PrefixStore`); the loop that decodes stands in
`decoding.py`, one for each call of `generate` or each stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from search.engines.decoding import Decoding
from search.engines.prefixes import PrefixStore
from search.engines.routers import Routers
from search.engines.rows import RepetitionRule, check_request
from verifiers.core import Continuation, GenerationRequest, Sampling, Usage
from verifiers.errors import ConfigError, EngineError, ModelError

PREFIX_TOKENS = 131_072
"""Most padded positions of prefixes kept in memory."""


class TransformersEngine:
    """Implements `verifiers.core.Engine` over a loaded model.

    `model` is any decoder-only transformers model with full attention in every layer; it is put into
    evaluation mode. `max_rows` bounds the batch (memory grows with it and with the longest row). Up to
    `prefix_tokens` (padded) positions of prefixes that were read stay in memory for later calls; 0 keeps none, and
    then every request's prefix is read on its own. `repetition` ends rows that repeat themselves. With `routes` the
    experts that every token was sent to are noted, for a mixture of experts (`routes_of`, until the engine is gone).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_rows: int = 256,
        prefix_tokens: int = PREFIX_TOKENS,
        repetition: RepetitionRule | None = None,
        routes: bool = False,
    ) -> None:
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
        self.max_rows, self.repetition = max_rows, repetition
        self._prefix_tokens = prefix_tokens
        self.prefixes = PrefixStore(prefix_tokens)
        self._usage = Usage()
        self.routers = Routers(model) if routes else None
        self._routes: dict[tuple[int, ...], torch.Tensor] = {}
        stops = model.generation_config.eos_token_id if model.generation_config else None
        if stops is None:
            stops = tokenizer.eos_token_id
        self.eos_ids = {stops} if isinstance(stops, int) else set(stops or ())
        if tokenizer.eos_token_id is not None:
            self.eos_ids.add(tokenizer.eos_token_id)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | None = None,
        dtype: str = "auto",
        max_rows: int = 256,
        prefix_tokens: int = PREFIX_TOKENS,
        repetition: RepetitionRule | None = None,
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
        return cls(model, tokenizer, max_rows=max_rows, prefix_tokens=prefix_tokens, repetition=repetition)

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens a row may have, by the model's position limit."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    @property
    def vocabulary(self) -> int:
        """Token ids run from 0 to below this, as far as the configuration says."""
        return int(getattr(self.model.config, "vocab_size", 0) or 2**31)

    @property
    def parameters(self) -> int:
        """Parameter count, for compute accounting."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def usage(self) -> Usage:
        """Paid since the engine was made."""
        return self._usage

    def pay(self, usage: Usage) -> None:
        """Add to what has been paid."""
        self._usage += usage

    def report(self, ids: tuple[int, ...], routes: torch.Tensor) -> None:
        """Note the experts of a text."""
        self._routes[ids] = routes

    def routes_of(self, ids: Sequence[int]) -> torch.Tensor:
        """Experts of every token of a text that was drawn, prompt included, but of its last one. Shape (T - 1, L, K).

        L are the layers that have experts, in their order. Raises EngineError for a text that was not drawn here.
        """
        found = self._routes.get(tuple(ids))
        if found is None:
            raise EngineError(
                f"no experts are known of a text of {len(ids)} tokens: it was not drawn by this engine, or the engine "
                "was made without routes=True"
            )
        return found

    def forget(self) -> None:
        """Drop all prefixes that were read, so that what comes next pays for itself."""
        self.prefixes = PrefixStore(self._prefix_tokens)

    def stream(self, sampling: Sampling, *, keep: bool = False) -> Decoding:
        """Requests that come and go while others decode; see `verifiers.streams.StreamingEngine`."""
        return Decoding(self, sampling, keep=keep)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[list[Continuation]]:
        """Draw all continuations. Raises EngineError for a prompt that is empty or too long."""
        stream = self.stream(sampling)
        tickets = stream.submit(requests)
        done: dict[int, list[Continuation]] = {}
        while stream.waiting:
            done |= stream.collect()
        return [done[ticket] for ticket in tickets]

    def check(self, number: int, request: GenerationRequest) -> None:
        """Raise ConfigError or EngineError for a request that cannot be answered."""
        check_request(number, request, self.context_length, self.vocabulary)


def _attention(config: Any) -> str:
    """The kind of every layer where the configuration has no list of kinds (as transformers infers it)."""
    if getattr(config, "sliding_window", None) is not None:
        return "sliding_attention"
    return "chunked_attention" if getattr(config, "attention_chunk_size", None) else "full_attention"
