"""Are two expressions without outer structure equal? Exact, then algebraic, then numeric stages.

    exact       both rational by arithmetic: compared as fractions
    rational    both rational functions: compared in GF(2^61 - 1) at three seeded points (values.residue)
    numeric     both closed: enclosed to 60 digits, and to 400 before they are called equal; enclosures that
                do not meet are a certain "no" (interval arithmetic)
    sampled     symbols and functions: compared at seeded positive points, where a difference is a "no", and
                at points of mixed sign, where a difference is a "no" if both sides are real (so sqrt(x^2) is
                not x, while log(x^2) is 2 log(x))
    magnitude   a power tower too large to write down differs from everything that can be written down

Tolerance is by significant digits and relative, and only where a decimal stands: a reference of d >=
`reference_digits` digits takes every value that rounds to it; an exact reference that is no integer takes a
decimal of >= `response_digits` digits less than one unit of its last place away. Integers are exact.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from verifiers.errors import ConfigError
from verifiers.numeric import numeric
from verifiers.trees import Node, has, key, rebuild, symbols
from verifiers.values import PRIME, NoValue, TooLarge, Undefined, exact, residue

PERCENT_CHOICES = ("either", "strict")


@dataclass(frozen=True, kw_only=True, slots=True)
class EqualityPolicy:
    """Where "equal" is a matter of taste."""

    percent: str = "either"
    """"either": 50% matches 0.5 and also 50; "strict": 0.5 only."""
    response_digits: int = 6
    """Fewest significant digits of a decimal response that may stand for an exact reference."""
    reference_digits: int = 4
    """Fewest significant digits of a decimal reference that other values may round to."""
    differing_units: bool = False
    """Ignore units; otherwise two known and different units are unequal. A missing unit is never a fault."""
    ordered_lists: bool = False
    """Bare lists (`1, 2`) must have the order of the reference."""
    lists_as_tuples: bool = True
    """A bare list matches a tuple of the same items in the same order."""
    relations_as_intervals: bool = True
    """`x > 3` matches `(3, oo)`, and `x in S` matches `S`."""
    letter_case: bool = True
    """`X` is not `x`; False: the case of symbols says nothing (that of words never does)."""
    unreduced_fractions: bool = True
    """`2/4` matches 1/2; False: a fraction of integers in the response must be in lowest terms."""
    evaluated: bool = False
    """A response to a reference that is one number must be one number too: 6 and no `3!`, `2 + 4` or `C(4, 2)`."""
    decimal_comma: bool = True
    """`2,74` matches 2.74, where the comma cannot separate thousands and the other side is no list."""
    number_words: bool = True
    """`twenty-five` matches 25, `two thirds` matches 2/3."""
    repeating: bool = True
    """`0.1(6)` matches 1/6 (and 0.6, as a product)."""
    choices: bool = True
    """`(B) 12` and `b` match the choice `B`; `A, C` and `CA` are the same choices."""
    drop_labels: bool = True
    """`x = 5` matches `5`, and `f(x) = x^2` matches `x^2`."""
    symbolic: bool = True
    """Ask sympy, in a worker process, where all other stages cannot tell."""

    def __post_init__(self) -> None:
        if self.percent not in PERCENT_CHOICES:
            raise ConfigError(f"EqualityPolicy.percent must be one of {PERCENT_CHOICES}; got {self.percent!r}")
        for name in ("response_digits", "reference_digits"):
            if getattr(self, name) < 1:
                raise ConfigError(f"EqualityPolicy.{name} must be 1 or more; got {getattr(self, name)!r}")


AGREEMENT = 1000
"""Bits (300 digits) to which two enclosures must be narrow before their meeting is called equality."""


class Finding(NamedTuple):
    """What a stage found: equal, not equal, or None for "cannot tell" (then `kind` names the failure)."""

    equal: bool | None
    kind: str
    reason: str


def yes(kind: str, reason: str = "") -> Finding:
    """Equal, as found by stage `kind`."""
    return Finding(True, kind, reason or f"equal ({kind})")


def no(kind: str, reason: str = "") -> Finding:
    """Not equal, as found by stage `kind`."""
    return Finding(False, kind, reason or f"not equal ({kind})")


UNPROVED = Finding(None, "unproved", "no stage could tell the two expressions apart or prove them equal")


def compare_values(response: Node, reference: Node, policy: EqualityPolicy) -> Finding:
    """Whether two scalar expressions have the same value; undecided is of kind unproved or limit."""
    if key(response) == key(reference):
        return yes("structure", "the same expression")
    response, reference = _opaque(response), _opaque(reference)
    names = symbols(response) | symbols(reference)
    try:
        one, two = exact(response), exact(reference)
        if one == two:
            return yes("exact", "the same rational number")
        return _tolerate(response, reference, one, two, policy) or no("exact", "different rational numbers")
    except Undefined as error:
        return no("undefined", f"an expression without a value: {error}")
    except TooLarge as error:
        beyond = str(error)
    except NoValue:
        beyond = ""
    # not a rational within the budget: the later stages decide
    if names:
        finding = _rational(response, reference, names) or _sampled(response, reference, names)
    else:
        finding = _closed(response, reference, policy)
    # sympy would only write the large value down
    return Finding(None, "limit", beyond) if beyond and finding.kind == "unproved" else finding


def _opaque(root: Node) -> Node:
    """With f(x) as one unknown, named by what it is applied to."""
    if not has(root, "call"):
        return root

    def change(node: Node) -> Node | None:
        called = node.op == "call" and node.name in ("f", "g", "h")
        return Node("sym", (), f"{node.name}({','.join(map(key, node.args))})") if called else None

    return rebuild(root, change)


def decimal_of(node: Node) -> Node | None:
    """The decimal number that an expression is, up to its sign; None where it is anything else."""
    while node.op in ("neg", "unit") and node.args:
        node = node.args[0]
    return node if node.op == "num" and node.digits else None


def _last_place(decimal: Node) -> Fraction:
    """One unit in the last written digit of a decimal."""
    value = abs(decimal.number)
    if not value:
        return Fraction(0)
    exponent = len(str(value.numerator // value.denominator)) if value >= 1 else 0
    while value < Fraction(10) ** (exponent - 1):
        exponent -= 1
    return Fraction(10) ** (exponent - decimal.digits)


def _allowance(response: Node, reference: Node, integral: bool, policy: EqualityPolicy) -> Fraction | None:
    """How far apart the values may be, or None where they must be equal."""
    asked, given = decimal_of(reference), decimal_of(response)
    if _too_long(asked) or _too_long(given):
        return None
    if asked is not None:
        short = given is not None and given.digits < asked.digits
        whole = given is None and response.op == "num" and response.number.denominator == 1
        if asked.digits < policy.reference_digits or short or whole:
            return None
        return _last_place(asked) / 2
    if given is None or given.digits < policy.response_digits or integral:
        return None
    return _last_place(given) * Fraction(999, 1000)


def _too_long(decimal: Node | None) -> bool:
    return decimal is not None and decimal.number.numerator.bit_length() > 4_000


def _tolerate(response: Node, reference: Node, one: Fraction, two: Fraction, policy: EqualityPolicy) -> Finding | None:
    allowed = _allowance(response, reference, two.denominator == 1, policy)
    if allowed is None or abs(one - two) > allowed or (one < 0) != (two < 0):
        return None
    return yes("rounded", "equal to the digits written")


def _closed(response: Node, reference: Node, policy: EqualityPolicy) -> Finding:
    try:
        one, two = numeric(response, 60), numeric(reference, 60)
    except TooLarge as error:
        big, other = is_huge(response), is_huge(reference)
        if big != other and _is_finite(reference if big else response):
            return no("magnitude", "one side is too large to write down, the other is not")
        return Finding(None, "limit", str(error))
    except NoValue as error:
        return Finding(None, "unproved", f"no numeric value: {error}"[:200])
    if one.disjoint(two):
        allowed = _allowance(response, reference, two.may_be_integer(), policy)
        close = allowed is not None and one.within(two, allowed)
        return yes("rounded", "equal to the digits written") if close else no("numeric", "different values")
    one, two = numeric(response, 400), numeric(reference, 400)
    if one.disjoint(two):
        return no("numeric", "different values")
    if all(side.narrow(AGREEMENT) for side in (one, two)):
        return yes("numeric", "equal to 300 digits")
    vanish = all(side.has_zero() and side.tiny(AGREEMENT) for side in (one, two))
    return yes("numeric", "both vanish to 300 digits") if vanish else UNPROVED


def _is_finite(node: Node) -> bool:
    try:
        return numeric(node, 20) is not None
    except (NoValue, TooLarge):
        return False


def is_huge(root: Node) -> bool:
    """Whether a closed tower of powers and factorials certainly passes 2^(2^40)."""
    spine = [root]
    while spine[-1].op in ("pow", "fact"):
        spine.append(spine[-1].args[-1])
    inner = spine.pop()
    while spine:  # from the top of the tower down, until a level cannot be written down
        node = spine.pop()
        if _real(node) is None:
            top, base = _real(inner), _real(node.args[0])
            grows = (top or 0) > 1e6 and (node.op == "fact" or (base or 0) >= 2)
            return grows and all(n.op == "fact" or (_real(n.args[0]) or 0) >= 2 for n in spine)
        inner = node
    return False


def _real(node: Node) -> float | None:
    """The real value as a float (infinite past its range), None where there is none or it is too large."""
    try:
        value = numeric(node, 20)
    except (NoValue, TooLarge):
        return None
    return value.middle() if value.im is None else 0.0


def _rational(response: Node, reference: Node, names: frozenset[str]) -> Finding | None:
    """The verdict over GF(p), or None where either side is no rational function."""
    draw = random.Random(0x5EED)
    for _ in range(3):
        point = {name: draw.randrange(2, PRIME) for name in sorted(names)}
        try:
            if residue(response, point) != residue(reference, point):
                return no("rational", "different rational functions")
        except NoValue:
            return None
    return yes("rational", "the same rational function")


def points(names: frozenset[str], count: int, mixed: bool) -> list[dict[str, Fraction]]:
    """Seeded rational points, every coordinate in (0.3, 2.4), or of either sign."""
    draw = random.Random(0xF00D + mixed)
    places = []
    for turn in range(count):
        place = {}
        for rank, name in enumerate(sorted(names)):
            size = Fraction(draw.randrange(30, 240), 100) + Fraction(draw.randrange(1, 97), 9973)
            negative = mixed and (turn == 0 or (turn + rank) % 2 == 1)
            place[name] = -size if negative else size
        places.append(place)
    return places


def _sampled(response: Node, reference: Node, names: frozenset[str]) -> Finding:
    agreed = 0
    for mixed in (False, True):
        for place in points(names, 4, mixed):
            try:
                one, two = numeric(response, 50, place), numeric(reference, 50, place)
            except TooLarge as error:
                return Finding(None, "limit", str(error))
            except NoValue:
                continue
            if one.disjoint(two):
                if not mixed or (one.may_be_real() and two.may_be_real()):
                    return no("sampled", "different values at a sample point")
            elif all(side.narrow(60) or side.tiny(60) for side in (one, two)):
                agreed += not mixed
    return yes("sampled", "equal at every sample point") if agreed >= 2 else UNPROVED
