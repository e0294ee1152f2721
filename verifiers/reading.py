"""An answer read once: its canonical text and its tree, for any number of comparisons.

The canonical text is for the first stage of equality, "the same text": without math delimiters, sizing
commands, wrappers of words, closing punctuation and spacing. Two different answers never share one.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

from verifiers.latex import parse
from verifiers.number_words import spell_out
from verifiers.spelling import respell
from verifiers.trees import MAX_CHARACTERS, LimitError, Node, UnparsableError, num

_WRAPPERS = re.compile(
    r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])|\\[!;:]|[$`]|\\[()\[\]]|\*\*"
    r"|\\(?:text|mbox|textbf|textrm|textnormal|mathrm|mathbf|boxed)(?=\s?\{)"
)
_WORDS_IN_BRACES = re.compile(r"\{(\s*\(?[A-Za-z][A-Za-z .]*\)?)\}")
_SPACE = re.compile(r"\s+|\\[, ]")
_LOOSE_SPACE = re.compile(r"(?<!\d) | (?!\d)")
_DECIMAL_COMMA = re.compile(
    r"([^,()\[\]]*?)(?<![\d.])(\d{1,3}(?:\.\d{3})+|\d+)(?:,|\{,\})(\d+)(?![\d.])([^,()\[\]]*)", re.DOTALL
)
_PLAIN = re.compile(r"(-?[0-9]{1,18})(?:\.([0-9]{1,18}))?")
_REPEATING = re.compile(r"(\d\.\d*)\((\d+)\)")
_LABEL = re.compile(
    r"^\s*(?:\\(?:text(?:bf|rm)?|math(?:rm|bf))\s?\{)?\s?(?:\([A-J]\)|[A-J][.):])(?:\s?\}|\\ )?\s?"
    r"(?=[^\s,;)}])(?!\(?[A-J]\)?(?![a-zA-Z0-9])|(?:\\text\s?\{\s?)?(?:or|and)\b)"
)
_AND_DIGIT = re.compile(r"(?<=[a-z])and(?=\d)")
_ABBREVIATION = re.compile(r"(?<=[A-Za-z])\.")


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer as text, as canonical text, and as a tree or the reason why there is none."""

    text: str
    canonical: str
    tree: Node | None
    problem: str = ""
    limited: bool = False
    others: tuple[tuple[str, Node], ...] = ()
    """Other readings by the name of their switch: decimal_comma (`2,74`), number_words, repeating (`0.1(6)`)."""


def canonical_text(text: str) -> str:
    """The text without math delimiters, sizing commands, closing punctuation and spacing; linear.

    Braces stay, for they separate arguments, and so does a space between digits.
    """
    plain = _WORDS_IN_BRACES.sub(r"\1", _WRAPPERS.sub("", respell(text)))
    plain = _LOOSE_SPACE.sub("", _SPACE.sub(" ", plain.replace("\\dfrac", "\\frac")))
    return _ABBREVIATION.sub("", _AND_DIGIT.sub("", plain)).rstrip(".").rstrip("\\")


def _plain_number(whole: str, part: str | None) -> Node:
    """`-12` or `3.50`, as the grammar would read it."""
    value = Fraction(int(whole.lstrip("-") + (part or "")), 10 ** len(part or ""))
    number = num(value, len((whole.lstrip("-") + part).lstrip("0")) if part else 0)
    return Node("neg", (number,)) if whole[0] == "-" else number


def _others(text: str) -> tuple[tuple[str, Node], ...]:
    found = []
    for switch, spelled in (
        ("decimal_comma", _with_comma(text)),
        ("number_words", spell_out(text)),
        ("choices", _LABEL.sub("", text)),
        ("repeating", _REPEATING.sub(r"\1\\overline{\2}", text)),
    ):
        if spelled != text:
            with suppress(UnparsableError):
                found.append((switch, parse(spelled)))
    return tuple(found)


def _with_comma(text: str) -> str:
    """The text with its only comma as a decimal point, where it cannot separate thousands."""
    match = _DECIMAL_COMMA.fullmatch(text) if "," in text else None
    if match is None:
        return text
    before, whole, part, after = match.groups()
    if len(part) == 1 and len(whole) == 1 and whole != "0":
        return text  # 1,2 is a list
    if len(part) == 3 and "." not in whole and not whole.startswith("0") and len(whole) <= 3:
        return text  # 1,234 has a thousands separator
    return f"{before}{whole.replace('.', '')}.{part}{after}"


def read(text: str) -> Parsed:
    """An answer parsed once, for use in any number of comparisons; never raises on any text."""
    if match := _PLAIN.fullmatch(text):
        return Parsed(text, text, _plain_number(match.group(1), match.group(2)))
    canonical = canonical_text(text) if len(text) <= MAX_CHARACTERS else text.strip()
    try:
        return Parsed(text, canonical, parse(text), others=_others(text))
    except LimitError as error:
        return Parsed(text, canonical, None, str(error), limited=True)
    except UnparsableError as error:
        return Parsed(text, canonical, None, str(error), others=_others(text))
