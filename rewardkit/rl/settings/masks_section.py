"""Which tokens count for how much: a section of the table with its own checks; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rewardkit.rl.settings.checks import choose, flag, number, read_by
from verifiers.errors import ConfigError

_ANY = ("off_policy", "reject", "reject_above", "entropy_top", "clip_cov", "cov_low", "cov_high")


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Which tokens count for how much."""

    truncated: bool = False
    """Leave out responses that were cut off at the length limit, from the sums and from what they are divided by."""
    off_policy: float | None = None
    """delta of the off-policy sequence mask: tokens of negative advantage are dropped in responses whose mean
    log(sampler / policy) is above it (DeepSeek-V3.2)."""
    importance: Literal["none", "truncate", "mask"] = "none"
    """Weight e^(o - mu) for a sampler that differs from the trainer: truncate holds it inside the bounds (TIS), mask
    drops what is outside (MIS)."""
    level: Literal["token", "sequence", "geometric"] | None = None
    """Of importance: each token's own ratio, the product over the response, or its geometric mean."""
    low: float | None = None
    """Of importance: lower bound, 0 where None."""
    high: float | None = None
    """Of importance: upper bound, no bound where None."""
    reject: Literal["k1", "k2", "k3"] | None = None
    """Drop whole responses by their mean distance of sampler and trainer: |mean of mu - o|, the mean of half its
    square, or that of e^(o - mu) - (o - mu) - 1."""
    reject_above: float | None = None
    """Of reject: the largest distance that stays."""
    entropy_top: float | None = None
    """Only this share of the optimiser batch's tokens, those of the highest entropy, carry the policy gradient."""
    clip_cov: float | None = None
    """This share of the optimiser batch's tokens, drawn from those whose covariance of log-probability and advantage is
    between `cov_low` and `cov_high`, carries no policy gradient (Clip-Cov)."""
    cov_low: float | None = None
    """Of clip_cov: lower bound, 1 where None."""
    cov_high: float | None = None
    """Of clip_cov: upper bound, 5 where None."""
    keep_sampling: bool = False
    """Probabilities are those among the tokens that top-p and top-k left to the sampler (DeepSeek-V3.2)."""
    keep_routing: bool = False
    """Tokens go to the experts that the sampler sent them to, of a mixture of experts (DeepSeek-V3.2)."""

    def __post_init__(self) -> None:
        for name in ("truncated", "keep_sampling", "keep_routing"):
            flag(f"masks.{name}", getattr(self, name))
        choose("masks.importance", self.importance, Literal["none", "truncate", "mask"])
        if self.importance == "none":
            read_by("masks", self, "importance", (), _ANY)
        else:
            read_by("masks", self, "importance", ("level",), (*_ANY, "low", "high"))
            choose("masks.level", self.level, Literal["token", "sequence", "geometric"])
        for name in ("off_policy", "reject_above", "cov_high"):
            if getattr(self, name) is not None:
                number(f"masks.{name}", getattr(self, name), 0.0, open_=False)
        for name in ("low", "entropy_top", "clip_cov"):
            if getattr(self, name) is not None:
                number(f"masks.{name}", getattr(self, name), 0.0, 1.0)
        if self.high is not None:
            number("masks.high", self.high, 1.0, open_=False)
        if self.importance == "mask" and self.low is None and self.high is None:
            raise ConfigError("masks.importance='mask' without masks.low and masks.high masks nothing; set a bound")
        if self.reject is not None:
            choose("masks.reject", self.reject, Literal["k1", "k2", "k3"])
        if (self.reject is None) is not (self.reject_above is None):
            raise ConfigError(
                f"masks.reject and masks.reject_above go together; got {self.reject!r} and {self.reject_above!r}"
            )
        for name in ("cov_low", "cov_high"):
            if getattr(self, name) is not None and self.clip_cov is None:
                raise ConfigError(
                    f"masks.{name}={getattr(self, name)!r} has no effect without masks.clip_cov; leave it None"
                )
        if self.cov_bounds[0] >= self.cov_bounds[1]:
            raise ConfigError("masks.cov_low must be below masks.cov_high; got {:g} and {:g}".format(*self.cov_bounds))

    @property
    def cov_bounds(self) -> tuple[float, float]:
        """Bounds of clip_cov."""
        return 1.0 if self.cov_low is None else self.cov_low, 5.0 if self.cov_high is None else self.cov_high
