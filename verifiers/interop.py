"""The same rewards in the calling conventions of TRL, verl and OpenRLHF, and TRL functions as scorers.

    as_trl        f(prompts, completions, completion_ids, **columns) -> list[float | None]       (TRL 1.16)
    as_verl       compute_score(data_source, solution_str, ground_truth, extra_info) -> {"score": ...}
    as_openrlhf   reward_func(queries, prompts, labels) -> {"rewards", "scores", "extra_logs"}
    from_trl      the way back: a Scorer made of a TRL-style function (in `verifiers/trl_scorer.py`)

TRL can abstain: undecided becomes None. verl and OpenRLHF cannot: there an undecided verdict raises
RewardError with its reason (verl stops; OpenRLHF logs it and goes on without that reward) unless
`undecided_score` names the number to use instead, which then counts itself under "undecided". It is never a
silent 0. Both call one sample at a time, so a scorer that compares a problem's responses is refused. The
callables are objects of named classes with a `__name__`: they pickle into rollout workers.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from verifiers.compose import is_group_relative, judged
from verifiers.core import Outcome, Problem, Prompt, Response, Scorer, Verdict
from verifiers.errors import ConfigError, RewardError
from verifiers.trl_scorer import TrlScorer, from_trl

__all__ = [
    "OpenRlhfReward",
    "TrlReward",
    "TrlScorer",
    "VerlReward",
    "as_openrlhf",
    "as_trl",
    "as_verl",
    "from_trl",
]

_TRL_EXTRAS = frozenset({"trainer_state", "log_extra", "log_metric", "environments"})


class _Reward:
    """What the three conventions share: a scorer and the name that trainers log it under."""

    def __init__(self, scorer: Scorer, name: str | None) -> None:
        if not callable(getattr(scorer, "judge", None)):
            raise ConfigError(f"a scorer with judge(problems, responses) is needed; got {type(scorer).__name__}")
        self.scorer = scorer
        self.__name__ = name or _snake(type(scorer).__name__)


class TrlReward(_Reward):
    """A scorer as a TRL reward function; see `as_trl`."""

    def __init__(self, scorer: Scorer, answer_column: str | None, name: str | None) -> None:
        super().__init__(scorer, name)
        self.answer_column = answer_column

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward a completion; None where the verdict is undecided. RewardError for unfitting input."""
        extras = {key: columns.pop(key) for key in _TRL_EXTRAS & set(columns)}
        count = len(completions)
        answers: Sequence[Any] = [None] * count
        if self.answer_column is not None:
            if self.answer_column not in columns:
                raise RewardError(
                    f"reward {self.__name__} needs the column {self.answer_column!r} with reference answers; "
                    f"the data set has {', '.join(map(repr, columns)) or 'no further columns'}; pass "
                    f"answer_column=..., or answer_column=None for a scorer that needs no reference"
                )
            answers = columns.pop(self.answer_column)
        ids = [()] * count if completion_ids is None else completion_ids
        for what, values in (("prompts", prompts), ("answers", answers), ("completion_ids", ids)):
            if len(values) != count:
                raise RewardError(f"reward {self.__name__} got {len(values)} {what} for {count} completions")
        problems, responses = [], []
        for i in range(count):
            row = {key: values[i] for key, values in columns.items() if _is_column(values, count)}
            prompt = _prompt(prompts[i])
            name = row.pop("id", None)
            problem_id = _prompt_id(prompt) if name is None else str(name)
            answer = None if answers[i] is None else str(answers[i])
            problems.append(Problem(id=problem_id, prompt=prompt, answer=answer, metadata=row))
            text = _completion_text(completions[i])
            responses.append(Response(problem_id=problem_id, text=text, token_ids=tuple(ids[i]), sample=i))
        verdicts = judged(self.scorer, problems, responses, name=self.__name__)
        self._log(verdicts, extras)
        return [verdict.score for verdict in verdicts]

    def _log(self, verdicts: Sequence[Verdict], extras: Mapping[str, Any]) -> None:
        if verdicts and extras.get("log_metric") is not None:
            share = sum(v.score is None for v in verdicts) / len(verdicts)
            extras["log_metric"](f"{self.__name__}/undecided", share)
        if extras.get("log_extra") is not None:
            extras["log_extra"](f"{self.__name__}_reason", [verdict.reason for verdict in verdicts])


def as_trl(scorer: Scorer, *, answer_column: str | None = "answer", name: str | None = None) -> TrlReward:
    """A scorer as a reward function for TRL's GRPO and RLOO trainers (signature of TRL 1.16).

    Completions are texts or chat messages (the texts of all assistant messages count); `completion_ids`
    become token ids; equal prompts form a group unless there is an `id` column; other columns become
    metadata. Where the trainer offers them, the share of undecided verdicts goes to `log_metric` and the
    reasons go to `log_extra`. Raises RewardError when the answer column is missing; None is for scorers that
    need none.
    """
    return TrlReward(scorer, answer_column, name)


