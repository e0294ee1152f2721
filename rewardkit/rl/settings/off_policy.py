"""Learning from what older weights drew: which rows of the table may do it, and in which words a run says so; no torch.

Responses that came from weights mu and are learned from with weights pi stand for pi only where something weighs them:
a ratio e^(l - mu), an importance weight e^(o - mu), or an objective that is meant for samples of another policy
(mirror descent's squared log-ratio, Kimi k1.5, arXiv 2501.12599). A plain policy gradient takes them for pi's own.
"""

from __future__ import annotations

from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError


def refuse_unweighted(table: Table, cause: str, *, cuts: bool) -> None:
    """Raise ConfigError for a table that would take older responses for the policy's own; `cause` is the setting."""
    if table.ratio.level == "none" and table.clip.kind != "mirror" and table.masks.importance == "none":
        raise ConfigError(
            f"{cause} gives responses of older weights, and ratio.level='none' takes them for the policy's own; add "
            "the changes masks.importance=truncate and masks.level=token, or use a preset with a ratio, such as grpo"
        )
    if table.layer is not None:
        raise ConfigError(
            f"{cause} gives responses of older weights, and layer compares one layer's policy with itself, which does "
            "not weigh them; leave one of the two out"
        )
    if table.masks.keep_routing:
        raise ConfigError(
            f"{cause} gives responses of older weights, whose experts are not noted; leave masks.keep_routing out"
        )
    if cuts:
        raise ConfigError(
            f"{cause} gives responses of older weights, and the tokens that top_p and top_k left them cannot be told "
            "from the new ones; leave top_p and top_k as they are"
        )


def how_old(*, staleness: int, segment_tokens: int, oldest_piece: int) -> str:
    """In words, for the first line of a run; empty where all responses are the policy's own."""
    said = []
    if staleness:
        said.append(f"drawn by a second process with weights {staleness} step{'s' * (staleness > 1)} behind")
    if segment_tokens:
        said.append(f"in pieces of {segment_tokens} tokens a step, dropped at more than {oldest_piece} steps behind")
    return ", ".join(said)
