"""Format rules: tags, one box, headings, and the share of a writing system. No regular expressions.

`Tags`, `OneBox` and `Sections` are yes or no (1 or 0) and name the first thing that is wrong in `kind`; they
scan once from left to right, so that a duplicated, nested, reordered, unclosed or empty tag cannot satisfy
them the way it satisfies a search for one matching pair (TRL's and open-r1's format rewards, which these
answer to, accept some of those). `ScriptShare` is the share of letters that belong to a writing system, the
consistency reward of DeepSeek-R1 (arXiv 2501.12948, section 2.3.2, there over words): letters in the scripts
of the language / all letters, formulas left out. A character's script is read off its Unicode name.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from verifiers.core import Problem, Response, Verdict
from verifiers.errors import ConfigError

SCRIPTS: dict[str, tuple[str, ...]] = {
    "ar": ("ARABIC",),
    "de": ("LATIN",),
    "el": ("GREEK",),
    "en": ("LATIN",),
    "es": ("LATIN",),
    "fr": ("LATIN",),
    "he": ("HEBREW",),
    "hi": ("DEVANAGARI",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "ru": ("CYRILLIC",),
    "th": ("THAI",),
    "vi": ("LATIN",),
    "zh": ("CJK",),
}
"""The scripts each language code is written in; languages that share a script are not told apart."""


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Each tag opened once, closed once, in the given order, side by side and not empty."""

    names: tuple[str, ...] = ("think", "answer")
    """Tag names without brackets, in the order they must come in."""
    outside: Literal["anywhere", "after", "nowhere"] = "anywhere"
    """Where text may stand outside the tags: anywhere, only after the last one, or nowhere."""
    opened_by_prompt: bool = False
    """True where the chat template already wrote the first opening tag, so that responses begin inside it."""

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.names):
            raise ConfigError(f"Tags.names must be one or more different names; got {self.names!r}")
        for name in self.names:
            if not name or any(c in "<>/" or c.isspace() for c in name):
                raise ConfigError(f"Tags.names are written without brackets, as in 'think'; got {name!r}")
        if self.outside not in ("anywhere", "after", "nowhere"):
            raise ConfigError(f"Tags.outside must be 'anywhere', 'after' or 'nowhere'; got {self.outside!r}")

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Correct or incorrect; `kind` is "tags", or "tags:" and the first fault found."""
        return [self._check(response.text) for response in responses]

    def _check(self, text: str) -> Verdict:
        if self.opened_by_prompt:
            text = f"<{self.names[0]}>{text}"
        marks = []
        for name in self.names:
            for mark in (f"<{name}>", f"</{name}>"):
                found = text.count(mark)
                if found != 1:
                    fault = "missing" if found == 0 else "duplicated"
                    return Verdict.incorrect(f"{mark} occurs {found} times, not once", kind=f"tags:{fault}")
                marks.append((text.index(mark), mark))
        for i, ((at, mark), (next_at, next_mark)) in enumerate(pairwise(marks)):
            if at > next_at:
                # A tag that opens between this one's two marks is inside it.
                nested = mark.startswith("</") and marks[i - 1][0] < next_at
                fault = "nested" if nested else "reordered"
                return Verdict.incorrect(f"{next_mark} stands before {mark}", kind=f"tags:{fault}")
        return self._check_contents(text, marks)

    def _check_contents(self, text: str, marks: list[tuple[int, str]]) -> Verdict:
        gaps = [text[: marks[0][0]]]
        for (opened, opening), (closed, _) in zip(marks[::2], marks[1::2], strict=True):
            if not text[opened + len(opening) : closed].strip():
                return Verdict.incorrect(f"{opening} holds nothing", kind="tags:empty")
        for (closed, closing), (opened, _) in zip(marks[1::2], marks[2::2], strict=False):
            gaps.append(text[closed + len(closing) : opened])
        if self.outside != "anywhere":
            if self.outside == "nowhere":
                gaps.append(text[marks[-1][0] + len(marks[-1][1]) :])
            for gap in gaps:
                if gap.strip():
                    return Verdict.incorrect(f"text outside the tags: {_short(gap)}", kind="tags:outside")
        return Verdict.correct(f"{', '.join(self.names)}: each once, in order, not empty", kind="tags")


@dataclass(frozen=True, kw_only=True)
class OneBox:
    r"""Exactly one \boxed{...}, closed and not empty."""

    command: str = "boxed"
    """The command, without its backslash."""
    after: str = ""
    """Count only what follows the last occurrence of this mark, such as "</think>"; empty counts all."""

    def __post_init__(self) -> None:
        if not (self.command.isascii() and self.command.isalpha()):
            raise ConfigError(f"OneBox.command is letters only, as in 'boxed'; got {self.command!r}")

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Correct (with the content as `extracted`) or incorrect; `kind` is "box" or "box:" and the fault."""
        return [self._check(response.text) for response in responses]

    def _check(self, text: str) -> Verdict:
        if self.after:
            at = text.rfind(self.after)
            if at < 0:
                return Verdict.incorrect(f"the mark {self.after!r} is missing", kind="box:mark")
            text = text[at + len(self.after) :]
        starts = box_starts(text, self.command)
        if len(starts) != 1:
            fault = "missing" if not starts else "duplicated"
            return Verdict.incorrect(f"\\{self.command} occurs {len(starts)} times, not once", kind=f"box:{fault}")
        content = braced(text, starts[0])
        if content is None:
            return Verdict.incorrect(f"\\{self.command} is not opened and closed by braces", kind="box:open")
        if not content.strip():
            return Verdict.incorrect(f"\\{self.command} holds nothing", kind="box:empty")
        return Verdict.correct("exactly one box", extracted=content.strip(), kind="box")