class _OneByOne(_Reward):
    """A convention without abstention that is called with one sample at a time."""

    def __init__(self, scorer: Scorer, undecided_score: float | None, name: str | None) -> None:
        super().__init__(scorer, name)
        if undecided_score is not None and not math.isfinite(undecided_score):
            raise ConfigError(f"undecided_score must be a finite number or None; got {undecided_score}")
        if is_group_relative(scorer):
            raise ConfigError(
                f"{type(scorer).__name__} compares the responses of one problem, but this convention hands "
                f"over one at a time; use as_trl, or a scorer without a group-relative part"
            )
        self.undecided_score = undecided_score

    def _score(self, verdict: Verdict) -> float:
        if verdict.score is not None:
            return verdict.score
        if self.undecided_score is None:
            raise RewardError(
                f"reward {self.__name__} could not decide ({verdict.reason}), and this convention has no way "
                f"to abstain; pass undecided_score=... to choose a number for such responses"
            )
        return self.undecided_score


class VerlReward(_OneByOne):
    """A scorer as verl's `compute_score`; see `as_verl`."""

    def __call__(
        self,
        data_source: str,
        solution_str: str,
        ground_truth: Any,
        extra_info: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> dict[str, float | str]:
        """Always the same keys, as verl collects them in columns; RewardError for an undecided verdict."""
        info = dict(extra_info or {})
        name = f"{data_source}-{info.get('index', 0)}"
        answer = None if ground_truth is None else str(ground_truth)
        problem = Problem(id=name, prompt=str(info.get("question", "")), answer=answer, metadata=info)
        response = Response(problem_id=name, text=solution_str)
        verdict = judged(self.scorer, [problem], [response], name=self.__name__)[0]
        score = self._score(verdict)
        decided = {Outcome.CORRECT: 1.0, Outcome.INCORRECT: 0.0}
        return {
            "score": score,
            "acc": decided.get(verdict.outcome, score),
            "undecided": float(verdict.score is None),
            "outcome": verdict.outcome.value,
            "pred": verdict.extracted or "",
        }


def as_verl(scorer: Scorer, *, undecided_score: float | None = None, name: str | None = None) -> VerlReward:
    """A scorer as `compute_score` for verl's `custom_reward_function`.

    "score" is the reward, "acc" is 1 or 0 for right or wrong (else the score), "undecided" is 1 for a verdict
    that `undecided_score` stands in for. Without `undecided_score` such a verdict raises RewardError.
    """
    return VerlReward(scorer, undecided_score, name)


class OpenRlhfReward(_OneByOne):
    """A scorer as OpenRLHF's `reward_func`; see `as_openrlhf`."""

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **_: Any
    ) -> dict[str, Any]:
        """Rewards, scores in [0, 1], logs. RewardError where a query does not begin with its prompt."""
        if not len(queries) == len(prompts) == len(labels):
            raise RewardError(
                f"reward {self.__name__} got {len(queries)} queries, {len(prompts)} prompts and "
                f"{len(labels)} labels; they must be as many"
            )
        problems, responses = [], []
        for query, prompt, label in zip(queries, prompts, labels, strict=True):
            # A tokenizer may put its begin-of-sequence text before the prompt when ids become text again.
            at = query.find(prompt)
            if at < 0:
                raise RewardError(
                    f"reward {self.__name__} cannot find the prompt in the query, so that it cannot tell the "
                    f"response from it; got the query {query[:60]!r} and the prompt {prompt[:60]!r}"
                )
            name = _prompt_id(prompt)
            answer = None if label is None else str(label)
            problems.append(Problem(id=name, prompt=prompt, answer=answer))
            responses.append(Response(problem_id=name, text=query[at + len(prompt) :]))
        verdicts = judged(self.scorer, problems, responses, name=self.__name__)
        rewards = [self._score(verdict) for verdict in verdicts]
        undecided = sum(verdict.score is None for verdict in verdicts) / max(1, len(verdicts))
        return {
            "rewards": _as_tensor(rewards),
            "scores": _as_tensor([min(max(reward, 0.0), 1.0) for reward in rewards]),
            "extra_logs": {"undecided": undecided},
        }


def as_openrlhf(scorer: Scorer, *, undecided_score: float | None = None, name: str | None = None) -> OpenRlhfReward:
    """A scorer as `reward_func` for OpenRLHF's remote reward file.

    "rewards" and "scores" (clipped to [0, 1], for its dynamic filtering) are float tensors where torch is
    loaded, as it is in OpenRLHF, and lists elsewhere. Without `undecided_score` an undecided verdict raises
    RewardError, which OpenRLHF logs, leaving the reward out.
    """
    return OpenRlhfReward(scorer, undecided_score, name)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


def _is_column(values: Any, count: int) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == count


def _content_text(content: Any) -> str:
    if content is None:  # a message that only calls a tool
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))


def _prompt(prompt: Any) -> Prompt:
    if isinstance(prompt, str):
        return prompt
    return tuple(
        {"role": str(message.get("role", "")), "content": _content_text(message.get("content"))} for message in prompt
    )


def _completion_text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    messages = [message for message in completion if message.get("role", "assistant") == "assistant"]
    return "\n\n".join(text for text in map(_content_text, (m.get("content") for m in messages)) if text)


def _prompt_id(prompt: Prompt) -> str:
    text = json.dumps(prompt, sort_keys=True)
    return "prompt-" + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _as_tensor(values: list[float]) -> Any:
    torch = sys.modules.get("torch")  # this package imports no torch; OpenRLHF has it loaded
    return values if torch is None else torch.tensor(values, dtype=torch.float32)
