r"""Where a draw stops so that it ends with a step, and what nodes it then makes.

A step ends at its separator, a blank line by default (`verifiers/steps.py`). In a byte-pair vocabulary the separator
is often part of a longer token (".\n\n"), so every token whose text holds one stops a draw, and a lone line break
twice in a row. A separator in other pieces is missed; then the draw goes on to the next one and its text is cut into
the steps it holds: stops decide when a search can look, never where steps end.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence
from typing import Any

from search.tree import Node, Tree
from verifiers.core import StopReason, Tokenizer
from verifiers.steps import text_and_steps

_STOPS: weakref.WeakKeyDictionary[Tokenizer, tuple[tuple[int, ...], ...]] = weakref.WeakKeyDictionary()
_BREAK = re.compile(r"\n[^\S\n]*\n")


def step_stops(tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """The token sequences at which a draw stops because a step is over; looked up once a tokenizer."""
    if tokenizer not in _STOPS:
        special = set(getattr(tokenizer, "all_special_ids", ()))
        size = len(tokenizer) if hasattr(tokenizer, "__len__") else 256
        texts = {
            token: tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for token in range(size)
            if token not in special
        }
        whole = [(token,) for token, text in texts.items() if _BREAK.search(text)]
        lines = [token for token, text in texts.items() if text == "\n"]
        _STOPS[tokenizer] = (*whole, *((a, b) for a in lines for b in lines))
    return _STOPS[tokenizer]


def grow(tree: Tree, tokenizer: Any, parent: Node, new_ids: Sequence[int], *, ended: StopReason | None) -> list[Node]:
    """Nodes for what was drawn behind `parent`, one a step; the last one holds the end mark, if any."""
    ids = (*parent.ids, *new_ids)
    _, steps = text_and_steps(tokenizer, ids)
    edges = [step.token_end for step in steps if step.token_end > parent.length]
    if edges:
        edges[-1] = len(ids)
    else:
        edges = [len(ids)]
    nodes, at = [], parent
    for edge in edges:
        last = edge == len(ids)
        text, done = text_and_steps(tokenizer, ids[:edge])
        at = tree.add(at, ids[at.length : edge], text=text, steps=len(done), ended=ended if last else None)
        nodes.append(at)
    return nodes
