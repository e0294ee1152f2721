"""A response as it grows: drawn at once, or in pieces, each with the weights of its own step (Kimi k1.5, 2501.12599).

A response that has not ended after so many tokens of a step is put away with its ids and with the log-probabilities
that they were drawn with, and goes on in a later step. The request for its next piece has the prompt and all pieces as
its prefix and the pieces' length as its offset; draws are numbered from the response's beginning, so with weights that
stay the same the pieces are the response drawn at once. A piece says which weights drew it: their version is the
number of steps that had been learned from.

Engines look for repetitions inside a piece. Here they are looked for in the whole response, and a response that should
have ended in the middle of a piece is cut there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search.engines.rows import RepetitionRule
from verifiers.core import Continuation, GenerationRequest, StopReason
from verifiers.repetition import LoopDetector


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Tokens of a response that one version of the weights drew."""

    version: int
    """Steps that had been learned from."""
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """A response so far; without tokens it has not begun."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """Each token's own, under the weights that drew it."""
    pieces: tuple[Piece, ...] = ()
    stop_reason: StopReason | None = None
    """None: it goes on."""

    def request(self, prompt_ids: tuple[int, ...], *, seed: int, sample: int, tokens: int) -> GenerationRequest:
        """What draws the next piece, of at most `tokens` tokens."""
        return GenerationRequest(
            prefix_ids=prompt_ids + self.token_ids,
            seed=seed,
            first=sample,
            offset=len(self.token_ids),
            max_new_tokens=tokens,
        )

    def gone_on(self, drawn: Continuation, *, version: int, most: int, rule: RepetitionRule | None) -> Rollout:
        """With a further piece; `most` tokens end the response, and so does a repetition of the rule's."""
        ids, logprobs = self.token_ids + drawn.token_ids, self.logprobs + drawn.logprobs
        reason: StopReason | None = drawn.stop_reason
        cut = reason is StopReason.LENGTH and len(ids) < most
        if rule is not None and (cut or self.token_ids):
            end = first_repetition(ids, rule)
            # Where an end token or the limit stands at the same place, it is what ended the response.
            if end is not None and (end < len(ids) or cut):
                ids, logprobs, reason, cut = ids[:end], logprobs[:end], StopReason.REPETITION, False
        pieces = (*self.pieces, Piece(version=version, tokens=len(ids) - len(self.token_ids)))
        return Rollout(token_ids=ids, logprobs=logprobs, pieces=pieces, stop_reason=None if cut else reason)

    def to_state(self) -> dict[str, Any]:
        """Plain JSON-able values; floats are exact in it."""
        return {
            "ids": list(self.token_ids),
            "logprobs": list(self.logprobs),
            "pieces": [[piece.version, piece.tokens] for piece in self.pieces],
            "stop": self.stop_reason and self.stop_reason.value,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Rollout:
        """What `to_state` gave."""
        return cls(
            token_ids=tuple(state["ids"]),
            logprobs=tuple(state["logprobs"]),
            pieces=tuple(Piece(version=version, tokens=tokens) for version, tokens in state["pieces"]),
            stop_reason=StopReason(state["stop"]) if state["stop"] else None,
        )


def first_repetition(ids: tuple[int, ...], rule: RepetitionRule) -> int | None:
    """How many tokens there are when the rule first holds; None where it never does."""
    detector = LoopDetector(max_period=rule.longest, min_period=rule.shortest, min_repeats=rule.times, min_length=1)
    return next((end for end, token in enumerate(ids, start=1) if detector.push(token)), None)
