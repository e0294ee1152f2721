"""The computable truth of any step of any response to a playground problem: right, wrong, or useless.

A problem carries its program: given numbers and equations over them. A step is read as one equation
"expression = value". Its truth is that of the computation, not of the numbers: every number in the expression
may stand for any given quantity or established result of that value, and the step is

    right    if for some such reading the expression is, as a rational function of the given quantities, the same
             as an equation of the program that is needed and not established yet (its value must be exact);
    useless  if it is true but brings nothing new: it repeats an established result, computes a side quantity
             that the answer does not need, or states a number that stands in the problem;
    wrong    otherwise: false arithmetic, a number from nowhere (or from a wrong step), a computation that the
             story does not ask for, no equation at all, or a box that does not hold the answer.

Functions are compared by their values at two random points modulo the prime 2^61 - 1 (Schwartz-Zippel: a false
match has probability below 10^-30), so 2 + 2 does not pass for 2 * 2. A right step may combine several
equations ("14 + 3 * 6 = 32"). Expressions are parsed by precedence climbing; nothing is evaluated as code.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any

from rewardkit.playground import number_text
from verifiers.core import Problem, derive_seed
from verifiers.errors import DataError
from verifiers.steps import split_steps

PRIME = 2**61 - 1
POINTS = 2
READINGS = 512
"""Most ways of reading the numbers of one step that are tried."""

OPERANDS = 64
"""Most numbers of one expression; a whole story told in one equation has fewer."""

_TOKEN = re.compile(r"\s*(?:(\d{1,9}(?:/\d{1,9})?)(?![\d/])|([-+*/()]))")
_RESULT = re.compile(r" = (\d+(?:/\d+)?)(?![\d/])")
_BOX = re.compile(r"\\boxed\{([^{}]*)\}")

Residues = tuple[int, ...]


class StepKind(StrEnum):
    """What a step is worth."""

    RIGHT = "right"
    WRONG = "wrong"
    USELESS = "useless"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTruth:
    """The truth of one step and of the response up to it."""

    kind: StepKind
    reason: str
    sound: bool
    """No step up to and including this one is wrong: what a process reward model is asked for."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A quantity that a step may use: its value and its residues at the random points."""

    value: Fraction
    residues: Residues


def judge_steps(problem: Problem, text: str) -> list[StepTruth]:
    """The truth of every step of a response. Raises DataError for a problem without a program."""
    program = problem.metadata.get("program")
    if not program:
        raise DataError(
            f"problem {problem.id!r} has no metadata field 'program'; step truth is computable for playground "
            "problems only (rewardkit.playground.problems)"
        )
    given, nodes = _evaluate(program)
    side = set(program["side"])
    answer = nodes[int(program["answer"][1:])] if program["answer"][0] == "n" else given[int(program["answer"][1:])]
    known = list(given)
    established: set[Residues] = set()
    truths: list[StepTruth] = []
    sound = True
    for step in split_steps(text):
        kind, reason = _judge(step.text, known, nodes, side, established)
        for boxed in _BOX.findall(step.text):
            if kind is not StepKind.WRONG:
                kind, reason = _judge_box(boxed, answer, established, kind, reason)
        sound = sound and kind is not StepKind.WRONG
        truths.append(StepTruth(kind=kind, reason=reason, sound=sound))
    return truths


def first_wrong(truths: Sequence[StepTruth]) -> int:
    """Index of the first wrong step, -1 where there is none (the ProcessBench convention)."""
    return next((index for index, truth in enumerate(truths) if not truth.sound), -1)


def _evaluate(program: dict[str, Any]) -> tuple[list[_Known], list[_Known]]:
    """Given quantities and equation results with their values and residues."""
    given = [
        _Known(
            value=Fraction(text),
            residues=tuple(derive_seed("step truth", i, text, point) % PRIME for point in range(POINTS)),
        )
        for i, text in enumerate(program["given"])
    ]
    nodes: list[_Known] = []
    for operator, left, right in program["nodes"]:
        a, b = ((given if name[0] == "g" else nodes)[int(name[1:])] for name in (left, right))
        nodes.append(_combine(operator, a, b))
    return given, nodes


def _combine(operator: str, a: _Known, b: _Known) -> _Known:
    pairs = zip(a.residues, b.residues, strict=True)
    if operator == "+":
        return _Known(value=a.value + b.value, residues=tuple((x + y) % PRIME for x, y in pairs))
    if operator == "-":
        return _Known(value=a.value - b.value, residues=tuple((x - y) % PRIME for x, y in pairs))
    if operator == "*":
        return _Known(value=a.value * b.value, residues=tuple(x * y % PRIME for x, y in pairs))
    return _Known(value=a.value / b.value, residues=tuple(x * pow(y, -1, PRIME) % PRIME for x, y in pairs))


