r"""Text of an answer -> tokens, in one pass of linear time.

Unicode is respelled first (`verifiers.spelling`). Spacing, sizing and currency vanish. Numbers are read whole
with their thousands separators (`,` `{,}` `\,` `\!` or a space before exactly three digits); a run of letters
is sorted into function, constant, unit or word, or single-letter symbols. A comma between digits separates
thousands only outside brackets: `(100,200)` is a pair. Redundant nested brackets are collapsed here, before
anything nests.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from verifiers.notation import rewrite
from verifiers.spelling import respell
from verifiers.trees import (
    MAX_CHARACTERS,
    MAX_DIGITS,
    MAX_EXPONENT,
    MAX_NODES,
    LimitError,
    UnparsableError,
    words,
)
from verifiers.units import UNIT_NAMES


class Token(NamedTuple):
    """One token: what it is, its text, whether space stood before it, its number."""

    kind: str
    text: str
    spaced: bool = False
    value: Fraction | None = None
    digits: int = 0


FUNCTIONS = frozenset(
    words(
        "sin cos tan cot sec csc arcsin arccos arctan arccot asin acos atan sinh cosh tanh ln log lg exp abs "
        "sqrt det gcd lcm max min Re Im arg floor ceil sech csch coth arccot arcsec arccsc cis sgn"
    )
)
_CONSTANTS = {"pi": "pi", "infinity": "inf", "infty": "inf", "inf": "inf", "oo": "inf", "emptyset": "empty"}
_CONSTANTS |= {"varnothing": "empty"}
_WORD_TOKENS = {"and": ",", "or": "or", "percent": "%", "percentage": "%", "pct": "%", "to": ":"}
_WORD_TOKENS |= dict.fromkeys(words("approximately approx about roughly"), "~")
_SHORT_WORDS = frozenset(words("yes no on odd tie won win now red new off all any day boy dog god net"))
_COMMANDS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "le": "<=", "leq": "<=", "leqslant": "<=",
    "ge": ">=", "geq": ">=", "geqslant": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=",
    "approx": "~", "sim": "~", "simeq": "~", "equiv": "=", "in": "in", "to": "->", "rightarrow": "->",
    "cup": "cup", "cap": "cap", "setminus": "minus", "backslash": "minus", "pm": "+-", "mp": "-+",
    "colon": ":", "bmod": "mod", "mod": "mod", "pmod": "mod", "lor": "or", "vee": "or", "choose": "choose",
    "land": ",", "prime": "'", "mid": "|",
}  # fmt: skip
ARROWS = frozenset(words("-> subset subseteq supset supseteq prec succ parallel perp cong"))
"""Relations that are the same only when both sides are."""
_COMMANDS |= {name: name for name in ARROWS if name.isalpha()}
_COMMANDS |= dict.fromkeys(words("Rightarrow implies Longrightarrow longrightarrow"), "->")
_BRACKETS = {
    "lbrace": "\\{", "rbrace": "\\}", "lparen": "(", "rparen": ")", "lbrack": "[", "rbrack": "]",
    "langle": "(", "rangle": ")", "lfloor": "lfloor", "rfloor": "rfloor", "lceil": "lceil",
    "rceil": "rceil", "lvert": "|<", "rvert": ">|", "vert": "|",
}  # fmt: skip
_STRUCTURE = frozenset(words("frac sqrt binom overline bar begin end sum prod lim int"))
_ALIASES = dict.fromkeys(words("dfrac tfrac cfrac nicefrac sfrac"), "frac") | {"dbinom": "binom", "tbinom": "binom"}
_SILENT = frozenset(
    words(
        "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle displaystyle "
        "textstyle quad qquad limits nolimits phantom cdotp boxed fbox mathrm mathbf mathit mathsf "
        "mathcal boldsymbol bm operatorname displaylines rm bf it therefore hfill hline angle triangle"
    )
)
_TEXT = frozenset(words("text mbox textbf textit textrm textnormal textsf texttt hbox emph"))
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "lfloor": "rfloor", "lceil": "rceil", "|<": ">|"}

_SPACE = re.compile(r"(?:[\s~$`]|\\[,;:!> $()\[\]&]|\\(?=$))+")
_COMMAND = re.compile(r"\\(?:[a-zA-Z]+|.)", re.DOTALL)
_LETTERS = re.compile(r"[^\W\d_]+")
_DIGITS = re.compile(r"\d+")
_GROUP_OUTSIDE = re.compile(r"(?:,\\!\s?|\{,\}|\\,|\\!|,|[  ])(\d{3})(?![\d])")
_GROUP_INSIDE = re.compile(r"(?:,\\!\s?|\{,\}|\\,|\\!)(\d{3})(?!\d)")
_RUN = re.compile(r"\d+(?:,\d+)+")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+")
_FRACTION = re.compile(r"\.(\d*)")
_REPEAT = re.compile(r"\\(?:overline|bar|dot)\s?\{?(\d+)\}?(?:(\d*)\\dot\s?\{?(\d)\}?)?")
_GOES_ON = re.compile(r"\s?(?:\.\.\.|\\(?:ldots|dots|cdots|dotsc|dotsb)(?![a-zA-Z]))")
_PERIOD = re.compile(r"(\d*?)(\d+?)(?:\2)+")
_BLACKBOARD = re.compile(r"\\mathbb\s?\{?([A-Z])\}?|\\R(?![a-zA-Z])")
_DOTTED = re.compile(r"\d{1,3}(?:(?:\.\d{3}){2,}|(?:'\d{3})+)(?![\d.])")
_SCIENTIFIC = re.compile(r"[eE]([+-]?\d+)(?![\d.^])")
_BASE = re.compile(r"([0-9][0-9A-Fa-f]*(?:\.[0-9A-Fa-f]+)?)_(?:\{\s*(\d{1,2})\s*\}|(\d{1,2}))")
_BRACKETED_BASE = re.compile(r"\(([0-9][0-9A-Fa-f]*)\)(?=_)")
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-zA-Z])")
_OPERATORS = re.compile(r"\*\*|<=|>=|!=|->|==|[-+*/^_!%:|,;&=<>'.?#\"@]")


def to_integer(digits: str) -> int:
    """Digits -> integer without Python's limit on the length of such conversions."""
    value = 0
    for start in range(0, len(digits), 4000):
        chunk = digits[start : start + 4000]
        value = value * 10 ** len(chunk) + int(chunk)
    return value


