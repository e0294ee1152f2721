"""An answer read once: its canonical text and its tree, for any number of comparisons.

The canonical text is for the first stage of equality, "the same text": without math delimiters, sizing
commands, wrappers of words, closing punctuation and spacing. Two different answers never share one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from verifiers.latex import parse
from verifiers.spelling import respell
from verifiers.trees import LimitError, Node, UnparsableError

_WRAPPERS = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|\\[!;:]|[$`]|\\[()\[\]]|\*\*"
    r"|\\(?:text|mbox|textbf|textrm|textnormal|mathrm|mathbf|boxed)(?=\s?\{)"
)
_WORDS_IN_BRACES = re.compile(r"\{(\s*\(?[A-Za-z][A-Za-z .]*\)?)\}")
_SPACE = re.compile(r"\s+|\\[, ]")
_LOOSE_SPACE = re.compile(r"(?<!\d) | (?!\d)")
_DECIMAL_COMMA = re.compile(r"([^,]*?)(?<![\d.])(\d{1,3}(?:\.\d{3})+|\d+)(?:,|\{,\})(\d+)(?![\d.])([^,]*)", re.DOTALL)
_ABBREVIATION = re.compile(r"(?<=[A-Za-z])\.")


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer as text, as canonical text, and as a tree or the reason why there is none."""

    text: str
    canonical: str
    tree: Node | None
    problem: str = ""
    limited: bool = False
    with_comma: Node | None = None
    """The tree when the only comma is read as a decimal point (`2,74`), where it cannot separate thousands."""


def canonical_text(text: str) -> str:
    """The text without math delimiters, sizing commands, closing punctuation and spacing; linear.

    Braces stay, for they separate arguments, and so does a space between digits.
    """
    plain = _WORDS_IN_BRACES.sub(r"\1", _WRAPPERS.sub("", respell(text)))
    plain = _LOOSE_SPACE.sub("", _SPACE.sub(" ", plain.replace("\\dfrac", "\\frac")))
    return _ABBREVIATION.sub("", plain).rstrip(".").rstrip("\\")


def _with_comma(text: str) -> Node | None:
    match = _DECIMAL_COMMA.fullmatch(respell(text)) if "," in text else None
    if match is None:
        return None
    before, whole, part, after = match.groups()
    if len(part) == 3 and "." not in whole and not whole.startswith("0") and len(whole) <= 3:
        return None  # 1,234 has a thousands separator
    try:
        return parse(f"{before}{whole.replace('.', '')}.{part}{after}")
    except UnparsableError:
        return None


def read(text: str) -> Parsed:
    """An answer parsed once, for use in any number of comparisons; never raises on any text."""
    canonical = canonical_text(text)
    try:
        return Parsed(text, canonical, parse(text), with_comma=_with_comma(text))
    except LimitError as error:
        return Parsed(text, canonical, None, str(error), limited=True)
    except UnparsableError as error:
        return Parsed(text, canonical, None, str(error))
