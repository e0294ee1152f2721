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
from collections.abc import Iterator
from dataclasses import replace

from verifiers.boxes import DEFAULT_POLICY, AnswerPolicy, FoundAnswer, boxed, is_box, make_answer, trim
from verifiers.trees import MAX_CHARACTERS, words

__all__ = ["AnswerPolicy", "FoundAnswer", "extract_answer", "find_answer", "find_choice", "is_prose"]

MAX_PHRASES = 16
"""How many of the last "the answer is" are looked at; those that say nothing are passed over."""
_HASHES = re.compile(r"####[ \t:]*")
_LINE = re.compile(r"A:[ \t*]*")
_LINE_START = re.compile(r"[ \t>*_#]{0,12}")
_PHRASE = re.compile(
    r"\b(?:answer|result)[ \t]{0,8}(?:\*\*)?[ \t]{0,8}(?::|\bis\b|=)[ \t:*]*"
    r"|\banswer[ \t]+(?=\$|\\\(|\\\[)"
    r"|(?:答案|答え|답|\b(?:réponse|respuesta|resposta|antwort|risposta|lösung|ответ))[ \t]*"
    r"(?:是|为|は|은|est\b|es\b|é\b|è\b|ist\b|[:：=])[ \t:：*]*",
    re.IGNORECASE,
)
_PHRASE_WORDS = words("answer result 答案 答え 답 réponse respuesta resposta antwort risposta lösung ответ")
_JOINS = re.compile(r"[ \t]*(?:,|;|or|and|plus|minus|times|,[ \t]*(?:and|or))[ \t]*(?=\$|\\\(|\\\[)")
_HEDGE = re.compile(
    r"\b(?:or|maybe|but|if|either|except|than|multiples? of|divisible|not|root|at least|at most)\b", re.IGNORECASE
)
_DELIMITERS = (("\\[", "\\]"), ("\\(", "\\)"), ("$$", "$$"), ("$", "$"))
_SENTENCE_END = re.compile(
    r"[.!?](?=\s|$|\*)|。|,\s(?=\s?(?!or\b|and\b|but\b|if\b|maybe\b)[a-z]{2})"
    r"|(?<=\s)(?:because|since|which|where|so|therefore|thus|hence|as|when|not)\b"
)
_END_TOKENS = re.compile(r"<\|[a-z_]{2,20}\|>|</s>|</?answer>")
_NUMBER = re.compile(
    r"(?=[-−+$.\d])(?<![a-zA-Z0-9_.^])(?:[-−+](?=[\d.$]))?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?"
    r"(?:\.\d+|(?<=\d),\d{1,2}(?![\d,])|(?<=\d))"
    r"(?:/\d+(?:\.\d+)?)?%?"
)
_WORD = r"[^\W\d_]"
_PROSE = re.compile(
    rf"(?<![\\{{])(?<!{_WORD})(?:{_WORD}|'){{2,}}[ \t]+(?:{_WORD}|')+[ \t]+(?:{_WORD}|['(])+"
    r"|[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{4,}"
)
_FILLER = re.compile(
    r"(?<![\\a-zA-Z])(?:so|is|it|thus|hence|therefore|then|we|get|gives|that|the|this|equals|result|answer)(?![a-zA-Z])",
    re.IGNORECASE,
)
_FINAL = re.compile(r"final answer(?: is)?[ \t]*:?[ \t*]*(?=\$|\\[(\[]|[-+]?\d)", re.IGNORECASE)


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
    found, several = boxed(response, start, policy)
    if found or several:
        return (found and policy.boxes == "last" and _restated(response, found.end)) or found
    if policy.require_box:
        return None
    text = response
    if "<" in text:
        text = _END_TOKENS.sub(lambda match: " " * len(match.group()), text)
    if found := _hashes(text, start) or _phrase(text, start):
        return _reduce(text, found, policy) if is_prose(found.text) else found
    if found := _whole(text, start):
        return found
    return _inside(text, start, len(text), policy)


def find_choice(response: str, *, policy: AnswerPolicy | None = None) -> FoundAnswer | None:
    """The letter that a response chooses, for questions whose reference is a letter; None where it names none."""
    policy = policy or DEFAULT_POLICY
    start = _after_thinking(response, policy)
    return None if start is None or not policy.choices else _choice(response, start, len(response), policy.choices)


def is_prose(text: str) -> bool:
    """Whether a text holds three words in a row (or four characters of a script without spaces)."""
    return _PROSE.search(text, 0, MAX_CHARACTERS) is not None


def _restated(text: str, start: int) -> FoundAnswer | None:
    """A "final answer is" with mathematics behind the last box; it is what the response ends on."""
    last = None
    for match in _FINAL.finditer(text, start):
        last = match
    if last is None:
        return None
    end = text.find("\n", last.end())
    return _sentence(text, "phrase", last.end(), len(text) if end < 0 else end)


def _reduce(text: str, found: FoundAnswer, policy: AnswerPolicy) -> FoundAnswer:
    """What a sentence says: its last mathematics, choice or number; the sentence where it has none."""
    if _HEDGE.search(found.text):
        return found  # "all numbers except 5" is not 5, and "5, but it could be 7" is neither
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


def _hashes(text: str, start: int) -> FoundAnswer | None:
    at = text.rfind("####")
    if at < start:
        return None
    match = _HASHES.match(text, at)
    assert match is not None
    end = text.find("\n", match.end())
    found = make_answer(text, "hashes", match.end(), len(text) if end < 0 else end)
    return found and _sentence(text, "hashes", found.start, found.end)


