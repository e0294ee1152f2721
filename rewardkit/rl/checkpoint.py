"""All that a run needs to go on as if nothing had happened, written so that a kill loses at most the write itself.

A checkpoint is a folder step-000012 with the models' and optimisers' state (torch), the random states of torch, numpy
and Python, and whatever plain state the loop has (position, guards, controllers). It is written under another name and
renamed when all of it is on the disk, so a folder of that name is whole; the one before is removed only then. Metrics
are rows with their step: what lies behind the checkpoint is cut off when a run goes on, and comes again.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verifiers.errors import ModelError

_NAME = re.compile(r"step-(\d{6,})")
KEPT = 2
"""Checkpoints that stay."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint as read."""

    step: int
    tensors: Mapping[str, Any]
    """Name -> state of a model, an optimiser, a schedule."""
    state: Mapping[str, Any]
    """The loop's own plain state."""


def save(folder: str | Path, step: int, *, tensors: Mapping[str, Any], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint and drop all but the last two. `tensors` are state dicts, `state` is JSON."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    place, partial = root / f"step-{step:06d}", root / f".step-{step:06d}.part"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    torch.save(dict(tensors), partial / "tensors.pt")
    torch.save(random_states(), partial / "random.pt")
    (partial / "state.json").write_text(json.dumps({"step": step, "state": dict(state)}))
    for file in partial.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    shutil.rmtree(place, ignore_errors=True)
    os.replace(partial, place)
    for old in steps(root)[:-KEPT]:
        shutil.rmtree(root / f"step-{old:06d}")
    return place


def steps(folder: str | Path) -> list[int]:
    """Steps of the checkpoints in a folder, in order."""
    names = (_NAME.fullmatch(path.name) for path in Path(folder).glob("step-*"))
    return sorted(int(name[1]) for name in names if name)


def load_last(folder: str | Path) -> Saved | None:
    """The last checkpoint, with the random states put back; None where there is none.

    Raises ModelError for one that cannot be read.
    """
    found = steps(folder)
    if not found:
        return None
    place = Path(folder) / f"step-{found[-1]:06d}"
    try:
        said = json.loads((place / "state.json").read_text())
        tensors = torch.load(place / "tensors.pt", weights_only=True)
        # Python's and numpy's states are tuples of plain values; nothing in the file is run.
        states = torch.load(place / "random.pt", weights_only=True)
    except (OSError, EOFError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"the checkpoint {place} cannot be read ({type(error).__name__}: {error}); delete it to go on from the one "
            "before"
        ) from error
    restore_random(states)
    return Saved(step=said["step"], tensors=tensors, state=said["state"])


def random_states() -> dict[str, Any]:
    """The states of every generator that something might draw from."""
    kind, keys, place, gauss, cached = np.random.get_state()
    found: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": (kind, torch.tensor(np.asarray(keys, dtype=np.int64)), int(place), int(gauss), float(cached)),
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def restore_random(states: Mapping[str, Any]) -> None:
    """Put the states back."""
    torch.set_rng_state(states["torch"])
    kind, keys, place, gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, gauss, cached))
    version, internal, following = states["python"]
    random.setstate((version, tuple(internal), following))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