def _judge(
    text: str, known: list[_Known], nodes: list[_Known], side: set[int], established: set[Residues]
) -> tuple[StepKind, str]:
    """Kind and reason of one step; a right result joins `known` and `established`."""
    equations = _equations(text)
    if len(equations) != 1:
        return StepKind.WRONG, f"{len(equations) or 'no'} equations where one is expected"
    expression, result = (
        equations[0][0].strip(),
        Fraction(equations[0][1]) if _whole(equations[0][1]) else None,
    )
    parsed = _parse(expression)
    if parsed is None or result is None:
        return StepKind.WRONG, f"{expression!r} is no expression"
    postfix, numbers = parsed
    if len(numbers) > OPERANDS:
        return StepKind.WRONG, f"{len(numbers)} numbers in one expression; {OPERANDS} at most are read"
    plain = _run(postfix, [_Known(value=number, residues=(0,) * POINTS) for number in numbers], exact_only=True)
    if plain is None or plain.value != result:
        shown = "undefined" if plain is None else number_text(plain.value)
        return StepKind.WRONG, f"{expression} is {shown}, not {number_text(result)}"
    choices = [[quantity for quantity in known if quantity.value == number] for number in numbers]
    for number, choice in zip(numbers, choices, strict=True):
        if not choice:
            return StepKind.WRONG, f"{number_text(number)} is neither given nor established"
    readings = {
        reading.residues
        for chosen in itertools.islice(itertools.product(*choices), READINGS)
        if (reading := _run(postfix, list(chosen))) is not None
    }
    wanted = [n for n, node in enumerate(nodes) if node.residues in readings]
    fresh = [n for n in wanted if nodes[n].residues not in established]
    needed = [n for n in fresh if n not in side]
    # Equal numbers may fit several equations: all results may be used from now on, but one step establishes
    # one equation, so that writing the same numbers down again for the next one is right and not a repetition.
    known += [nodes[number] for number in fresh]
    established.update(nodes[number].residues for number in (needed or fresh)[:1])
    if needed:
        return StepKind.RIGHT, "an equation of the story"
    if fresh:
        return StepKind.USELESS, "true, but the answer does not need it"
    if wanted:
        return StepKind.USELESS, "repeats an established result"
    if len(numbers) == 1:
        return StepKind.USELESS, "states a known number"
    return StepKind.WRONG, "true arithmetic that the story does not ask for"


def _equations(text: str) -> list[tuple[str, str]]:
    """All (expression, result) pairs, found by scanning left from every " = number": linear in the text."""
    found = []
    begin = 0
    for match in _RESULT.finditer(text):
        start = match.start()
        while start > begin and (text[start - 1] in "+-*/() " or text[start - 1].isdecimal()):
            start -= 1
        expression = text[start : match.start()]
        if any(character.isdecimal() for character in expression):
            found.append((expression, match.group(1)))
            begin = match.end()
    return found


def _judge_box(
    boxed: str, answer: _Known, established: set[Residues], kind: StepKind, reason: str
) -> tuple[StepKind, str]:
    if not _whole(boxed) or Fraction(boxed) != answer.value:
        return StepKind.WRONG, f"the box holds {boxed!r}, the answer is {number_text(answer.value)}"
    if answer.residues not in established:
        return StepKind.WRONG, "the answer is boxed before it is derived"
    return kind, reason


def _whole(text: str) -> bool:
    """A number of ours: digits, or digits over digits that are not zero."""
    return bool(re.fullmatch(r"\d{1,9}(/0*[1-9]\d{0,8})?", text))


def _parse(expression: str) -> tuple[list[str], list[Fraction]] | None:
    """Shunting-yard to postfix ("#" for the next number) with the numbers in order; None if malformed."""
    output: list[str] = []
    numbers: list[Fraction] = []
    stack: list[str] = []
    place, operand_next = 0, True
    while place < len(expression):
        match = _TOKEN.match(expression, place)
        if match is None:
            return None
        place = match.end()
        number, symbol = match.groups()
        if number is not None:
            if not operand_next or not _whole(number):
                return None
            numbers.append(Fraction(number))
            output.append("#")
            operand_next = False
        elif symbol == "(":
            if not operand_next:
                return None
            stack.append(symbol)
        elif operand_next:
            return None
        elif symbol == ")":
            while stack and stack[-1] != "(":
                output.append(stack.pop())
            if not stack:
                return None
            stack.pop()
        else:
            tight = symbol in "*/"
            while stack and stack[-1] != "(" and (stack[-1] in "*/" or not tight):
                output.append(stack.pop())
            stack.append(symbol)
            operand_next = True
    if operand_next or "(" in stack:
        return None
    return output + stack[::-1], numbers


def _run(postfix: list[str], operands: list[_Known], *, exact_only: bool = False) -> _Known | None:
    """Evaluate postfix on quantities; None for a division by zero (in value, or at a random point)."""
    stack: list[_Known] = []
    following = iter(operands)
    for symbol in postfix:
        if symbol == "#":
            stack.append(next(following))
            continue
        right, left = stack.pop(), stack.pop()
        if symbol == "/" and (right.value == 0 or (not exact_only and 0 in right.residues)):
            return None
        if symbol == "/" and exact_only:
            stack.append(_Known(value=left.value / right.value, residues=left.residues))
        else:
            stack.append(_combine(symbol, left, right))
    return stack[0]