def _number(text: str, at: int, inside: bool) -> tuple[Token, int]:
    """The number that starts at `at` (a digit, or a point before one), and where it ends."""
    match = _DIGITS.match(text, at)
    whole, end = (match.group(), match.end()) if match else ("", at)
    if 1 <= len(whole) <= 3 and whole != "0":
        groups = _GROUP_INSIDE if inside else _GROUP_OUTSIDE
        while (more := groups.match(text, end)) and not (
            text[end] in "  " and text[more.end() : more.end() + 1] in ("/", ".", "_")
        ):
            whole, end = whole + more.group(1), more.end()
    point = _FRACTION.match(text, end)
    part, repeat = "", ""
    if point and (point.group(1) or text[point.end() : point.end() + 1] == "\\"):
        part, end = point.group(1), point.end()
        if over := _REPEAT.match(text, end):
            repeat, end = "".join(group or "" for group in over.groups()), over.end()
        elif goes_on := _GOES_ON.match(text, end):
            part, repeat, end = *_period(part), goes_on.end()
    elif point and whole:
        end = point.end() if not text[point.end() : point.end() + 1].isalnum() else end
    if len(whole) + len(part) + len(repeat) > MAX_DIGITS:
        raise LimitError(f"a number has more than {MAX_DIGITS} digits")
    value = Fraction(to_integer(whole + part), 10 ** len(part))
    if repeat:
        value += Fraction(to_integer(repeat), (10 ** len(repeat) - 1) * 10 ** len(part))
    digits = len((whole + part).lstrip("0")) if part and not repeat else 0
    if power := _SCIENTIFIC.match(text, end):
        exponent = int(power.group(1)) if len(power.group(1)) < 8 else MAX_EXPONENT + 1
        if abs(exponent) > MAX_EXPONENT:
            raise LimitError(f"a decimal exponent is beyond {MAX_EXPONENT}")
        value, end = value * Fraction(10) ** exponent, power.end()
        digits = len((whole + part).lstrip("0"))
    return Token("num", text[at:end], False, value, max(digits, 0)), end


