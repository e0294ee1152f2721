"""A real, deterministic engine that reads its continuations from a script instead of a model.

The script says which texts may follow which prompt. After a prefix the engine goes on with one of the scripted
texts that begin with what stands there already; which one depends on the request's seed and the sample number
only. It obeys stop sequences and token limits like any engine and counts what it does, so tests, documentation
and dry runs exercise the same code paths as a language model. Its tokens are the bytes of UTF-8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from verifiers.core import Continuation, GenerationRequest, Sampling, StopReason, Usage, derive_seed
from verifiers.errors import ConfigError, EngineError


class ByteTokenizer:
    """One token a byte; id 256 ends a sequence. Speaks the part of the transformers interface we use."""

    eos_token_id: int | None = 256
    pad_token_id = 257
    chat_template: str | None = None
    is_fast = True

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        """Encode. No special tokens are added, so `add_special_tokens` changes nothing."""
        return {"input_ids": list(text.encode())}

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        """Bytes back to text; a cut character shows as U+FFFD, special ids as nothing."""
        return bytes(token for token in token_ids if token < 256).decode(errors="replace")


class ScriptedEngine:
    """Implements `verifiers.core.Engine`. `script` maps a prompt to the responses that may follow it."""

    def __init__(self, script: Mapping[str, Sequence[str]], *, context_length: int = 65_536) -> None:
        self._script = {prompt.encode(): [text.encode() for text in texts] for prompt, texts in script.items()}
        self._context = context_length
        self._tokenizer = ByteTokenizer()
        self._usage = Usage()

    @property
    def tokenizer(self) -> ByteTokenizer:
        """Bytes."""
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """As given."""
        return self._context

    @property
    def usage(self) -> Usage:
        """Paid since the engine was made; seconds stay 0 so that runs compare equal."""
        return self._usage

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[list[Continuation]]:
        """Scripted continuations. Raises EngineError for a prefix that no scripted text begins with."""
        for number, request in enumerate(requests):
            if request.n < 1:
                raise ConfigError(f"GenerationRequest.n must be 1 or more; got {request.n!r} in request {number}")
        results = [
            [self._continue(request, request.first + j, sampling) for j in range(request.n)] for request in requests
        ]
        self._usage += Usage(
            prefill_tokens=sum(len(request.prefix_ids) for request in requests),
            decoded_tokens=sum(len(c.token_ids) for row in results for c in row),
            calls=1,
        )
        return results

    def _continue(self, request: GenerationRequest, sample: int, sampling: Sampling) -> Continuation:
        if len(request.prefix_ids) >= self._context:
            raise EngineError(
                f"the prefix has {len(request.prefix_ids)} tokens, but the engine's context holds {self._context}; "
                "shorten the prompt"
            )
        # Bytes, not characters: a prefix may have been cut inside a character.
        prefix = bytes(token for token in request.prefix_ids if token < 256)
        endings = [
            text[len(prefix) - len(prompt) :]
            for prompt, texts in self._script.items()
            if prefix.startswith(prompt)
            for text in texts
            if text.startswith(prefix[len(prompt) :])
        ]
        if not endings:
            shown = prefix.decode(errors="replace")[-80:]
            raise EngineError(f"no scripted text begins with {shown!r}; add one to the script")
        # Greedy means the first text, as it means the likeliest token elsewhere.
        place = 0 if sampling.temperature == 0 else derive_seed(request.seed, sample) % len(endings)
        chance = 1.0 if sampling.temperature == 0 else endings.count(endings[place]) / len(endings)
        most = sampling.max_new_tokens
        if request.max_new_tokens is not None:
            most = min(most, request.max_new_tokens)
        limit = min(most, self._context - len(request.prefix_ids))
        return self._clip(endings[place], limit, sampling, math.log(chance))

    def _clip(self, text: bytes, limit: int, sampling: Sampling, logprob: float) -> Continuation:
        """Cut at the first stop sequence or the token limit; the choice's log-probability is on token 1."""
        ids = (*text, 256)
        ends = [len(ids)] + [
            at + len(stop)
            for stop in sampling.stop_sequences
            for at in range(len(ids) - len(stop) + 1)
            if ids[at : at + len(stop)] == tuple(stop)
        ]
        end = min(*ends, limit) if len(ends) > 1 else min(ends[0], limit)
        reason = StopReason.STOP if end in ends else StopReason.LENGTH
        kept = ids[:end]
        return Continuation(
            token_ids=kept, logprobs=(logprob, *(0.0,) * (len(kept) - 1)) if kept else (), stop_reason=reason
        )
