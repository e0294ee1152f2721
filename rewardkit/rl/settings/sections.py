"""The columns of the table of algorithms, each a frozen section with its own settings; free of torch.

A setting that belongs to one kind of a section is None unless it is given. Given where its kind does not read it, it
is refused; so is a kind that lacks a number it needs. What two sections must not say together is in `table_rules`. The
sections of the KL (`kl_settings`) and of masks (`mask_settings`) are given from here as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rewardkit.rl.settings.checks import choose, number, read_by
from rewardkit.rl.settings.kl_section import Kl as Kl
from rewardkit.rl.settings.masks_section import Masks as Masks
from verifiers.errors import ConfigError

Estimator: TypeAlias = Literal[
    "group", "rloo", "mean", "batch", "soft", "zero", "global", "gae", "none", "step", "step_min", "implicit"
]
Aggregation: TypeAlias = Literal["token", "sequence", "sequence_sum", "constant", "group"]
Filter: TypeAlias = Literal["none", "outcome", "reward"]


@dataclass(frozen=True, kw_only=True)
class Advantage:
    """From rewards to the advantage of every token; formulas in `advantages`."""

    kind: Estimator = "group"
    """group: reward minus the group's mean; rloo: minus the mean of the others; mean: minus the batch's mean; batch:
    minus the group's mean, over the batch's deviation; soft: minus T log of the group's mean e^(reward / T); zero: 0,
    a KL alone teaches; global: return of a token, whitened over all tokens; gae: with a critic; none: return of a token
    as it is; step: lambda-return over steps; step_min: soft minimum over steps; implicit: leave-one-out reward plus the
    return of leave-one-out token rewards of an implicit reward model (PRIME)."""
    scale: Literal["std", "none"] = "std"
    """std: divided by a deviation (n - 1): of the group, of the batch for mean and batch, of all tokens for global,
    gae and implicit, of the group's summed rewards for step kinds."""
    eps: float = 1e-4
    """Added to that deviation."""
    gamma: float | None = None
    """Discount a token; of global, gae, none and implicit alone, 1 where None."""
    lam: float | None = None
    """Lambda of gae (a token) and step (a step): 1 trusts what came out, 0 trusts the critic or the step scores."""
    baseline: Literal["group", "others", "tokens"] | None = None
    """Subtracted beside: group, the group's mean reward (of global); others, what tokens of the other responses of the
    group have on average (of step); tokens, PURE's: the others' step rewards a token, for each token to go, and their
    mean reward (of step_min)."""
    temperature: float | None = None
    """Of step_min: how soft the minimum is; of soft: T."""
    smooth_right: float | None = None
    """gamma_p: right responses get - gamma_p log pi_old(response) on top, so that rare ones gain (differential
    smoothing); of kinds with one advantage a response."""
    smooth_wrong: float | None = None
    """gamma_n: wrong ones get + gamma_n log pi_old(response), so that rare ones lose."""

    def __post_init__(self) -> None:
        choose("advantage.kind", self.kind, Estimator)
        choose("advantage.scale", self.scale, Literal["std", "none"])
        number("advantage.eps", self.eps, 0.0)
        needs = {"gae": ("lam",), "step": ("lam",), "step_min": ("temperature",), "soft": ("temperature",)}
        may: dict[str, tuple[str, ...]] = {
            "gae": ("gamma",),
            "none": ("gamma",),
            "implicit": ("gamma",),
            "global": ("gamma", "baseline"),
            "step": ("baseline",),
            "step_min": ("baseline",),
        }
        smooth = () if self.by_token or self.kind == "zero" else ("smooth_right", "smooth_wrong")
        read_by("advantage", self, "kind", needs.get(self.kind, ()), may.get(self.kind, ()) + smooth)
        for name in ("smooth_right", "smooth_wrong"):
            if getattr(self, name) is not None:
                number(f"advantage.{name}", getattr(self, name), 0.0, open_=False)
        for name in ("gamma", "lam"):
            if getattr(self, name) is not None:
                number(f"advantage.{name}", getattr(self, name), 0.0, 1.0, open_=False)
        if self.temperature is not None:
            number("advantage.temperature", self.temperature, 0.0)
        fitting = {"global": "group", "step": "others", "step_min": "tokens"}.get(self.kind)
        if self.baseline not in (None, fitting):
            raise ConfigError(
                f"advantage.baseline of advantage.kind={self.kind!r} must be None or {fitting!r}; got {self.baseline!r}"
            )
        if self.kind in ("batch", "global") and self.scale == "none":
            raise ConfigError(
                f"advantage.kind={self.kind!r} is a deviation over the batch; set scale 'std', or another kind"
            )
        if self.kind in ("rloo", "none", "soft", "zero") and self.scale == "std":
            raise ConfigError(
                f"advantage.kind={self.kind!r} has no deviation to divide by, it would no longer be unbiased; "
                "set scale 'none'"
            )

    @property
    def by_token(self) -> bool:
        """Whether tokens of one response may have different advantages."""
        return self.kind in ("global", "gae", "none", "step", "step_min", "implicit")

    @property
    def smooths(self) -> bool:
        """Whether a response's own probability changes its advantage."""
        return bool(self.smooth_right or self.smooth_wrong)

    @property
    def discount(self) -> float:
        """gamma, or 1."""
        return 1.0 if self.gamma is None else self.gamma


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """What the new policy is compared with, and on which level."""

    level: Literal["token", "sequence", "sequence_token", "none"] = "token"
    """token: e^(l - o); sequence: its geometric mean over the response (GSPO); sequence_token: the same value, with
    each token's own gradient; none: no ratio, the plain policy gradient."""
    anchor: Literal["old", "sampler"] = "old"
    """o: log-probabilities of the policy before this batch's updates, or those that the sampler reported."""

    def __post_init__(self) -> None:
        choose("ratio.level", self.level, Literal["token", "sequence", "sequence_token", "none"])
        choose("ratio.anchor", self.anchor, Literal["old", "sampler"])


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What holds an update back."""

    kind: Literal["ppo", "cispo", "dppo", "mask", "mirror", "none"] = "none"
    """ppo: pessimistic clipping of the ratio; cispo: capped ratio as a weight; dppo: tokens whose probability moved too
    far are left out; mask: tokens that PPO would clip are left out, the ratio is a weight (MiniRL); mirror: squared
    log-ratio of the response (Kimi k1.5)."""
    low: float | None = None
    """Of ppo and mask: the ratio is cut below 1 - low."""
    high: float | None = None
    """Of ppo and mask: the ratio is cut above 1 + high."""
    dual: float | None = None
    """Of ppo: c of the dual clip, bounds the loss of a negative advantage at c times it."""
    cap: float | None = None
    """Of cispo and mask: most that a ratio weighs."""
    delta: float | None = None
    """Of dppo: how far a token's probability may move in the advantage's direction."""
    tau: float | None = None
    """Of mirror: weight of the squared log-ratio, halved."""

    def __post_init__(self) -> None:
        choose("clip.kind", self.kind, Literal["ppo", "cispo", "dppo", "mask", "mirror", "none"])
        ends = ("low", "high")
        needs = {"ppo": ends, "mask": ends, "cispo": ("cap",), "dppo": ("delta",), "mirror": ("tau",)}
        may = {"ppo": ("dual",), "mask": ("cap",)}
        if self.kind == "cispo" and self.cap is not None and not self.cap > 1:
            raise ConfigError(
                f"clip.cap of cispo is the ratio's own upper bound and must be above 1, or every weight is cut even on "
                f"policy; got {self.cap!r}, the paper's is about 5"
            )
        read_by("clip", self, "kind", needs.get(self.kind, ()), may.get(self.kind, ()))
        if self.low is not None:
            number("clip.low", self.low, 0.0, 1.0)
        for name in ("high", "delta", "tau"):
            if getattr(self, name) is not None:
                number(f"clip.{name}", getattr(self, name), 0.0, 1.0 if name == "delta" else math.inf)
        if self.dual is not None:
            number("clip.dual", self.dual, 1.0)
        if self.cap is not None:
            number("clip.cap", self.cap, 1.0)


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """What is added to the reward of a response; never to its outcome, which filters look at."""

    overlong: float | None = None
    """Weight of DAPO's soft overlong punishment."""
    cache: float | None = None
    """Of overlong: share of the length limit before which it starts (0.2 where None: 4,096 of 20,480 in the paper)."""
    length: float | None = None
    """Weight of the length reward within a group (Kimi k1.5)."""
    length_after: int | None = None
    """Of length: steps without it at the beginning (Kimi k1.5 brings it in late)."""
    repetition: float | None = None
    """Weight of the penalty on repeated n-grams."""
    ngram: int | None = None
    """Of repetition: n (3 where None)."""

    def __post_init__(self) -> None:
        for name in ("overlong", "length", "length_after", "repetition", "ngram"):
            if getattr(self, name) is not None:
                number(f"shaping.{name}", getattr(self, name), 0.0)
        for name in ("length_after", "ngram"):
            if not isinstance(getattr(self, name), int | None):
                raise ConfigError(f"shaping.{name} must be a whole number; got {getattr(self, name)!r}")
        if self.cache is not None:
            number("shaping.cache", self.cache, 0.0, 1.0)
        for name, owner in (("cache", "overlong"), ("length_after", "length"), ("ngram", "repetition")):
            if getattr(self, name) is not None and getattr(self, owner) is None:
                raise ConfigError(
                    f"shaping.{name}={getattr(self, name)!r} has no effect without shaping.{owner}; leave it None"
                )

    @property
    def any(self) -> bool:
        """Whether rewards are shaped."""
        return not (self.overlong is None and self.length is None and self.repetition is None)


@dataclass(frozen=True, kw_only=True)
class Critic:
    """How values are learned, beside the policy."""

    coefficient: float = 0.1
    """Weight of the value loss."""
    clip: float | None = None
    """How far a value may move from the one that advantages were made with before its loss stops to fall."""

    def __post_init__(self) -> None:
        number("critic.coefficient", self.coefficient, 0.0)
        if self.clip is not None:
            number("critic.clip", self.clip, 0.0)


@dataclass(frozen=True, kw_only=True)
class Implicit:
    """The implicit process reward model that PRIME trains beside the policy: a copy of it, phi.

    A token's reward is beta (log phi - log of the copy's beginning); phi learns from outcomes alone.
    """

    beta: float = 0.05
    """Of the log-ratio."""
    order: Literal["before", "after"] = "before"
    """before: phi learns from a batch and then rewards it; after: it rewards first, which saves a pass."""

    def __post_init__(self) -> None:
        number("implicit.beta", self.beta, 0.0)
        choose("implicit.order", self.order, Literal["before", "after"])
