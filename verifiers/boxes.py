r"""Boxed answers: `\boxed{...}` and `\fbox{...}` with balanced braces, and which of several counts.

Boxes that belong together are one answer, a list: joined by nothing but "and", "or" and commas, or by "and" with
a few words or the name of the next one between (`\boxed{3} \text{ for (a) and } \boxed{1}`). A list of guesses
is therefore a list, and wrong where the reference is one value. One pass over the text, linear time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from verifiers.errors import ConfigError
from verifiers.trees import words

BOX_CHOICES = ("last", "first", "only")
MAX_BOXES = 1_000
"""How many of the last boxes are looked at; nobody means more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerPolicy:
    """Which of the possible readings of a response is taken."""

    boxes: str = "last"
    """Which of several boxes counts: "last", "first", or "only" (several different ones: no answer)."""
    join_boxes: bool = True
    """Boxes that belong together are one list: `\\boxed{1} and \\boxed{2}` is `1, 2`."""
    unclosed_box: bool = False
    """Accept a last box whose brace is never closed (a response that was cut off)."""
    require_box: bool = False
    """Look for a box only."""
    unfinished_thinking: bool = False
    """Judge the text of a `<think>` that is never closed; otherwise it has no answer."""
    last_number: bool = True
    """Fall back to the last number of the text."""
    choices: str = "ABCDEFGHIJ"
    """The letters that count as choices; empty turns the rule off."""

    def __post_init__(self) -> None:
        if self.boxes not in BOX_CHOICES:
            raise ConfigError(f"AnswerPolicy.boxes must be one of {BOX_CHOICES}; got {self.boxes!r}")
        if not all(letter.isascii() and letter.isupper() for letter in self.choices):
            raise ConfigError(f"AnswerPolicy.choices must be capital letters A-Z; got {self.choices!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundAnswer:
    """An answer, the rule that found it, and where it stands: characters [start, end) of the response."""

    text: str
    rule: str
    start: int
    end: int


DEFAULT_POLICY = AnswerPolicy()

_BOX = re.compile(r"\\(?:boxed|fbox|framebox|beginboxed)\b[ \t]{0,8}|(?<![\\a-zA-Z])(?:boxed|oxed)(?=\{)")
_WORD = re.compile(r"(?<!\\)\b[a-zA-Z]{2,}\b")
_REASONING = frozenset(words("so then thus therefore hence but not get gets gives becomes now wait check actually"))
_STOP = re.compile(r"[.!?:\n]")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_JOINER = re.compile(r"(?:[\s$,;.&~]|\\[,;:!()\[\] ]|\\q?quad|\\text\{\s*(?:and|or)\s*\}|and|or|\*\*)*")


def trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, end - (len(piece) - len(piece.rstrip())))


def make_answer(text: str, rule: str, start: int, end: int) -> FoundAnswer | None:
    """The trimmed span as an answer; None where nothing is left of it."""
    start, end = trim(text, start, end)
    return FoundAnswer(text=text[start:end], rule=rule, start=start, end=end) if start < end else None


def is_box(text: str) -> bool:
    """Whether a box begins anywhere in the text."""
    return ("oxed" in text or "box" in text) and _BOX.search(text) is not None


def _pairs(text: str, start: int) -> dict[int, int]:
    """Where each opening brace is closed, in one pass; braces that never close are absent."""
    partner: dict[int, int] = {}
    stack: list[int] = []
    for match in _BRACE.finditer(text, start):
        if match.group() == "{":
            stack.append(match.start())
        elif match.group() == "}" and stack:
            partner[stack.pop()] = match.start()
    return partner


def boxed(text: str, start: int, policy: AnswerPolicy) -> tuple[FoundAnswer | None, bool]:
    """The boxed answer, and whether there were boxes that contradict each other."""
    if not is_box(text):
        return None, False
    openings = [match.end() for match in _BOX.finditer(text, start)]
    if not openings:
        return None, False
    if policy.boxes == "last":
        openings = openings[-MAX_BOXES:]
    partner = _pairs(text, start)
    spans: list[tuple[int, int]] = []
    covered = start
    unclosed: tuple[int, int] | None = None
    for opening in openings:
        if opening < covered or opening >= len(text):
            continue
        if text[opening] != "{":  # \boxed 5
            end = opening
            while end < len(text) and not text[end].isspace() and text[end] not in "$.,;\\{":
                end += 1
            spans.extend([(opening, end)] if end > opening else [])
        elif opening in partner:
            spans.append((opening + 1, partner[opening]))
            covered = partner[opening]
        elif unclosed is None:
            unclosed = (opening + 1, len(text))
    filled = [_unwrap(text, span, partner) for span in spans]
    filled = [span for span in filled if span[0] < span[1]]
    if not filled:
        return (make_answer(text, "boxed", *unclosed) if unclosed and policy.unclosed_box else None), False
    groups: list[list[tuple[int, int]]] = [[filled[0]]]
    for before, after in pairwise(filled):
        gap = text[before[1] : after[0]].lstrip("}")
        if policy.join_boxes and _together(gap[: gap.rfind("\\")] if "\\" in gap else gap):
            groups[-1].append(after)
        else:
            groups.append([after])
    if policy.boxes == "only" and len({tuple(text[a:b] for a, b in group) for group in groups}) > 1:
        return None, True
    group = groups[0] if policy.boxes == "first" else groups[-1]
    joined_text = ", ".join(text[a:b] for a, b in group)
    return FoundAnswer(text=joined_text, rule="boxed", start=group[0][0], end=group[-1][1]), False


def _together(gap: str) -> bool:
    """Whether what stands between two boxes makes them one answer."""
    if len(gap) < 80 and _JOINER.fullmatch(gap):
        return re.search(r"and|or|[,;]", gap) is not None
    said = set(_WORD.findall(gap))
    return (
        len(gap) <= 60
        and bool(said & {"and", "or"})
        and len(said) <= 7
        and not (said & _REASONING or _STOP.search(gap))
    )


def _unwrap(text: str, span: tuple[int, int], partner: dict[int, int]) -> tuple[int, int]:
    """The content of a box without the boxes that fill it entirely."""
    start, end = trim(text, *span)
    while match := _BOX.match(text, start, end):
        inner = match.end()
        if partner.get(inner, -1) != end - 1:
            break
        start, end = trim(text, inner + 1, end - 1)
    return start, end