def _period(part: str) -> tuple[str, str]:
    """Decimals that go on, as (before, what repeats): 1666 is 1 and 6; nothing repeats where no end is seen twice."""
    match = _PERIOD.fullmatch(part) if len(part) <= 60 else None
    return (match.group(1), match.group(2)) if match else (part, "")


def _in_base(match: re.Match[str]) -> Fraction | None:
    base = int(match.group(2) or match.group(3))
    whole, _, part = match.group(1).partition(".")
    places = [int(c, 16) for c in whole + part]
    if not 2 <= base <= 36 or max(places) >= base:
        return None
    value = 0
    for place in places:
        value = value * base + place
    return Fraction(value, base ** len(part))


def _letters(run: str, in_text: bool, spaced: bool) -> list[Token]:
    """A run of letters as tokens; `in_text` is True inside a text command."""
    low = run.casefold()
    if low in _WORD_TOKENS:
        return [Token("op", _WORD_TOKENS[low], spaced)]
    if (in_text and run not in _CONSTANTS) or low in _SHORT_WORDS:
        return [Token("word", run, spaced)]
    if run in FUNCTIONS:
        return [Token("func", run, spaced)]
    if low in _CONSTANTS:
        return [Token("const", _CONSTANTS[low], spaced)]
    if len(run) > 1 and (len(run) > 3 or run.isupper() or low in UNIT_NAMES):
        return [Token("word", run, spaced)]
    return [_symbol(c, spaced and i == 0) for i, c in enumerate(run)]


def _symbol(char: str, spaced: bool) -> Token:
    return Token("const" if char in "ei" else "sym", char, spaced)


