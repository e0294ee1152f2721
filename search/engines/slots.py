"""A key/value cache of row slots, so that rows come and go while a batch is decoding.

Each slot holds one row's keys and values from position 0 on, left-aligned; rows have their own lengths. A
decode step writes each row's new entry at that row's length and attends over [0, longest row], with a mask
that hides what lies beyond a row's own end. Freed slots are filled by moving the last rows into them, so the
occupied slots are always 0..R-1 and the forward pass runs over R rows and no more.

Legend: R rows, H key/value heads, T positions, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's slots. `write_at_R` and `width` are set for all layers by `SlotCache.place`."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.rows = torch.arange(slots)
        self.write_at_R = torch.zeros(0, dtype=torch.long)
        self.width = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the shape, type and device of the first entries; room for up to `slots` rows is made as needed."""
        self.keys = key_states.new_zeros(0, key_states.shape[1], 0, key_states.shape[3])
        self.values = value_states.new_zeros(0, value_states.shape[1], 0, value_states.shape[3])
        self.rows = self.rows.to(key_states.device)
        self.is_initialized = True

    def grow(self, width: int, rows: int) -> None:
        """Make room for `width` positions of `rows` rows, with some to spare so that copies stay rare."""
        assert self.keys is not None and self.values is not None
        held, _, wide, _ = self.keys.shape
        if wide >= width and held >= rows:
            return
        if wide < width:
            wide = -(-max(width, wide * 3 // 2) // 64) * 64
        if held < rows:
            rows = min(self.slots, max(rows, 2 * held))
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(max(held, rows), old.shape[1], wide, old.shape[3])
            new[:held, :, : old.shape[2]] = old
            setattr(self, name, new)

    def store(self, slot_rows: torch.Tensor, keys_RHTD: torch.Tensor, values_RHTD: torch.Tensor, width: int) -> None:
        """Put whole rows (of a prefill) into slots."""
        if not self.is_initialized:
            self.lazy_initialization(keys_RHTD, values_RHTD)
        self.grow(width, int(slot_rows.max()) + 1)
        assert self.keys is not None and self.values is not None
        self.keys[slot_rows, :, :width] = keys_RHTD[:, :, :width]
        self.values[slot_rows, :, :width] = values_RHTD[:, :, :width]

    def move(self, source_rows: torch.Tensor, target_rows: torch.Tensor, width: int) -> None:
        """Copy rows into freed slots."""
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys[target_rows, :, :width] = self.keys[source_rows, :, :width]
            self.values[target_rows, :, :width] = self.values[source_rows, :, :width]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one new entry a row at its own position; return what all rows attend over."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[0]
        self.grow(self.width, count)
        assert self.keys is not None and self.values is not None
        rows = self.rows[:count]
        self.keys[rows, :, self.write_at_R] = key_states[:, :, 0]
        self.values[rows, :, self.write_at_R] = value_states[:, :, 0]
        return self.keys[:count, :, : self.width], self.values[:count, :, : self.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(key/value length, offset) of the mask; the engine gives the mask itself."""
        return self.width, 0

    def get_seq_length(self) -> int:
        """Longest row; positions are given by the engine row by row."""
        return self.width

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class SlotCache(Cache):  # type: ignore[misc]
    """All layers' slots."""

    def __init__(self, layers: int, slots: int) -> None:
        super().__init__(layers=[SlotLayer(slots) for _ in range(layers)])

    def place(self, lengths_R: torch.Tensor) -> torch.Tensor:
        """Say where the next entries go; returns the additive mask's Boolean form, shape (R, 1, 1, width)."""
        width = int(lengths_R.max()) + 1
        for layer in self.layers:
            layer.write_at_R = lengths_R
            layer.width = width
        positions = torch.arange(width, device=lengths_R.device)
        return (positions[None, :] <= lengths_R[:, None])[:, None, None, :]

    def store(self, slot_rows: torch.Tensor, source: Cache, source_rows: torch.Tensor, width: int) -> None:
        """Copy rows of a prefill cache into slots; several slots may take the same source row."""
        for layer, prefilled in zip(self.layers, source.layers, strict=True):
            rows = (source_rows, slice(None), slice(width))
            layer.store(slot_rows, prefilled.keys[rows], prefilled.values[rows], width)

    def move(self, source_rows: torch.Tensor, target_rows: torch.Tensor, width: int) -> None:
        """Copy rows into freed slots, in all layers."""
        for layer in self.layers:
            layer.move(source_rows, target_rows, width)

    def take(self, rows: torch.Tensor, width: int) -> SlotCache:
        """A copy of the first `width` positions of some rows."""
        copy = SlotCache(len(self.layers), len(rows))
        for own, layer in zip(copy.layers, self.layers, strict=True):
            own.lazy_initialization(layer.keys, layer.values)
            own.keys, own.values = layer.keys[rows, :, :width], layer.values[rows, :, :width]
        return copy
