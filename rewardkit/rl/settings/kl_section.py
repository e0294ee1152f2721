"""What holds the policy near another one: a section of the table with its own checks; free of torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from rewardkit.rl.settings.checks import choose, number, read_by
from verifiers.errors import ConfigError

Target: TypeAlias = Literal["none", "ref", "teacher", "old", "sampler"]
KlEstimator: TypeAlias = Literal["k1", "k2", "k2_seq", "k3", "k3_is", "abs", "full"]
Place: TypeAlias = Literal["reward", "loss", "advantage"]
Only: TypeAlias = Literal["all", "wrong", "failed", "covariance"]


@dataclass(frozen=True, kw_only=True)
class Kl:
    """What holds the policy near another one; which objective an estimator has in which place is told in `kl`."""

    target: Target = "none"
    """none: nothing; ref: the policy as the run began; teacher: another model; old: the policy before this batch's
    updates; sampler: the one that drew, by the log-probabilities that it reported."""
    estimator: KlEstimator = "k1"
    """k1: l - f; k2: half its square; k2_seq: half the square of its sum; k3: e^(f - l) - (f - l) - 1; k3_is: k3 times
    the ratio, which carries gradient; abs: |l - f|; full: the divergence itself, summed over the vocabulary."""
    place: Place = "reward"
    """reward: taken from each token's reward; loss: beside the objective; advantage: taken from each token's own
    advantage alone."""
    coefficient: float = 0.0
    """beta."""
    mix: float | None = None
    """Of full: 1 (where None) is KL(policy, target), 0 is KL(target, policy), between them the generalised
    Jensen-Shannon divergence with this share of the target."""
    only: Only = "all"
    """all responses; wrong: those that are not right; failed: those of groups without a right one; covariance: the
    `share` of tokens whose log-probability and advantage go together most (KL-Cov)."""
    share: float | None = None
    """Of only=covariance: share of the optimiser batch's tokens."""
    credit: Literal["to_go", "sequence"] | None = None
    """Of k1 in reward with a sequence's advantage: to_go (where None), a token answers for itself and what follows;
    sequence, the whole sum is part of the response's reward before the baseline."""
    schedule: Literal["constant", "linear", "adaptive"] = "constant"
    """constant; linear, from `coefficient` to `final` over `steps` steps; adaptive, towards the KL `aim`."""
    final: float | None = None
    """Of linear: the last coefficient."""
    steps: int | None = None
    """Of linear: optimiser steps that it takes."""
    aim: float | None = None
    """Of adaptive: KL a token that is aimed at."""
    horizon: float | None = None
    """Of adaptive: responses over which the coefficient grows by the relative error."""

    def __post_init__(self) -> None:
        choose("kl.target", self.target, Target)
        choose("kl.estimator", self.estimator, KlEstimator)
        choose("kl.place", self.place, Place)
        choose("kl.only", self.only, Only)
        choose("kl.schedule", self.schedule, Literal["constant", "linear", "adaptive"])
        if self.target == "none":
            for field in fields(self):
                if getattr(self, field.name) != field.default:
                    raise ConfigError(
                        f"kl.{field.name}={getattr(self, field.name)!r} has no effect with kl.target='none'; set "
                        "kl.target 'ref', or leave the section out"
                    )
            return
        number("kl.coefficient", self.coefficient, 0.0)
        if self.credit is not None:
            choose("kl.credit", self.credit, Literal["to_go", "sequence"])
        needs = {"linear": ("final", "steps"), "adaptive": ("aim", "horizon")}
        read_by("kl", self, "schedule", needs.get(self.schedule, ()), ("credit", "mix", "share"))
        if self.final is not None:
            number("kl.final", self.final, 0.0, open_=False)
        for name in ("steps", "aim", "horizon"):
            if getattr(self, name) is not None:
                number(f"kl.{name}", getattr(self, name), 0.0)
        if self.mix is not None:
            number("kl.mix", self.mix, 0.0, 1.0, open_=False)
        if self.share is not None:
            number("kl.share", self.share, 0.0, 1.0)
        self._check_kinds()

    def _check_kinds(self) -> None:
        if self.mix is not None and self.estimator != "full":
            raise ConfigError(
                f"kl.mix={self.mix!r} has no effect with kl.estimator={self.estimator!r}; set kl.estimator 'full', or "
                "leave it None"
            )
        if (self.share is None) is (self.only == "covariance"):
            raise ConfigError(
                f"kl.share goes with kl.only='covariance' and with nothing else; got {self.share!r} and {self.only!r}"
            )
        if self.target in ("old", "sampler") and (self.place != "loss" or self.estimator in ("k1", "full")):
            raise ConfigError(
                f"kl.target={self.target!r} holds the new policy near the one that drew and works in the loss, with "
                f"k2, k2_seq, k3, k3_is or abs; got {self.estimator!r} in the {self.place}"
            )
        if self.estimator == "abs" and self.target not in ("old", "sampler"):
            raise ConfigError(
                f"kl.estimator='abs' is KL-Cov's step away from the old policy and no KL to another one; got target "
                f"{self.target!r}, use k2"
            )
        if self.estimator == "full" and self.place != "loss":
            raise ConfigError(
                f"kl.estimator='full' is a function of the policy and no sample of it, so it belongs in the loss; got "
                f"{self.place!r}"
            )
        if self.only == "covariance" and self.place != "loss":
            raise ConfigError(f"kl.only='covariance' picks tokens of the loss; got kl.place={self.place!r}, set 'loss'")

    @property
    def other_model(self) -> bool:
        """Whether it is taken to a model that must be read beside the policy."""
        return self.target in ("ref", "teacher")

    @property
    def in_loss(self) -> bool:
        """Whether the loss has a KL term."""
        return self.target != "none" and self.place == "loss"