def box_starts(text: str, command: str = "boxed") -> list[int]:
    r"""Where each \command ends, in order; \commandlonger is another command."""
    mark, starts, at = "\\" + command, [], text.find("\\" + command)
    while at >= 0:
        end = at + len(mark)
        if not (end < len(text) and text[end].isascii() and text[end].isalpha()):
            starts.append(end)
        at = text.find(mark, end)
    return starts


def braced(text: str, start: int) -> str | None:
    r"""What the balanced {...} at `start` (white space skipped) holds, or None; \{ and \} are no braces."""
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text) or text[start] != "{":
        return None
    depth, at = 0, start
    while at < len(text):
        c = text[at]
        if c == "\\":
            at += 1
        elif c == "{":
            depth += 1
        elif c == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : at]
        at += 1
    return None


@dataclass(frozen=True, kw_only=True)
class Sections:
    """Each heading once, on a line of its own, in the given order, with text below it."""

    headings: tuple[str, ...]
    """Whole lines such as "## Plan", compared exactly but for white space at the ends."""

    def __post_init__(self) -> None:
        stripped = [heading.strip() for heading in self.headings]
        if not stripped or not all(stripped) or len(set(stripped)) != len(stripped):
            raise ConfigError(f"Sections.headings must be different lines that are not empty; got {stripped}")
        if any("\n" in heading for heading in stripped):
            raise ConfigError(f"Sections.headings must be one line each; got {stripped}")

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Correct or incorrect; `kind` is "sections", or "sections:" and the first fault found."""
        return [self._check(response.text) for response in responses]

    def _check(self, text: str) -> Verdict:
        wanted = [heading.strip() for heading in self.headings]
        lines = [line.strip() for line in text.split("\n")]
        for heading in wanted:
            found = lines.count(heading)
            if found != 1:
                fault = "missing" if found == 0 else "duplicated"
                return Verdict.incorrect(
                    f"the heading {heading!r} stands on {found} lines, not on one", kind=f"sections:{fault}"
                )
        places = [lines.index(heading) for heading in wanted]
        for i, (place, after) in enumerate(zip(places, [*places[1:], len(lines)], strict=True)):
            if after < place:
                return Verdict.incorrect(f"{wanted[i + 1]!r} stands before {wanted[i]!r}", kind="sections:reordered")
            if not any(lines[place + 1 : after]):
                return Verdict.incorrect(f"nothing stands below {wanted[i]!r}", kind="sections:empty")
        return Verdict.correct(f"{len(wanted)} sections in order", kind="sections")


@dataclass(frozen=True, kw_only=True)
class ScriptShare:
    """Share of letters written in the scripts of a language; undecided where there are no letters."""

    language: str = ""
    """A code from `SCRIPTS`, such as "en"; give this or `scripts`."""
    scripts: tuple[str, ...] = ()
    """Scripts as Unicode names begin, such as ("LATIN", "GREEK")."""
    at_least: float | None = None
    """None for the share itself as a graded score; a share in (0, 1] for correct from there on."""
    skip_math: bool = True
    """Leave out $...$, \\(...\\), \\[...\\] and backslash commands, whose letters say nothing of language."""

    def __post_init__(self) -> None:
        if bool(self.language) == bool(self.scripts):
            raise ConfigError("ScriptShare needs either a language or scripts, and not both")
        if self.language and self.language not in SCRIPTS:
            raise ConfigError(
                f"ScriptShare.language must be one of {', '.join(SCRIPTS)}; got {self.language!r}; "
                f"name the scripts instead"
            )
        if any(not script or script != script.upper() for script in self.scripts):
            raise ConfigError(f"ScriptShare.scripts are upper case, as in 'LATIN'; got {self.scripts!r}")
        if self.at_least is not None and not 0.0 < self.at_least <= 1.0:
            raise ConfigError(f"ScriptShare.at_least must be in (0, 1] or None; got {self.at_least}")

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        """Graded shares, or yes and no with `at_least`; without letters undecided, kind "no_letters"."""
        return [self._measure(response.text) for response in responses]

    def _measure(self, text: str) -> Verdict:
        wanted = self.scripts or SCRIPTS[self.language]
        scripts = [script_of(c) for c in (_without_math(text) if self.skip_math else text)]
        letters = [script for script in scripts if script]
        if not letters:
            return Verdict.undecided("there are no letters to tell a script by", kind="no_letters")
        share = sum(script in wanted for script in letters) / len(letters)
        reason = f"{share:.1%} of {len(letters)} letters are {' or '.join(wanted)}"
        if self.at_least is None:
            return Verdict.graded(share, reason, kind="script_share")
        judge = Verdict.correct if share >= self.at_least else Verdict.incorrect
        return judge(f"{reason}; asked for {self.at_least:.1%}", kind="script_share")


@lru_cache(maxsize=65536)
def script_of(char: str) -> str:
    """The script of a letter as its Unicode name begins ("LATIN", "CJK", ...); "" for anything else.

    Mathematical alphabets and modifier letters belong to no script and give "".
    """
    if unicodedata.category(char) not in ("Lu", "Ll", "Lt", "Lo"):
        return ""
    words = unicodedata.name(char, "").split(" ")
    if words[0] in ("FULLWIDTH", "HALFWIDTH"):
        words = words[1:]
    return "" if words[0] in ("MATHEMATICAL", "MICRO", "DOUBLE-STRUCK", "SCRIPT") else words[0]


_MATH = {"\\(": "\\)", "\\[": "\\]", "$$": "$$", "$": "$"}


def _without_math(text: str) -> str:
    """The text without formulas and backslash commands.

    A formula closes before the next blank line, as in TeX; an opening mark that does not is plain text, so
    that one stray dollar cannot hide the rest of a response.
    """
    ahead: dict[str, int] = {}  # where each mark comes next; looked up once each, so that one pass is linear
    kept: list[str] = []
    at = 0
    while at < len(text):
        two = text[at : at + 2]
        opening = two if two in _MATH else text[at] if text[at] == "$" else ""
        if opening:
            inside = at + len(opening)
            end = _next(text, _MATH[opening], inside, ahead)
            if end < _next(text, "\n\n", inside, ahead):
                at = end + len(opening)
                continue
        if text[at] == "\\":
            at += 1
            if at < len(text) and text[at] == "$":  # a dollar that opens nothing
                at += 1
            while at < len(text) and text[at].isascii() and text[at].isalpha():
                at += 1
        else:
            kept.append(text[at])
            at += 1
    return "".join(kept)


def _next(text: str, mark: str, start: int, ahead: dict[str, int]) -> int:
    """Where `mark` comes next from `start` on, escaped dollars aside; the end of the text if it does not."""
    found = ahead.get(mark, -1)
    while found < start or (mark == "$" and found < len(text) and text[found - 1] == "\\"):
        found = text.find(mark, max(start, found + 1))
        found = len(text) if found < 0 else found
        ahead[mark] = found
        if found == len(text):
            break
    return found


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else text[:37] + "...")
