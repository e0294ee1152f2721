"""Judging finished answers with rules: mathematical equality, format, length, repetition.

The names below are loaded when first used; importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifiers.answers import AnswerPolicy as AnswerPolicy
    from verifiers.answers import extract_answer as extract_answer
    from verifiers.core import Outcome as Outcome
    from verifiers.core import Problem as Problem
    from verifiers.core import Response as Response
    from verifiers.core import Sampling as Sampling
    from verifiers.core import StopReason as StopReason
    from verifiers.core import Verdict as Verdict
    from verifiers.equality import EqualityPolicy as EqualityPolicy
    from verifiers.equality import math_equal as math_equal
    from verifiers.interop import as_openrlhf as as_openrlhf
    from verifiers.interop import as_trl as as_trl
    from verifiers.interop import as_verl as as_verl
    from verifiers.interop import from_trl as from_trl
    from verifiers.maths import MathVerifier as MathVerifier
    from verifiers.records import load_problems as load_problems

REWARDKIT_PACKAGE = "verifiers"
"""Marks this package as RewardKit's; another distribution bears the same name."""

_HOMES = {
    "AnswerPolicy": "verifiers.answers",
    "extract_answer": "verifiers.answers",
    "Outcome": "verifiers.core",
    "Problem": "verifiers.core",
    "Response": "verifiers.core",
    "Sampling": "verifiers.core",
    "StopReason": "verifiers.core",
    "Verdict": "verifiers.core",
    "EqualityPolicy": "verifiers.equality",
    "math_equal": "verifiers.equality",
    "as_openrlhf": "verifiers.interop",
    "as_trl": "verifiers.interop",
    "as_verl": "verifiers.interop",
    "from_trl": "verifiers.interop",
    "MathVerifier": "verifiers.maths",
    "load_problems": "verifiers.records",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'verifiers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOMES, "REWARDKIT_PACKAGE"])
