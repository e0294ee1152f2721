"""Comparing trees by their outer structure: lists, sets, tuples, intervals, unions, matrices, relations.

Each shape is compared by its elements, which are compared by the same rules, down to scalars
(`verifiers.scalars`) and, where nothing else can tell, to the prover that is handed in. Sets and bare lists have
no order, tuples and intervals have one, brackets matter; a plus-minus is the list of its values; a relation is an
interval, an equation up to a factor, or a value under a name (`verifiers.relations`). Depth and the number of
pairs are bounded by counters.
"""

from __future__ import annotations

from collections.abc import Callable

from verifiers.forms import (
    as_matrix,
    below_one,
    by_name,
    choose,
    expand,
    infinity,
    is_total,
    letters,
    merge,
    once,
    plain,
    same_constants,
    stated,
    unit,
    unnamed,
)
from verifiers.matrices import evaluate
from verifiers.relations import compare_relations, cut_approximation, labelled, operators
from verifiers.scalars import UNPROVED, EqualityPolicy, Finding, compare_values, no, yes
from verifiers.sets import as_set, is_described
from verifiers.trees import Node, has, key, symbols
from verifiers.units import units_differ

Prover = Callable[[Node, Node], Finding]
"""The last stage: two trees to a finding."""

MAX_NESTING = 12
"""Deepest nesting of lists within lists that is compared."""
MAX_PAIRS = 40
"""Most items without a counterpart by text that are matched against each other in an unordered list."""
MAX_BRANCHES = 64
"""Most values that the plus-minus signs of one answer may stand for."""


def _every(findings: list[Finding]) -> Finding:
    """All equal is equal; any unequal is unequal; otherwise the first that could not tell."""
    for finding in findings:
        if finding.equal is False:
            return finding
    return next((f for f in findings if f.equal is None), findings[-1] if findings else yes("elements"))


