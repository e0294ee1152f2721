"""A TRL-style reward function as a Scorer, with the contract that nobody checks for it checked.

The function is called as TRL 1.16 calls it: prompts, completions and completion_ids, one keyword argument for
the reference answers and for each metadata field that all problems have, and trainer_state, log_extra and
log_metric (which lead nowhere here). Value v_i becomes a graded verdict of score v_i, or right / wrong by
v_i >= correct_from; None is an abstention. What trainers let through as a silent 0 or a NaN that empties a
batch (an exception, a value that is no finite number, too few values) is an error that names the function.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from verifiers.core import Outcome, Problem, Prompt, Response, Verdict
from verifiers.errors import ConfigError, RewardError


@dataclass(frozen=True, kw_only=True)
class TrlScorer:
    """A TRL-style reward function as a Scorer; `from_trl` makes one."""

    function: Callable[..., Any]
    """Called with prompts, completions, completion_ids, answer and the metadata columns."""
    name: str
    """What errors call it."""
    on_error: Literal["raise", "undecided"] = "raise"
    """What an exception or a value that is no finite number means."""
    correct_from: float | None = None
    """Least value that is a right answer; None makes all values graded."""
    answer_column: str = "answer"
    """Keyword under which the function gets the reference answers."""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ConfigError(f"from_trl needs a callable; got {type(self.function).__name__}")
        if self.on_error not in ("raise", "undecided"):
            raise ConfigError(f"on_error must be 'raise' or 'undecided'; got {self.on_error!r}")
        if self.correct_from is not None and not math.isfinite(self.correct_from):
            raise ConfigError(f"correct_from must be a finite number or None; got {self.correct_from}")

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """One verdict a value; None is undecided. RewardError where the function breaks its contract."""
        if not responses:
            return []
        try:
            values = self._call(problems, responses)
        except Exception as error:
            reason = f"reward function {self.name} raised {type(error).__name__}: {error}"
            if self.on_error == "raise":
                raise RewardError(reason) from error
            return [Verdict.undecided(reason, kind="reward_raised") for _ in responses]
        if not hasattr(values, "__len__") or len(values) != len(responses):
            got = f"{len(values)} values" if hasattr(values, "__len__") else type(values).__name__
            raise RewardError(
                f"reward function {self.name} returned {got} for {len(responses)} completions; "
                f"it must return one number (or None) a completion"
            )
        return [self._verdict(i, value) for i, value in enumerate(values)]

    def _call(self, problems: Sequence[Problem], responses: Sequence[Response]) -> Any:
        shared = set(problems[0].metadata).intersection(*(problem.metadata for problem in problems))
        arguments: dict[str, Any] = {key: [problem.metadata[key] for problem in problems] for key in sorted(shared)}
        arguments[self.answer_column] = [problem.answer for problem in problems]
        arguments["prompts"] = [_as_trl_prompt(problem.prompt) for problem in problems]
        arguments["completions"] = [
            response.text if isinstance(problem.prompt, str) else [{"role": "assistant", "content": response.text}]
            for problem, response in zip(problems, responses, strict=True)
        ]
        arguments["completion_ids"] = [list(response.token_ids) for response in responses]
        arguments |= {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
        kinds = inspect.signature(self.function).parameters
        if not any(kind.kind is inspect.Parameter.VAR_KEYWORD for kind in kinds.values()):
            arguments = {key: value for key, value in arguments.items() if key in kinds}
        values = self.function(**arguments)
        if inspect.iscoroutine(values):
            # A thread of its own: the caller may already be inside an event loop.
            with ThreadPoolExecutor(max_workers=1) as pool:
                values = pool.submit(asyncio.run, values).result()
        return values

    def _verdict(self, index: int, value: Any) -> Verdict:
        if value is None:
            return Verdict.undecided(f"reward function {self.name} abstained", kind="reward_abstained")
        try:
            score = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            reason = (
                f"reward function {self.name} returned {value!r} for completion {index}; "
                f"it must return a finite number, or None to abstain"
            )
            if self.on_error == "raise":
                raise RewardError(reason)
            return Verdict.undecided(reason, kind="reward_not_a_number")
        reason = f"{self.name} returned {score:g}"
        if self.correct_from is None:
            return Verdict.graded(score, reason, kind="reward")
        outcome = Outcome.CORRECT if score >= self.correct_from else Outcome.INCORRECT
        return Verdict(outcome=outcome, score=score, reason=reason, kind="reward")


def from_trl(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    on_error: Literal["raise", "undecided"] = "raise",
    correct_from: float | None = None,
    answer_column: str = "answer",
) -> TrlScorer:
    """A Scorer made of a TRL-style reward function, plain or async.

    It is called as TRL calls it; one without **kwargs gets only the arguments it names. None abstains
    (undecided). An exception, NaN or anything else that is no number is a RewardError naming the function, or
    undecided with `on_error="undecided"`; a wrong number of values is always a RewardError. `correct_from`
    turns values into right and wrong, for scorers that need to know.
    """
    label = name or str(getattr(function, "__name__", type(function).__name__))
    return TrlScorer(
        function=function,
        name=label,
        on_error=on_error,
        correct_from=correct_from,
        answer_column=answer_column,
    )


def _ignore(*_: object) -> None:
    """Stands in for TRL's log_extra and log_metric."""


def _as_trl_prompt(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
