"""Settings of step rewards, free of numpy so that the command line can show them; formulas in `step_rewards.py`.

`StepConfig` is everything that a batch's step rewards and their advantages need. In a run the table of algorithms has
lambda, the soft minimum's temperature, scale and eps already (`--change advantage.lam=0.5`), and its kind of advantage
says whether steps are summed up or their soft minimum is taken; `StepChoice` holds what is left to choose, and makes a
`StepConfig` of both, so that nothing is set in two places:

    advantage.kind    rule of a step             lambda
    step              marginal (or none given)   advantage.lam
    step              clip, delta, sum           must be 1: their rewards are summed to the end
    step_min          min (or none given)        none
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from prm.fit_config import refuse_without_effect, require_choices
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError

Rule: TypeAlias = Literal["marginal", "clip", "delta", "min", "sum"]
Start: TypeAlias = Literal["outcomes", "scores"]


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How step scores become advantages."""

    rule: Rule = "marginal"
    """marginal, clip, delta, min or sum: what a step earns."""
    anchor: bool = True
    """Of marginal: the last Phi is the outcome; False leaves the scorer's own."""
    start: float | None = None
    """Of marginal: Phi_0; None takes a mean of the group."""
    start_from: Start | None = None
    """Of marginal without a start: the mean of the group's outcomes, or of its responses' first scores. None: outcomes
    where the anchor is, scores without it."""
    lam: float = 0.5
    """Of marginal: lambda over steps; 1 trusts outcomes alone, 0 the scorer as a value function."""
    eta: float | None = None
    """Of clip: its threshold. Of marginal: most that a step may earn, which gives up the identity of the sum."""
    temperature: float = 0.1
    """Of min: how soft the minimum is."""
    outcome_weight: float = 0.0
    """What the outcome adds at the last step, times itself; an anchored rule holds it already."""
    scale: Literal["group", "none"] = "group"
    """Advantages over the deviation of the group's totals, or as they are."""
    eps: float = 1e-4
    """Added to that deviation."""

    def __post_init__(self) -> None:
        choices = {"scale": ("group", "none"), "start_from": (None, "outcomes", "scores")}
        require_choices(self, {"rule": ("marginal", "clip", "delta", "min", "sum"), **choices})
        marginal = "marginal rewards alone have Phi as their value function"
        refuse_without_effect(
            self,
            (
                ("anchor", "rule", ("marginal",), marginal),
                ("start", "rule", ("marginal",), marginal),
                ("start_from", "rule", ("marginal",), marginal),
                ("start_from", "start", (None,), "that is where Phi begins"),
                ("lam", "rule", ("marginal",), marginal),
                ("eta", "rule", ("marginal", "clip"), "nothing is cut there"),
                ("temperature", "rule", ("min",), "only a soft minimum has one"),
                ("eps", "scale", ("group",), "nothing is divided"),
            ),
        )
        if not 0.0 <= self.lam <= 1.0:
            raise ConfigError(f"lam must lie between 0 and 1; got {self.lam!r}")
        if not self.temperature > 0.0 or not self.eps >= 0.0:
            raise ConfigError(
                f"temperature must be above 0 and eps 0 or more; got {self.temperature!r} and {self.eps!r}"
            )
        if not all(math.isfinite(value) for value in (self.start or 0.0, self.eta or 0.0, self.outcome_weight)):
            raise ConfigError(
                f"start, eta and outcome_weight must be finite; got {self.start!r}, {self.eta!r} and "
                f"{self.outcome_weight!r}"
            )
        if self.rule == "clip" and self.eta is None:
            raise ConfigError("rule='clip' needs a threshold; set eta, such as 0.5")
        if self.anchored and self.outcome_weight:
            raise ConfigError(
                f"outcome_weight={self.outcome_weight!r} would count the outcome twice, as the anchor holds it; leave "
                "it 0, or set anchor=False"
            )

    @property
    def anchored(self) -> bool:
        """Whether the sum of a response's rewards is its outcome minus Phi_0."""
        return self.rule == "marginal" and self.anchor

    @property
    def starts_from(self) -> Start:
        """Where Phi_0 comes from where no start is given."""
        return self.start_from or ("outcomes" if self.anchor else "scores")


