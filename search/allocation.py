"""A budget of responses for all problems together, spent where the vote is least settled.

Every problem first gets `first` responses. Then, round after round, the `width` problems whose majority is most likely
to change get `at_once` more each, until `total` responses are drawn or every vote is settled. How unsettled a vote is
says `adaptive_vote.overtaken`: a bound on the chance that another answer would win after `most` responses, so that a
problem all of whose responses agree soon costs nothing more, nor one that would stay a toss-up at `most`.

Responses are the first ones of Best-of-N's for the same seed. What a round gives depends on all problems, so problems
cannot be run one by one; the rounds do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search.choose import answer_classes, majority
from search.results import equal_answers
from search.strategies.adaptive_vote import overtaken
from search.strategies.best_of_n import request_for
from verifiers.answers import extract_answer
from verifiers.core import Engine, GenerationRequest, Problem, Response, Sampling, StopReason
from verifiers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """How many responses there are and how they are dealt out."""

    total: int
    """Responses for all problems together."""
    most: int = 32
    """Most responses a problem."""
    first: int = 2
    """Responses that every problem gets."""
    at_once: int = 2
    """Responses that a problem gets in a round."""
    width: int = 32
    """Problems that get more in a round."""
    prior: float = 0.5
    """Prior weight of an answer."""

    def __post_init__(self) -> None:
        for name in ("total", "most", "first", "at_once", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Allocation.{name} must be 1 or more; got {getattr(self, name)!r}")
        if self.first > self.most:
            raise ConfigError(f"Allocation.first must be at most most = {self.most}; got {self.first!r}")
        if self.prior <= 0:
            raise ConfigError(f"Allocation.prior must be above 0; got {self.prior!r}")


@dataclass(frozen=True, kw_only=True)
class Allocated:
    """One problem's responses, their answer classes and the vote's winner."""

    problem: Problem
    responses: tuple[Response, ...]
    classes: tuple[int | None, ...]
    chosen: int | None
    """Index of the winning answer's first response; None where no response has an answer."""
    unsettled: float
    """The bound on the chance that all `most` responses would elect another answer."""


def allocate(
    problems: Sequence[Problem],
    allocation: Allocation,
    *,
    engine: Engine,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> list[Allocated]:
    """Draw and vote. Raises ConfigError where the total does not give every problem its first responses."""
    if allocation.total < allocation.first * len(problems):
        raise ConfigError(
            f"Allocation.total must give each of {len(problems)} problems {allocation.first} responses; "
            f"got {allocation.total}; raise it or lower first"
        )
    requests = [request_for(engine, problem, n=1, seed=seed) for problem in problems]
    found: list[list[Response]] = [[] for _ in problems]
    classes: list[list[int | None]] = [[] for _ in problems]
    unsettled = [1.0] * len(problems)
    left = allocation.total
    wanted = {k: allocation.first for k in range(len(problems))}
    while wanted:
        drawn = engine.generate(
            [
                GenerationRequest(prefix_ids=requests[k].prefix_ids, seed=requests[k].seed, n=n, first=len(found[k]))
                for k, n in wanted.items()
            ],
            sampling or Sampling(),
        )
        left -= sum(wanted.values())
        for k, row in zip(wanted, drawn, strict=True):
            for one in row:
                text = engine.tokenizer.decode(
                    one.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
                found[k].append(
                    Response(
                        problem_id=problems[k].id,
                        text=text,
                        token_ids=one.token_ids,
                        logprobs=one.logprobs,
                        stop_reason=one.stop_reason,
                        sample=len(found[k]),
                    )
                )
            answers = [extract_answer(r.text) if r.stop_reason is StopReason.STOP else None for r in found[k]]
            classes[k] = answer_classes(answers, equal_answers)
            rest = allocation.most - len(found[k])
            unsettled[k] = overtaken(classes[k], rest=rest, prior=allocation.prior)
        open_ = [k for k in range(len(problems)) if unsettled[k] > 0 and len(found[k]) < allocation.most]
        wanted = {}
        for k in sorted(open_, key=lambda k: (-unsettled[k], k))[: allocation.width]:
            n = min(allocation.at_once, allocation.most - len(found[k]), left - sum(wanted.values()))
            if n:
                wanted[k] = n
    return [
        Allocated(
            problem=problem,
            responses=tuple(found[k]),
            classes=tuple(classes[k]),
            chosen=majority(classes[k]),
            unsettled=unsettled[k],
        )
        for k, problem in enumerate(problems)
    ]
