"""Seconds by phase: each `note` names what has just ended and adds the seconds since the last one to it."""

from __future__ import annotations

import time


class Clock:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        """Phase -> seconds."""
        self._since = time.perf_counter()

    def note(self, name: str) -> None:
        """A phase has ended."""
        now = time.perf_counter()
        self.spent[name] = self.spent.get(name, 0.0) + now - self._since
        self._since = now