@dataclass(frozen=True, kw_only=True)
class StepChoice:
    """What a step earns in a run, beside what the table says."""

    rule: Rule | None = None
    """What a step earns, of its score Phi: marginal, what it adds to Phi; clip, Phi under a threshold; delta, Phi minus
    the next one; sum, Phi itself; min, the soft minimum (of advantage.kind step_min alone, and its only one). None:
    min there, marginal elsewhere."""
    anchor: bool = True
    """Of marginal: the last Phi is the outcome, so that the model's last score cannot be hacked."""
    start: float | None = None
    """Of marginal: Phi before the first step; a mean of the group by default."""
    start_from: Start | None = None
    """Of marginal without a start: the mean of the group's outcomes, as by default with the anchor, or of its
    responses' first scores, which is what the scorer itself says of the prompt, as by default without it."""
    eta: float | None = None
    """Of clip: its threshold. Of marginal: most that a step may earn."""
    outcome_weight: float | None = None
    """Weight of the response's own reward, at its last step; 1 by default. An anchored rule holds it already."""

    def config(self, table: Table, *, group: int) -> StepConfig:
        """All settings of a run with this table and so many responses a problem.

        Raises ConfigError for what contradicts them or has no effect.
        """
        advantage, given = table.advantage, [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if advantage.kind not in ("step", "step_min"):
            if given:
                raise ConfigError(
                    f"step {given[0]}={getattr(self, given[0])!r} has no effect with advantage.kind="
                    f"{advantage.kind!r}, which credits no steps; use preset prm_step or pure, or leave it out"
                )
            return StepConfig()
        rule = self.rule or ("min" if advantage.kind == "step_min" else "marginal")
        if (rule == "min") is not (advantage.kind == "step_min"):
            other = "preset pure" if rule == "min" else "preset prm_step"
            raise ConfigError(
                f"step rule={rule!r} contradicts advantage.kind={advantage.kind!r}, which takes "
                f"{'the soft minimum' if advantage.kind == 'step_min' else 'sums'} over steps; use {other}, or "
                "leave the rule out"
            )
        if rule not in ("marginal", "min") and advantage.lam != 1:
            raise ConfigError(
                f"step rule={rule!r} sums rewards to the end, and advantage.lam={advantage.lam!r} would fade them out; "
                "set advantage.lam=1"
            )
        if group == 1:
            self._refuse_lone(rule)
        weight = self.outcome_weight
        if weight is None:
            weight = 0.0 if rule == "marginal" and self.anchor else 1.0
        return StepConfig(
            rule=rule,
            anchor=self.anchor,
            start=self.start,
            start_from=self.start_from,
            eta=self.eta,
            lam=StepConfig.lam if rule != "marginal" or advantage.lam is None else advantage.lam,
            temperature=StepConfig.temperature if advantage.temperature is None else advantage.temperature,
            outcome_weight=weight,
            scale="group" if advantage.scale == "std" else "none",
            eps=advantage.eps if advantage.scale == "std" else StepConfig.eps,
        )

    def _refuse_lone(self, rule: Rule) -> None:
        """Raise ConfigError for what needs other responses to the same problem."""
        if rule == "marginal" and self.start is None:
            raise ConfigError(
                "group=1 leaves no mean of a group for Phi_0, and with the response's own its first step, or all of "
                "it, would earn nothing; set a step start, such as the policy's pass@1, or make group larger"
            )
        if rule not in ("marginal", "min"):
            raise ConfigError(
                f"step rule={rule!r} has the group's mean total taken away, which with group=1 is the response's own; "
                "make group larger, or use rule 'marginal'"
            )
