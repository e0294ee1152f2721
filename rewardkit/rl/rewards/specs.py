"""Rewards as a command line spells them, and the settings they share; free of torch.

    [name=]reward[:weight][?]

    math                     right (1) or wrong (0) by the answer
    box                      exactly one box in the response (1), or not (0)
    length                   Kimi k1.5's length term, -1/2 to 1/2 within a problem, for right answers
    repetition               minus the share of n-grams that repeat
    my_rewards.py:reward     a function of one's own, in TRL's signature; package.module:name too
    prm:PATH                 a process reward model's step scores: rewards for steps
    prm-min:PATH             one score a response: its weakest step; prm-last, prm-mean, prm-product likewise
    orm:PATH                 an outcome model's score in [0, 1]
    orm-raw:PATH             the same as the model gives it, without a zero or a scale

A weight is the last number behind a colon, 1 where there is none: `length:0.1`. A question mark makes a part optional:
a response that it cannot score keeps the sum of the others.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from rewardkit.rl.rewards.calling import split_spec
from verifiers.errors import ConfigError

BUILT_IN = ("math", "box", "length", "repetition")
MODELS = ("prm", "prm-min", "prm-last", "prm-mean", "prm-product", "orm", "orm-raw")
OnError: TypeAlias = Literal["unscored", "raise"]

_WEIGHT = re.compile(r":([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)$")
_NAME = re.compile(r"([A-Za-z_][\w-]*)=")


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """One reward of the list."""

    name: str
    """What metrics call it."""
    kind: str
    """One of `BUILT_IN` or `MODELS`, or function."""
    target: str = ""
    """Path of the model, or import string of the function."""
    weight: float = 1.0
    """Factor in the sum; of step scores, of the scores."""
    optional: bool = False
    """A response that it leaves unscored keeps the sum of the others."""


def parse_reward(text: str) -> RewardSpec:
    """One reward from its spelling. Raises ConfigError, and MissingFileError for a file that is not there."""
    rest = text.strip()
    optional = rest.endswith("?")
    rest = rest.removesuffix("?")
    weight = 1.0
    found = _WEIGHT.search(rest)
    if found:
        weight, rest = float(found[1]), rest[: found.start()]
    name = ""
    named = _NAME.match(rest)
    if named:
        name, rest = named[1], rest[named.end() :]
    check_weight(name or text, weight)
    head, colon, target = rest.partition(":")
    if head in BUILT_IN and not colon:
        return RewardSpec(name=name or head, kind=head, weight=weight, optional=optional)
    if head in MODELS:
        if not target:
            raise ConfigError(f"the reward {text!r} names no model; write {head}:PATH")
        return RewardSpec(name=name or head, kind=head, target=target, weight=weight, optional=optional)
    if not colon:
        known = ", ".join((*BUILT_IN, "file.py:function", "package.module:function", *(f"{m}:PATH" for m in MODELS)))
        raise ConfigError(f"there is no reward {text!r}; take one of {known}")
    function = split_spec(rest)[1]
    return RewardSpec(name=name or function, kind="function", target=rest, weight=weight, optional=optional)


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight that is no number, or 0."""
    if not math.isfinite(weight) or weight == 0.0:
        raise ConfigError(f"reward {name!r} needs a weight other than 0; got {weight!r}; leave it out if not wanted")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """What responses are rewarded for, and how reward functions are run."""

    rewards: tuple[str, ...] = ("math",)
    """Rewards that are added up: math, length:0.1, my_rewards.py:reward, prm:PATH, orm:PATH (name=reward:weight)."""
    min_scored: float = 0.5
    """Least share of a batch that must get a reward for the run to go on."""
    on_error: OnError = "unscored"
    """What a reward that breaks means: its responses are left out and counted, or the run ends."""
    reward_workers: int = 1
    """Processes a reward function; a batch is spread over them, a problem's responses together."""
    reward_timeout: float = 60.0
    """Seconds that one call of a reward function may take before it is killed."""
    reward_memory: int = 8192
    """MiB of address space that one reward process may use."""
    reward_rows: int = 0
    """Most responses that one call of a reward function gets; 0 spreads the batch evenly over the processes."""

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ConfigError("rewards must name at least one reward, such as 'math'; got none")
        if not 0.0 <= self.min_scored <= 1.0:
            raise ConfigError(f"min_scored must be a share between 0 and 1; got {self.min_scored!r}")
        if self.on_error not in ("unscored", "raise"):
            raise ConfigError(f"on_error must be 'unscored' or 'raise'; got {self.on_error!r}")
        if self.reward_workers < 1 or self.reward_rows < 0:
            raise ConfigError(
                "reward_workers must be 1 or more and reward_rows 0 or more; got "
                f"{self.reward_workers!r} and {self.reward_rows!r}"
            )
        if not 0 < self.reward_timeout < math.inf or self.reward_memory < 128:
            raise ConfigError(
                "reward_timeout must be above 0 seconds and reward_memory 128 MiB or more; got "
                f"{self.reward_timeout!r} and {self.reward_memory!r}"
            )
        check_names([spec.name for spec in self.specs])
        if not any(spec.kind == "function" for spec in self.specs):
            for one in fields(self):
                if one.name.startswith("reward_") and getattr(self, one.name) != one.default:
                    raise ConfigError(
                        f"{one.name}={getattr(self, one.name)!r} has no effect: no reward is a function of one's own"
                    )
        if sum(spec.kind == "prm" for spec in self.specs) > 1:
            raise ConfigError(
                "rewards names two process reward models for steps, but a response has one list of step scores; "
                "give one of them as prm-min:PATH"
            )

    @property
    def specs(self) -> tuple[RewardSpec, ...]:
        """The rewards, read."""
        return tuple(map(parse_reward, self.rewards))


def check_names(names: list[str]) -> None:
    """Refuse two rewards of one name."""
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two rewards are named {name!r}; give one another name, as in other={name}")
