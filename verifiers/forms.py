"""An answer's tree in the form that it is compared in: plus-minus spelled out, matrices and units found, names dropped.

Small changes of form that need the other side to be decided on (`3 + 4j` is complex where the other side has i), and
small questions about a form (is it an infinity, is it a total and its value).
"""

from __future__ import annotations

import re

from verifiers.relations import labelled, operators
from verifiers.trees import Node, has, key, postorder, rebuild, symbols
from verifiers.units import as_quantity


def letters(text: str) -> str:
    """Letters and digits only, to compare words; without articles and the s of a plural."""
    found = [word for word in re.findall(r"[^\W_]+", text.casefold()) if word not in ("a", "an", "the")]
    joined = "".join(word.removesuffix("s") if len(word) > 3 else word for word in found)
    return "doesnotexist" if joined == "dne" else joined.replace("doenotexist", "doesnotexist")


def expand(root: Node) -> Node:
    """Every plus-minus as the list of its values, all signs of one expression chosen together."""
    if not has(root, "pm"):
        return root

    def branch(upper: bool) -> Node:
        def change(node: Node) -> Node | None:
            if node.op != "pm":
                return None
            plus = (node.name == "+-") == upper
            last = node.args[-1] if plus else Node("neg", (node.args[-1],))
            return Node("add", (node.args[0], last)) if len(node.args) == 2 else last

        return rebuild(root, change)

    if root.op in ("list", "group"):
        items: list[Node] = []
        for arg in root.args:
            wider = expand(arg)
            splits = wider.op == "list" and arg.op != "list"
            items.extend(wider.args if splits else (wider,))
        return Node(root.op, tuple(items), root.value)
    return Node("list", (branch(True), branch(False)))


def merge(node: Node) -> list[Node]:
    """The parts of a union."""
    parts: list[Node] = []
    stack = [node]
    while stack:
        top = stack.pop()
        if top.op == "union":
            stack.extend(top.args)
        elif top.op == "group" and top.name == "{}":
            parts.extend(top.args)
        else:
            parts.append(top)
    return parts


def as_matrix(node: Node) -> Node:
    """`[[1,2],[3,4]]` as a matrix; anything else as it is."""
    rows = node.args
    nested = node.op == "group" and node.name == "[]" and all(r.op == "group" and r.name == "[]" for r in rows)
    if not nested or len({len(row.args) for row in rows}) != 1:
        return node
    return Node("matrix", tuple(Node("group", row.args, "row") for row in rows), "pmatrix")


def once(node: Node) -> Node:
    """A set with each element once, as far as their texts tell."""
    kept = {key(arg): arg for arg in node.args}
    return Node("group", tuple(kept.values()), "{}")


def by_name(node: Node, other: Node) -> Node:
    """`y = 2, x = 1` in the order of its names, where the other side is a tuple without names."""
    found = [labelled(arg) for arg in node.args] if node.op == "list" else []
    names = [label[0].name for label in found if label and label[0].op == "sym"]
    if len(names) < len(node.args) or len(set(names)) < len(names) or other.op != "group" or other.name != "()":
        return node
    order = sorted(range(len(names)), key=lambda index: names[index])
    return Node("list", tuple(node.args[index] for index in order), node.value)


def unnamed(node: Node, other: Node) -> Node:
    """`P(3, 4)` as `(3, 4)` where the other side has no name."""
    named = node.op == "mul" and len(node.args) == 2 and node.args[0].op == "sym"
    return node.args[1] if named and node.args[1].op == "group" and other.op in ("group", "list") else node


def is_total(relation: Node) -> bool:
    """`m + n = 7`, `cos A = 1/2`, `|v| = 5`: what was asked for, and its value; `2x = 7` is an equation."""
    if operators(relation) != ["="] or symbols(relation.args[1]):
        return False
    left = relation.args[0]
    return len(symbols(left)) > 1 or (left.op == "call" and bool(symbols(left)))


def stated(values: list[Node]) -> list[Node]:
    """Of a named value's chain what is stated: the last link and plain numbers; the rest is how it was computed."""
    return [value for value in values[:-1] if value.op in ("num", "list", "group")] + values[-1:]


def plain(label: Node) -> bool:
    """Whether a label is one name."""
    return label.op == "sym"


def same_constants(node: Node, other: Node) -> Node:
    """`3 + 4j`, `3 + 4*I` and `E**2` with i and e, where the other side has these and not the letters."""
    here, there = symbols(node), symbols(other)
    known = {n.name for n in postorder(other) if n.op == "const"}
    swaps = {a: b for a, b in (("j", "i"), ("I", "i"), ("E", "e")) if a in here and a not in there and b in known}
    if not swaps:
        return node
    return rebuild(node, lambda n: Node("const", (), swaps[n.name]) if n.op == "sym" and n.name in swaps else None)


def below_one(node: Node) -> bool:
    """Whether a percentage or number is written with a value below 1: `0.5%` is not 0.5."""
    inner = node.args[0] if node.op == "percent" else node
    return inner.op == "num" and abs(inner.number) < 1 and node.op == "percent"


def choose(root: Node) -> Node:
    """`C(5, 2)` as a binomial coefficient."""

    def change(node: Node) -> Node | None:
        called = node.op == "mul" and len(node.args) == 2 and node.args[0].name == "C" and node.args[1].op == "group"
        pair = node.args[1].args if called else ()
        numbers = len(pair) == 2 and all(arg.op == "num" for arg in pair)
        return Node("call", pair, "binom") if numbers else None

    return rebuild(root, change)


def unit(node: Node, other: Node) -> tuple[Node, str]:
    """(quantity, unit) of a value; letters are units where the other side has one."""
    if node.op == "unit":
        return node.args[0], node.name
    if other.op == "unit" and (quantity := as_quantity(node)):
        return quantity
    return (node.args[0], "degree") if node.op == "degree" else (node, "")


def infinity(node: Node) -> int:
    """+1 or -1 for an infinity, 0 for anything else."""
    sign = 1
    while node.op == "neg":
        sign, node = -sign, node.args[0]
    return sign if node.op == "const" and node.name == "inf" else 0
