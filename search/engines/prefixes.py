"""Keys and values of token prefixes that were read already, so that each is read once.

In a causal model the keys and values of a prefix do not depend on what follows: a text that was read holds those of
every beginning of it. The store reads the longest of a family of prefixes (a response cut behind each of its steps)
and finds the shorter ones in it, in the same call and in later ones. A prefix that goes on behind a stored text is
read again as a whole. What is stored is a padded batch (a block) as the model left it; blocks used longest ago
are dropped, whole, when more positions are held than allowed.

With room for 0 positions nothing is shared between requests: every prefix is read by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Prefix: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """One batch that was read: its key/value cache (rows of padded length), and how many positions it holds."""

    cache: Any
    texts: tuple[Prefix, ...]
    positions: int
    routes: Any = None
    """The experts that it took (`routers.SlotRoutes`), where they are reported."""


class PrefixStore:
    """Finds prefixes in the texts that were read. `positions` bounds what is kept."""

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self._blocks: dict[Block, None] = {}
        self._places: dict[Prefix, tuple[Block, int]] = {}
        self._longest: dict[Prefix, Prefix] = {}
        self._family: dict[Prefix, list[Prefix]] = {}

    def expect(self, prefixes: Iterable[Prefix]) -> None:
        """Say what will be wanted, all of a family together: reading the longest serves all that begin it."""
        if not self.positions:
            return
        longer: Prefix = ()
        # In dictionary order a text stands right behind its beginnings, so from the end the longest comes first.
        for prefix in sorted({prefix for prefix in prefixes if prefix not in self._places}, reverse=True):
            if longer[: len(prefix)] != prefix:
                longer = prefix
            if prefix not in self._longest:
                self._longest[prefix] = longer
                self._family.setdefault(longer, []).append(prefix)

    def missing(self, prefixes: Iterable[Prefix], *, limit: int) -> Iterator[list[Prefix]]:
        """Batches of at most `limit` padded positions of what must be read so that every prefix is found."""
        wanted = [prefix for prefix in prefixes if prefix not in self._places]
        if self.positions:
            wanted = list({self._longest.get(prefix, prefix): None for prefix in wanted})
        wanted.sort(key=len)
        while wanted:
            count = 1
            # Sorted by length: a batch is as wide as its last member.
            while count < len(wanted) and (count + 1) * len(wanted[count]) <= limit:
                count += 1
            batch, wanted = wanted[:count], wanted[count:]
            yield batch

    def __contains__(self, prefix: Prefix) -> bool:
        """Whether a prefix can be found now."""
        return prefix in self._places

    def add(self, cache: Any, texts: Sequence[Prefix], positions: int, routes: Any = None) -> None:
        """Keep a batch that was read; row i holds `texts[i]`."""
        block = Block(cache, tuple(texts), positions, routes)
        self._blocks[block] = None
        for row, text in enumerate(texts):
            for prefix in (text, *self._family.pop(text, ())):
                self._longest.pop(prefix, None)
                self._places[prefix] = (block, row)

    def find(self, prefix: Prefix) -> tuple[Block, int]:
        """The block and row that hold a prefix; it counts as used now."""
        block, row = self._places[prefix]
        self._blocks[block] = self._blocks.pop(block)
        return block, row

    def trim(self) -> None:
        """Drop the blocks used longest ago until no more positions are held than allowed."""
        held = sum(block.positions for block in self._blocks)
        gone = set()
        for block in list(self._blocks):
            if held <= self.positions:
                break
            held -= block.positions
            gone.add(block)
            del self._blocks[block]
        if gone:
            self._places = {prefix: place for prefix, place in self._places.items() if place[0] not in gone}
