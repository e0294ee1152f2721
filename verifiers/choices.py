r"""Answers to multiple-choice questions: is it a choice, which one, and are two choices the same.

    (B)   B.   b   B) 12   Option B   \textbf{(B) }12      all choose B; `(A) or (B)`, `B: C and D` choose nothing
    A, C   (A) and (C)   CA                                the set {A, C}; ACD against DCA is left alone, because two
                                                           bare runs of letters may be names, whose order matters

Spaces, dollars and text commands are taken off first; texts longer than a choice with its words are none.
"""

from __future__ import annotations

import re

from verifiers.reading import Parsed
from verifiers.scalars import Finding, no, yes

MAX_LENGTH = 400
"""Longest text that is looked at as a choice with its words."""
_MARKS = re.compile(r"\\(?:text(?:bf|rm)?|math(?:rm|bf)|boxed)(?=\s?\{)|\\[ ,;]|[\s${}*`]")
_INTRODUCTION = re.compile(r"^(?:option|choice|answer)[:\s]*(?=\(?[A-J]\b)", re.IGNORECASE)
_LONE = re.compile(r"\(?([A-J])\)?")
# Not `A, B`: a second letter after the comma is another choice.
_LABELLED = re.compile(
    r"\(([A-Ja-j])\).*|\[?([A-Ja-j])\]?(?:[:).].*|,(?!(?:and|or)?\(?[A-Ja-j](?![a-z])).*)?", re.DOTALL
)
_LABEL = re.compile(r"^\(?\[?[A-Ja-j]\]?\)?")
_ANOTHER = re.compile(r"\([A-Ja-j]\)|(?<![a-zA-Z\\{])[A-J](?![a-zA-Z0-9])|[A-J]\)")
_SEVERAL = re.compile(r"\(?[A-J](?:[,;\s]*(?:and)?[,;\s]*[A-J]){1,9}\)?")
_RUN = re.compile(r"[A-J]+")
_WORD = re.compile(r"(?<![a-zA-Z])[A-J](?![a-zA-Z])")
_REJECTED = re.compile(r"\b(?:not|non|pas)\b")


def is_choice(answer: Parsed) -> bool:
    """Whether an answer is the letter of one choice."""
    return _LONE.fullmatch(answer.canonical) is not None


def names_several(text: str) -> bool:
    """Whether a short answer names more than one choice and rejects none (`(A) or (B)`; not `C non A`)."""
    return len(text) < 40 and len(set(_WORD.findall(text))) > 1 and not _REJECTED.search(text)


def compare_choices(answer: Parsed, reference: Parsed) -> Finding | None:
    """Whether two answers choose the same; None where they are not both choices."""
    given, asked = _bare(answer.text), _bare(reference.text)
    for letter, other in ((asked, given), (given, asked)):
        lone = _LONE.fullmatch(letter)
        chosen = _chosen(other) if lone else ""
        if lone and chosen:
            return yes("choice", "the same choice") if chosen == lone.group(1) else no("choice", "another choice")
    if all(_RUN.fullmatch(side.canonical) for side in (answer, reference)):
        return None
    one, two = _letters(answer.canonical), _letters(reference.canonical)
    if not (one and two):
        return None
    return yes("choice", "the same choices") if one == two else no("choice", "other choices")


def _bare(text: str) -> str:
    return "" if len(text) > MAX_LENGTH else _MARKS.sub("", text).rstrip(".")


def _chosen(text: str) -> str:
    """The capital letter of the one choice that a bare text names; empty where it names none or goes on with more."""
    text = _INTRODUCTION.sub("", text)
    match = _LABELLED.fullmatch(text)
    rest = _LABEL.sub("", text)
    goes_on = _ANOTHER.search(rest) or rest[:1] in ("+", "-", "*", "/", "^", "(", "=")
    if not match or (goes_on and not rest.startswith(",because")):
        return ""
    return (match.group(1) or match.group(2)).upper()


def _letters(canonical: str) -> frozenset[str]:
    """The letters of several choices; empty for anything else, and where one stands twice."""
    letters = re.findall("[A-J]", canonical) if _SEVERAL.fullmatch(canonical) else []
    return frozenset(letters) if len(letters) == len(set(letters)) else frozenset()
