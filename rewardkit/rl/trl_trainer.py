r"""TRL's GRPOTrainer with an advantage for every token: step rewards inside a trainer that knows responses alone.

TRL gives the loss one advantage a response, shape (B,). Its loss also takes one a token, shape (B, T), from subclasses.
`StepGRPOTrainer` is one: drawing, rewarding, grouping and logging stay TRL's, and what goes into the loss is

    A_token = A_t of the step that the token is in          (`rewardkit/rl/credit/step_rewards.py`)

from the steps that the reward list scored and, as outcome, the list's reward. With one step a response and lambda = 1
that is (R - mean of group) / (s of group + eps), TRL's own number. TRL sees the list as one reward function, `total`.

Groups are TRL's: each `num_generations` rows of the batch over all processes. Rewards and steps are gathered before
they are credited, so a group may lie in several processes; a reward that compares the responses of one prompt sees
those of its own process, as every reward function in TRL. Gathering goes through accelerate, whatever it runs on.

This module alone imports TRL; nothing else of the library does.

Legend: B rows, T tokens of responses, right-padded.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object

from rewardkit.rl.credit.step_rewards import StepConfig, StepCredit, step_credit
from rewardkit.rl.policy.reader import padded
from rewardkit.rl.rewards.functions import RewardList, as_part
from rewardkit.rl.rewards.scored import Scored, StepRewards
from rewardkit.rl.rewards.sources import FunctionSource
from verifiers.core import Problem, Response, StopReason, Verdict
from verifiers.errors import ConfigError, MissingExtraError
from verifiers.interop import as_trl

INSTALL = "pip install 'trl>=1.16,<1.17'"
COUNTED = ("unscored", "without_steps", "empty", "outcome_only", "open_step", "constant", "alone")
"""What `StepCredit.counts` may hold; logged as shares of the responses, 0 too."""
NAME = "total"
"""What TRL calls the reward list."""


def require_version(version: str) -> None:
    """Raise ConfigError for a TRL other than 1.16: one private method of its trainer is overridden here."""
    if version.split(".")[:2] != ["1", "16"]:
        raise ConfigError(
            f"StepGRPOTrainer stands on private parts of TRL's GRPOTrainer and is tested with TRL 1.16 alone; got TRL "
            f"{version}; to get 1.16: {INSTALL}"
        )


try:
    import trl
except ImportError as error:
    raise MissingExtraError(f"StepGRPOTrainer needs TRL; to get it: {INSTALL}") from error
require_version(trl.__version__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """What the rewards said of one response."""

    reward: float | None
    """Their sum; None: unscored."""
    steps: StepRewards | None
    """None where no steps were scored."""
    length: int
    """Tokens, the end mark included."""
    truncated: bool
    """Whether it ends without an end mark."""


class _Listener:
    """The trainer's reward list as a scorer, for TRL; what it said last is kept for the trainer."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.heard: list[Heard] = []

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """The sum of the rewards as a graded verdict; undecided with the reason where there is none."""
        trainer = self.trainer
        ends = {*trainer.eos_token_ids, trainer.processing_class.pad_token_id}
        responses = [replace(own, stop_reason=_stop_reason(own.token_ids, ends)) for own in responses]
        scored = trainer.reward_list.score(problems, responses)
        self.heard = [
            Heard(
                reward=scored.rewards[n],
                steps=None if scored.steps is None else scored.steps[n],
                length=len(own.token_ids),
                truncated=own.stop_reason is StopReason.LENGTH,
            )
            for n, own in enumerate(responses)
        ]
        trainer.log_parts(scored)
        return [
            Verdict.graded(reward, "the sum of the rewards", kind="reward")
            if reward is not None
            else Verdict.undecided("" if reason is None else reason.detail, kind="" if reason is None else reason.kind)
            for reward, reason in zip(scored.rewards, scored.reasons, strict=True)
        ]


