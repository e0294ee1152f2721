"""Numbers written in words -> digits: `twenty-five`, `one hundred and six`, `two thirds`, `a half`, `three and a half`.

A run of number words is read left to right: units and tens add up, `hundred` multiplies what stands before it,
`thousand`, `million` and `billion` close a group. A denominator (`half`, `third`, ... `tenth`) behind a run, or
behind `a`, makes a fraction. Anything else stays as it is.
"""

from __future__ import annotations

import re

from verifiers.trees import words

_UNITS = {
    name: value
    for value, name in enumerate(
        words(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
            "sixteen seventeen eighteen nineteen"
        )
    )
}
_TENS = {name: 10 * n for n, name in enumerate(words("twenty thirty forty fifty sixty seventy eighty ninety"), 2)}
_GROUPS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_PARTS = {name: n for n, name in enumerate(words("half third fourth fifth sixth seventh eighth ninth tenth"), 2)}
_PARTS |= {"quarter": 4, "halve": 2}
_PART = rf"(?:{'|'.join(_PARTS)})s?"
_WORD = rf"(?:{'|'.join([*_UNITS, *_TENS, 'hundred', *_GROUPS])})"
_RUN = rf"{_WORD}(?:(?:[ -]|[ -]and[ -]){_WORD})*"
_NUMBER = re.compile(
    rf"(?<![a-zA-Z\\])(?:(?P<run>{_RUN})(?:[ -](?P<part>{_PART}))?(?:[ ]and[ ](?:a|one)[ -](?P<rest>{_PART}))?"
    rf"|(?:an?[ ])?(?P<lone>half|quarter)(?:[ ]of)?|an?[ ](?P<one>{_PART}))(?![a-zA-Z-])",
    re.IGNORECASE,
)
_MINUS = re.compile(r"(?<![a-zA-Z])(?:minus|negative)\s(?=\d)", re.IGNORECASE)
_AND_A_HALF = re.compile(rf"(?<![\d.])(\d{{1,9}}) and (?:a|one) ({_PART})(?![a-zA-Z])", re.IGNORECASE)
_HINT = re.compile(_WORD + "|" + _PART, re.IGNORECASE)


def spell_out(text: str) -> str:
    """The text with its number words in digits (`7/2` for three and a half)."""
    if not _HINT.search(text):
        return text
    text = _AND_A_HALF.sub(lambda m: f"{int(m[1]) * _denominator(m[2]) + 1}/{_denominator(m[2])}", text)
    return _MINUS.sub("-", _NUMBER.sub(_digits, text))


def _digits(match: re.Match[str]) -> str:
    lone = match["lone"] or match["one"]
    if lone:
        return f"1/{_denominator(lone)}"
    value = _value(match["run"])
    if match["rest"]:
        lower = _denominator(match["rest"])
        return f"{value * lower + 1}/{lower}"
    return f"{value}/{_denominator(match['part'])}" if match["part"] else str(value)


def _denominator(word: str) -> int:
    name = word.lower()
    return _PARTS[name] if name in _PARTS else _PARTS[name.removesuffix("s")]


def _value(run: str) -> int:
    total = group = 0
    for word in re.findall("[a-z]+", run.lower()):
        if word in _UNITS or word in _TENS:
            group += _UNITS.get(word, _TENS.get(word, 0))
        elif word == "hundred":
            group = (group or 1) * 100
        elif word in _GROUPS:
            total, group = total + (group or 1) * _GROUPS[word], 0
    return total + group
