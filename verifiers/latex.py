r"""LaTeX or plain text of an answer -> a small immutable tree (`verifiers.trees.Node`).

Precedence climbing, loosest first: lists (`,` `;` and, or), relations, unions, ratios `a:b`, sums, products
(explicit and by juxtaposition, left to right), signs, powers and postfix marks (`!` `%` degrees). Each rule
is a generator that `verifiers.cursor` drives on an explicit stack, so nesting is limited by a counter and
never by Python's own stack. Nothing is ever evaluated as code.

Readings that are a matter of policy: `3\frac12` and `3 1/2` are mixed numbers when the fraction is proper;
`\sin 2x` takes the whole product; `(x)` and `[x]` with one item only group, with several they are tuples or
intervals and keep their brackets; words after a quantity are its unit.
"""

from __future__ import annotations

from fractions import Fraction

from verifiers.cursor import Cursor, Rule, is_whole
from verifiers.lexer import ARROWS, tokenize
from verifiers.trees import Node, UnparsableError, is_minus_one, join, num, rebuild, renamer

_RELATIONS = frozenset(("=", "<", ">", "<=", ">=", "!=", "~", "in")) | ARROWS
_CALLED = frozenset(("f", "g", "h"))
"""Letters that are functions where a bracket follows at once: f(x) is no product."""
_HALF = num(Fraction(1, 2))


def parse(text: str) -> Node:
    """The tree of one answer.

    Raises UnparsableError where the text is no mathematics this parser knows, and LimitError (its child)
    where it is longer, deeper or larger than the counters in `verifiers.trees` allow.
    """
    parser = _Parser(tokenize(text))
    tree = parser.run(parser.answer())
    if parser.at < len(parser.tokens):
        raise UnparsableError(f"unexpected {parser.peek().text!r} after token {parser.at}")
    return tree


