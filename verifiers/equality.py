"""Are two answers equal? In stages, each with a definite yes, a definite no, or "go on".

    text        the same text up to spacing, wrappers and case
    choice      letters of multiple choice (verifiers.choices)
    parse       both as trees (verifiers.latex)
    structure   sets and lists without order, tuples, intervals (brackets matter) and matrices by element,
                equations and inequalities by proportion (verifiers.relations)
    value       exact, rational function, numeric, sampled (verifiers.scalars)
    symbolic    sympy in a worker process, only where nothing else could tell

`Verdict.kind` names the stage that decided. Undecided kinds: no_answer (an empty reference),
reference_unparsable (neither parsed nor the same text), limit, timeout, memory, crash, unproved. All but the
last stage are bounded by counters and give the same verdict on every machine, thread and day.
"""

from __future__ import annotations

import math
import re

from verifiers.choices import compare_choices
from verifiers.core import Verdict
from verifiers.reading import Parsed, read
from verifiers.scalars import EqualityPolicy, Finding, no, yes
from verifiers.structure import Comparison, Prover
from verifiers.trees import Node, has, postorder, rebuild

__all__ = ["EqualityPolicy", "Parsed", "Prover", "judge_equal", "math_equal", "read"]

_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}|\d{1,2}/\d{1,2}/\d{4}")


def math_equal(a: str, b: str, *, policy: EqualityPolicy | None = None) -> Verdict:
    """Whether answer `a` equals the reference `b`, both bare answers.

    A sentence around an answer is no part of it: where one stands there, what it says is compared.
    """
    from verifiers.maths import default_verifier

    return default_verifier(policy).compare(a, b)


def judge_equal(answer: Parsed, reference: Parsed, policy: EqualityPolicy, prover: Prover) -> Verdict:
    """The verdict on a parsed answer; `prover` is the last stage."""
    finding = _decide(answer, reference, policy, prover)
    make = {True: Verdict.correct, False: Verdict.incorrect, None: Verdict.undecided}[finding.equal]
    return make(finding.reason, extracted=answer.text, kind=finding.kind)


def _decide(answer: Parsed, reference: Parsed, policy: EqualityPolicy, prover: Prover) -> Finding:
    if not reference.canonical:
        return Finding(None, "no_answer", "the reference is empty")
    if not answer.canonical:
        return no("empty", "the answer is empty")
    if answer.canonical == reference.canonical:
        return yes("text", "the same text")
    if policy.choices and (found := compare_choices(answer, reference)):
        return found
    if any(_DATE.fullmatch(side.canonical) for side in (answer, reference)):
        return no("text", "different dates")
    folded = answer.canonical.casefold() == reference.canonical.casefold()
    if folded and any(side.tree is None or has(side.tree, "text", "unit") for side in (answer, reference)):
        return yes("text", "the same text up to case")
    if reference.tree is None and not reference.others:
        if reference.limited:
            return Finding(None, "limit", f"the reference passes a limit: {reference.problem}")
        return Finding(None, "reference_unparsable", f"the reference cannot be read: {reference.problem}")
    if answer.tree is None and not answer.others:
        if answer.limited:
            return Finding(None, "limit", f"the answer passes a limit: {answer.problem}")
        return no("answer_unparsable", f"the answer cannot be read: {answer.problem}")
    comparison = Comparison(policy, prover)
    finding: Finding | None = None
    for one, two, switch in _readings(answer, reference, policy):
        if not policy.letter_case:
            one, two = rebuild(one, _lower), rebuild(two, _lower)
        result = comparison.same(one, two)
        if result.equal:
            result = _form(one, two, policy) or result
            return result._replace(reason=f"{result.reason} ({switch.replace('_', ' ')})") if switch else result
        finding = finding or result
    return finding or no("answer_unparsable", f"the answer cannot be read: {answer.problem}")


def _lower(node: Node) -> Node | None:
    return Node("sym", (), node.name.lower()) if node.op == "sym" else None


def _form(answer: Node, reference: Node, policy: EqualityPolicy) -> Finding | None:
    """What is wrong with the form of an answer of the right value, under switches that ask for one."""
    if not policy.unreduced_fractions:
        for node in postorder(answer):
            parts = [arg.number for arg in node.args if arg.op == "num"] if node.op == "div" else []
            if len(parts) == 2 and all(part.denominator == 1 for part in parts) and math.gcd(*map(int, parts)) > 1:
                return no("unreduced", "the value is right, but a fraction is not in lowest terms")
    if policy.evaluated and _is_number(reference) and not _is_number(answer):
        return no("unevaluated", "the value is right, but it is not worked out")
    return None


def _is_number(node: Node) -> bool:
    """One number as it is written down: with a sign, a unit, a percent sign, or as a fraction of two integers."""
    while node.op in ("neg", "unit", "percent", "degree"):
        node = node.args[0]
    parts = [arg.args[0] if arg.op == "neg" else arg for arg in node.args] if node.op == "div" else [node]
    return all(part.op == "num" for part in parts)


def _readings(answer: Parsed, reference: Parsed, policy: EqualityPolicy) -> list[tuple[Node, Node, str]]:
    """The pairs of readings to compare, the plain ones first, each with the switch that allows it."""
    sides = [
        [(side.tree, ""), *((tree, switch) for switch, tree in side.others if getattr(policy, switch))]
        for side in (answer, reference)
    ]
    pairs = []
    for one, first in sides[0]:
        for two, second in sides[1]:
            if one is None or two is None or (first and second and first != second):
                continue
            # A comma is a decimal point only against a text that has another kind of number.
            if "decimal_comma" in (first, second) and (first == second or has(two if first else one, "list")):
                continue
            pairs.append((one, two, first or second))
    return pairs