def tokenize(source: str) -> list[Token]:
    """All tokens of `source`; UnparsableError for a character or command that means nothing here."""
    if len(source) > MAX_CHARACTERS:
        raise LimitError(f"the text has more than {MAX_CHARACTERS} characters")
    text = _BRACKETED_BASE.sub(r"\1", rewrite(respell(source)))
    out: list[Token] = []
    at, size, depth, spaced = 0, len(text), 0, False
    braces: list[str] = []
    bars = listed = 0
    while at < size:
        if len(out) > MAX_NODES * 4:
            raise LimitError(f"the text has more than {MAX_NODES * 4} tokens")
        in_text = bool(braces) and braces[-1] == "text"
        char = text[at]
        if match := _SPACE.match(text, at):
            at, spaced = match.end(), True
            if "\n" in match.group() and out and out[-1].kind == "num" and text[at : at + 1].isdigit():
                out.append(Token("op", ",", True))  # numbers on lines of their own are a list
            continue
        if match := _DEGREE.match(text, at):
            out.append(Token("op", "deg", spaced))
            at = match.end()
        elif match := _BLACKBOARD.match(text, at):
            out.append(Token("sym", "bb" + (match.group(1) or "R"), spaced))
            at = match.end()
        elif match := _DOTTED.match(text, at):
            out.append(Token("num", match.group(), spaced, Fraction(to_integer(re.sub(r"\D", "", match.group())))))
            at = match.end()
        elif char.isdigit() or (char == "." and at + 1 < size and text[at + 1].isdigit()):
            based = _BASE.match(text, at)
            value = _in_base(based) if based else None
            if based and value is not None:
                out.append(Token("num", based.group(), spaced, value))
                at = based.end()
            else:
                run = _RUN.match(text, at) if at >= listed else None
                if run and not _THOUSANDS.fullmatch(run.group()):
                    listed = run.end()  # 98,99,100 is a list and holds no thousands
                token, at = _number(text, at, depth > 0 or at < listed)
                out.append(token._replace(spaced=spaced))
        elif match := _LETTERS.match(text, at):
            out.extend(_letters(match.group(), in_text, spaced))
            at = match.end()
        elif char == "\\":
            match = _COMMAND.match(text, at)
            assert match is not None
            name, at = match.group()[1:], match.end()
            name = _ALIASES.get(name, name)
            if name in _SILENT:
                if name in ("left", "right") and text[at : at + 1] == ".":
                    at += 1
                elif name in ("left", "right") and text[at : at + 1] == "|":
                    out.append(Token("open" if name == "left" else "close", "|<" if name == "left" else ">|"))
                    at += 1
                continue
            if name in _TEXT:
                while at < size and text[at] == " ":
                    at += 1
                if text[at : at + 1] == "{":
                    braces.append("text")
                    at += 1
                spaced = True
                continue
            token_name = _BRACKETS.get(name, "\\" + name if name in "{}" else "")
            if token_name:
                kind = "close" if token_name in _CLOSING.values() else "open"
                if token_name == "|":
                    kind, token_name, bars = _bar(out, bars)
                depth += 1 if kind == "open" else -1
                out.append(Token(kind, token_name, spaced))
            elif name == "\\":
                out.append(Token("op", "\\\\", spaced))
            elif name in ("ldots", "dots", "cdots", "dotsc", "dotsb"):
                out.append(Token("sym", "dots", spaced))
            elif name in "%#_":
                out.append(Token("op", name, spaced))
            elif name in _COMMANDS:
                out.append(Token("op", _COMMANDS[name], spaced))
            elif name in _STRUCTURE:
                out.append(Token("cmd", name, spaced))
            elif name in FUNCTIONS or name in _CONSTANTS:
                out.append(
                    Token("func", name, spaced) if name in FUNCTIONS else Token("const", _CONSTANTS[name], spaced)
                )
            elif name.isalpha() and len(name) > 1:
                out.append(Token("sym", "\\" + name, spaced))
            else:
                raise UnparsableError(f"unknown command \\{name[:40]}")
        elif char in "([{":
            braces.extend([char] if char == "{" else [])
            depth += char != "{"
            out.append(Token("open", char, spaced))
            at += 1
        elif char in ")]}":
            at += 1
            if char == "}" and braces and braces.pop() == "text":
                spaced = True
                continue
            depth -= char != "}"
            out.append(Token("close", char, spaced))
        elif match := _OPERATORS.match(text, at):
            at = match.end()
            if match.group() == "|":
                kind, name, bars = _bar(out, bars)
                out.append(Token(kind, name, spaced))
            else:
                out.append(Token("op", {"**": "^", "==": "="}.get(match.group(), match.group()), spaced))
        else:
            raise UnparsableError(f"unknown character {char!r}")
        spaced = False
    return collapse(out)


def _bar(out: list[Token], bars: int) -> tuple[str, str, int]:
    """Whether a vertical bar opens or closes: it closes when one is open and an operand stands before it."""
    operand = bool(out) and (out[-1].kind not in ("op", "open", "func", "cmd") or out[-1].text in "!%'deg")
    return ("close", ">|", bars - 1) if bars and operand else ("open", "|<", bars + 1)


def collapse(tokens: list[Token]) -> list[Token]:
    """Without brackets that hold nothing but another pair, and without empty braces; linear time."""
    partner: dict[int, int] = {}
    stack: list[int] = []
    for index, token in enumerate(tokens):
        if token.kind == "open":
            stack.append(index)
        elif token.kind == "close" and stack and (tokens[stack[-1]].text == "{") == (token.text == "}"):
            partner[stack.pop()] = index
    dropped: set[int] = set()
    for start, end in partner.items():
        inner = tokens[start + 1]
        pair = (tokens[start].text, tokens[end].text, inner.text, tokens[end - 1].text)
        nested = inner.kind == "open" and partner.get(start + 1) == end - 1
        if tokens[start].text == "{" and end == start + 1:
            dropped.update((start, end))
        elif nested and pair in (("(", ")", "{", "}"), ("(", ")", "(", ")")):
            dropped.update((start + 1, end - 1))
        elif nested and pair in (("{", "}", "{", "}"), ("{", "}", "(", ")")):
            dropped.update((start, end))
    return [token for index, token in enumerate(tokens) if index not in dropped] if dropped else tokens
