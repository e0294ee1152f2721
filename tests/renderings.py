r"""Ways to write the same answer, and ways to make another one of it; for answers of the MATH data set's kind.

`renderings` gives texts that mean what the answer means: other commands for the same thing, spacing, wrappers,
Unicode, a label. `perturbations` gives texts that do not: one digit, one sign, one bracket or one item other.
Used by tests/test_verifiers_math_answers.py and benchmarks/verifiers_accuracy.py.
"""

from __future__ import annotations

import re

_FRACTION = re.compile(r"(?<![\d}])\\d?frac\{(\d+)\}\{(\d+)\}(?![\w{\\(])")
_INTEGER = re.compile(r"(?<![\d.,_{}])\d{4,}(?![\d.,_{}])")
_UNICODE = {
    r"\pi": "π", r"\sqrt": "√", r"^\circ": "°", r"\infty": "∞", r"\le": "≤", r"\ge": "≥", r"\cup": "\u222a",
    r"\times": "×", r"\cdot": "⋅", r"\pm": "±", "-": "−",
}  # fmt: skip


def renderings(answer: str) -> dict[str, str]:
    """How it is written -> the answer written so; only ways that change the text."""
    ways = {
        "dollars": f"${answer}$",
        "parentheses": rf"\({answer}\)",
        "display": rf"\[ {answer} \]",
        "braces": f"{{{answer}}}",
        "closing point": answer + ".",
        "bold": f"**{answer}**",
        "display style": rf"\displaystyle {answer}",
        "dfrac": answer.replace(r"\frac", r"\dfrac"),
        "frac": answer.replace(r"\dfrac", r"\frac"),
        "slash": _FRACTION.sub(r"\1/\2", answer) if _FRACTION.fullmatch(answer) else answer,
        "wide": re.sub(r"(?<=[\w)}])([+=<>])(?=[\w\\({])", r" \1 ", answer),
        "narrow": re.sub(r" ?([+,=<>]) ?", r"\1", answer) if "\\text" not in answer else answer,
        "sized": answer.replace(r"\left", "").replace(r"\right", ""),
        "big": _sized(answer),
        "braced exponent": re.sub(r"\^(\d)", r"^{\1}", answer),
        "mathrm": re.sub(r"\\text\{(\w+)\}", r"\\mathrm{\1}", answer),
        "thousands": _INTEGER.sub(lambda m: f"{int(m[0]):,}", answer) if "," not in answer else answer,
        "no thousands": re.sub(r"(?<=\d),\\!(?=\d{3})", "", answer),
        "label": f"N = {answer}" if re.fullmatch(r"[-\d./\\{}a-z]*\d[-\d./\\{}a-z]*", answer) else answer,
    }
    plain = answer
    for command, character in _UNICODE.items():
        plain = re.sub(re.escape(command) + r"(?![a-zA-Z])", character, plain)
    ways["unicode"] = plain
    return {way: text for way, text in ways.items() if text != answer}


def _sized(answer: str) -> str:
    """Round brackets with their sizing commands, where they pair up."""
    if answer.count("(") != answer.count(")") or "[" in answer or "]" in answer or "\\left" in answer:
        return answer
    return answer.replace("(", "\\left(").replace(")", "\\right)")


def perturbations(answer: str) -> dict[str, str]:
    """What was changed -> another answer."""
    ways: dict[str, str] = {}
    digit = re.search(r"\d(?=[^\d]*$)", answer)
    if digit and "approx" not in answer and "_" not in answer:  # 2/3 is meant by any rounding; 1 is 1 in any base
        other = str((int(digit[0]) + 3) % 10)
        ways["last digit"] = answer[: digit.start()] + other + answer[digit.end() :]
    if re.fullmatch(r"[\d.,\\!/{}fracdsqtpi]*[1-9][\d.,\\!/{}fracdsqtpi]*", answer):
        ways["sign"] = "-" + answer if "," not in answer.replace(",\\!", "") else answer
    if re.fullmatch(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]", answer):
        ways["bracket"] = ("(" if answer[0] == "[" else "[") + answer[1:]
        first, second = answer[1:-1].split(",")[:2]
        if answer.count(",") == 1 and first.strip() != second.strip():
            ways["order"] = f"{answer[0]}{second},{first}{answer[-1]}"
        ways["dropped item"] = answer[0] + answer[1:-1].rpartition(",")[0] + answer[-1]
    return {what: text for what, text in ways.items() if text != answer}
