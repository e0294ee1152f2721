"""What the table refuses and why, and what it allows with a word of caution; free of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from rewardkit.rl.settings.table import Table

Rule: TypeAlias = tuple[bool, str]
"""(whether the table breaks it, why it must not and what to do)."""


def cautions(table: Table) -> Iterator[str]:
    """What should be known before a run."""
    if table.kl.target != "none" and table.kl.place == "loss" and table.kl.estimator == "k3":
        yield ("k3 in the loss has the forward KL's gradient, of unbounded variance; k3_is has the reverse KL's")
    if table.kl.target != "none" and table.kl.place == "loss" and table.kl.estimator == "k2":
        yield ("k2 a token has the gradient of the KL at visited states, not of the sequence KL; k2_seq has it")
    if table.kl.place == "reward" and table.kl.target != "none" and table.advantage.discount < 1:
        yield "k1 in the reward is the sequence KL only without discount; gamma is below 1"
    if table.ratio.level in ("sequence", "sequence_token") and (table.clip.high or 0.0) >= 0.1:
        yield "a sequence ratio hardly leaves 1 +- 0.01, so a clip of 0.1 or more never acts; GSPO's is 4e-4"
    if table.clip.kind == "mirror" and table.advantage.kind != "soft":
        yield "mirror with the mean as baseline is Kimi's own form; only advantage.kind 'soft' makes its optimum exact"
    if table.advantage.kind == "implicit":
        yield "PRIME's baseline is taken from every token, which is a price on length"
    if table.layer is not None:
        yield "samples come from the whole model, so a layer's ratio is no importance weight"
    if table.aggregation == "sequence":
        yield "tokens of a long response weigh less than those of a short one"
    if table.advantage.kind == "group" and table.advantage.scale == "std":
        yield ("dividing by the group's deviation gives easy and hard problems more weight than their gradient")


def _about_advantages(table: Table) -> Iterator[Rule]:
    kind = table.advantage.kind
    yield (
        kind == "gae" and table.critic is None,
        "advantage.kind='gae' needs values and so a critic; set critic, or a kind that has none, such as 'group'",
    )
    yield (
        kind != "gae" and table.critic is not None,
        f"critic has no effect with advantage.kind={kind!r}, which reads no values; set kind 'gae', or critic None",
    )
    yield (
        (kind == "implicit") is not (table.implicit is not None),
        "advantage.kind='implicit' and the section implicit go together: the one reads token rewards, the other learns "
        "to give them; set both or neither",
    )
    yield (
        kind == "zero" and table.kl.target == "none",
        "advantage.kind='zero' learns from no reward and so needs a KL to learn from; set kl.target, such as 'teacher'",
    )
    yield (
        kind == "zero" and (table.filter != "none" or table.shaping.any),
        "advantage.kind='zero' learns from no reward, so filter and shaping have no effect; leave them out",
    )
    yield (
        table.advantage.by_token and table.ratio.level == "sequence",
        f"ratio.level='sequence' has one ratio a response and cannot carry the token-level advantages of "
        f"advantage.kind={kind!r}; use ratio.level 'sequence_token'",
    )


def _about_ratios(table: Table) -> Iterator[Rule]:
    clip, level = table.clip.kind, table.ratio.level
    yield (
        clip == "ppo" and level == "none",
        "clip.kind='ppo' clips a ratio, and ratio.level='none' has none; set ratio.level 'token', or clip.kind 'none'",
    )
    yield (
        clip in ("cispo", "dppo", "mask") and level != "token",
        f"clip.kind={clip!r} weighs or drops single tokens and needs ratio.level 'token'; got {level!r}",
    )
    yield (
        clip == "mirror" and level != "none",
        f"clip.kind='mirror' takes the plain policy gradient beside its penalty and needs ratio.level 'none'; "
        f"got {level!r}",
    )
    yield (
        clip == "mirror" and table.aggregation not in ("sequence_sum", "constant"),
        f"clip.kind='mirror' squares the log-ratio of a whole response and needs aggregation 'sequence_sum' or "
        f"'constant'; got {table.aggregation!r}",
    )
    yield (
        table.ratio.anchor == "sampler" and not table.uses_anchor,
        "ratio.anchor='sampler' has no effect with ratio.level='none'; leave it 'old'",
    )
    yield (
        table.ratio.anchor == "sampler" and table.masks.importance != "none",
        f"masks.importance={table.masks.importance!r} with ratio.anchor='sampler' counts the sampler's mismatch twice: "
        "the ratio holds it already; set ratio.anchor 'old', or masks.importance 'none'",
    )


def _about_kl(table: Table) -> Iterator[Rule]:
    kl = table.kl
    if kl.target == "none":
        return
    yield (
        kl.place == "loss" and kl.estimator == "k1",
        "kl.estimator='k1' in the loss has an expected gradient of zero and holds nothing; put it in the reward, or "
        "use k3_is",
    )
    yield (
        kl.only == "covariance" and table.clip.kind == "mirror",
        "kl.only='covariance' weighs tokens of a response differently, and clip.kind='mirror' squares whole responses; "
        "use another clip",
    )
    yield (
        kl.only == "covariance" and kl.estimator == "k2_seq",
        "kl.estimator='k2_seq' squares whole responses, and kl.only='covariance' picks tokens; use abs or k2",
    )
    yield (
        kl.place != "loss" and kl.estimator in ("k3", "k3_is"),
        f"kl.estimator={kl.estimator!r} in the {kl.place} does not give the KL's gradient but that of the sequence KL "
        "minus a forward KL; use k1 there, or put it in the loss",
    )
    yield (
        kl.place != "loss" and kl.estimator in ("k2", "k2_seq"),
        f"kl.estimator={kl.estimator!r} in the {kl.place} follows a squared log-ratio, not a KL; use k1 there, or put "
        "it in the loss",
    )
    yield (
        kl.estimator == "k2_seq" and table.aggregation in ("sequence", "group"),
        f"kl.estimator='k2_seq' is the sequence KL only where all tokens weigh the same; aggregation="
        f"{table.aggregation!r} divides by a length; use 'sequence_sum', 'constant' or 'token', or k3_is",
    )
    yield (
        kl.place != "reward" and kl.credit is not None,
        f"kl.credit={kl.credit!r} has no effect with kl.place={kl.place!r}; leave it None",
    )
    yield (
        kl.credit is not None and table.advantage.by_token,
        f"kl.credit={kl.credit!r} is a choice for advantages of whole responses; advantage.kind="
        f"{table.advantage.kind!r} has one a token, which answers for its KL and what follows; leave it None",
    )
    yield (
        kl.credit == "sequence" and table.advantage.scale == "std",
        "kl.credit='sequence' with advantage.scale='std' blows up the KL's noise in groups of equal rewards, whose "
        "deviation is the KL alone; use credit 'to_go', or scale 'none'",
    )
    yield (
        table.ratio.level == "sequence" and kl.place != "loss" and kl.credit != "sequence",
        f"ratio.level='sequence' has one ratio a response and cannot carry the KL of single tokens in the {kl.place}; "
        "use ratio.level 'sequence_token', or k3_is in the loss",
    )


def _about_weights(table: Table) -> Iterator[Rule]:
    masks = table.masks
    picks = masks.entropy_top is not None or masks.clip_cov is not None
    yield (
        picks and (table.clip.kind == "mirror" or table.ratio.level == "sequence"),
        "masks.entropy_top and masks.clip_cov take single tokens' gradients away and need a loss a token; use "
        "ratio.level 'token' and another clip than 'mirror'",
    )
    yield (
        masks.keep_sampling and table.kl.estimator == "full",
        "kl.estimator='full' is over the whole vocabulary and masks.keep_sampling over a part of it; use k3_is",
    )
    yield (
        table.filter == "reward" and table.shaping.any,
        "filter='reward' looks at a reward that shaping changes, which rescues groups that failed altogether; use "
        "filter 'outcome', or no shaping",
    )


def _about_layers(table: Table) -> Iterator[Rule]:
    yield (
        (table.layer is None) is not (table.layer_steps is None),
        f"layer and layer_steps go together; got {table.layer!r} and {table.layer_steps!r}",
    )
    if table.layer is None:
        return
    masks = table.masks
    yield (
        table.kl.target != "none",
        "layer trains what one layer would say, which no reference, teacher or sampler says; leave kl out",
    )
    yield (
        table.ratio.anchor == "sampler"
        or masks.importance != "none"
        or bool(masks.reject)
        or masks.off_policy is not None,
        "layer trains what one layer would say, and the sampler's log-probabilities are the whole model's: set "
        "ratio.anchor 'old' and leave importance, reject and off_policy out of masks",
    )
    yield (
        table.ptx > 0,
        "layer leaves the layers above it as they are, and the text of ptx trains all of them; set ptx to 0",
    )
    yield (
        table.critic is not None or table.implicit is not None,
        "layer with a critic or an implicit reward model would leave open what they read; leave one of them out",
    )


RULES: tuple[Callable[[Table], Iterator[Rule]], ...] = (
    _about_advantages,
    _about_ratios,
    _about_kl,
    _about_weights,
    _about_layers,
)
