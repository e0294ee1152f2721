"""Settings of one labelling job, free of torch so that the command line can show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from prm.stopping import EarlyStop, FixedTrials, SequentialTest, StoppingRule
from verifiers.core import Sampling
from verifiers.errors import ConfigError

Method: TypeAlias = Literal["fixed", "early_stop", "sequential", "binary_search", "cheapest_search", "tree"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """How step labels are made."""

    method: Method = "fixed"
    """fixed: K roll-outs from every step. early_stop: the same hard labels from as few of them as settle each.
    sequential: a test with a stated error. binary_search, cheapest_search: find the first bad step. tree: roll-outs
    become responses of their own, whose first bad steps are sought in turn (OmegaPRM)."""
    trials: int = 8
    """Most roll-outs a step (K)."""
    threshold: float = 0.0
    """Hard label of fixed and early_stop: 0 for any success, above 0 for at least that share of successes."""
    at_once: int = 1
    """Roll-outs drawn at a time from a step that is not settled yet; more are quicker and less thrifty."""
    doubling: bool = False
    """Draw as many again as were drawn so far: nearly as thrifty as one at a time, and much quicker to end."""
    low: float = 0.05
    """sequential: a chance of success up to here is bad."""
    high: float = 0.3
    """sequential: a chance of success from here on is good."""
    error: float = 0.05
    """sequential: greatest chance of each wrong label."""
    neighbour: int = 4
    """binary_search, cheapest_search, tree: roll-outs from the step behind a first bad one, to confirm it."""
    searches: int = 8
    """tree: how many roll-outs are searched for their first bad step, a problem."""
    temperature: float = 1.0
    """Sampling temperature of the roll-outs."""
    max_new_tokens: int = 512
    """Longest roll-out."""
    keep_rollouts: bool = False
    """Also return each roll-out as a row whose new steps have one trial."""
    seed: int = 0
    """Seed of all roll-outs."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"labelling method must be one of {', '.join(METHODS)}; got {self.method!r}")
        if self.trials < 1:
            raise ConfigError(f"trials must be 1 or more roll-outs a step; got {self.trials!r}")
        if not 1 <= self.at_once <= self.trials:
            raise ConfigError(f"at_once must lie between 1 and trials ({self.trials}); got {self.at_once!r}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold must lie in [0, 1]; got {self.threshold!r}")
        if self.doubling and self.method in ("fixed", "tree"):
            raise ConfigError(f"doubling has no effect on method {self.method!r}; leave it out")
        if self.doubling and self.threshold:
            raise ConfigError(
                "doubling suits labels of any success; with a threshold it draws nearly all, leave it out"
            )
        if self.threshold and self.method not in ("fixed", "early_stop"):
            raise ConfigError(f"threshold has no effect on method {self.method!r}; leave it at 0")
        if self.neighbour < 0 or self.searches < 1:
            raise ConfigError(
                f"neighbour must be 0 or more and searches 1 or more; got {self.neighbour!r} and {self.searches!r}"
            )
        self.rule  # noqa: B018  (checks low, high and error)

    @property
    def sampling(self) -> Sampling:
        """The roll-outs' sampling settings."""
        return Sampling(temperature=self.temperature, max_new_tokens=self.max_new_tokens)

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the labels: the settings that this method reads."""
        names = ["method", "trials", "temperature", "max_new_tokens", "keep_rollouts", "seed"]
        names += {
            "fixed": ["threshold"],
            "early_stop": ["threshold", "at_once", "doubling"],
            "sequential": ["low", "high", "error", "at_once", "doubling"],
            "binary_search": ["neighbour", "at_once", "doubling"],
            "cheapest_search": ["neighbour", "at_once", "doubling"],
            "tree": ["neighbour", "searches"],
        }[self.method]
        return {name: getattr(self, name) for name in names} | {"optional_stopping": self.method != "fixed"}

    @property
    def rule(self) -> StoppingRule:
        """When a single step has had enough roll-outs."""
        if self.method == "fixed":
            return FixedTrials(trials=self.trials, threshold=self.threshold)
        if self.method == "sequential":
            return SequentialTest(
                trials=self.trials,
                low=self.low,
                high=self.high,
                error=self.error,
                at_once=self.at_once,
                doubling=self.doubling,
            )
        return EarlyStop(trials=self.trials, threshold=self.threshold, at_once=self.at_once, doubling=self.doubling)
