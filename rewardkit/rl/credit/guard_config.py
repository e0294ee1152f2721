"""When the alarms of `guards.py` go off; free of numpy, so that the command line can show it."""

from __future__ import annotations

from dataclasses import dataclass

from verifiers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When the alarms go off."""

    reference: int = 20
    """First training steps, whose means are what drifts are measured against."""
    recent: int = 10
    """Last training steps, whose mean is compared with them."""
    drift: float = 1.5
    """Ratio of recent to reference, or its inverse, beyond which length or step count has drifted."""
    repeated: float = 0.2
    """Share of responses with a repeated step from which on it is an alarm."""
    separators: float = 0.05
    """Share of responses of separators from which on it is an alarm."""
    auc_window: int = 20
    """Training steps whose pairs make the AUC."""
    auc_pairs: int = 50
    """Fewest pairs in the window for its AUC to decide anything."""
    auc_floor: float = 0.55
    """AUC below which the step scores are not trusted."""
    auc_back: float = 0.6
    """AUC from which on they are trusted again."""
    collapse: float = 0.5
    """Share of the best mean reward below which the reward has collapsed."""
    collapse_window: int = 10
    """Training steps of the mean whose best is remembered."""
    collapse_recent: int = 3
    """Last training steps whose mean is compared with the best."""

    def __post_init__(self) -> None:
        for name in ("reference", "recent", "auc_window", "auc_pairs", "collapse_window", "collapse_recent"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more; got {getattr(self, name)!r}")
        if not self.drift > 1.0:
            raise ConfigError(f"drift must be a ratio above 1; got {self.drift!r}")
        for name in ("repeated", "separators", "collapse"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be a share above 0 and at most 1; got {getattr(self, name)!r}")
        if not 0.0 <= self.auc_floor <= self.auc_back <= 1.0:
            raise ConfigError(
                f"0 <= auc_floor <= auc_back <= 1 must hold; got {self.auc_floor!r} and {self.auc_back!r}"
            )
