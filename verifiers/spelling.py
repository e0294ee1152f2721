# ruff: noqa: RUF001 - this file is about characters that look like others
"""Unicode notation -> its ASCII or LaTeX spelling, so that the lexer knows one alphabet.

Minus signs and dashes, full-width and other decimal digits, superscripts and subscripts (a run becomes one
braced exponent), vulgar fractions, radicals, relation and set signs, Greek letters, quotes. Characters of
zero width vanish. A doubled backslash before a known command, as left by one JSON encoding too many, becomes
a single one. Markdown's bold marks vanish where they cannot be powers.
"""

from __future__ import annotations

import re
import unicodedata

from verifiers.trees import words

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_SPELLING = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "⋅": "*", "∙": "*", "÷": "/",
    "∕": "/", "⁄": "/", "√": " sqrt ", "∛": "\\sqrt[3]", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ",
    "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "±": "\\pm ", "∓": "\\mp ", "∪": "\\cup ", "∩": "\\cap ",
    "∈": "\\in ", "∅": "\\emptyset ", "°": "^\\circ ", "º": "^\\circ ", "…": "\\ldots ", "′": "'",
    "’": "'", "⟨": "(", "⟩": ")", "“": " ", "”": " ", "。": ".", "、": ",", "，": ",", "；": ";",
    "€": " ", "£": " ", "¥": " ", "₹": " ", "¢": " cents", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}",
    "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ",
    "λ": "\\lambda ", "φ": "\\varphi ", "→": "\\to ", "⇒": "\\to ",
}  # fmt: skip
_RADICAL = re.compile(r"√(?=\s?[\[{])")
_RUN = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+|[{''.join(_SUBSCRIPTS)}]+")
_DOUBLED = re.compile(
    r"(?<!\\)\\\\(?=(?:[dtc]?frac|sqrt|boxed|left|right|text|mbox|leq?|geq?|pi|infty|cdot|times|begin|end|pm"
    r"|cup|in|sin|cos|tan|ln|log|ldots|mathrm)(?![a-zA-Z]))"
)
_BOLD = re.compile(r"(?<![\w)\]}*])\*\*([^*\n]+)\*\*(?!\*)")
_TIMES_TEN = re.compile(r"(?<=\d)[ ]?x[ ]?(?=10[ ]?(?:\^|\*\*))")
_MODULO = re.compile(r"\(\s*(?:\\?mod(?:ulo)?)(?![a-zA-Z])([^()]*)\)")
_NAMED_BASE = re.compile(
    r"(?:\\text\{(\w+)\}|(\w+))_\{?\\text\{\s*(two|three|four|five|six|seven|eight|nine|ten|sixteen)\s*\}\}?"
)
_TEXT_BASE = re.compile(r"\\text\{(\w+)\}(?=_\{?\d)")
_PREFIXED = re.compile(r"(?<![\w.])0(?:b([01]{2,})|x([0-9A-Fa-f]{2,}))(?![\w.])")
_BASES = {name: n for n, name in enumerate(words("two three four five six seven eight nine ten"), 2)} | {"sixteen": 16}
_ZERO_WIDTH = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad\x00]")
_ASCII = re.compile(r"[\x01-\x7f]*\Z")


def respell(text: str) -> str:
    """Unicode notation in its ASCII or LaTeX spelling; doubled backslashes before a command made single."""
    if "**" in text:
        text = _BOLD.sub(r"\1", text)
    if "\\\\" in text:
        text = _DOUBLED.sub(r"\\", text)
    if '"' in text:
        text = text.replace('"', " ")
    if "mod" in text:
        text = _MODULO.sub(r"\\bmod\1 ", text)
    if "_" in text and "\\text" in text:
        text = _NAMED_BASE.sub(lambda m: f"{m[1] or m[2]}_{{{_BASES[m[3]]}}}", text)
        text = _TEXT_BASE.sub(r"\1", text)
    if "x10" in text or "x 10" in text:
        text = _TIMES_TEN.sub("*", text)
    if "0b" in text or "0x" in text:
        text = _PREFIXED.sub(lambda m: f"{m[1]}_2" if m[1] else f"{m[2]}_16", text)
    if _ASCII.match(text):
        return text
    text = _ZERO_WIDTH.sub("", text)

    def script(match: re.Match[str]) -> str:
        run = match.group()
        if run[0] in _SUPERSCRIPTS:
            return "^{" + "".join(_SUPERSCRIPTS[c] for c in run) + "}"
        return "_{" + "".join(_SUBSCRIPTS[c] for c in run) + "}"

    return "".join(_respell_one(c) for c in _RADICAL.sub(r"\\sqrt", _RUN.sub(script, text)))


def _respell_one(char: str) -> str:
    if char < "\x80":
        return char
    if char in _SPELLING:
        return _SPELLING[char]
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    plain = unicodedata.normalize("NFKC", char)
    if "⁄" in plain:
        upper, lower = plain.split("⁄")
        return f"\\frac{{{upper}}}{{{lower}}}" if lower else char
    return plain if plain.isascii() else char
