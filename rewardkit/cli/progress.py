"""Progress for people: a bar on a terminal, one line a minute anywhere else."""

from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Counts towards a total. Call with how many were done."""

    def __init__(self, what: str, total: int, *, every: float = 60.0) -> None:
        self.what, self.total, self.every = what, total, every
        self.done = 0
        self._started = self._said = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=what, file=sys.stderr)

    def __call__(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._said >= self.every:
            self._said = time.monotonic()
            print(f"{self.what}: {self.done}/{self.total}, {self._said - self._started:.0f} s", flush=True)

    def close(self) -> None:
        """Say how long it took."""
        if self._bar is not None:
            self._bar.close()
        seconds = time.monotonic() - self._started
        print(f"{self.what}: {self.done}/{self.total} in {seconds:.0f} s", flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()
