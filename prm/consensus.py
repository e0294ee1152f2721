r"""A second opinion on step labels, from arithmetic: does every equation of a step hold?

Monte-Carlo labels call a step bad when the policy fails behind it and good when luck saves it. Keeping the rows on
which such labels and another judge agree makes better training data than either alone (consensus filtering, Zhang et
al. 2025, arXiv 2501.07301, with a language model as judge). Here the judge is a rule: in `12 * 3 + 4 = 40` both sides
are read and compared by the math verifier (`verifiers.equality`), without running anything; a decimal may be what the
other side rounds to. Only equations between numbers count; a step without one has no opinion.

A right equation does not make a right step (it may use the wrong number), so agreement means: a step found wrong by
arithmetic must be labelled bad, and so must all behind it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from prm.formats import StepRow
from verifiers.core import Outcome
from verifiers.equality import EqualityPolicy, math_equal
from verifiers.errors import ConfigError

OnConflict: TypeAlias = Literal["drop_row", "drop_steps", "relabel"]

_NUMBER = r"(?:\\?\$)?\d[\d,]*(?:\.\d+)?%?"
_TERM = rf"[-(\s]*(?:{_NUMBER}|\\d?frac\{{\d+\}}\{{\d+\}})[)\s]*"
_OPERATOR = r"(?:[-+*/x×÷]|\\times|\\cdot|\\div)"
_SIDE = rf"{_TERM}(?:{_OPERATOR}{_TERM})*"
_EQUATION = re.compile(rf"(?<![\w.^=\\/*+×÷-])({_SIDE})((?:=\s*{_SIDE})+)(?![\w^\\/*×÷]|\s*[-+*/×÷=^]|\.\d)")

_ROUNDED = EqualityPolicy(reference_digits=1, response_digits=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArithmeticOpinion:
    """What arithmetic says of a step."""

    wrong: bool | None
    """True: some equation is false. False: there are equations and all hold. None: no opinion."""
    equation: str = ""
    """The first false one."""


def check_arithmetic(step: str) -> ArithmeticOpinion:
    """Read the equations between numbers in a step's text and compare their sides."""
    found = False
    for match in _EQUATION.finditer(step[:5000]):
        sides = [match.group(1), *match.group(2).split("=")[1:]]
        if all(re.fullmatch(rf"\s*{_NUMBER}\s*", side) for side in sides):
            continue  # nothing is computed
        if any(side.count("(") != side.count(")") for side in sides):
            continue  # part of something that is not a number, such as f(2)
        for left, right in itertools.pairwise(sides):
            outcome = math_equal(_clean(left), _clean(right), policy=_ROUNDED).outcome
            if outcome is Outcome.INCORRECT:
                return ArithmeticOpinion(wrong=True, equation=match.group(0).strip())
            found = found or outcome is Outcome.CORRECT
    return ArithmeticOpinion(wrong=False if found else None)


def _clean(side: str) -> str:
    # "x" between numbers multiplies; a comma between three digits groups; a dollar sign is money.
    text = re.sub(r"(?<=\d)\s*[x×]\s*(?=[\d(])", "*", side.replace("\\$", "").replace("$", "").replace("÷", "/"))
    return re.sub(r"(?<=\d),(?=\d{3})", "", text).strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Consensus:
    """Rows after the filter and what it met."""

    rows: list[StepRow]
    agreed: int
    """Rows on which labels and arithmetic agree, or arithmetic says nothing."""
    conflicts: int
    """Rows with a step that is labelled good at or behind a false equation."""
    errors: int
    """Rows with a false equation."""


def consensus(rows: Sequence[StepRow], *, on_conflict: OnConflict = "drop_row") -> Consensus:
    """Compare hard labels with arithmetic.

    A conflicting row is dropped, or loses the labels of the steps in conflict (`drop_steps`), or has these steps
    labelled bad (`relabel`); counts are kept in both.
    """
    if on_conflict not in ("drop_row", "drop_steps", "relabel"):
        raise ConfigError(f"on_conflict must be drop_row, drop_steps or relabel; got {on_conflict!r}")
    kept: list[StepRow] = []
    conflicts = errors = 0
    for row in rows:
        first = next((t for t, step in enumerate(row.completions) if check_arithmetic(step).wrong), None)
        if first is None:
            kept.append(row)
            continue
        errors += 1
        labels = row.labels("hard")
        if not any(label is True for label in labels[first:]):
            kept.append(row)
            continue
        conflicts += 1
        if on_conflict != "drop_row":
            other = None if on_conflict == "drop_steps" else False
            hard = tuple(other if t >= first and label is True else label for t, label in enumerate(labels))
            kept.append(replace(row, hard=tuple(None if label is None else bool(label) for label in hard)))
    return Consensus(rows=kept, agreed=len(rows) - conflicts, conflicts=conflicts, errors=errors)