class StepGRPOTrainer(trl.GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer of TRL 1.16 that credits steps; everything not named here is TRL's."""

    def __init__(
        self,
        model: Any,
        rewards: RewardList | Mapping[str, Any],
        args: Any = None,
        *,
        steps: StepConfig | None = None,
        answer_column: str | None = "answer",
        **further: Any,
    ) -> None:
        """`rewards` is a reward list, or name -> anything that `as_part` takes; one of them must score steps.

        `args` is TRL's GRPOConfig, `steps` how step scores become advantages (default: StepConfig with the scale of
        `args.scale_rewards`), `answer_column` the data set's column of reference answers (None: it has none), `further`
        what GRPOTrainer takes beside (train_dataset, processing_class, peft_config, ...). Raises ConfigError for
        settings that would have no effect or that token advantages cannot go with. `trainer.reward_list.close()` ends
        the processes of reward functions.
        """
        scale: Any = "group" if args is None else args.scale_rewards
        _refuse_further(further)
        if args is not None:
            _refuse_args(args)
        if steps is not None and steps.scale != scale:
            raise ConfigError(
                f"StepConfig(scale={steps.scale!r}) and GRPOConfig(scale_rewards={scale!r}) contradict each other; "
                "set both to 'group' or both to 'none'"
            )
        if isinstance(rewards, RewardList):
            _require_steps(rewards)
        self.step_config = StepConfig(scale=scale) if steps is None else steps
        self._listener = _Listener()
        heard = as_trl(self._listener, answer_column=answer_column, name=NAME)
        super().__init__(model, [heard], args, **further)
        if not isinstance(rewards, RewardList):
            parts = [as_part(name, one, tokenizer=self.processing_class) for name, one in rewards.items()]
            rewards = _require_steps(RewardList(parts))
        self.reward_list = rewards
        self._listener.trainer = self

    def log_parts(self, scored: Scored) -> None:
        """Hand TRL the means, spreads and unscored shares of the rewards, and a column a part for its table."""
        counts = {f"reward/{name}" for name in scored.counts}
        for name, value in scored.metrics.items():
            # TRL takes the mean over the batches that a figure is in, and a count is only there where it is above 0.
            if name not in counts:
                self._log_metric(name, value)
        for name, values in scored.parts.items():
            self._log_completion_extra(name, list(values))
        for name, texts in scored.extra.items():
            self._log_completion_extra(name, list(texts))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with advantages of shape (B, T) in place of (B,)."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        rows: list[Heard] = gather_object(self._listener.heard)
        training = self.model.training
        credit = self._credit(rows, self.num_generations if training else self.num_generations_eval)
        tokens = credit.token_advantages()
        start = self.accelerator.process_index * len(inputs)
        own = tokens[start : start + len(inputs)]
        given_B, width = output["advantages"], output["completion_ids"].shape[1]
        flat_N = torch.tensor([value for row in own for value in row], dtype=given_B.dtype)
        found_BT = padded(flat_N, [len(row) for row in own])
        # TRL may pad responses to a multiple of a number.
        found_BT = torch.nn.functional.pad(found_BT, (0, width - found_BT.shape[1]))
        output["advantages"] = found_BT.to(given_B.device)
        self._note(credit, "train" if training else "eval")
        return output

    def _credit(self, rows: Sequence[Heard], group: int) -> StepCredit:
        if not self.reward_list.has_steps and all(row.steps is None for row in rows):
            raise ConfigError("no reward scored the steps of any response; let one return StepRewards")
        return step_credit(
            self.step_config,
            groups=[n // group for n in range(len(rows))],
            outcomes=[row.reward for row in rows],
            steps=[row.steps for row in rows],
            lengths=[row.length for row in rows],
            truncated=[row.truncated for row in rows],
        )

    def _note(self, credit: StepCredit, mode: str) -> None:
        """Figures of the credit, and in the table of completions the mean advantage of a response's tokens."""
        number, metrics = max(len(credit.ends), 1), self._metrics[mode]
        metrics["steps/number"].append(sum(map(len, credit.ends)) / number)
        metrics["steps/left_out"].append(credit.used.count(False) / number)
        for name in COUNTED:
            metrics[f"steps/{name}"].append(credit.counts.get(name, 0) / number)
        column = self._logs["advantages"]
        for _ in range(min(len(column), len(credit.ends))):
            column.pop()
        column.extend(float(row.mean()) if len(row) else 0.0 for row in credit.token_advantages())


def _stop_reason(ids: Sequence[int], ends: Container[int]) -> StopReason:
    return StopReason.STOP if ids and ids[-1] in ends else StopReason.LENGTH


def _require_steps(rewards: RewardList) -> RewardList:
    if not rewards.has_steps and not any(isinstance(part.source, FunctionSource) for part in rewards.parts):
        raise ConfigError(
            f"no reward of {', '.join(part.name for part in rewards.parts)} scores steps, so every token of a "
            "response would have one advantage; add a process reward model, or use as_trl with TRL's own trainer"
        )
    return rewards


def _refuse_further(further: Mapping[str, Any]) -> None:
    instead = {
        "reward_funcs": "give them in `rewards`",
        "reward_processing_classes": "the rewards bring their own tokenizers",
        "tools": "steps are pieces of one text that the policy wrote",
        "environment_factory": "steps are pieces of one text that the policy wrote",
    }
    for name, reason in instead.items():
        if further.get(name) is not None:
            raise ConfigError(f"StepGRPOTrainer takes no {name}: {reason}; leave it out")


def _refuse_args(args: Any) -> None:
    """ConfigError for settings of GRPOConfig that token advantages cannot go with or that nothing would read."""
    rules = (
        ("scale_rewards", ("group", "none"), "the batch's deviation is none that steps are scaled by"),
        ("multi_objective_aggregation", ("sum_then_normalize",), "the reward list is one sum"),
        ("reward_weights", (None,), "the weights are the reward list's"),
        ("importance_sampling_level", ("token",), "one ratio a response cannot carry an advantage a token"),
    )
    for name, allowed, reason in rules:
        value = getattr(args, name)
        if value not in allowed:
            raise ConfigError(
                f"GRPOConfig({name}={value!r}) does not go with StepGRPOTrainer: {reason}; set it to "
                f"{' or '.join(map(repr, allowed))}"
            )
