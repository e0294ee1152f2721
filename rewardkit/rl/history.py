"""What is told of a run at its end, kept with its checkpoints: a resumed run tells of all of it, not of its rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class History:
    """The ends of a run's curves, and its alarms; a resumed run has those of what it goes on with."""

    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    alarms: dict[str, int] = field(default_factory=dict)
    """Guard -> the first step at which it rang."""

    def note(self, name: str, value: float) -> None:
        """A further point of a curve."""
        self.first.setdefault(name, value)
        self.last[name] = value

    def to_state(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """What `to_state` gave."""
        return cls(**state)
