"""Settings of one fit of a process reward model, free of torch so that the command line can show them.

Settings that could not do anything together are refused here, before anything is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from verifiers.errors import ConfigError

_CHOICES = {
    "head": ("two-label", "scalar", "implicit"),
    "loss": ("bce", "pqm"),
    "labels": ("hard", "soft"),
    "weighting": ("counts", "steps"),
}

_ONLY_WITH: tuple[tuple[str, str, tuple[Any, ...], str], ...] = (
    ("pqm_margin", "loss", ("pqm",), "it is the margin of that ranking loss"),
    ("beta", "head", ("implicit",), "it scales the log-ratio of that head"),
    ("reference", "head", ("implicit",), "no other head compares with a reference"),
    ("weighting", "loss", ("bce",), "a ranking has no counts to weigh"),
    ("loss", "head", ("two-label", "scalar"), "an implicit model learns from outcomes alone and has no steps to rank"),
    ("stop_at_first_error", "head", ("two-label", "scalar"), "an implicit model learns from outcomes alone"),
    ("lm_weight", "head", ("two-label", "scalar"), "an implicit model's own log-probabilities are what is trained"),
    ("extra_layers", "head", ("two-label", "scalar"), "an implicit model keeps the layers of its reference"),
    ("freeze_init", "head", ("two-label", "scalar"), "an implicit model has no head that could learn alone"),
    ("surprisal_weight", "head", ("two-label", "scalar"), "an implicit model has no added layers to help"),
    ("extra_layers", "lora_rank", (0,), "added layers are trained whole"),
    ("freeze_init", "lora_rank", (0,), "LoRA keeps the language model fixed and adapts it at once"),
    ("surprisal_weight", "lora_rank", (0,), "its read-outs sit on added layers, which are trained whole"),
)
"""(setting, other setting, values of the other that it needs, why)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one fit."""

    init: str
    """Checkpoint to start from: a causal language model, or a process reward model to go on with."""
    steps: int = 1000
    """Optimiser steps."""
    rows: int = 32
    """Responses an optimiser step, over all processes."""
    micro_rows: int = 32
    """Responses a forward pass of one process; processes times this divides `rows`."""
    rate: float = 1e-4
    """Peak learning rate; warms up over `warmup` steps and falls to 0 along a cosine."""
    warmup: int = 50
    """Steps of linear warm-up."""
    head: Literal["two-label", "scalar", "implicit"] = "two-label"
    """two-label or scalar: token classification with 2 labels or 1; implicit: a language model trained on outcomes
    alone, whose step score is beta times its log-ratio to a reference (arXiv 2412.01981)."""
    loss: Literal["bce", "pqm"] = "bce"
    """bce: binomial likelihood of each label by itself; pqm: ranking of the steps within a response (arXiv
    2410.11287), which needs hard labels."""
    labels: Literal["hard", "soft"] = "soft"
    """soft: shares of successes; hard: any success, or the label another rule decided."""
    weighting: Literal["counts", "steps"] = "counts"
    """counts: a step counts by its trials; steps: every step counts once."""
    stop_at_first_error: bool = False
    """Leave the labels behind the first bad step of a response out of the loss."""
    pqm_margin: float = 4.0
    """How far wrong steps must stay below right ones in the ranking (zeta)."""
    beta: float = 0.05
    """Scale of the implicit head's log-ratio."""
    reference: str = ""
    """Reference of the implicit head: a checkpoint folder or hub id; empty: `init`, or its own where it is implicit."""
    lm_weight: float = 0.0
    """Weight of the next-token loss on steps from which some roll-out succeeded, per labelled step."""
    extra_layers: int = 0
    """Decoder layers added on top of `init`, at first without effect (block expansion): checking a step reads the
    predictions that the language model made, and a small model has no layer left to do so."""
    freeze_init: bool = False
    """Keep the language model fixed: only the added layers and the head are trained."""
    surprisal_weight: float = 0.0
    """Weight of a helper loss on every response token: the added layers say how unexpected the token, and the least
    expected one so far, was to the language model under them. It needs at least two added layers."""
    lora_rank: int = 0
    """Rank of LoRA adapters on the language model (arXiv 2106.09685), merged before saving; 0 trains all weights."""
    lora_alpha: float = 16.0
    """Scale of the adapters: their product is multiplied by lora_alpha / lora_rank."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the modules that get adapters; all-linear: every linear layer below the head."""
    bf16: bool = False
    """Compute in bfloat16 (weights stay float32)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    save_steps: int = 0
    """Optimiser steps between checkpoints that a run can go on from; 0 keeps none."""
    seed: int = 0
    """Seed of the head's initial weights and of the order of rows."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rows < 1:
            raise ConfigError(f"steps and rows must be 1 or more; got {self.steps!r} and {self.rows!r}")
        if self.micro_rows < 1 or self.rows % self.micro_rows:
            raise ConfigError(f"micro_rows must divide rows; got {self.micro_rows!r} for {self.rows!r} rows a step")
        if not self.rate > 0 or self.warmup < 0:
            raise ConfigError(f"rate must be above 0 and warmup 0 or more; got {self.rate!r} and {self.warmup!r}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                said = " or ".join(map(repr, allowed))
                raise ConfigError(f"{name} must be {said}; got {getattr(self, name)!r}")
        for name in ("extra_layers", "lm_weight", "surprisal_weight", "lora_rank", "save_steps", "pqm_margin"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be 0 or more; got {getattr(self, name)!r}")
        for name in ("beta", "lora_alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0; got {getattr(self, name)!r}")
        if not self.lora_targets or not all(self.lora_targets):
            raise ConfigError(f"lora_targets must name modules, or be 'all-linear'; got {self.lora_targets!r}")
        self._refuse_what_has_no_effect()

    def _refuse_what_has_no_effect(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for name, other, needed, why in _ONLY_WITH:
            found = getattr(self, other)
            if getattr(self, name) != defaults[name] and found not in needed:
                raise ConfigError(f"{name}={getattr(self, name)!r} does not go with {other}={found!r}: {why}")
        if self.loss == "pqm" and self.labels != "hard":
            raise ConfigError(
                f"labels={self.labels!r} does not go with loss='pqm': a ranking needs steps that are right or wrong; "
                "set labels to 'hard'"
            )
        if not self.lora_rank:
            for name in ("lora_alpha", "lora_targets"):
                if getattr(self, name) != defaults[name]:
                    raise ConfigError(
                        f"{name}={getattr(self, name)!r} has no effect without adapters; set lora_rank, or leave it out"
                    )
