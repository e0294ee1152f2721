"""Named rows of the table: settings only, with the paper each one is from; free of torch.

`preset("grpo", clip={"high": 0.28})` changes single settings of a section, `kl=Kl(...)` puts a whole one in its place,
`kl=None` leaves it out. Where a paper leaves a setting open, it is the one that is exact or that its own code has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rewardkit.rl.settings.sections import Advantage, Clip, Critic, Implicit, Kl, Masks, Ratio, Shaping
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named row."""

    about: str
    """What it is and where it is from, in one sentence."""
    table: Table


_PLAIN = Ratio(level="none")
_PPO = Clip(kind="ppo", low=0.2, high=0.2)
_SECTIONS: dict[str, Any] = {
    "advantage": Advantage, "ratio": Ratio, "clip": Clip, "kl": Kl, "masks": Masks, "shaping": Shaping,
    "critic": Critic, "implicit": Implicit,
}  # fmt: skip

PRESETS: Mapping[str, Preset] = {
    "reinforce": Preset(
        about="Plain policy gradient with the batch's mean reward as baseline (Williams 1992).",
        table=Table(advantage=Advantage(kind="mean", scale="none"), ratio=_PLAIN, aggregation="sequence_sum"),
    ),
    "a2c": Preset(
        about="Policy gradient with a critic's value as baseline and an entropy bonus (arXiv 1602.01783).",
        table=Table(
            advantage=Advantage(kind="gae", scale="none", lam=1.0),
            ratio=_PLAIN,
            critic=Critic(coefficient=0.5),
            entropy=0.01,
        ),
    ),
    "rloo": Preset(
        about="Policy gradient with the mean of the group's others as baseline, KL in the reward (arXiv 2402.14740).",
        table=Table(
            advantage=Advantage(kind="rloo", scale="none"),
            ratio=_PLAIN,
            kl=Kl(target="ref", estimator="k1", place="reward", coefficient=0.05, credit="sequence"),
            aggregation="sequence_sum",
        ),
    ),
    "reinforce_pp": Preset(
        about="REINFORCE++: returns of tokens with the KL inside, whitened over the global batch (arXiv 2501.03262).",
        table=Table(
            advantage=Advantage(kind="global"),
            clip=_PPO,
            kl=Kl(target="ref", estimator="k1", place="reward", coefficient=0.01),
        ),
    ),
    "ppo": Preset(
        about="Clipped ratio, critic with generalised advantages, KL in the reward (arXiv 1707.06347, 2203.02155).",
        table=Table(
            advantage=Advantage(kind="gae", lam=0.95),
            clip=_PPO,
            kl=Kl(target="ref", estimator="k1", place="reward", coefficient=0.05),
            critic=Critic(coefficient=0.1, clip=0.2),
        ),
    ),
    "grpo": Preset(
        about="Group-relative advantages, mean over tokens and then responses, KL in the loss (arXiv 2402.03300).",
        table=Table(
            clip=_PPO,
            kl=Kl(target="ref", estimator="k3_is", place="loss", coefficient=0.04),
            aggregation="sequence",
        ),
    ),
    "dr_grpo": Preset(
        about="GRPO without the group's deviation and without lengths in the divisor (arXiv 2503.20783).",
        table=Table(advantage=Advantage(scale="none"), clip=_PPO, aggregation="constant"),
    ),
    "dapo": Preset(
        about="GRPO with a higher upper clip, token mean, filtered groups, soft overlong shaping (arXiv 2503.14476).",
        table=Table(
            clip=Clip(kind="ppo", low=0.2, high=0.28),
            filter="outcome",
            shaping=Shaping(overlong=1.0, cache=0.2),
        ),
    ),
    "gspo": Preset(
        about="GRPO with the ratio of whole responses, clipped a thousandth from 1 (arXiv 2507.18071).",
        table=Table(
            ratio=Ratio(level="sequence"),
            clip=Clip(kind="ppo", low=3e-4, high=4e-4),
            aggregation="sequence",
        ),
    ),
    "gspo_token": Preset(
        about="GSPO in the form that lets tokens have their own advantages (arXiv 2507.18071).",
        table=Table(
            ratio=Ratio(level="sequence_token"),
            clip=Clip(kind="ppo", low=3e-4, high=4e-4),
            aggregation="sequence",
        ),
    ),
    "cispo": Preset(
        about="The capped ratio as a weight, so that no token loses its gradient (arXiv 2506.13585).",
        table=Table(clip=Clip(kind="cispo", cap=5.0)),
    ),
    "pure": Preset(
        about="Soft minimum over step rewards beside the verifier, leave-one-out baseline (arXiv 2504.15275).",
        table=Table(
            advantage=Advantage(kind="step_min", scale="none", temperature=0.1, baseline="tokens"),
            clip=_PPO,
        ),
    ),
    "prm_step": Preset(
        about="Lambda-returns of marginal step rewards, over the deviation of the group's returns (arXiv 2410.15115).",
        table=Table(advantage=Advantage(kind="step", lam=0.5), clip=_PPO),
    ),
    "opd": Preset(
        about="On-policy distillation: each token's log-ratio to a teacher as its advantage, no reward "
        "(thinkingmachines.ai 2025; reverse KL on own samples: arXiv 2306.13649).",
        table=Table(
            advantage=Advantage(kind="zero", scale="none"),
            ratio=Ratio(anchor="sampler"),
            kl=Kl(target="teacher", estimator="k1", place="advantage", coefficient=1.0),
        ),
    ),
    "kdrl": Preset(
        about="GRPO with a k2 term to a teacher in the loss, annealed, on responses that are not right "
        "(arXiv 2506.02208).",
        table=Table(
            clip=_PPO,
            kl=Kl(
                target="teacher",
                estimator="k2",
                place="loss",
                coefficient=5e-3,
                only="wrong",
                schedule="linear",
                final=1e-3,
                steps=80,
            ),
        ),
    ),
    "kimi_k15": Preset(
        about="Mirror descent with the group's mean as baseline and a length reward in the group (arXiv 2501.12599).",
        table=Table(
            advantage=Advantage(scale="none"),
            ratio=_PLAIN,
            clip=Clip(kind="mirror", tau=0.1),
            aggregation="sequence_sum",
            shaping=Shaping(length=1.0),
        ),
    ),
    "deepseek_v32": Preset(
        about="GRPO without the deviation, unbiased KL, off-policy sequence mask, the sampler's top-p kept "
        "(arXiv 2512.02556).",
        table=Table(
            advantage=Advantage(scale="none"),
            clip=_PPO,
            kl=Kl(target="ref", estimator="k3_is", place="loss", coefficient=1e-3),
            aggregation="sequence",
            masks=Masks(off_policy=1e-2, keep_sampling=True),
        ),
    ),
    "minirl": Preset(
        about="The capped ratio to the sampler as a weight, tokens dropped where PPO would clip (arXiv 2512.01374).",
        table=Table(
            advantage=Advantage(scale="none"),
            ratio=Ratio(anchor="sampler"),
            clip=Clip(kind="mask", low=0.2, high=0.27, cap=5.0),
        ),
    ),
    "dppo": Preset(
        about="Tokens dropped whose probability moved too far, squared log-ratio to the sampler "
        "(arXiv 2602.04879; prime-rl's default loss).",
        table=Table(
            advantage=Advantage(scale="none"),
            ratio=Ratio(anchor="sampler"),
            clip=Clip(kind="dppo", delta=0.2),
            kl=Kl(target="sampler", estimator="k2", place="loss", coefficient=2e-3),
        ),
    ),
    "justrl": Preset(
        about="GRPO with a higher upper clip and a dual clip, and nothing else (arXiv 2512.16649).",
        table=Table(clip=Clip(kind="ppo", low=0.2, high=0.28, dual=10.0)),
    ),
    "clip_cov": Preset(
        about="GRPO in which a few tokens of high covariance lose their gradient (arXiv 2505.22617).",
        table=Table(clip=_PPO, masks=Masks(clip_cov=2e-4)),
    ),
    "kl_cov": Preset(
        about="GRPO without clipping, the tokens of the highest covariance held by a KL to the old policy "
        "(arXiv 2505.22617).",
        table=Table(
            kl=Kl(target="old", estimator="abs", place="loss", coefficient=1.0, only="covariance", share=2e-4),
        ),
    ),
    "entropy_top": Preset(
        about="DAPO's clip on the fifth of tokens with the highest entropy alone (arXiv 2506.01939).",
        table=Table(clip=Clip(kind="ppo", low=0.2, high=0.28), masks=Masks(entropy_top=0.2)),
    ),
    "ds_grpo": Preset(
        about="GRPO with differential smoothing: rare right responses gain, rare wrong ones lose (arXiv 2511.19942).",
        table=Table(advantage=Advantage(smooth_right=0.02, smooth_wrong=0.01), clip=_PPO),
    ),
    "bupo": Preset(
        about="GRPO that begins with the policy of an inner layer (arXiv 2512.19673).",
        table=Table(clip=_PPO, layer=5, layer_steps=30),
    ),
    "prime": Preset(
        about="Leave-one-out rewards of the verifier and of an implicit reward model learned online "
        "(arXiv 2502.01456).",
        table=Table(advantage=Advantage(kind="implicit"), clip=_PPO, implicit=Implicit()),
    ),
}


def preset(name: str, **changes: Any) -> Table:
    """A preset with changes: a value, a whole section, a mapping of a section's settings, or None for a section's off.

    Raises ConfigError for an unknown name or setting, and for a combination that the table refuses.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    table = PRESETS[name].table
    made: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in {field.name for field in fields(Table)}:
            known = ", ".join(field.name for field in fields(Table))
            raise ConfigError(f"a preset has the settings {known}; got {key!r}")
        kind = _SECTIONS.get(key)
        if kind is None or isinstance(value, kind):
            made[key] = value
        elif value is None:
            made[key] = None if key in ("critic", "implicit") else kind()
        elif isinstance(value, Mapping):
            made[key] = _changed(key, getattr(table, key), kind, value)
        else:
            raise ConfigError(f"{key} must be a {kind.__name__}, its settings, or None; got {value!r}")
    return replace(table, **made)


def _changed(key: str, section: Any, kind: Any, settings: Mapping[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    for name in settings:
        if name not in known:
            raise ConfigError(f"{key} has the settings {', '.join(sorted(known))}; got {name!r}")
    return kind(**settings) if section is None else replace(section, **settings)
