"""Drawing many responses and choosing among them, with any scorer and an account of the cost.

The names below are loaded when first used; importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.curves import accuracy_curves as accuracy_curves
    from search.engines.scripted_engine import ScriptedEngine as ScriptedEngine
    from search.engines.transformers_engine import TransformersEngine as TransformersEngine
    from search.ledger import Ledger as Ledger
    from search.strategies.best_of_n import Chosen as Chosen
    from search.strategies.best_of_n import Pool as Pool
    from search.strategies.best_of_n import best_of_n as best_of_n
    from search.strategies.best_of_n import draw as draw
    from search.strategies.best_of_n import judge as judge

REWARDKIT_PACKAGE = "search"
"""Marks this package as RewardKit's; another distribution or a user's file may bear the same name."""

_HOMES = {
    "TransformersEngine": "search.engines.transformers_engine",
    "ScriptedEngine": "search.engines.scripted_engine",
    "draw": "search.strategies.best_of_n",
    "judge": "search.strategies.best_of_n",
    "Pool": "search.strategies.best_of_n",
    "best_of_n": "search.strategies.best_of_n",
    "Chosen": "search.strategies.best_of_n",
    "accuracy_curves": "search.curves",
    "Ledger": "search.ledger",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'search' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, "REWARDKIT_PACKAGE"])
