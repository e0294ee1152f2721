"""What a search found for a problem, as a value and as a row of a file.

Rows are readable as search-and-learn's (`problem`, `answer`, `completions`, `scores` a step, `pred`,
`completion_tokens`), and hold besides what it takes to go on from them: ids, stop reasons, weights, and the tree with
every decision. `completion_tokens` counts each candidate's own tokens; `drawn_tokens` counts all that were paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from search.choose import Rule, answer_classes, best, weighted
from search.plans import REDUCTIONS, Reduction
from search.tree import Tree
from verifiers.answers import extract_answer
from verifiers.core import Problem, Response, StopReason
from verifiers.equality import math_equal
from verifiers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """One problem's candidates, the one that was chosen, and how it all came about. Lists are parallel."""

    problem: Problem
    responses: tuple[Response, ...]
    step_scores: tuple[tuple[float, ...], ...]
    """One tuple a response; () where nothing scored it."""
    weights: tuple[float, ...]
    """How many samples each response stands for."""
    chosen: int | None
    """Index of the response that the search returns; None where there is none to choose."""
    rule: Rule
    drawn_tokens: int
    tree: Tree

    @property
    def response(self) -> Response | None:
        """The response that the search returns."""
        return None if self.chosen is None else self.responses[self.chosen]

    def scores(self, reduction: Reduction = "min") -> tuple[float, ...]:
        """One score a response; a response without step scores has 0."""
        return tuple(float(REDUCTIONS[reduction](steps)) if steps else 0.0 for steps in self.step_scores)

    def to_json(self) -> dict[str, Any]:
        """A row, readable as search-and-learn's."""
        return {
            "problem_id": self.problem.id,
            "problem": self.problem.prompt if isinstance(self.problem.prompt, str) else list(self.problem.prompt),
            "answer": self.problem.answer,
            "completions": [response.text for response in self.responses],
            "scores": [list(steps) for steps in self.step_scores],
            "pred": None if self.response is None else self.response.text,
            "completion_tokens": [len(response.token_ids) for response in self.responses],
            "drawn_tokens": self.drawn_tokens,
            "chosen": self.chosen,
            "rule": self.rule,
            "weights": list(self.weights),
            "samples": [response.sample for response in self.responses],
            "stop_reasons": [response.stop_reason.value for response in self.responses],
            "token_ids": [list(response.token_ids) for response in self.responses],
            "tree": self.tree.to_json(),
        }

    @classmethod
    def from_json(cls, problem: Problem, row: dict[str, Any]) -> SearchResult:
        """The result that `to_json` wrote."""
        parts = zip(row["completions"], row["token_ids"], row["stop_reasons"], row["samples"], strict=True)
        return cls(
            problem=problem,
            responses=tuple(
                Response(
                    problem_id=problem.id,
                    text=text,
                    token_ids=tuple(ids),
                    stop_reason=StopReason(reason),
                    sample=sample,
                )
                for text, ids, reason, sample in parts
            ),
            step_scores=tuple(tuple(steps) for steps in row["scores"]),
            weights=tuple(row["weights"]),
            chosen=row["chosen"],
            rule=row["rule"],
            drawn_tokens=row["drawn_tokens"],
            tree=Tree.from_json(problem, row["tree"]),
        )


def choose(
    responses: Sequence[Response],
    scores: Sequence[float],
    weights: Sequence[float],
    rule: Rule,
    *,
    same: Callable[[str, str], bool] | None = None,
) -> int | None:
    """Index of the response that a rule picks; unfinished responses only where no other is there.

    `best`: highest score. `weighted`: the answer with the largest sum of weight times score. `majority`: the answer
    with the largest sum of weights. `first`: the first one. Answers are the same when `same` says so, mathematical
    equality unless given.
    """
    pool = [n for n, response in enumerate(responses) if response.stop_reason is StopReason.STOP]
    pool = pool or list(range(len(responses)))
    if not pool:
        return None
    if rule == "first":
        return pool[0]
    if rule == "best":
        return pool[best([scores[n] for n in pool])]
    if rule not in ("weighted", "majority"):
        raise ConfigError(f"there is no rule {rule!r}; take one of best, weighted, majority, first")
    answers = [extract_answer(responses[n].text) for n in pool]
    classes = answer_classes(answers, same or equal_answers)
    votes = [weights[n] * (scores[n] if rule == "weighted" else 1.0) for n in pool]
    found = weighted(classes, votes, pick_best=rule == "weighted")
    return None if found is None else pool[found]


def equal_answers(a: str, b: str) -> bool:
    """Do two answers vote together: mathematically equal."""
    return math_equal(a, b).score == 1.0
