"""Settings of one fit of a process reward model, free of torch so that the command line can show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verifiers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one fit."""

    init: str
    """Checkpoint to start from: a causal language model, or a process reward model to go on with."""
    steps: int = 1000
    """Optimiser steps."""
    rows: int = 32
    """Responses an optimiser step."""
    micro_rows: int = 32
    """Responses a forward pass; divides `rows`."""
    rate: float = 1e-4
    """Peak learning rate; warms up over `warmup` steps and falls to 0 along a cosine."""
    warmup: int = 50
    """Steps of linear warm-up."""
    labels: Literal["hard", "soft"] = "soft"
    """soft: shares of successes; hard: any success."""
    weighting: Literal["counts", "steps"] = "counts"
    """counts: a step counts by its trials; steps: every step counts once."""
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
    bf16: bool = False
    """Compute in bfloat16 (weights stay float32)."""
    seed: int = 0
    """Seed of the head's initial weights and of the order of rows."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rows < 1:
            raise ConfigError(f"steps and rows must be 1 or more; got {self.steps!r} and {self.rows!r}")
        if self.micro_rows < 1 or self.rows % self.micro_rows:
            raise ConfigError(f"micro_rows must divide rows; got {self.micro_rows!r} for {self.rows!r} rows a step")
        if self.extra_layers < 0:
            raise ConfigError(f"extra_layers must be 0 or more; got {self.extra_layers!r}")
        if not self.rate > 0 or self.warmup < 0:
            raise ConfigError(f"rate must be above 0 and warmup 0 or more; got {self.rate!r} and {self.warmup!r}")
        if self.labels not in ("hard", "soft"):
            raise ConfigError(f"labels must be 'hard' or 'soft'; got {self.labels!r}")
        if self.weighting not in ("counts", "steps"):
            raise ConfigError(f"weighting must be 'counts' or 'steps'; got {self.weighting!r}")
        for name in ("lm_weight", "surprisal_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more; got {getattr(self, name)!r}")
