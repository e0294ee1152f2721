"""The token reader below the grammar: looking ahead, accepting, and driving rules without recursion.

A grammar rule is a generator that yields the rule it needs next and gets that rule's node back; `run` keeps
the waiting rules on a list, so that nesting is bounded by a counter and never by Python's own stack. The
look-ahead for mixed numbers, unbraced LaTeX arguments, subscripts and phrases of words stands here too: it
reads tokens only and builds no tree.
"""

from __future__ import annotations

from collections.abc import Generator
from fractions import Fraction
from typing import Any, TypeAlias

from verifiers.lexer import Token, to_integer
from verifiers.trees import MAX_DEPTH, MAX_NODES, LimitError, Node, UnparsableError
from verifiers.units import UNIT_LETTERS

Rule: TypeAlias = Generator[Any, Node, Node]
"""Yields the next rule, is sent its node, returns its own."""

FRAMES_PER_LEVEL = 12
"""Rules that one level of brackets passes through."""
_END = Token("end", "")


def is_whole(token: Token) -> bool:
    """Whether a token is a number written without a decimal point."""
    value = token.value
    return token.kind == "num" and value is not None and not token.digits and value.denominator == 1


class Cursor:
    """A position in a list of tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.count = 0
        self.integrals = 0

    def run(self, rule: Rule) -> Node:
        """The node of a rule, with every rule that it needs driven on one explicit stack."""
        stack = [rule]
        value: Node | None = None
        while True:
            if len(stack) > MAX_DEPTH * FRAMES_PER_LEVEL:
                raise LimitError(f"the text nests deeper than {MAX_DEPTH} levels")
            try:
                stack.append(next(stack[-1]) if value is None else stack[-1].send(value))
                value = None
            except StopIteration as stop:
                stack.pop()
                value = stop.value
                self.count += 1
                if self.count > MAX_NODES * FRAMES_PER_LEVEL:
                    raise LimitError(f"the text has more than {MAX_NODES} parts") from None
                if not stack:
                    assert value is not None
                    return value

    def peek(self, ahead: int = 0) -> Token:
        """The next token, or the one `ahead` of it; an end token past the last."""
        index = self.at + ahead
        return self.tokens[index] if index < len(self.tokens) else _END

    def take(self) -> Token:
        """The next token, which is used up."""
        token = self.peek()
        self.at += 1
        return token

    def at_op(self, *names: str) -> bool:
        """Whether the next token is one of these operators."""
        token = self.peek()
        return token.kind == "op" and token.text in names

    def accept(self, *names: str) -> str:
        """Use up the next token if it is one of these operators; its name, or an empty text."""
        return self.take().text if self.at_op(*names) else ""

    def at_differential(self) -> bool:
        """Whether `dx` comes next."""
        return self.peek().text == "d" and self.peek().kind == "sym" and self.peek(1).kind in ("sym", "const")

    def fail(self, wanted: str) -> UnparsableError:
        """The error that says what was wanted here and what stands here."""
        return UnparsableError(f"expected {wanted} at token {self.at}, got {self.peek().text[:40]!r}")

    def subscript(self) -> str:
        """A prime or a subscript, as it becomes part of a name."""
        if self.take().text == "'":
            return "'"
        if not (self.peek().kind == "open" and self.peek().text == "{"):
            return "_" + self.take().text
        parts: list[str] = []
        depth = 0
        while self.peek().kind != "end":
            token = self.take()
            depth += {"open": 1, "close": -1}.get(token.kind, 0)
            parts.append(token.text if token.text not in "{}" else "")
            if depth == 0:
                break
        return "_" + "".join(parts)

    def mixed_follows(self) -> bool:
        """Whether a proper fraction of plain integers comes next: `1/2` after a space, or a LaTeX one."""
        one, two, three = self.peek(), self.peek(1), self.peek(2)
        if one.kind == "num":
            proper = is_whole(one) and is_whole(three) and (one.value or 0) < (three.value or 0)
            return one.spaced and two.text == "/" and two.kind == "op" and proper
        if one.kind == "cmd" and one.text == "frac":
            mark = self.at
            upper, lower = self.plain_fraction()
            self.at = mark
            return upper is not None and lower is not None and upper < lower
        return False

    def plain_fraction(self) -> tuple[Fraction | None, Fraction | None]:
        """Reads a LaTeX fraction with two plain integers; (None, None) where it is anything else."""
        self.take()
        values: list[Fraction | None] = []
        for _ in range(2):
            if self.peek().kind == "num":
                values.append(self.digit().value)
            elif self.peek(1).kind == "num" and self.peek(2).text == "}" and is_whole(self.peek(1)):
                values.append(self.peek(1).value)
                self.at += 3
            else:
                return None, None
        return values[0], values[1]

    def digit(self) -> Token:
        """One digit of the number that follows, as LaTeX takes an unbraced argument; the rest stays."""
        token = self.peek()
        if len(token.text) > 1 and token.text.isdigit():
            rest = token.text[1:]
            first = Token("num", token.text[0], token.spaced, Fraction(int(token.text[0])))
            self.tokens[self.at] = first
            self.tokens.insert(self.at + 1, Token("num", rest, False, Fraction(to_integer(rest))))
        return self.take()

    def words(self, first: str) -> str:
        """The rest of a phrase of words, with the exponents and slashes of a unit."""
        parts = [first]
        while True:
            if self.peek().kind == "word":
                parts.append(self.take().text)
            elif self.at_op("/") and (self.peek(1).kind == "word" or self.peek(1).text in UNIT_LETTERS):
                self.at += 1
                parts += ["/", self.take().text]
            elif self.at_op("^") and self.peek(1).kind == "num":
                parts[-1] += "^" + self.peek(1).text
                self.at += 2
            elif self.at_op("^") and self.peek(2).kind == "num" and self.peek(3).text == "}":
                parts[-1] += "^" + self.peek(2).text
                self.at += 4
            elif self.at_op(".") and parts:
                self.at += 1
            else:
                return " ".join(parts)

    def braced(self) -> str:
        """The text between braces, such as the name of an environment."""
        parts: list[str] = []
        while self.peek().kind != "end":
            token = self.take()
            if token.text == "}":
                break
            parts.append(token.text if token.kind != "open" else "")
        return "".join(parts)