class Comparison:
    """One comparison under one policy; `same` calls itself for elements, no deeper than MAX_NESTING."""

    def __init__(self, policy: EqualityPolicy, prover: Prover) -> None:
        self.policy = policy
        self.prover = prover

    def same(self, one: Node, two: Node, depth: int = 0) -> Finding:
        """Whether two trees are equal; `one` is the answer, `two` the reference."""
        if one.op == two.op == "num" and not (one.digits or two.digits):
            same = one.number == two.number
            return yes("structure", "the same expression") if same else no("exact", "different rational numbers")
        if depth > MAX_NESTING:
            return Finding(None, "limit", f"lists nest deeper than {MAX_NESTING}")
        one, two = expand(cut_approximation(one)), expand(cut_approximation(two))
        if key(one) == key(two):
            return yes("structure", "the same expression")
        if self.policy.relations_as_intervals and (is_described(one) or is_described(two)):
            first, second = as_set(one), as_set(two)
            if first and second:
                if first[0] and second[0] and first[0] != second[0]:
                    return no("relation", "sets of different variables")
                return self._unordered(first[1], second[1], depth)
        if one.op == "rel" or two.op == "rel":
            return self._relations(one, two, depth)
        if "union" in (one.op, two.op):
            return self._unordered(merge(one), merge(two), depth)
        one, two = (evaluate(as_matrix(node)) for node in (unnamed(one, two), unnamed(two, one)))
        if "matrix" in (one.op, two.op):
            return self._matrices(one, two, depth)
        if one.op in ("list", "group") or two.op in ("list", "group"):
            return self._collections(one, two, depth)
        return self._scalars(one, two)

    def _relations(self, one: Node, two: Node, depth: int) -> Finding:
        policy = self.policy
        if one.op == two.op == "rel":
            if operators(one) == operators(two) and len(one.args) > 2:
                pairs = zip(one.args, two.args, strict=True)
                finding = _every([self.same(a, b, depth + 1) for a, b in pairs])
                if finding.equal:
                    return finding
            a, b = labelled(one), labelled(two)
            if a and b and (len(one.args) > 2 or len(two.args) > 2 or not plain(a[0]) or not plain(b[0])):
                alike = key(a[0]) == key(b[0]) or "text" in (a[0].op, b[0].op)
                return self._chain(stated(a[1]), b[1][-1], depth) if alike else no("relation", "other names")
            return compare_relations(one, two)
        relation, other = (one, two) if one.op == "rel" else (two, one)
        if relation is one and policy.drop_labels and is_total(relation):
            return self.same(relation.args[1], other, depth + 1)
        if policy.relations_as_intervals and operators(relation) == ["in"]:
            return self._swap(relation.args[1], other, relation is one, depth)
        if not policy.drop_labels or set(operators(relation)) != {"="}:
            return no("relation", "a relation against a value")
        label = labelled(relation)
        if label is None and (len(symbols(relation)) > 0 or relation.args[0].op in ("list", "group")):
            return no("relation", "an equation against a value")
        values = stated(label[1]) if label else list(relation.args)
        return self._chain(values, other, depth, swapped=relation is two)

    def _swap(self, mine: Node, other: Node, first: bool, depth: int) -> Finding:
        return self.same(mine, other, depth + 1) if first else self.same(other, mine, depth + 1)

    def _chain(self, values: list[Node], other: Node, depth: int, *, swapped: bool = False) -> Finding:
        """A value given as `a = b = c` equals `other` when every link does; names on the way say nothing."""
        told = [value for value in values[:-1] if not plain(value)]
        return _every([self._swap(value, other, not swapped, depth) for value in [values[-1], *told]])

    def _collections(self, one: Node, two: Node, depth: int) -> Finding:
        for left, right in ((one, two), (two, one)):
            single = left.op == "list" or left.name == "{}"
            if single and len(left.args) == 1 and right.op not in ("list", "group") and not depth:
                if "empty" in (left.args[0].name, right.name):
                    return no("shape", "a set that holds the empty set")
                return self._swap(left.args[0], right, left is one, depth)
        if one.op not in ("list", "group") or two.op not in ("list", "group"):
            several, value = (one, two) if one.op in ("list", "group") else (two, one)
            if several.op == "list" and several.name == "or":  # 3/8 or 0.375
                return _every([self._swap(item, value, several is one, depth) for item in several.args])
            return no("shape", "a single value against several")
        if len(one.args) != len(two.args) and (one.name, two.name) != ("{}", "{}"):
            return no("shape", f"{len(one.args)} items against {len(two.args)}")
        one, two = by_name(one, two), by_name(two, one)
        bare = [node.op == "list" for node in (one, two)]
        as_set = [node.name == "{}" for node in (one, two)]
        if all(as_set):
            one, two = once(one), once(two)
            if len(one.args) == len(two.args):
                return self._unordered(list(one.args), list(two.args), depth)
        if all(as_set) or (any(as_set) and any(bare)) or (all(bare) and not self._ordered(one, two)):
            return self._unordered(list(one.args), list(two.args), depth)
        if one.op == two.op and one.name != two.name:
            return no("brackets", f"brackets {one.name} against {two.name}")
        half_open = {one.name, two.name} & {"[)", "(]"}
        if any(bare) and not all(bare) and (half_open or not self.policy.lists_as_tuples):
            return no("brackets", "a bare list against a tuple or an interval")
        if any(as_set):
            return no("brackets", "a set against a tuple")
        return self._elementwise(list(one.args), list(two.args), depth)

    def _ordered(self, one: Node, two: Node) -> bool:
        """Bare lists are ordered by policy, or where one names its items and the other does not."""
        if self.policy.ordered_lists:
            return True
        names = [[a.args[0].name for a in n.args if a.op == "rel" and labelled(a)] for n in (one, two)]
        return any(len(set(own)) > 1 and not other for own, other in (names, names[::-1]))

    def _elementwise(self, ones: list[Node], twos: list[Node], depth: int) -> Finding:
        return _every([self.same(a, b, depth + 1) for a, b in zip(ones, twos, strict=True)])

    def _unordered(self, ones: list[Node], twos: list[Node], depth: int) -> Finding:
        if len(ones) != len(twos):
            return no("shape", f"{len(ones)} items against {len(twos)}")
        waiting: dict[str, list[Node]] = {}
        for node in twos:
            waiting.setdefault(key(node), []).append(node)
        left: list[Node] = []
        for node in ones:
            if waiting.get(key(node)):
                waiting[key(node)].pop()
            else:
                left.append(node)
        right = [node for nodes in waiting.values() for node in nodes]
        if len(left) > MAX_PAIRS:
            return Finding(None, "limit", f"more than {MAX_PAIRS} items to match")
        doubt: Finding | None = None
        for node in left:
            for index, other in enumerate(right):
                finding = self.same(node, other, depth + 1)
                if finding.equal:
                    del right[index]
                    break
                doubt = finding if finding.equal is None else doubt
            else:
                return doubt or no("elements", "an item has no counterpart")
        return yes("elements", "the same items")

    def _matrices(self, one: Node, two: Node, depth: int) -> Finding:
        if one.op == two.op == "matrix" and "vmatrix" not in (one.name, two.name):
            if [len(row.args) for row in one.args] != [len(row.args) for row in two.args]:
                return no("shape", "matrices of different shape")
            pairs = [[cell for row in node.args for cell in row.args] for node in (one, two)]
            return self._elementwise(pairs[0], pairs[1], depth)
        for matrix, other in ((one, two), (two, one)):
            vector = matrix.op == "matrix" and min(len(matrix.args), max(len(r.args) for r in matrix.args)) == 1
            if vector and other.op in ("group", "list") and other.name != "{}":
                cells = [cell for row in matrix.args for cell in row.args]
                if len(cells) != len(other.args):
                    return no("shape", "vectors of different length")
                items = list(other.args)
                pair = (cells, items) if matrix is one else (items, cells)
                return self._elementwise(pair[0], pair[1], depth)
        if any(node.op == "matrix" and node.name != "vmatrix" for node in (one, two)) and not (
            has(one, "matrix") and has(two, "matrix")
        ):
            return no("shape", "a matrix against a value")
        return self._prove(one, two)

    def _scalars(self, one: Node, two: Node) -> Finding:
        one, two = same_constants(one, two), same_constants(two, one)
        one, two = choose(one), choose(two)
        (one, mine), (two, other) = unit(one, two), unit(two, one)
        if not self.policy.differing_units and units_differ(mine, other):
            return no("units", f"different units: {mine!r} and {other!r}"[:200])
        if "text" in (one.op, two.op):
            same = one.op == two.op and letters(one.name) == letters(two.name)
            if {one.op, two.op} == {"text", "const"} and "empty" in (one.name, two.name):
                same = letters(one.name if one.op == "text" else two.name) in ("nosolution", "norealsolution")
            return yes("text", "the same words") if same else no("text", "different words")
        if "empty" in (one.name, two.name):
            return no("shape", "the empty set on one side")
        infinite = [infinity(node) for node in (one, two)]
        if any(infinite):
            same = infinite[0] == infinite[1]
            return yes("infinity", "the same infinity") if same else no("infinity", "an infinity on one side")
        finding = compare_values(one, two, self.policy)
        if (
            finding.equal is False
            and self.policy.percent == "either"
            and mine == other == ""
            and (one.op == "percent") != (two.op == "percent")
            and not any(below_one(node) for node in (one, two))
        ):
            bare = [node.args[0] if node.op == "percent" else node for node in (one, two)]
            again = compare_values(bare[0], bare[1], self.policy)
            finding = yes("percent", "equal but for the percent sign") if again.equal else finding
        return self._prove(one, two) if finding.equal is None and finding.kind == "unproved" else finding

    def _prove(self, one: Node, two: Node) -> Finding:
        if has(one, "text", "ratio", "minus", "inter") or has(two, "text", "ratio", "minus", "inter"):
            return no("structure", "different expressions")
        return self.prover(one, two) if self.policy.symbolic else UNPROVED