def _phrase(text: str, start: int) -> FoundAnswer | None:
    for begin in sorted(_phrases(text, start), reverse=True)[:MAX_PHRASES]:
        begin = trim(text, begin, len(text))[0]
        end = text.find("\n", begin)
        if found := _sentence(text, "phrase", begin, len(text) if end < 0 else end):
            return found
    return None


def _phrases(text: str, start: int) -> Iterator[int]:
    """Where the last phrases end that announce an answer: found by their words, then looked at closely."""
    lower = text.lower()
    if len(lower) != len(text):  # a letter whose lower case is two
        lower = text
    for word in _PHRASE_WORDS:
        for at in _places(lower, word, start):
            if match := _PHRASE.match(text, at):
                yield match.end()
    for at in _places(text, "A:", start):
        line = text.rfind("\n", start, at) + 1 or start
        if at - line <= 12 and _LINE_START.fullmatch(text, line, at) and (match := _LINE.match(text, at)):
            yield match.end()


def _places(text: str, word: str, start: int) -> Iterator[int]:
    """Where a word stands, from the end, at most MAX_PHRASES times."""
    at = len(text)
    for _ in range(MAX_PHRASES):
        at = text.rfind(word, start, at)
        if at < 0:
            return
        yield at


def _sentence(text: str, rule: str, start: int, end: int) -> FoundAnswer | None:
    """The answer at the head of text[start:end]: delimited mathematics, or up to the end of the sentence."""
    while start < end and text[start] in "*_`: ":
        start += 1
    for opening, closing in _DELIMITERS:
        if text.startswith(opening, start):
            stop = _closing(text, closing, start + len(opening))
            if stop >= 0 and _JOINS.match(text, stop + len(closing), end):
                break  # several formulas are one answer: the whole sentence
            if stop >= 0 and text[start + len(opening) : stop].strip():
                return make_answer(text, rule, start + len(opening), stop)
    if text.startswith("####", start):
        return _sentence(text, rule, start + 4, end)
    sentence = _SENTENCE_END.search(text, min(start + 1, end), end)
    end = sentence.start() if sentence else end
    while end > start and text[end - 1] in "*_`.,; \t":
        end -= 1
    return make_answer(text, rule, start, end)


def _closing(text: str, mark: str, start: int) -> int:
    """Where a delimiter closes; an escaped dollar is none."""
    stop = text.find(mark, start)
    while stop > 0 and mark[0] == "$" and text[stop - 1] == "\\":
        stop = text.find(mark, stop + 1)
    return stop


def _whole(text: str, start: int) -> FoundAnswer | None:
    """The text itself where it is one short line (or one formula) without prose."""
    found = make_answer(text, "whole", start, len(text))
    if found is None or _FILLER.search(found.text, 0, 1_000) or is_prose(found.text) or is_box(found.text):
        return None
    if re.search(r"(?<!\\)[.!?;]\s+\S|(?<!\d)\.\s|\n\s*\n", found.text) or found.text.count("\n") > 12:
        return None
    begin, end = found.start, found.end
    marks = "*_` " if text[begin] in "*_" else "` "
    while end > begin and text[end - 1] in "." + marks:
        end -= 1
    while begin < end and text[begin] in marks:
        begin += 1
    return make_answer(text, "whole", begin, end)


def _choice(text: str, start: int, end: int, letters: str) -> FoundAnswer | None:
    pattern = re.compile(
        rf"\(([{letters}])\)|(?:^|\n)[ \t*_(\[]{{0,6}}([{letters}])(?=[ \t]*(?:[)\].:*_\n]|$)|[ \t]+[A-Z]|,[ \t]+[a-z])"
        rf"|\b(?:option|choice|it's|it is|is|est|es|ist)[ \t]+\**\(?([{letters}])(?=[).*,\s]|$)"
    )
    found = None
    for match in pattern.finditer(text, start, end):
        group = match.lastindex or 0
        found = FoundAnswer(text=match.group(group), rule="choice", start=match.start(group), end=match.end(group))
    return found


_SEGMENT = re.compile(r"\$\$|\\[\[(\])]|(?<!\\)\$")
_STRIPPED = re.compile(r"[(\[][ \t]*([^()\[\]\n\\]*\\[a-zA-Z][^()\[\]\n]*)[)\]]")
_CLOSES = {"$$": "$$", "$": "$", "\\[": "\\]", "\\(": "\\)"}


def _math(text: str, start: int, end: int) -> FoundAnswer | None:
    """The last delimited mathematics, read from the front so that dollars pair up as they were written."""
    last: FoundAnswer | None = None
    opened: re.Match[str] | None = None
    for mark in _SEGMENT.finditer(text, start, end):
        if opened is None:
            opened = mark if mark.group() in _CLOSES else None
        elif mark.group() == _CLOSES[opened.group()]:
            last = make_answer(text, "math", opened.end(), mark.start()) or last
            opened = None
    return last or _stripped(text, start, end)


def _stripped(text: str, start: int, end: int) -> FoundAnswer | None:
    r"""The last mathematics whose `\(...\)` has lost its backslashes."""
    last = None
    for match in _STRIPPED.finditer(text, start, end):
        last = match
    return last and make_answer(text, "math", last.start(1), last.end(1))


def _last_number(text: str, start: int, end: int) -> FoundAnswer | None:
    last = None
    for match in _NUMBER.finditer(text, start, end):
        if match.group().strip("$+-"):
            last = match
    return None if last is None else make_answer(text, "number", last.start(), last.end())
