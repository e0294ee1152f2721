"""Scoring the steps of a response, and learning to: labels, training, calibration, evaluation.

The names below are loaded when first used; importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prm.cache import CachedScorer as CachedScorer
    from prm.credit import marginal as marginal
    from prm.credit import response_score as response_score
    from prm.evaluate import auc_within as auc_within
    from prm.evaluate import first_error_f1 as first_error_f1
    from prm.formats import StepRow as StepRow
    from prm.formats import read_stepwise as read_stepwise
    from prm.label_config import LabelConfig as LabelConfig
    from prm.labelling import label as label
    from prm.model import ProcessModel as ProcessModel
    from prm.train_config import TrainConfig as TrainConfig
    from prm.training import fit as fit

REWARDKIT_PACKAGE = "prm"
"""Marks this package as RewardKit's; another distribution or a user's file may bear the same name."""

_HOMES = {
    "ProcessModel": "prm.model",
    "CachedScorer": "prm.cache",
    "label": "prm.labelling",
    "LabelConfig": "prm.label_config",
    "fit": "prm.training",
    "TrainConfig": "prm.train_config",
    "StepRow": "prm.formats",
    "read_stepwise": "prm.formats",
    "response_score": "prm.credit",
    "marginal": "prm.credit",
    "auc_within": "prm.evaluate",
    "first_error_f1": "prm.evaluate",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'prm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, "REWARDKIT_PACKAGE"])
