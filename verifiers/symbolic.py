"""The last stage of equality: sympy, fed by constructors from our own tree, inside a worker process.

`python -m verifiers.symbolic` is the worker. It gets two encoded trees and says whether they are equal: True
when sympy proves it (the difference simplifies to 0), False when it proves the contrary, None when it can say
neither. No string ever reaches sympy except as the name of a symbol. Only workers import this stage's sympy;
importing the module itself loads nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from verifiers.trees import Node, decode, fold


class Unbuildable(Exception):
    """The tree holds something that has no sympy counterpart here."""


def build(root: Node) -> Any:
    """The sympy object of a tree."""
    import sympy

    functions: dict[str, Callable[..., Any]] = {
        "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec,
        "csc": sympy.csc, "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan,
        "asin": sympy.asin, "acos": sympy.acos, "atan": sympy.atan, "arccot": sympy.acot,
        "arcsec": sympy.asec, "arccsc": sympy.acsc, "sinh": sympy.sinh, "cosh": sympy.cosh,
        "tanh": sympy.tanh, "exp": sympy.exp, "ln": sympy.log, "abs": sympy.Abs, "floor": sympy.floor,
        "ceil": sympy.ceiling, "binom": sympy.binomial, "gcd": sympy.gcd, "lcm": sympy.lcm,
        "max": sympy.Max, "min": sympy.Min, "mod": sympy.Mod, "Re": sympy.re, "Im": sympy.im,
        "arg": sympy.arg, "det": sympy.det,
    }  # fmt: skip
    constants = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "inf": sympy.oo, "empty": sympy.EmptySet}

    def call(name: str, args: list[Any]) -> Any:
        if name in ("log", "lg"):
            return sympy.log(args[0], args[1] if len(args) == 2 else 10)
        if name in ("sum", "prod"):
            make = sympy.Sum if name == "sum" else sympy.Product
            return make(args[0], (args[1], args[2], args[3])).doit()
        if name == "int":
            return sympy.integrate(args[0], (args[1], args[2], args[3]))
        if name == "lim":
            return sympy.limit(args[0], args[1], args[2])
        if name not in functions:
            raise Unbuildable(name)
        return functions[name](*args)

    def combine(node: Node, args: list[Any]) -> Any:
        op = node.op
        if op == "num":
            return sympy.Rational(node.number.numerator, node.number.denominator)
        if op == "sym":
            return sympy.Symbol(node.name)
        if op == "const":
            return constants[node.name]
        if op == "add":
            total = args[0]
            for arg in args[1:]:
                total = total + arg
            return total
        if op == "mul":
            product = args[0]
            for arg in args[1:]:
                product = product * arg
            return product
        if op == "neg":
            return -args[0]
        if op == "div":
            return args[0] / args[1]
        if op == "pow":
            return args[0] ** args[1]
        if op == "root":
            return args[0] ** (1 / args[1])
        if op == "fact":
            return sympy.factorial(args[0])
        if op == "percent":
            return args[0] / 100
        if op == "unit":
            return args[0]
        if op == "degree":
            return args[0] * sympy.pi / 180
        if op == "call":
            return call(node.name, args)
        if op == "matrix":
            matrix = sympy.Matrix(args)
            return matrix.det() if node.name == "vmatrix" else matrix
        if op == "group" and node.name == "row":
            return list(args)
        raise Unbuildable(op)

    return fold(root, combine)


def judge(request: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": tree, "b": tree} -> {"equal": True, False or None, "detail": why}."""
    try:
        return {"equal": equal(build(decode(request["a"])), build(decode(request["b"]))), "detail": ""}
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # sympy raises whatever it likes; here that only means "cannot say"
        return {"equal": None, "detail": f"{type(error).__name__}: {error}"[:200]}


def equal(one: Any, two: Any) -> bool | None:
    """Whether two sympy objects are equal, None where sympy cannot tell."""
    import sympy

    if isinstance(one, sympy.MatrixBase) or isinstance(two, sympy.MatrixBase):
        if getattr(one, "shape", None) != getattr(two, "shape", None):
            return False
        answers = [equal(a, b) for a, b in zip(one, two, strict=True)]
        return False if False in answers else (None if None in answers else True)
    if one == two:
        return True
    if one.has(sympy.oo, sympy.zoo, sympy.nan) or two.has(sympy.oo, sympy.zoo, sympy.nan):
        return False if one.is_number and two.is_number else None
    difference = sympy.simplify(one - two)
    if difference == 0:
        return True
    same = difference.equals(0)
    return same if same is None else bool(same)


def _main() -> None:
    import sympy

    from verifiers.sandbox import serve

    assert sympy.Rational(1, 2) + sympy.Rational(1, 2) == 1  # loaded and working before "ready" is said
    serve(judge)


if __name__ == "__main__":
    _main()
