r"""Ways of writing that the grammar need not know -> the one it knows, by patterns, before the text becomes tokens.

    layout commands     \color{red}{5}, \tag{1}, \underline{5}                  -> 5
    function names      \operatorname{lcm}, \mathrm{sin}, sinx, log2(8)          -> \lcm, \sin, \sin x, \log_{2}(8)
    set builder         \{x \mid x > 2\}, (-inf, 2) U (3, inf), ]0, 1]           -> x > 2, \cup, (0, 1]
    systems             \begin{cases}x=1\\y=2\end{cases}, two lines              -> x=1, y=2
    units               5\,\mathrm{N}, 5 kWh, 5^{\circ}\mathrm{C}, sq ft          -> 5\text{ N}, ...
    scales              1.2 million, 2 dozen, 5 squared                          -> 1.2\cdot 10^{6}, 2\cdot 12, 5^{2}
    combinations        C_{10}^{3}, _{10}C_3                                     -> \binom{10}{3}
    domain of a letter  ..., k \in \mathbb{Z}                                    -> dropped at the end

Each pattern looks at a bounded stretch, so the work is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from verifiers.trees import words

MAX_REWRITTEN = 4_000
"""Longest text that is rewritten; nobody writes a longer answer by hand."""
_FUNCTIONS = {
    name: name
    for name in words(
        "sin cos tan cot sec csc sinh cosh tanh sech csch coth arcsin arccos arctan arccot arcsec arccsc ln log lg exp "
        "det gcd lcm max min cis sgn sign Re Im arg"
    )
}
_FUNCTIONS |= {"tg": "tan", "ctg": "cot", "arctg": "arctan", "arcctg": "arccot", "sen": "sin", "sign": "sgn"}
_NAMES = "|".join(sorted(_FUNCTIONS, key=len, reverse=True))
_SCALES = {"hundred": "100", "thousand": "10^{3}", "million": "10^{6}", "billion": "10^{9}", "trillion": "10^{12}"}
_SCALES |= {"dozen": "12", "dozens": "12"}
_POWERS = {"squared": "^{2}", "cubed": "^{3}", "factorial": "!"}
_PARTS = {"halves": "2", "thirds": "3", "quarters": "4", "fourths": "4", "fifths": "5", "sixths": "6", "eighths": "8"}
_UNIT = (
    r"(?:[kMmGμuc]?(?:N|J|W|V|Pa|Hz|mol|Wh|eV|bar)|[kmc]?m|k?g|mL|L|K|A|C|F|T|h|s|min|sec|secs|mins|hrs?|yrs?|in|"
    r"ft|lbs?|mi|ohms?|rad|sq ?(?:ft|cm|m|in|km|yd|mi))"
)

_WORDS = frozenset(words("cost sing tank tans secs logs sins cosy slog sect"))

Replacement = str | Callable[[re.Match[str]], str]


def _function(match: re.Match[str]) -> str:
    return f"\\{_FUNCTIONS[match.group(1)]} "


def _unit(match: re.Match[str]) -> str:
    """Upright letters behind a number as a unit: meters and seconds to the power -2 are m / s^2."""
    plain = re.sub(r"\\[,;: ]|\\cdot|~|[()]", " ", match.group(1))
    units = re.sub(r"([a-zA-Z]+)[ ]?\^[ ]?\{?-([0-9])\}?", r"/ \1^\2", plain)
    return f"\\text{{ {units}}}"


def _split_run(match: re.Match[str]) -> str:
    if match.group() in _WORDS:
        return match.group()
    return re.sub(r"(sin|cos|tan|cot|sec|csc|ln|log)([a-z])", r" \\\1 \2 ", match.group())


def _scale(match: re.Match[str]) -> str:
    return rf"\cdot {_SCALES[match.group(1)]} "


_SYSTEM = re.compile(r"\\left\s?\\\{\s?\\begin\{array\}\{[lcr]\}(.{0,400}?)\\end\{array\}\s?\\right\s?\.", re.DOTALL)
_BUILDER = re.compile(
    r"^\s*(?:\\left)?\s?\\?\{\s?[a-z]\s?(?:\\in\s?(?:\\mathbb\s?\{?R\}?|R)\s?)?"
    r"(?:\\middle\s?\||\\mid(?![a-z])|\\vert|[|:])\s?(.{1,200}?)\s?(?:\\right)?\s?\\?\}\s*$"
)
_DOMAIN = re.compile(
    r"[,;]?\s?\(?\s?(?:\\text\{\s?(?:where|for|with)\s?\})?\s?"
    r"(?<![a-zA-Z])[a-z]\s?\\in\s?\\mathbb\s?\{?[ZNQ]\}?\s?\)?\s*$"
)
_TEMPERATURE = re.compile(
    r"\^\s?\{?\s?\\circ\s?\}?\s?(?:\\[,;: ])?(?:\\(?:mathrm|text)\{\s?([CF])\s?\}|([CF])(?![a-zA-Z]))"
)
_SCALE_IN_TEXT = re.compile(rf"(?<=\d)\s?\\text\s?\{{\s?({'|'.join(_SCALES)})(?![a-zA-Z])\s?\}}")
_SCALE = re.compile(rf"(?<=\d)\s?({'|'.join(_SCALES)})(?![a-zA-Z])")
_POWER = re.compile(rf"(?<=[\d)}}])\s?(?:\\text\{{\s?)?({'|'.join(_POWERS)})(?![a-zA-Z])\s?\}}?")
_RULES: tuple[tuple[str, re.Pattern[str], Replacement], ...] = (
    ("\\", re.compile(r"\\(?:(?:text)?color|tag|label|hspace|vspace|h?phantom|require)\*?\s?\{[^{}]{0,40}\}"), ""),
    ("\\", re.compile(r"\\(?:notag|nonumber|blacksquare|square|qed|math(?:open|close|op)|underline)(?![a-zA-Z])"), " "),
    ("", re.compile(r"(?<=\d)(?:\s|\\[,;: ])*\\(?:text|mathrm)\s?\{\s?(min|sec)s?\.?\s?\}"), r"\\text{ \1s}"),
    ("\\", re.compile(rf"\\(?:operatorname\*?|mathrm|mathop|text|rm)\s?\{{\s?({_NAMES})\s?\}}"), _function),
    ("\\", re.compile(r"\\(Re|Im)(?![a-zA-Z])"), _function),
    ("log", re.compile(r"(?<![a-zA-Z\\])log(\d{1,3})\s?(?=\()"), r"\\log_{\1}"),
    ("cbrt", re.compile(r"(?<![a-zA-Z])cbrt(?=\()"), r"\\sqrt[3]"),
    ("", re.compile(r"(?<![a-zA-Z\\])[a-z]?(?:(?:sin|cos|tan|cot|sec|csc|ln|log)[a-z]){1,3}(?![a-zA-Z])"), _split_run),
    ("", re.compile(r"(?<![a-zA-Z\\])(tg|ctg|arctg|sen)(?=[\s(])"), _function),
    ("\\begin{c", re.compile(r"\\begin\{cases\}([^&]{0,400}?)\\end\{cases\}"), lambda m: m[1].replace("\\\\", ", ")),
    ("\\begin{", re.compile(r"\\begin\{(aligned|align\*?|gathered|split)\}(.{0,400}?)\\end\{\1\}", re.DOTALL),
     lambda m: m[2].replace("\\\\", ", ").replace("&", " ")),
    ("\\begin{array", _SYSTEM, lambda m: m[1].replace("\\\\", ", ").replace("&", " ")),
    ("\n", re.compile(r"(?<=[\w})])[ ]?\n\s?(?=[a-z](?:_\{?\w\}?)?\s?=)"), ", "),
    ("{", _BUILDER, r"\1"),
    ("U", re.compile(r"(?<=[)\]])\s?U\s?(?=[(\[])"), r" \\cup "),
    ("]", re.compile(r"^\s*\](?=[^\[\]()]{1,60}[\]\[]\s*$)"), "("),
    ("[", re.compile(r"(?<=[\w}])\[\s*$"), ")"),
    ("\\in", _DOMAIN, ""),
    ("C", re.compile(r"(?:\{\}\s?\^|_)\{?(\d{1,4})\}?\s?C\s?_\{?(\d{1,4})\}?"), r"\\binom{\1}{\2}"),
    ("C_", re.compile(r"(?<![a-zA-Z])C_\{?(\d{1,4})\}?\^\{?(\d{1,4})\}?"), r"\\binom{\1}{\2}"),
    ("o", re.compile(r"\^\s?\{?o\}?(?![a-zA-Z])"), r"^\\circ "),
    ("circ", _TEMPERATURE, lambda m: rf"\text{{ deg{m[1] or m[2]}}}"),
    ("", _SCALE_IN_TEXT, _scale),
    ("", _SCALE, _scale),
    ("", _POWER, lambda m: _POWERS[m[1]]),
    ("", re.compile(rf"(?<=\d)\s({'|'.join(_PARTS)})(?![a-zA-Z])"), lambda m: f"/{_PARTS[m[1]]}"),
    ("mathrm", re.compile(r"(?<=[\d}\s,;~/.])\\mathrm\s?\{([^{}]{1,40}(?:\{[^{}]{1,6}\})?[^{}]{0,20})\}"), _unit),
    ("", re.compile(rf"(?<=\d)(?:\s|\\[,;: ])({_UNIT})\.?\s*$"), r"\\text{ \1}"),
    ("\\", re.compile(r"\\(?:overrightarrow|vec)\s?\{\s?([A-Z])\s?([A-Z])\s?\}"), r"\\text{vector \1\2}"),
    ("Abs", re.compile(r"(?<![a-zA-Z])Abs(?=\()"), "abs"),
    ("binomial", re.compile(r"(?<![a-zA-Z])binomial\((\w{1,9}),\s?(\w{1,9})\)"), r"\\binom{\1}{\2}"),
    ("factorial", re.compile(r"(?<![a-zA-Z])factorial\((\w{1,9})\)"), r"(\1)!"),
    ("Matrix", re.compile(r"^\s*Matrix\((\[\[.{1,300}\]\])\)\s*$"), r"\1"),
    ("Interval", re.compile(r"^\s*Interval\(([^(),]{1,60}),([^(),]{1,60})\)\s*$"), r"[\1,\2]"),
    ("Interval", re.compile(r"^\s*Interval\.open\(([^(),]{1,60}),([^(),]{1,60})\)\s*$"), r"(\1,\2)"),
    ("Rs", re.compile(r"^\s*Rs\.?\s?(?=\d)"), ""),
    ("", re.compile("(?<=[\\d}])\\s?[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{1,8}[\u3002.]?\\s*$"), ""),
)  # fmt: skip


def rewrite(text: str) -> str:
    """The text in the notation of the grammar; as it is where it is too long to be an answer."""
    if len(text) > MAX_REWRITTEN:
        return text
    for hint, pattern, replacement in _RULES:
        if hint in text:
            text = pattern.sub(replacement, text)
    return text
