"""Best-of-N: draw N independent responses a problem, then let several choice rules pick from the same draw.

`draw` samples a pool; sample j of a problem depends on (seed, problem id, j) alone, so a pool of 16 contains
the pool of 4. `Pool` holds responses, verdicts, answer classes and any number of score columns;
`accuracy_curves` in `search/curves.py` computes each rule's accuracy at every n from it. `BestOfN` draws the same
responses as a strategy of the scheduler.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, get_args

from search.choose import Rule, answer_classes, best, majority, weighted
from search.ledger import Ledger
from search.plans import REDUCTIONS, Candidate, Draw, Plan, Search, require, share
from search.scorers import reduction_of
from verifiers.answers import extract_answer
from verifiers.core import (
    Continuation,
    Engine,
    GenerationRequest,
    Problem,
    Response,
    Sampling,
    Scorer,
    StepScorer,
    Usage,
    Verdict,
    derive_seed,
)
from verifiers.equality import math_equal
from verifiers.errors import ConfigError, EngineError, RewardError
from verifiers.steps import encode_prompt


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """N independent responses; which one is chosen is the rule's business (`search.run`).

    With a budget, as many responses are drawn side by side as it surely holds, until it is used up; the last one may
    be cut short.
    """

    n: int = 16
    """Responses."""

    stepwise = False
    needs_scores = False

    def __post_init__(self) -> None:
        require(self.n >= 1, self, "n", "1 or more")

    def plan(self, search: Search) -> Plan:
        """All at once where there is no budget."""
        found: list[Candidate] = []
        while len(found) < self.n and search.left >= 1:
            count = self.n - len(found)
            if search.budget is not None:
                count = max(1, min(count, int(search.left // search.limit)))
            most = share(search.left, count)
            nodes = yield [
                Draw(node=search.tree.root, name=(len(found) + k,), until="end", most=most) for k in range(count)
            ]
            found += [Candidate(node=node, sample=len(found) + k) for k, node in enumerate(nodes)]
        return found


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The N responses of one problem and all that is known of them. Lists are parallel, length N."""

    problem: Problem
    responses: tuple[Response, ...]
    verdicts: tuple[Verdict, ...] = ()
    classes: tuple[int | None, ...] = ()
    step_scores: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    """Scorer name -> per response, one score a step."""
    scores: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Rule name -> one score a response."""

    @property
    def right(self) -> tuple[bool, ...]:
        """Which responses were judged right; an undecided one is not."""
        return tuple(verdict.score == 1.0 for verdict in self.verdicts)


def draw(
    problems: Sequence[Problem],
    *,
    engine: Engine,
    n: int,
    sampling: Sampling,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
    chunk: int = 64,
) -> list[Pool]:
    """N responses for every problem. Raises EngineError naming the problem whose prompt is too long."""
    if n < 1:
        raise ConfigError(f"n must be 1 or more; got {n!r}")
    if not problems:
        raise ConfigError("there must be at least one problem to search; got none")
    pools: list[Pool] = []
    for start in range(0, len(problems), chunk):
        part = problems[start : start + chunk]
        requests = [request_for(engine, problem, n=n, seed=seed) for problem in part]
        drawn = engine.generate(requests, sampling)
        for problem, continuations in zip(part, drawn, strict=True):
            pools.append(Pool(problem=problem, responses=responses_of(engine, problem, continuations)))
        if on_progress is not None:
            on_progress(len(part))
    return pools


def request_for(engine: Engine, problem: Problem, *, n: int, seed: int) -> GenerationRequest:
    """The request that draws a problem's responses; its seed derives from the run's seed and the id."""
    prefix = encode_prompt(engine.tokenizer, problem.prompt)
    if len(prefix) >= engine.context_length:
        raise EngineError(
            f"the prompt of problem {problem.id!r} has {len(prefix)} tokens, but the model's context holds "
            f"{engine.context_length}; shorten the prompt or use a model with a longer context"
        )
    return GenerationRequest(prefix_ids=prefix, n=n, seed=derive_seed(seed, problem.id))


def responses_of(engine: Engine, problem: Problem, drawn: Sequence[Continuation]) -> tuple[Response, ...]:
    """What an engine drew for a problem, as text beside its ids, numbered from 0."""
    return tuple(
        Response(
            problem_id=problem.id,
            text=engine.tokenizer.decode(c.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
            token_ids=c.token_ids,
            logprobs=c.logprobs,
            stop_reason=c.stop_reason,
            sample=number,
        )
        for number, c in enumerate(drawn)
    )


def check_prompts(problems: Sequence[Problem], engine: Engine) -> None:
    """Raise EngineError for the first prompt that does not fit, before anything is made or paid."""
    for problem in problems:
        request_for(engine, problem, n=1, seed=0)


def judge(
    pools: Iterable[Pool], scorer: Scorer, *, same: Callable[[str, str], bool] | None = None
) -> tuple[list[Pool], Ledger]:
    """Pools with verdicts and answer classes (of the verdicts' extracted answers), and what judging cost."""
    started = time.perf_counter()
    pools = list(pools)
    problems = [pool.problem for pool in pools for _ in pool.responses]
    responses = [response for pool in pools for response in pool.responses]
    judged = [
        replace(pool, verdicts=own, classes=_classes(own, same))
        for pool, own in _per_pool(pools, scorer.judge(problems, responses))
    ]
    ledger = Ledger().verified(responses=len(responses), seconds=time.perf_counter() - started)
    return judged, ledger


_V = TypeVar("_V")


def _per_pool(pools: Sequence[Pool], values: Sequence[_V]) -> list[tuple[Pool, tuple[_V, ...]]]:
    """One value a response, dealt out to the pools they belong to."""
    total = sum(len(pool.responses) for pool in pools)
    if len(values) != total:
        raise RewardError(
            f"a scorer must return one value a response; got {len(values)} for {total} responses; mend the scorer"
        )
    rest = iter(values)
    return [(pool, tuple(next(rest) for _ in pool.responses)) for pool in pools]


def _classes(verdicts: Sequence[Verdict], same: Callable[[str, str], bool] | None) -> tuple[int | None, ...]:
    """Classes of equal answers; an answer judged right never shares a class with one that was not.

    "Same" is not always transitive (rounded decimals), and a class must be right or wrong as a whole.
    """
    answers = [verdict.extracted for verdict in verdicts]
    classes: list[int | None] = [None] * len(answers)
    offset = 0
    for side in (True, False):
        members = [index for index, verdict in enumerate(verdicts) if (verdict.score == 1.0) is side]
        labels = answer_classes([answers[index] for index in members], same)
        for index, label in zip(members, labels, strict=True):
            classes[index] = None if label is None else label + offset
        offset += len(members)
    return tuple(classes)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What Best-of-N picked for one problem. `response` is None when no response could be chosen."""

    problem: Problem
    response: Response | None
    score: float | None
    """The chosen response's score, where there is a scorer."""
    pool: Pool


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The choices for all problems and what they cost."""

    chosen: tuple[Chosen, ...]
    ledger: Ledger


def best_of_n(
    problems: Sequence[Problem],
    *,
    engine: Engine,
    n: int = 16,
    scorer: StepScorer | Scorer | None = None,
    rule: Rule = "best",
    reduce: Callable[[Sequence[float]], float] | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Choices:
    """Draw N responses a problem and choose one by a rule; no reference answers are needed.

    `best` takes the highest score, `weighted` the answer with the largest sum of scores, `majority` the most
    frequent answer, `first` the first response. Answers vote by mathematical equality (`verifiers`). A step
    scorer's scores are reduced to one a response by `reduce` (its least one unless told); a response without steps
    scores 0. A scorer's undecided verdict counts as the lowest score there is among the problem's responses.
    """
    if rule not in get_args(Rule):
        raise ConfigError(f"there is no rule {rule!r}; take one of {', '.join(get_args(Rule))}")
    if rule in ("best", "weighted") and scorer is None:
        raise ConfigError(f"rule {rule!r} needs a scorer; give one, or use 'majority' or 'first'")
    if rule in ("majority", "first") and scorer is not None:
        raise ConfigError(f"rule {rule!r} uses no scorer; leave it out, or use 'best' or 'weighted'")
    before = engine.usage
    pools = draw(problems, engine=engine, n=n, sampling=sampling or Sampling(), seed=seed)
    ledger = Ledger(policy=engine.usage - before)
    if scorer is not None:
        pools, ledger = score(pools, scorer, reduce=reduce, ledger=ledger)
    return Choices(chosen=tuple(_choose(pool, rule) for pool in pools), ledger=ledger)


def score(
    pools: Sequence[Pool],
    scorer: StepScorer | Scorer,
    *,
    reduce: Callable[[Sequence[float]], float] | None = None,
    name: str = "score",
    ledger: Ledger | None = None,
) -> tuple[list[Pool], Ledger]:
    """Pools with one more score column, and the ledger with its cost."""
    started = time.perf_counter()
    problems = [pool.problem for pool in pools for _ in pool.responses]
    responses = [response for pool in pools for response in pool.responses]
    before = getattr(scorer, "usage", Usage())
    columns: list[tuple[float, ...]]
    if isinstance(scorer, StepScorer):
        dealt = _per_pool(pools, scorer.score_steps(problems, responses))
        own = reduce or REDUCTIONS[reduction_of(scorer)]
        columns = [tuple(float(own(steps)) if steps else 0.0 for steps in rows) for _, rows in dealt]
    else:
        columns = [_decided(verdicts) for _, verdicts in _per_pool(pools, scorer.judge(problems, responses))]
    spent = getattr(scorer, "usage", Usage()) - before
    scored = [replace(pool, scores={**pool.scores, name: column}) for pool, column in zip(pools, columns, strict=True)]
    seconds = time.perf_counter() - started
    return scored, (ledger or Ledger()).scored(tokens=spent.prefill_tokens, seconds=seconds)


def _decided(verdicts: Sequence[Verdict]) -> tuple[float, ...]:
    """One problem's scores; an undecided one counts as the lowest of them (0 where none is decided)."""
    lowest = min((v.score for v in verdicts if v.score is not None), default=0.0)
    return tuple(lowest if v.score is None else v.score for v in verdicts)


def _choose(pool: Pool, rule: Rule) -> Chosen:
    scores = pool.scores.get("score")
    if rule == "first":
        index: int | None = 0
    elif rule == "best":
        assert scores is not None
        index = best(scores)
    else:
        answers = [extract_answer(response.text) for response in pool.responses]
        classes = answer_classes(answers, lambda a, b: math_equal(a, b).score == 1.0)
        index = majority(classes) if scores is None else weighted(classes, scores)
    return Chosen(
        problem=pool.problem,
        response=None if index is None else pool.responses[index],
        score=None if index is None or scores is None else scores[index],
        pool=pool,
    )
