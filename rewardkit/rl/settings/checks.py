"""What sections of the table ask of their settings: one of a choice, a number in bounds, read by its kind; no torch."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, get_args

from verifiers.errors import ConfigError


def choose(where: str, value: Any, allowed: Any) -> None:
    """Refuse a value that is none of a Literal's."""
    if value not in get_args(allowed):
        raise ConfigError(f"{where} must be {' or '.join(map(repr, get_args(allowed)))}; got {value!r}")


def number(where: str, value: Any, least: float, most: float = math.inf, *, open_: bool = True) -> None:
    """Refuse what is no number in [least, most], with `open_` in (least, most]; infinity only where most is open."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not fits or (open_ and value == least) or math.isinf(value):
        bound = f"{'above' if open_ else 'at least'} {least:g}" + ("" if math.isinf(most) else f" and at most {most:g}")
        bound += " and finite" * (isinstance(value, float) and math.isinf(value))
        raise ConfigError(f"{where} must be {bound}; got {value!r}")


def flag(where: str, value: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{where} must be true or false; got {value!r}")


def read_by(section: str, config: Any, choice: str, needs: tuple[str, ...], may: tuple[str, ...] = ()) -> None:
    """Refuse settings that are None by default and do not fit what the field `choice` says."""
    chosen = f"{section}.{choice}={getattr(config, choice)!r}"
    for field in fields(config):
        given = getattr(config, field.name) is not None
        if field.name in needs and not given:
            raise ConfigError(f"{chosen} needs {section}.{field.name}; got None, set it")
        if field.default is None and given and field.name not in needs + may:
            raise ConfigError(
                f"{section}.{field.name}={getattr(config, field.name)!r} has no effect with {chosen}; leave it None"
            )
