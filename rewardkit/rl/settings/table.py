"""One table for every policy-gradient method: a method is a row of settings, and nothing else; free of torch.

    advantage x ratio (level, anchor) x clip x KL x aggregation x masks x filter x shaping (+ critic, entropy, ptx)

What is minimised is one sum over the tokens of an optimiser batch,

    sum_t  w_t [ surrogate_t + beta KL_t - c_H H_t + c_V value_t ]  +  c_ptx NLL

with ONE weight tensor w (masks x aggregation x importance weights), built before the batch is cut into micro-batches
(`weights`). Combinations that contradict each other are refused at construction, each with its reason (`table_rules`).
A later method is a further value of a column.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from rewardkit.rl.settings.checks import choose, number
from rewardkit.rl.settings.rules import RULES, cautions
from rewardkit.rl.settings.sections import (
    Advantage,
    Aggregation,
    Clip,
    Critic,
    Filter,
    Implicit,
    Kl,
    Masks,
    Ratio,
    Shaping,
)
from verifiers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Table:
    """One method: a row of the table."""

    advantage: Advantage = field(default_factory=Advantage)
    """From rewards to advantages."""
    ratio: Ratio = field(default_factory=Ratio)
    """Level and anchor of the importance ratio."""
    clip: Clip = field(default_factory=Clip)
    """What holds an update back."""
    kl: Kl = field(default_factory=Kl)
    """What holds the policy near another one."""
    aggregation: Aggregation = "token"
    """Divisor of a token's loss: token, all tokens of the batch; sequence, its response's tokens and then the number of
    responses; sequence_sum, the number of responses; constant, that times the length limit; group, its group's tokens
    and then the number of groups."""
    masks: Masks = field(default_factory=Masks)
    """Which tokens count for how much."""
    filter: Filter = "none"
    """Leave out groups that have nothing to tell: all outcomes (outcome) or all rewards (reward) in them are equal."""
    shaping: Shaping = field(default_factory=Shaping)
    """What is added to rewards."""
    critic: Critic | None = None
    """How values are learned; of advantage kind gae alone."""
    implicit: Implicit | None = None
    """How an implicit reward model is learned beside the policy; of advantage kind implicit alone."""
    layer: int | None = None
    """For the first `layer_steps` steps the policy that is trained is the one that layer number `layer` (from 0) would
    have as the last one: its hidden states through the final norm and the head (bottom-up policy optimisation)."""
    layer_steps: int | None = None
    """Of layer: steps before the whole model is trained."""
    entropy: float = 0.0
    """Weight of the entropy bonus."""
    ptx: float = 0.0
    """Weight of the next-token loss on text of the pretraining kind (InstructGPT's PPO-ptx)."""

    def __post_init__(self) -> None:
        choose("aggregation", self.aggregation, Aggregation)
        choose("filter", self.filter, Filter)
        number("entropy", self.entropy, 0.0, open_=False)
        number("ptx", self.ptx, 0.0, open_=False)
        for name in ("layer", "layer_steps"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), 0, open_=name == "layer_steps")
            if not isinstance(getattr(self, name), int | None):
                raise ConfigError(f"{name} must be a whole number; got {getattr(self, name)!r}")
        for rules in RULES:
            for broken, reason in rules(self):
                if broken:
                    raise ConfigError(reason)

    @property
    def uses_anchor(self) -> bool:
        """Whether the loss compares the new policy with the one that it is anchored to."""
        return self.ratio.level != "none" or self.clip.kind == "mirror" or self.kl.estimator == "k3_is"

    @property
    def reads_rewards(self) -> bool:
        """Whether a response needs a reward to be learned from."""
        return self.advantage.kind != "zero"

    @property
    def looks(self) -> bool:
        """Whether an optimiser batch is read before it is learned from, to pick tokens of it (`picks`)."""
        return self.masks.entropy_top is not None or self.masks.clip_cov is not None or self.kl.only == "covariance"

    def at(self, step: int) -> Table:
        """The table of a step (from 0): without the layer and with the length reward once their time has come."""
        found = self
        if found.layer_steps is not None and step >= found.layer_steps:
            found = replace(found, layer=None, layer_steps=None)
        if found.shaping.length_after is not None:
            late = step >= found.shaping.length_after
            length = found.shaping.length if late else None
            found = replace(found, shaping=replace(found.shaping, length=length, length_after=None))
        return found

    def cautions(self) -> tuple[str, ...]:
        """What is allowed and should be known before a run, a sentence each."""
        return tuple(cautions(self))
