"""Numbers and rule names as a reader wants them: percent with interval, powers of ten, what a rule does.

Accuracies print in percent with one decimal, differences in points with a sign, large counts with thousands
separators, FLOPs as a power of ten. A rule is one of three kinds: a rule one could deploy, a baseline without
search (`first`), or a control (random scores below, oracle and pass@n above), drawn in grey.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from rewardkit.report.contents import Estimate

Kind = Literal["pick", "vote", "first", "control"]

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def kind_of(rule: str) -> Kind:
    """What a rule of `search.curves` is, by its name."""
    if rule == "first":
        return "first"
    if rule.startswith("any") or rule.removeprefix("best by ") in ("random", "oracle"):
        return "control"
    if rule == "majority" or rule.startswith("weighted by "):
        return "vote"
    return "pick"


def meaning(rule: str) -> str:
    """One clause on what a rule does, empty for a rule unknown here."""
    name = rule.removeprefix("best by ")
    if rule == "first":
        return "the first response drawn; no search"
    if rule == "majority":
        return "the answer most responses agree on"
    if name == "random":
        return "control: scores are noise; a useful score must beat it"
    if name == "oracle":
        return "bound: scores are the truth; no score can beat it"
    if rule.startswith("any"):
        return "bound: is any of the n responses right?"
    if rule.startswith("best by "):
        return f"the response with the highest score ({name})"
    if rule.startswith("weighted by "):
        return f"vote in which each response counts by its score ({rule.removeprefix('weighted by ')})"
    return ""


def percent(value: float) -> str:
    """0.7125 -> "71.2 %"."""
    return f"{100 * value:.1f} %"


def interval(low: float | None, high: float | None) -> str:
    """(0.651, 0.769) -> "65.1 – 76.9 %"."""
    return "no interval" if low is None or high is None else f"{100 * low:.1f} – {100 * high:.1f} %"


def points(value: float) -> str:
    """0.043 -> "+4.3"; a difference of two percentages."""
    return f"{100 * value:+.1f}".replace("-", "−")


def verdict(difference: Estimate, first: str, second: str) -> str:
    """What an interval of a paired difference lets one say."""
    if difference.low is None or difference.high is None:
        return "no interval, so nothing can be said"
    if difference.low > 0:
        return f"{first} is better"
    if difference.high < 0:
        return f"{second} is better"
    return "no difference shown: the interval holds 0"


def number(value: float) -> str:
    """A plain number for people: thousands separators, at most four significant digits, powers of ten outside that."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}".replace("-", "−")
    if 1e-3 <= abs(value) < 1e6:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{digits}f}"
        return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")


def score(value: float) -> str:
    """A step score with two decimals; tiny ones keep a digit, so that no product prints as a false 0.00."""
    if value == 0 or abs(value) >= 0.005:
        return f"{value:.2f}".replace("-", "−")
    return number(value) if abs(value) < 1e-3 else f"{value:.3f}".replace("-", "−")


def seconds(value: float) -> str:
    """Seconds, with minutes or hours beside them from two minutes on."""
    plain = f"{value:,.1f} s" if value < 100 else f"{value:,.0f} s"
    if value < 120:
        return plain
    return f"{plain} ({value / 60:.0f} min)" if value < 7200 else f"{plain} ({value / 3600:.1f} h)"


def plain(value: Any) -> str:
    """Any JSON value as text on the page."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value) if abs(value) < 1e300 else str(value)
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {plain(item)}" for name, item in value.items()) or "none"
    return str(value)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested object as (dotted name, text) pairs; anything else as one unnamed pair."""
    if not isinstance(value, dict):
        return [(prefix, plain(value))]
    return [
        pair for name, inner in value.items() for pair in flatten(inner, f"{prefix}.{name}" if prefix else str(name))
    ]


def wilson(rate: float, count: int) -> tuple[float | None, float | None]:
    """95 % Wilson interval of a share of `count` independent trials (Wilson 1927); (None, None) for none."""
    if count < 1:
        return None, None
    z = 1.959964
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(max(0.0, rate * (1 - rate)) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)
