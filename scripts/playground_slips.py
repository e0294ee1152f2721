"""Solutions with slips, as a careless but able pupil would write them.

Each equation of a worked solution goes wrong with a probability that depends on what it asks for, and it goes
wrong in the usual way: a lost carry or borrow, a neighbouring entry of the times table, a share off by one.
What follows is computed faithfully from the slipped number. A policy trained on such solutions errs by slips,
often the same ones (so majority votes can be wrong together), and not by ignorance.
"""

from __future__ import annotations

import random
from fractions import Fraction

from rewardkit.playground import STEP_SEPARATOR, apply, number_text
from verifiers.core import Problem

CARRY = 0.25
"""A carry or borrow is lost."""
TIMES = 0.10
"""A product is the neighbouring one."""
SHARE = 0.10
"""A share or a fraction of something is off by one."""
QUARTERS = 0.04
"""Any equation in quarters is off by a quarter."""
OTHER = 0.02
"""Anything else is off by one."""


def slipped_solution(problem: Problem, rng: random.Random) -> str:
    """A solution of a playground problem in which every equation may slip."""
    program = problem.metadata["program"]
    labels = [step.split(":")[0] for step in problem.metadata["solution"].split(STEP_SEPARATOR)]
    given = [Fraction(text) for text in program["given"]]
    quarters = any(value.denominator == 4 for value in given)
    values: list[Fraction] = []
    steps: list[str] = []
    for number, (operator, left, right) in enumerate(program["nodes"]):
        a, b = ((given if name[0] == "g" else values)[int(name[1:])] for name in (left, right))
        value = slip(operator, a, b, quarters, rng)
        values.append(value)
        if number not in program["side"]:
            steps.append(f"{labels[len(steps)]}: {number_text(a)} {operator} {number_text(b)} = {number_text(value)}.")
    return STEP_SEPARATOR.join(steps) + f" \\boxed{{{number_text(values[int(program['answer'][1:])])}}}"


def slip(operator: str, a: Fraction, b: Fraction, quarters: bool, rng: random.Random) -> Fraction:
    """The result of one equation, right or slipped, never below 0."""
    exact = apply(operator, a, b)
    unit = Fraction(1, 4) if quarters else Fraction(1)
    # Earlier slips can make a share uneven or a difference negative; a careless pupil rounds it off.
    exact = max(Fraction(0), Fraction(exact // unit) * unit)
    if operator in "+-" and not quarters:
        lost = carries(int(a), int(b), operator)
        if lost and rng.random() < CARRY:
            return max(Fraction(0), exact + (-1 if operator == "+" else 1) * rng.choice(lost))
    elif operator == "*" and a.denominator == b.denominator == 1:
        if rng.random() < TIMES:
            return exact + min(a, b) * rng.choice((-1, -1, 1))
    elif rng.random() < (QUARTERS if quarters else SHARE):
        return max(Fraction(0), exact + unit * rng.choice((-1, -1, 1)))
    if rng.random() < OTHER:
        return max(Fraction(0), exact + unit * rng.choice((-1, 1)))
    return exact


def carries(a: int, b: int, operator: str) -> list[int]:
    """The powers of ten at which adding carries, or subtracting borrows."""
    found, carry, power = [], 0, 1
    while a or b:
        x, y = a % 10, b % 10
        carry = int(x + y + carry > 9) if operator == "+" else int(x - y - carry < 0)
        power *= 10
        if carry and (a >= 10 or b >= 10):
            found.append(power)
        a, b = a // 10, b // 10
    return found
