"""The words every part of RewardKit speaks: data that flows, and the protocols at the seams.

A `Problem` goes to an `Engine`, which returns `Continuation`s; a continuation of a prompt is a `Response`;
a `Scorer` turns responses into `Verdict`s and a `StepScorer` turns them into one number a step. Everything
here is a frozen value without behaviour beyond its own checks, so that prm and search, which do not know
each other, can pass the same objects around. Nothing in this package imports torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, runtime_checkable

from verifiers.errors import ConfigError

Message: TypeAlias = Mapping[str, str]
"""One chat message: {"role": ..., "content": ...}."""

Prompt: TypeAlias = str | tuple[Message, ...]
"""What is asked: plain text, or chat messages."""


class Outcome(StrEnum):
    """What a verdict says. `undecided` is an answer of its own, never a silent "wrong"."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNDECIDED = "undecided"
    GRADED = "graded"
    """A shaping reward (length, repetition, weighted sums): a number that is neither right nor wrong."""


class StopReason(StrEnum):
    """Why a continuation ended."""

    STOP = "stop"
    """End of sequence, or one of the asked stop sequences."""
    LENGTH = "length"
    """The token budget or the context was used up."""
    REPETITION = "repetition"
    """A loop detector ended it."""
    REJECTED = "rejected"
    """A search strategy gave it up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something to be solved, with the reference answer when one is known."""

    id: str
    prompt: Prompt
    answer: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """One answer to a problem.

    `token_ids` are the sampled ids, the end-of-sequence token included when it was drawn; `logprobs` are
    natural logarithms of the probabilities they were drawn with, one a token. Both are empty for a text that
    came from elsewhere. `sample` numbers the responses of one problem.
    """

    problem_id: str
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    stop_reason: StopReason = StopReason.STOP
    sample: int = 0

    def __post_init__(self) -> None:
        if self.logprobs and len(self.logprobs) != len(self.token_ids):
            raise ConfigError(
                f"a Response needs one log-probability a token; got {len(self.logprobs)} for "
                f"{len(self.token_ids)} tokens (problem {self.problem_id!r}); pass both or neither"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One reasoning step as a span: characters [start, end) of the text, tokens [token_start, token_end).

    The separator that closes a step belongs to it in token space, so that spans tile the response; `text`
    is without it.
    """

    text: str
    start: int
    end: int
    token_start: int = -1
    token_end: int = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A judgement with its reason. `score` is None exactly when the outcome is undecided."""

    outcome: Outcome
    score: float | None
    reason: str
    extracted: str | None = None
    """The answer that was found in the response."""
    kind: str = ""
    """Which rule or stage decided; for an undecided verdict, the kind of failure that is counted."""
    parts: Mapping[str, Verdict] = field(default_factory=dict)
    """The verdicts that a composed one was made of, by name."""

    def __post_init__(self) -> None:
        if (self.score is None) != (self.outcome is Outcome.UNDECIDED):
            raise ConfigError(
                f"a Verdict has no score exactly when it is undecided; got outcome {self.outcome.value!r} "
                f"with score {self.score!r}"
            )

    @classmethod
    def correct(cls, reason: str, *, extracted: str | None = None, kind: str = "") -> Verdict:
        """Right: score 1."""
        return cls(outcome=Outcome.CORRECT, score=1.0, reason=reason, extracted=extracted, kind=kind)

    @classmethod
    def incorrect(cls, reason: str, *, extracted: str | None = None, kind: str = "") -> Verdict:
        """Wrong: score 0."""
        return cls(outcome=Outcome.INCORRECT, score=0.0, reason=reason, extracted=extracted, kind=kind)

    @classmethod
    def undecided(cls, reason: str, *, extracted: str | None = None, kind: str = "") -> Verdict:
        """No judgement: left out of means and counted beside them."""
        return cls(outcome=Outcome.UNDECIDED, score=None, reason=reason, extracted=extracted, kind=kind)

    @classmethod
    def graded(cls, score: float, reason: str, *, kind: str = "") -> Verdict:
        """A shaping reward of the given size."""
        return cls(outcome=Outcome.GRADED, score=score, reason=reason, kind=kind)

    def __str__(self) -> str:
        score = "no score" if self.score is None else f"{self.score:g}"
        found = "" if self.extracted is None else f", answer {self.extracted!r}"
        how = f" [{self.kind}]" if self.kind else ""
        return f"{self.outcome.value} ({score}{found}): {self.reason}{how}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    max_new_tokens: int = 512
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    """Token-id sequences after which a continuation ends; they stay in it."""

    def __post_init__(self) -> None:
        _require(self.temperature >= 0.0, "temperature", "0 or more", self.temperature)
        _require(0.0 < self.top_p <= 1.0, "top_p", "in (0, 1]", self.top_p)
        _require(self.top_k >= 0, "top_k", "0 (off) or more", self.top_k)
        _require(self.max_new_tokens >= 1, "max_new_tokens", "1 or more", self.max_new_tokens)
        _require(all(self.stop_sequences), "stop_sequences", "non-empty sequences", self.stop_sequences)


def _require(held: bool, name: str, must: str, got: object) -> None:
    if not held:
        raise ConfigError(f"Sampling.{name} must be {must}; got {got!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """Draw `n` continuations of a token prefix: samples `first` to `first + n - 1` of the stream that `seed` names.

    Sample j depends on (seed, j) and on nothing else drawn, so its samples may be drawn in pieces.
    """

    prefix_ids: tuple[int, ...]
    n: int = 1
    seed: int = 0
    first: int = 0
    offset: int = 0
    """How many tokens at the end of the prefix were drawn under this seed: the draws are numbered from here."""
    max_new_tokens: int | None = None
    """Fewer than `Sampling.max_new_tokens`, for this request alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """What an engine drew after a prefix: ids (closing token included) and their log-probabilities."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop_reason: StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What has been paid so far: tokens read and drawn, calls, seconds. Differences are costs."""

    prefill_tokens: int = 0
    decoded_tokens: int = 0
    calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prefill_tokens=self.prefill_tokens + other.prefill_tokens,
            decoded_tokens=self.decoded_tokens + other.decoded_tokens,
            calls=self.calls + other.calls,
            seconds=self.seconds + other.seconds,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            prefill_tokens=self.prefill_tokens - other.prefill_tokens,
            decoded_tokens=self.decoded_tokens - other.decoded_tokens,
            calls=self.calls - other.calls,
            seconds=self.seconds - other.seconds,
        )


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a transformers fast tokenizer that RewardKit relies on."""

    eos_token_id: int | None

    def __call__(self, text: str, **options: Any) -> Any:
        """Encode; `return_offsets_mapping=True` must be understood."""
        ...

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        """Ids back to text."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Judges finished responses. `problems[i]` is what `responses[i]` answers."""

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """One verdict a response, in order."""
        ...


@runtime_checkable
class StepScorer(Protocol):
    """Judges the steps of responses, finished or not."""

    def score_steps(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        """One score in [0, 1] a step of each response, in order."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Draws continuations of token prefixes."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The one tokenisation of this run."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens a row may have, prefix included."""
        ...

    @property
    def usage(self) -> Usage:
        """Paid since the engine was made."""
        ...

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[list[Continuation]]:
        """For request i a list of `requests[i].n` continuations, independent of the batch they ran in."""
        ...


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any parts, equal for equal parts on every machine and in every process.

    Every draw of a run derives from (run seed, problem id, sample, step); BLAKE2b mixes them, so that
    neighbouring parts give unrelated seeds. Only plain Python values have the same spelling everywhere; others
    (numpy integers, enumerations) are refused.
    """
    for part in parts:
        if type(part) not in (str, int, float, bool, type(None)):
            raise ConfigError(f"a seed derives from plain strings and numbers; got {part!r} ({type(part).__name__})")
    text = "\x1f".join(repr(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
