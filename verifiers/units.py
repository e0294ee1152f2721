"""Names of units, and when two units are the same.

A unit text ("square centimeters", "cm^2", "miles per hour") becomes a product of known units with exponents.
A text with no known unit in it ("edges", "ways") says nothing and matches everything. There is no conversion
between units: 1 m and 100 cm differ.
"""

from __future__ import annotations

import re

from verifiers.trees import Node, fold, num, symbols, words

_GROUPS = (
    "mm millimeter millimeters millimetre millimetres|cm centimeter centimeters centimetre centimetres|"
    "m meter meters metre metres|km kilometer kilometers kilometre kilometres|in inch inches|"
    "ft foot feet|yd yard yards|mi mile miles|mg milligram milligrams|g gram grams|"
    "kg kilogram kilograms|lb lbs pound pounds|oz ounce ounces|ton tons|ml mL milliliter milliliters|"
    "l L liter liters litre litres|gal gallon gallons|s sec secs second seconds|min mins minute minutes|"
    "h hr hrs hour hours|day days|week weeks|month months|year years|cent cents|dollar dollars USD|"
    "euro euros EUR|pound_sterling GBP|N newton newtons|J joule joules|W watt watts|V volt volts|"
    "A amp amps ampere amperes|K kelvin kelvins|Pa pascal pascals|Hz hertz|mol mole moles|ohm ohms Omega|degC celsius|"
    "degF fahrenheit|kWh|kJ|kN|kW|kPa|MPa|kHz|mV|mA|AM am|PM pm|north|south|east|west|left|right|up|down|increase|"
    "decrease|profit|loss|gain|BC|AD|"
    "win wins|losses|degree degrees deg|radian radians rad|unit units|acre acres"
)
CANONICAL = {name: group.split()[0] for group in _GROUPS.split("|") for name in group.split()}
CANONICAL |= {"mph": "mi/h", "kph": "km/h", "square": "^2", "sq": "^2", "cubic": "^3", "per": "/"}
# One or two letters are as often a product of symbols; they count as units only inside a text command.
UNIT_NAMES = frozenset(name for name in CANONICAL if len(name) > 2 and name not in ("in",)) | frozenset(
    ("mm", "cm", "km", "kg", "mg", "ml", "ft", "lb", "oz", "hr", "mi", "yd")
)
UNIT_LETTERS = frozenset(name for name in CANONICAL if len(name) == 1)
TELLING = frozenset(
    words("wrong false not least most than minimum maximum below above even odd except more less twelfths tenths")
)
_PIECE = re.compile(r"[A-Za-z]+|/|\^\s*\{?\s*(\d)\s*\}?")


def unit_of(text: str) -> tuple[tuple[str, int], ...]:
    """The known units in a text with their exponents, sorted; empty where none is known."""
    powers: dict[str, int] = {}
    sign, pending, last = 1, 1, ""
    for piece in _PIECE.finditer(text):
        word = piece.group()
        if piece.group(1):
            if last:
                powers[last] += (int(piece.group(1)) - 1) * (1 if powers[last] > 0 else -1)
            continue
        known = "/" if word == "/" else CANONICAL.get(word, CANONICAL.get(word.lower(), ""))
        if known == "/":
            sign = -1
        elif known.startswith("^"):
            pending = int(known[1])
        elif known:
            for index, name in enumerate(known.split("/")):
                powers[name] = powers.get(name, 0) + (sign if index == 0 else -sign) * pending
                last = name
            pending = 1
    powers.pop("unit", None)
    return tuple(sorted((name, power) for name, power in powers.items() if power))


def as_quantity(root: Node) -> tuple[Node, str] | None:
    """A product or quotient of a number and unit letters (`10 m/s`, read as symbols) as (number, unit text)."""
    if not symbols(root) <= CANONICAL.keys() or not symbols(root):
        return None

    def combine(node: Node, args: list[tuple[Node, str] | None]) -> tuple[Node, str] | None:
        parts = [arg for arg in args if arg is not None]
        if len(parts) < len(args):
            return None
        if node.op == "sym":
            return num(1), node.name
        units = [unit for _, unit in parts]
        core = Node(node.op, tuple(part for part, _ in parts), node.value, node.digits)
        if not any(units):
            return core, ""
        if node.op == "mul":
            return core, " ".join(unit for unit in units if unit)
        if node.op == "div":
            return core, f"{units[0]} / {units[1]}" if units[1] else units[0]
        if node.op == "pow" and not units[1] and parts[1][0].op == "num":
            return num(1), f"{units[0]}^{parts[1][0].number}"
        return None

    return fold(root, combine)


def _telling(text: str) -> set[str]:
    """Words behind a number that change what is said: `5 at least` is not 5."""
    return set(re.findall(r"[a-z]+", text.lower())) & TELLING


def units_differ(first: str, second: str) -> bool:
    """Whether both texts name known units and not the same ones, or one says more than a unit."""
    one, two = unit_of(first), unit_of(second)
    if _telling(first) != _telling(second):
        return True
    return bool(one) and bool(two) and one != two
