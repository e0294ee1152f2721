"""What a step of one response a problem (group 1) cannot learn from.

Then as many problems as responses teach, but what compares the responses of one problem compares each with itself:
every advantage is 0, and a run would draw for nothing. What compares over the batch, with a critic or with Phi_0 is
left.
"""

from __future__ import annotations

from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError

GROUP_KINDS = ("group", "rloo", "batch", "soft", "implicit")
"""Kinds of advantage that subtract something of the group."""


def refuse_lone(table: Table) -> None:
    """Raise ConfigError for a table that learns from comparing the responses of one problem."""
    own = table.advantage
    if own.kind in GROUP_KINDS:
        raise ConfigError(
            f"group=1 leaves advantage.kind={own.kind!r} nothing to learn from, as it compares responses to one "
            "problem; make group larger, or take a preset that compares over the batch, such as reinforce_pp"
        )
    if own.kind in ("step", "step_min") and own.scale == "std":
        raise ConfigError(
            "group=1 has no deviation for advantage.scale='std' to divide by; make group larger, or add the change "
            "advantage.scale=none"
        )
    if own.baseline is not None:
        raise ConfigError(
            f"group=1 has no other responses for advantage.baseline={own.baseline!r}; make group larger, or add the "
            "change advantage.baseline=null"
        )
    if table.filter != "none":
        raise ConfigError(
            f"group=1 leaves filter={table.filter!r} no response, as in a group of one all rewards are equal; make "
            "group larger, or add the change filter=none"
        )
    if table.shaping.length is not None:
        raise ConfigError(
            "group=1 has no other lengths for shaping.length to compare with; make group larger, or add the change "
            "shaping.length=null"
        )
