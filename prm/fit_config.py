"""Settings that every fit has, whatever it learns; free of torch so that the command line can show them.

Settings that could not do anything together are refused here, before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, TypeAlias

from verifiers.errors import ConfigError

Needs: TypeAlias = tuple[str, str, tuple[Any, ...], str]
"""(setting, other setting, values of the other that it needs, why)."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of one fit."""

    init: str
    """Checkpoint to start from."""
    steps: int = 1000
    """Optimiser steps."""
    rows: int = 32
    """Rows an optimiser step, over all processes."""
    micro_rows: int = 32
    """Rows a forward pass of one process; processes times this divides `rows`."""
    rate: float = 1e-4
    """Peak learning rate; warms up over `warmup` steps and falls to 0 along a cosine."""
    warmup: int = 50
    """Steps of linear warm-up."""
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
        require(self, ("lora_rank", "save_steps"), above=False)
        require(self, ("lora_alpha",), above=True)
        if not self.lora_targets or not all(self.lora_targets):
            raise ConfigError(f"lora_targets must name modules, or be 'all-linear'; got {self.lora_targets!r}")
        if not self.lora_rank:
            for name in ("lora_alpha", "lora_targets"):
                if getattr(self, name) != default(self, name):
                    raise ConfigError(
                        f"{name}={getattr(self, name)!r} has no effect without adapters; set lora_rank, or leave it out"
                    )


def default(config: Any, name: str) -> Any:
    """A field's default."""
    return next(field.default for field in fields(config) if field.name == name)


def require(config: Any, names: tuple[str, ...], *, above: bool) -> None:
    """Refuse numbers below 0, or with `above` those that are not above it; infinity and NaN too."""
    for name in names:
        value = getattr(config, name)
        known = isinstance(value, Real) and not isinstance(value, bool)
        if not known or not (value > 0 if above else value >= 0) or not value < math.inf:
            raise ConfigError(f"{name} must be {'above 0' if above else '0 or more'}; got {value!r}")


def require_choices(config: Any, choices: Mapping[str, tuple[str | None, ...]]) -> None:
    """Refuse a value that is none of its choices."""
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            said = " or ".join(map(repr, allowed))
            raise ConfigError(f"{name} must be {said}; got {getattr(config, name)!r}")


def refuse_without_effect(config: Any, needs: tuple[Needs, ...]) -> None:
    """Refuse settings that were changed and need another one that stands otherwise."""
    for name, other, needed, why in needs:
        found = getattr(config, other)
        if getattr(config, name) != default(config, name) and found not in needed:
            raise ConfigError(f"{name}={getattr(config, name)!r} does not go with {other}={found!r}: {why}")
