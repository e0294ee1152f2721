r"""Where the final answer stands in a response.

Rules, in order; the first that finds something decides, and the last place of the text wins within a rule:

    boxed     `\boxed{...}` or `\fbox{...}` with balanced braces. Boxes joined only by "and", "or" and commas
              are one answer, a list; of several such answers the policy's one is taken
    hashes    `#### x`, the rest of the line
    phrase    a line `A: x` or `Answer: x`, or "the (final) answer is x", up to the end of the sentence
    whole     the text is nothing but one short answer
    choice    a letter in brackets, or alone on a line
    math      the last `$...$`, `\(...\)` or `\[...\]`, where no number stands behind it
    number    the last number

A phrase that turns out to be prose ("the answer is that she has 3 hours left") gives its last mathematics or
number. Only text after the last `</think>` counts; an unfinished `<think>` has no answer. The whole text is
read, once per rule, in linear time; there is no window at the end.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, replace
from itertools import pairwise

from verifiers.errors import ConfigError

MAX_PHRASES = 16
"""How many of the last "the answer is" are looked at; those that say nothing are passed over."""
BOX_CHOICES = ("last", "first", "only")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerPolicy:
    """Which of the possible readings of a response is taken."""

    boxes: str = "last"
    """Which of several boxes counts: "last", "first", or "only" (several different ones: no answer)."""
    join_boxes: bool = True
    """Boxes joined by nothing but "and", "or" or commas are one list: `\\boxed{1}, \\boxed{2}` is `1, 2`."""
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

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\b[ \t]{0,8}|(?<![\\a-zA-Z])(?:boxed|oxed)(?=\{)")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_JOINER = re.compile(r"(?:[\s$,;.&~]|\\[,;:!()\[\] ]|\\q?quad|\\text\{\s*(?:and|or)\s*\}|and|or|\*\*)*")
_HASHES = re.compile(r"####[ \t:]*")
_PHRASE = re.compile(
    r"(?:^|\n)[ \t>*_#]{0,12}A:[ \t*]*"
    r"|\b(?:answer|result)[ \t]{0,8}(?:\*\*)?[ \t]{0,8}(?::|\bis\b|=)[ \t:*]*"
    r"|\banswer[ \t]+(?=\$|\\\(|\\\[)",
    re.IGNORECASE,
)
_DELIMITERS = (("\\[", "\\]"), ("\\(", "\\)"), ("$$", "$$"), ("$", "$"))
_SENTENCE_END = re.compile(
    r"[.!?](?=\s|$|\*)|,\s(?=\s?[a-z]{2})"
    r"|(?<=\s)(?:because|since|which|where|so|therefore|thus|hence|as|when|if|but|not)\b"
)
_END_TOKENS = re.compile(r"<\|[a-z_]{2,20}\|>|</s>|</?answer>")
_NUMBER = re.compile(
    r"(?<![\w.^])(?:[-−+](?=[\d.$]))?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))"
    r"(?:/\d+(?:\.\d+)?)?%?"
)
_PROSE = re.compile(r"(?<![\\a-zA-Z{])[a-zA-Z']{2,}[ \t]+[a-zA-Z']+[ \t]+[a-zA-Z'(]+")


def extract_answer(response: str, *, policy: AnswerPolicy | None = None) -> str | None:
    """The final answer of a response as text, or None where no rule finds one."""
    found = find_answer(response, policy=policy)
    return None if found is None else found.text


def find_answer(response: str, *, policy: AnswerPolicy | None = None) -> FoundAnswer | None:
    """The final answer of a response with the rule that found it, or None."""
    policy = policy or DEFAULT_POLICY
    start = _after_thinking(response, policy)
    if start is None:
        return None
    found, several = _boxed(response, start, policy)
    if found or several:
        return found
    if policy.require_box:
        return None
    text = _END_TOKENS.sub(lambda match: " " * len(match.group()), response)
    if found := _hashes(text, start) or _phrase(text, start):
        return _reduce(text, found, policy) if _PROSE.search(found.text) else found
    if found := _whole(text, start):
        return found
    return _inside(text, start, len(text), policy)


def _reduce(text: str, found: FoundAnswer, policy: AnswerPolicy) -> FoundAnswer:
    """What a sentence says: its last mathematics, choice or number; the sentence where it has none."""
    inner = _inside(text, found.start, found.end, policy)
    return found if inner is None else replace(inner, rule=found.rule)


def _inside(text: str, start: int, end: int, policy: AnswerPolicy) -> FoundAnswer | None:
    if policy.choices and (found := _choice(text, start, end, policy.choices)):
        return found
    number = _last_number(text, start, end) if policy.last_number else None
    segment = _math(text, start, end)
    return segment if segment and (number is None or number.start < segment.end) else number


def _after_thinking(text: str, policy: AnswerPolicy) -> int | None:
    """Where the text that counts begins; None inside an unfinished thought."""
    closed = text.rfind("</think>")
    start = 0 if closed < 0 else closed + len("</think>")
    if not policy.unfinished_thinking and text.find("<think>", start) >= 0:
        return None
    return start


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _found(text: str, rule: str, start: int, end: int) -> FoundAnswer | None:
    start, end = _trim(text, start, end)
    return FoundAnswer(text=text[start:end], rule=rule, start=start, end=end) if start < end else None


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


def _boxed(text: str, start: int, policy: AnswerPolicy) -> tuple[FoundAnswer | None, bool]:
    """The boxed answer, and whether there were boxes that contradict each other."""
    openings = [match.end() for match in _BOX.finditer(text, start)]
    if not openings:
        return None, False
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
        return (_found(text, "boxed", *unclosed) if unclosed and policy.unclosed_box else None), False
    groups: list[list[tuple[int, int]]] = [[filled[0]]]
    for before, after in pairwise(filled):
        gap = text[before[1] : after[0]].lstrip("}")
        gap = gap[: gap.rfind("\\")] if "\\" in gap else gap
        joined = policy.join_boxes and len(gap) < 80 and _JOINER.fullmatch(gap)
        if joined and re.search(r"and|or|[,;]", gap):
            groups[-1].append(after)
        else:
            groups.append([after])
    if policy.boxes == "only" and len({tuple(text[a:b] for a, b in group) for group in groups}) > 1:
        return None, True
    group = groups[0] if policy.boxes == "first" else groups[-1]
    joined_text = ", ".join(text[a:b] for a, b in group)
    return FoundAnswer(text=joined_text, rule="boxed", start=group[0][0], end=group[-1][1]), False


def _unwrap(text: str, span: tuple[int, int], partner: dict[int, int]) -> tuple[int, int]:
    """The content of a box without the boxes that fill it entirely."""
    start, end = _trim(text, *span)
    while match := _BOX.match(text, start, end):
        inner = match.end()
        if partner.get(inner, -1) != end - 1:
            break
        start, end = _trim(text, inner + 1, end - 1)
    return start, end


def _hashes(text: str, start: int) -> FoundAnswer | None:
    at = text.rfind("####")
    if at < start:
        return None
    match = _HASHES.match(text, at)
    assert match is not None
    end = text.find("\n", match.end())
    found = _found(text, "hashes", match.end(), len(text) if end < 0 else end)
    return found and _sentence(text, "hashes", found.start, found.end)


def _phrase(text: str, start: int) -> FoundAnswer | None:
    begins: deque[int] = deque((match.end() for match in _PHRASE.finditer(text, start)), maxlen=MAX_PHRASES)
    while begins:
        begin = _trim(text, begins.pop(), len(text))[0]
        end = text.find("\n", begin)
        if found := _sentence(text, "phrase", begin, len(text) if end < 0 else end):
            return found
    return None


def _sentence(text: str, rule: str, start: int, end: int) -> FoundAnswer | None:
    """The answer at the head of text[start:end]: delimited mathematics, or up to the end of the sentence."""
    while start < end and text[start] in "*_`: ":
        start += 1
    for opening, closing in _DELIMITERS:
        if text.startswith(opening, start):
            stop = text.find(closing, start + len(opening))
            if stop >= 0 and text[start + len(opening) : stop].strip():
                return _found(text, rule, start + len(opening), stop)
    if text.startswith("####", start):
        return _sentence(text, rule, start + 4, end)
    sentence = _SENTENCE_END.search(text, start, end)
    end = sentence.start() if sentence else end
    while end > start and text[end - 1] in "*_`.,; \t":
        end -= 1
    return _found(text, rule, start, end)


def _whole(text: str, start: int) -> FoundAnswer | None:
    """The text itself where it is one short line (or one formula) without prose."""
    found = _found(text, "whole", start, len(text))
    if found is None or len(found.text) > 400 or _PROSE.search(found.text) or _BOX.search(found.text):
        return None
    if re.search(r"[.!?;]\s+\S|(?<!\d)\.\s|\n\s*\n", found.text) or found.text.count("\n") > 12:
        return None
    begin, end = found.start, found.end
    while end > begin and text[end - 1] in ".*_` ":
        end -= 1
    while begin < end and text[begin] in "*_` ":
        begin += 1
    return _found(text, "whole", begin, end)


def _choice(text: str, start: int, end: int, letters: str) -> FoundAnswer | None:
    pattern = re.compile(
        rf"\(([{letters}])\)|(?:^|\n)[ \t*_(\[]{{0,6}}([{letters}])(?=[ \t]*(?:[)\].:*_\n]|$)|[ \t]+[A-Z])"
        rf"|\b(?:option|choice|it's|it is|is)[ \t]+\**\(?([{letters}])(?=[).*,\s]|$)"
    )
    found = None
    for match in pattern.finditer(text, start, end):
        group = match.lastindex or 0
        found = FoundAnswer(text=match.group(group), rule="choice", start=match.start(group), end=match.end(group))
    return found


_SEGMENT = re.compile(r"\$\$|\\[\[(\])]|(?<!\\)\$")
_CLOSES = {"$$": "$$", "$": "$", "\\[": "\\]", "\\(": "\\)"}


def _math(text: str, start: int, end: int) -> FoundAnswer | None:
    """The last delimited mathematics, read from the front so that dollars pair up as they were written."""
    last: FoundAnswer | None = None
    opened: re.Match[str] | None = None
    for mark in _SEGMENT.finditer(text, start, end):
        if opened is None:
            opened = mark if mark.group() in _CLOSES else None
        elif mark.group() == _CLOSES[opened.group()]:
            last = _found(text, "math", opened.end(), mark.start()) or last
            opened = None
    return last


def _last_number(text: str, start: int, end: int) -> FoundAnswer | None:
    last = None
    for match in _NUMBER.finditer(text, start, end):
        if match.group().strip("$+-"):
            last = match
    return None if last is None else _found(text, "number", last.start(), last.end())