class _Parser(Cursor):
    """The grammar, one method a rule."""

    # Lists and relations

    def answer(self) -> Rule:
        parts: list[list[Node]] = [[]]
        either = None  # "or" between the items
        while True:
            while self.at_op(",", ";", ".", "or"):  # separators may double ("2, and 3") or trail
                separator = self.take().text
                either = "or" if separator == "or" and parts[-1] else either
                if separator == ";" and parts[-1]:
                    parts.append([])
            if self.peek().kind in ("end", "close") or self.peek().text == "end" or self.at_op("&", "\\\\"):
                break
            parts[-1].append((yield self.statement()))
            if not self.at_op(",", ";", ".", "or"):
                break
        parts = [part for part in parts if part]
        if not parts:
            raise self.fail("an expression")
        if all(len(part) == 1 for part in parts):
            return join("list", [part[0] for part in parts], either)
        return join("list", [join("list", part, either) for part in parts], either)

    def statement(self) -> Rule:
        operators: list[str] = []
        items: list[Node] = []
        if self.accept("~", "="):  # "\approx 1.41" and "= 5" say no more than the value
            pass
        items.append((yield self.setwise()))
        while self.peek().kind == "op" and self.peek().text in _RELATIONS:
            operators.append(self.take().text)
            items.append((yield self.setwise()))
        return items[0] if not operators else Node("rel", tuple(items), " ".join(operators))

    def setwise(self) -> Rule:
        left = yield self.ratio()
        while name := self.accept("cup", "cap", "minus"):
            right = yield self.ratio()
            left = Node({"cup": "union", "cap": "inter", "minus": "minus"}[name], (left, right))
        return left

    def ratio(self) -> Rule:
        items = [(yield self.sum())]
        if self.accept("choose"):
            return Node("call", (items[0], (yield self.sum())), "binom")
        while self.accept(":"):
            items.append((yield self.sum()))
        return join("ratio", items)

    # Arithmetic

    def sum(self) -> Rule:
        items = [(yield self.term())]
        while name := self.accept("+", "-", "+-", "-+"):
            right = yield self.term()
            if name in ("+-", "-+"):
                items = [Node("pm", (join("add", items), right), name)]
            else:
                items.append(right if name == "+" else Node("neg", (right,)))
        return join("add", items)

    def term(self) -> Rule:
        if name := self.accept("-", "+", "+-", "-+"):
            inner = yield self.term()
            return {"-": Node("neg", (inner,)), "+": inner}.get(name) or Node("pm", (inner,), name)
        items = [(yield self.factor())]
        while True:
            if name := self.accept("*", "/", "mod"):
                right = yield (self.signed() if self.at_op("-", "+") else self.factor())
                if name == "/":
                    items = [Node("div", (join("mul", items), right))]
                elif name == "mod":
                    items = [Node("call", (join("mul", items), right), "mod")]
                else:
                    items.append(right)
            elif self.starts_factor(items[-1]):
                items.append((yield self.factor()))
            else:
                break
        return _with_unit(items)

    def signed(self) -> Rule:
        minus = self.take().text == "-"
        inner = yield (self.signed() if self.at_op("-", "+") else self.factor())
        return Node("neg", (inner,)) if minus else inner

    def starts_factor(self, before: Node) -> bool:
        token = self.peek()
        if self.integrals and self.at_differential():
            return False
        if token.kind == "num":
            return before.op != "num"
        return token.kind in ("sym", "const", "func", "word", "open") or (token.kind == "cmd" and token.text != "end")

    def factor(self) -> Rule:
        base = yield self.atom()
        while True:
            if self.accept("^"):
                base = Node("pow", (base, (yield self.exponent())))
            elif self.accept("!"):
                base = Node("fact", (base,))
            elif self.accept("%"):
                base = Node("percent", (base,))
            elif self.accept("deg"):
                base = Node("degree", (base,))
            elif base.op == "sym" and len(base.name) == 1 and is_whole(self.peek()) and not self.peek().spaced:
                base = Node("sym", (), f"{base.name}_{self.take().text}")  # x1 is x_1
            elif self.at_op("_", "'") and base.op in ("sym", "const", "text"):
                base = Node("sym", (), base.name + self.subscript())
            else:
                return base

    def exponent(self) -> Rule:
        return (yield (self.signed() if self.at_op("-", "+") else self.factor()))

    # Atoms

    def atom(self) -> Rule:
        token = self.take()
        if token.kind == "num":
            assert token.value is not None
            whole = num(token.value, token.digits)
            part = (yield self.proper_fraction()) if is_whole(token) and self.mixed_follows() else None
            return num(token.value + part.number) if part else whole
        if token.kind in ("sym", "const"):
            if token.text in _CALLED and self.peek().text == "(" and not self.peek().spaced:
                self.take()
                inner = yield self.group("(")
                return Node("call", inner.args if inner.op == "group" else (inner,), token.text)
            return Node(token.kind, (), token.text)
        if token.kind == "word":
            return Node("text", (), self.words(token.text))
        if token.kind == "func":
            return (yield self.function(token.text))
        if token.kind == "open":
            return (yield self.group(token.text))
        if token.kind == "cmd":
            return (yield self.command(token.text))
        self.at -= 1
        raise self.fail("an expression")

    def proper_fraction(self) -> Rule:
        if self.peek().kind == "num":
            upper, lower = self.take().value, (self.take(), self.take())[1].value
        else:
            upper, lower = self.plain_fraction()
        assert upper is not None and lower
        return num(upper / lower)
        yield

    def function(self, name: str) -> Rule:
        power: Node | None = None
        base: Node | None = None
        while self.at_op("^", "_"):
            if self.take().text == "^":
                power = yield self.exponent()
            else:
                base = yield self.argument()
        bracketed = self.peek().kind == "open" and self.peek().text in ("(", "[", "{")
        if name == "sqrt":
            inner = yield self.factor()
            return Node("pow", (inner, _HALF))
        if name == "cis":
            inner = yield self.factor()
            return Node("pow", (Node("const", (), "e"), Node("mul", (Node("const", (), "i"), inner))))
        if bracketed:
            inner = yield self.atom()
        else:
            items = [(yield (self.signed() if self.at_op("-", "+") else self.factor()))]
            while self.starts_factor(items[-1]) and self.peek().kind not in ("func", "word"):
                items.append((yield self.factor()))
                if self.at_op("/") and self.peek(1).kind == "num":
                    self.at += 1
                    items = [Node("div", (join("mul", items), (yield self.factor())))]
            inner = join("mul", items)
        args = inner.args if inner.op in ("list", "group") else (inner,)
        inverse = power is not None and is_minus_one(power) and name in _INVERSE
        call = Node("call", args if base is None else (*args, base), _INVERSE[name] if inverse else name)
        return Node("pow", (call, power)) if power is not None and not inverse else call

    def group(self, opening: str) -> Rule:
        closers = {"{": "}", "\\{": "\\}", "lfloor": "rfloor", "lceil": "rceil", "|<": ">|"}
        close = closers.get(opening, ")]")
        if self.peek().kind == "close" and self.peek().text == close:
            self.take()
            return Node("const", (), "empty")
        inner = yield self.answer()
        before = self.peek(-1)
        trailing = before.kind == "op" and before.text == ","
        end = self.take()
        if end.kind != "close" or end.text not in ((close,) if close != ")]" else (")", "]")):
            self.at -= 1
            raise self.fail(f"{close!r}")
        if opening in ("lfloor", "lceil", "|<"):
            name = {"lfloor": "floor", "lceil": "ceil", "|<": "abs"}[opening]
            return Node("call", (inner,), name)
        if opening == "{":
            return inner
        if opening == "\\{":
            return Node("group", inner.args if inner.op == "list" else (inner,), "{}")
        if inner.op == "list":
            return Node("group", inner.args, opening + end.text)
        return Node("group", (inner,), opening + end.text) if trailing else inner

    def argument(self) -> Rule:
        """A braced argument, or the single digit or atom that LaTeX would take."""
        if self.peek().kind == "num":
            token = self.digit()
            assert token.value is not None
            return num(token.value, token.digits)
        return (yield self.atom())

    def command(self, name: str) -> Rule:
        if name == "frac":
            upper = yield self.argument()
            return Node("div", (upper, (yield self.argument())))
        if name == "binom":
            upper = yield self.argument()
            return Node("call", (upper, (yield self.argument())), "binom")
        if name == "sqrt":
            if self.peek().kind == "open" and self.peek().text == "[":
                index = yield self.atom()
                return Node("root", ((yield self.argument()), index))
            return Node("pow", ((yield self.argument()), _HALF))
        if name in ("overline", "bar"):
            return Node("call", ((yield self.argument()),), "overline")
        if name == "begin":
            return (yield self.environment())
        if name in ("sum", "prod", "lim"):
            return (yield self.big(name))
        if name == "int":
            return (yield self.integral())
        raise UnparsableError(f"unexpected \\{name}")

    def environment(self) -> Rule:
        name = self.braced()
        if name == "array" and self.peek().text == "{":
            self.braced()
        if "matrix" not in name and name != "array":
            raise UnparsableError(f"unknown environment {name[:40]!r}")
        rows: list[list[Node]] = [[]]
        while not (self.peek().kind == "cmd" and self.peek().text == "end"):
            if self.accept("\\\\"):
                rows.append([])
            elif not self.accept("&"):
                rows[-1].append((yield self.answer()))
            elif self.peek().kind == "end":
                raise self.fail("\\end")
        self.take()
        self.braced()
        kept = [Node("group", tuple(row), "row") for row in rows if row]
        if not kept:
            raise UnparsableError("a matrix without entries")
        return Node("matrix", tuple(kept), name)

    def big(self, name: str) -> Rule:
        """Sum, product or limit with its limits, as call(body, variable, from[, to])."""
        lower = upper = None
        while self.at_op("_", "^"):
            if self.take().text == "_":
                lower = yield self.argument()
            else:
                upper = yield self.argument()
        if lower is None or lower.op != "rel" or len(lower.args) != 2 or (name != "lim" and upper is None):
            raise UnparsableError(f"\\{name} without readable limits")
        body = yield self.term()
        variable, start = lower.args
        rename = renamer(variable.name)
        args = [rebuild(body, rename), Node("sym", (), variable.name), start]
        return Node("call", tuple(args if upper is None else [*args, upper]), name)

    def integral(self) -> Rule:
        """A definite integral in one variable, as call(body, variable, from, to)."""
        limits: dict[str, Node] = {}
        while self.at_op("_", "^"):
            sign = self.take().text
            limits[sign] = yield self.argument()
        self.integrals += 1
        body = num(1) if self.at_differential() else (yield self.sum())
        self.integrals -= 1
        if len(limits) < 2 or not self.at_differential():
            raise UnparsableError("\\int without limits or without its dx")
        self.at += 1
        variable = self.take().text
        args = (rebuild(body, renamer(variable)), Node("sym", (), variable), limits["_"], limits["^"])
        return Node("call", args, "int")


_INVERSE = {name: "arc" + name for name in ("sin", "cos", "tan", "cot", "sec", "csc")}


def _with_unit(items: list[Node]) -> Node:
    """A product whose last factors are words is a quantity with a unit."""
    texts: list[str] = []
    while len(items) > 1 and items[-1].op == "text":
        texts.insert(0, items.pop().name)
    if len(items) > 1 and items[0].op == "text" and items[0].name.upper() in ("USD", "EUR", "GBP"):
        texts.append(items.pop(0).name)  # USD 1000
    core = join("mul", items)
    return Node("unit", (core,), " ".join(texts)) if texts else core
