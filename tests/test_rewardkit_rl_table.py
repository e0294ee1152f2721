"""The table of algorithms: what each preset is, what is refused and why."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rewardkit.rl.settings.presets import PRESETS, preset
from rewardkit.rl.settings.sections import Advantage, Clip, Critic, Implicit, Kl, Masks, Ratio, Shaping
from rewardkit.rl.settings.table import Table
from verifiers.errors import ConfigError


def changed(name: str) -> dict[str, Any]:
    """A preset's settings that differ from the plain table's."""
    plain, own = asdict(Table()), asdict(PRESETS[name].table)
    found = {}
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(plain[key], dict):
            found |= {f"{key}.{k}": v for k, v in value.items() if v != plain[key][k]}
        elif value != plain[key]:
            found[key] = value
    return found


PPO = {"clip.kind": "ppo", "clip.low": 0.2, "clip.high": 0.2}
GSPO = {"clip.kind": "ppo", "clip.low": 3e-4, "clip.high": 4e-4, "aggregation": "sequence"}
REF = {"kl.target": "ref"}
EXPECTED: dict[str, dict[str, Any]] = {
    "reinforce": {
        "advantage.kind": "mean",
        "advantage.scale": "none",
        "ratio.level": "none",
        "aggregation": "sequence_sum",
    },
    "a2c": {
        "advantage.kind": "gae",
        "advantage.scale": "none",
        "advantage.lam": 1.0,
        "ratio.level": "none",
        "critic": {"coefficient": 0.5, "clip": None},
        "entropy": 0.01,
    },
    "rloo": {
        "advantage.kind": "rloo",
        "advantage.scale": "none",
        "ratio.level": "none",
        "aggregation": "sequence_sum",
        "kl.coefficient": 0.05,
        "kl.credit": "sequence",
        **REF,
    },
    "reinforce_pp": {"advantage.kind": "global", "kl.coefficient": 0.01, **PPO, **REF},
    "ppo": {
        "advantage.kind": "gae",
        "advantage.lam": 0.95,
        "kl.coefficient": 0.05,
        "critic": {"coefficient": 0.1, "clip": 0.2},
        **PPO,
        **REF,
    },
    "grpo": {
        "aggregation": "sequence",
        "kl.estimator": "k3_is",
        "kl.place": "loss",
        "kl.coefficient": 0.04,
        **PPO,
        **REF,
    },
    "dr_grpo": {"advantage.scale": "none", "aggregation": "constant", **PPO},
    "dapo": {**PPO, "clip.high": 0.28, "filter": "outcome", "shaping.overlong": 1.0, "shaping.cache": 0.2},
    "gspo": {"ratio.level": "sequence", **GSPO},
    "gspo_token": {"ratio.level": "sequence_token", **GSPO},
    "cispo": {"clip.kind": "cispo", "clip.cap": 5.0},
    "pure": {
        "advantage.kind": "step_min",
        "advantage.scale": "none",
        "advantage.temperature": 0.1,
        "advantage.baseline": "tokens",
        **PPO,
    },
    "prm_step": {"advantage.kind": "step", "advantage.lam": 0.5, **PPO},
    "opd": {
        "advantage.kind": "zero",
        "advantage.scale": "none",
        "ratio.anchor": "sampler",
        "kl.target": "teacher",
        "kl.place": "advantage",
        "kl.coefficient": 1.0,
    },
    "kdrl": {
        "kl.target": "teacher",
        "kl.estimator": "k2",
        "kl.place": "loss",
        "kl.coefficient": 5e-3,
        "kl.only": "wrong",
        "kl.schedule": "linear",
        "kl.final": 1e-3,
        "kl.steps": 80,
        **PPO,
    },
    "kimi_k15": {
        "advantage.scale": "none",
        "ratio.level": "none",
        "clip.kind": "mirror",
        "clip.tau": 0.1,
        "aggregation": "sequence_sum",
        "shaping.length": 1.0,
    },
    "deepseek_v32": {
        "advantage.scale": "none",
        "aggregation": "sequence",
        "kl.estimator": "k3_is",
        "kl.place": "loss",
        "kl.coefficient": 1e-3,
        "masks.off_policy": 1e-2,
        "masks.keep_sampling": True,
        **PPO,
        **REF,
    },
    "minirl": {
        "advantage.scale": "none",
        "ratio.anchor": "sampler",
        "clip.kind": "mask",
        "clip.low": 0.2,
        "clip.high": 0.27,
        "clip.cap": 5.0,
    },
    "dppo": {
        "advantage.scale": "none",
        "ratio.anchor": "sampler",
        "clip.kind": "dppo",
        "clip.delta": 0.2,
        "kl.target": "sampler",
        "kl.estimator": "k2",
        "kl.place": "loss",
        "kl.coefficient": 2e-3,
    },
    "justrl": {"clip.kind": "ppo", "clip.low": 0.2, "clip.high": 0.28, "clip.dual": 10.0},
    "clip_cov": {"masks.clip_cov": 2e-4, **PPO},
    "kl_cov": {
        "kl.target": "old",
        "kl.estimator": "abs",
        "kl.place": "loss",
        "kl.coefficient": 1.0,
        "kl.only": "covariance",
        "kl.share": 2e-4,
    },
    "entropy_top": {"masks.entropy_top": 0.2, **PPO, "clip.high": 0.28},
    "ds_grpo": {"advantage.smooth_right": 0.02, "advantage.smooth_wrong": 0.01, **PPO},
    "bupo": {"layer": 5, "layer_steps": 30, **PPO},
    "prime": {"advantage.kind": "implicit", "implicit": {"beta": 0.05, "order": "before"}, **PPO},
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_preset_is_exactly_these_settings(name: str) -> None:
    assert changed(name) == EXPECTED[name]


def test_every_preset_is_pinned_and_says_where_it_is_from() -> None:
    assert set(PRESETS) == set(EXPECTED)
    for name, row in PRESETS.items():
        assert "arXiv" in row.about or "1992" in row.about, name
        assert row.about.endswith(".") and row.about.count(". ") == 0, name


def test_changes_of_a_preset() -> None:
    grpo = PRESETS["grpo"].table
    assert preset("grpo") == grpo
    assert preset("grpo", kl=None).kl == Kl()
    assert preset("grpo", clip={"high": 0.28}).clip == Clip(kind="ppo", low=0.2, high=0.28)
    assert preset("grpo", aggregation="token", entropy=0.1).entropy == 0.1
    assert preset("grpo", advantage=Advantage(kind="gae", lam=0.9), critic={"clip": 0.5}).critic == Critic(clip=0.5)
    with pytest.raises(ConfigError, match=r"preset must be one of reinforce, .*; got 'gpro'"):
        preset("gpro")
    with pytest.raises(ConfigError, match=r"a preset has the settings advantage, .*; got 'beta'"):
        preset("grpo", beta=0.1)
    with pytest.raises(ConfigError, match=r"kl has the settings aim, .*; got 'beta'"):
        preset("grpo", kl={"beta": 0.1})
    with pytest.raises(ConfigError, match=r"clip must be a Clip, its settings, or None; got 0\.2"):
        preset("grpo", clip=0.2)


def kl_of(target: Any, estimator: Any, place: Any, **more: Any) -> Kl:
    return Kl(target=target, estimator=estimator, place=place, coefficient=1.0, **more)


def smoothed(kind: Any, **more: Any) -> Advantage:
    return Advantage(kind=kind, smooth_right=0.1, **more)


NONE: Any = "none"
REWARD_KL = {"target": "ref", "coefficient": 0.1}
CASES: list[tuple[str, Any]] = [
    # Two sections that contradict each other.
    ("k1' in the loss has an expected gradient of zero", lambda: Table(kl=Kl(**REWARD_KL, place="loss"))),
    ("'k3' in the reward does not give", lambda: Table(kl=Kl(**REWARD_KL, estimator="k3"))),
    ("'k3_is' in the advantage does", lambda: Table(kl=Kl(**REWARD_KL, estimator="k3_is", place="advantage"))),
    ("'k2' in the reward follows a squared", lambda: Table(kl=Kl(**REWARD_KL, estimator="k2"))),
    ("'k2_seq' in the advantage follows", lambda: Table(kl=Kl(**REWARD_KL, estimator="k2_seq", place="advantage"))),
    (
        "k2_seq' is the sequence KL only where all tokens weigh the same; aggregation='sequence'",
        lambda: Table(kl=Kl(**REWARD_KL, estimator="k2_seq", place="loss"), aggregation="sequence"),
    ),
    ("needs values and so a critic", lambda: Table(advantage=Advantage(kind="gae", lam=1.0))),
    ("critic has no effect with advantage.kind='group'", lambda: Table(critic=Critic())),
    (
        "cannot carry the token-level advantages of advantage.kind='step'; use ratio.level 'sequence_token'",
        lambda: Table(advantage=Advantage(kind="step", lam=0.5), ratio=Ratio(level="sequence")),
    ),
    (
        "cannot carry the KL of single tokens in the reward",
        lambda: Table(ratio=Ratio(level="sequence"), kl=Kl(**REWARD_KL)),
    ),
    (
        "clip.kind='ppo' clips a ratio, and ratio.level='none' has none",
        lambda: Table(ratio=Ratio(level="none"), clip=Clip(kind="ppo", low=0.2, high=0.2)),
    ),
    (
        "clip.kind='cispo' weighs or drops single tokens",
        lambda: Table(ratio=Ratio(level="sequence"), clip=Clip(kind="cispo", cap=5.0)),
    ),
    (
        "clip.kind='dppo' weighs or drops single tokens and needs ratio.level 'token'; got 'none'",
        lambda: Table(ratio=Ratio(level="none"), clip=Clip(kind="dppo", delta=0.2)),
    ),
    (
        "clip.kind='mirror' takes the plain policy gradient",
        lambda: Table(clip=Clip(kind="mirror", tau=0.1), aggregation="sequence_sum"),
    ),
    (
        "clip.kind='mirror' squares the log-ratio of a whole response",
        lambda: Table(ratio=Ratio(level="none"), clip=Clip(kind="mirror", tau=0.1)),
    ),
    (
        "ratio.anchor='sampler' has no effect with ratio.level='none'",
        lambda: Table(ratio=Ratio(level="none", anchor="sampler")),
    ),
    (
        "counts the sampler's mismatch twice",
        lambda: Table(ratio=Ratio(anchor="sampler"), masks=Masks(importance="truncate", level="token", high=2.0)),
    ),
    (
        "filter='reward' looks at a reward that shaping changes",
        lambda: Table(filter="reward", shaping=Shaping(overlong=1.0)),
    ),
    (
        "credit='sequence' with advantage.scale='std' blows up",
        lambda: Table(kl=Kl(**REWARD_KL, credit="sequence")),
    ),
    (
        "kl.credit='sequence' is a choice for advantages of whole responses",
        lambda: Table(advantage=Advantage(kind="global"), kl=Kl(**REWARD_KL, credit="sequence")),
    ),
    (
        "kl.credit='to_go' has no effect with kl.place='loss'",
        lambda: Table(kl=Kl(**REWARD_KL, estimator="k3", place="loss", credit="to_go")),
    ),
    ("learns from no reward and so needs a KL", lambda: Table(advantage=Advantage(kind="zero", scale=NONE))),
    ("so filter and shaping have no effect", lambda: preset("opd", filter="outcome")),
    ("so filter and shaping have no effect", lambda: preset("opd", shaping={"overlong": 1.0})),
    ("'implicit' and the section implicit go together", lambda: Table(advantage=Advantage(kind="implicit"))),
    ("'implicit' and the section implicit go together", lambda: Table(implicit=Implicit())),
    ("kl.target='old' holds .*; got 'abs' in the reward", lambda: kl_of("old", "abs", "reward")),
    ("kl.target='old' holds the new policy .*; got 'k1' in the loss", lambda: kl_of("old", "k1", "loss")),
    ("kl.target='sampler' holds .*; got 'full' in the loss", lambda: kl_of("sampler", "full", "loss")),
    ("'abs' is KL-Cov's step away .*; got target 'ref'", lambda: kl_of("ref", "abs", "loss")),
    ("kl.estimator='full' is a function of the policy .*; got 'reward'", lambda: kl_of("teacher", "full", "reward")),
    ("kl.mix=0.5 has no effect with kl.estimator='k2'", lambda: kl_of("teacher", "k2", "loss", mix=0.5)),
    ("kl.mix must be at least 0 and at most 1; got 1.5", lambda: kl_of("teacher", "full", "loss", mix=1.5)),
    ("kl.share goes with kl.only='covariance'.*; got 0.1 and 'all'", lambda: kl_of("old", "abs", "loss", share=0.1)),
    ("kl.share goes .*; got None and 'covariance'", lambda: kl_of("old", "abs", "loss", only="covariance")),
    (
        "kl.only='covariance' picks tokens of the loss",
        lambda: kl_of("teacher", "k1", "reward", only="covariance", share=0.1),
    ),
    (
        "kl.estimator='k2_seq' squares whole responses, and kl.only='covariance' picks tokens",
        lambda: Table(kl=kl_of("old", "k2_seq", "loss", only="covariance", share=0.1)),
    ),
    (
        "masks.entropy_top and masks.clip_cov take single tokens' gradients away",
        lambda: preset("gspo", masks={"entropy_top": 0.2}),
    ),
    (
        "'full' is over the whole vocabulary and masks.keep_sampling over a part",
        lambda: Table(kl=kl_of("ref", "full", "loss"), masks=Masks(keep_sampling=True)),
    ),
    ("layer and layer_steps go together; got 3 and None", lambda: Table(layer=3)),
    ("layer trains what one layer would say, which no reference", lambda: preset("grpo", layer=3, layer_steps=1)),
    (
        "layer trains what one layer would say, and the sampler's",
        lambda: preset("bupo", masks={"importance": "mask", "level": "token", "high": 2}),
    ),
    ("layer with a critic", lambda: preset("ppo", kl=None, layer=1, layer_steps=1)),
    ("the text of ptx trains all of them", lambda: preset("bupo", ptx=0.1)),
    ("layer must be at least 0; got -1", lambda: preset("bupo", layer=-1)),
    # One section by itself.
    ("masks.reject and masks.reject_above go together; got 'k1' and None", lambda: Masks(reject="k1")),
    ("masks.cov_low=2 has no effect without masks.clip_cov", lambda: Masks(cov_low=2)),
    ("masks.cov_low must be below masks.cov_high; got 6 and 5", lambda: Masks(clip_cov=0.1, cov_low=6)),
    ("masks.entropy_top must be above 0 and at most 1; got 0", lambda: Masks(entropy_top=0)),
    ("advantage.smooth_right=0.1 has no effect with advantage.kind='gae'", lambda: smoothed("gae", lam=1.0)),
    ("advantage.kind='soft' needs advantage.temperature", lambda: Advantage(kind="soft", scale=NONE)),
    ("advantage.kind='zero' has no deviation", lambda: Advantage(kind="zero")),
    ("shaping.length_after=5 has no effect without shaping.length", lambda: Shaping(length_after=5)),
    ("implicit.beta must be above 0; got 0", lambda: Implicit(beta=0)),
    ("clip.cap of cispo .* must be above 1.*; got 0.2", lambda: Clip(kind="cispo", cap=0.2)),
    ("clip.cap of cispo .*; got 1", lambda: Clip(kind="cispo", cap=1.0)),
    ("clip.kind='cispo' needs clip.cap; got None", lambda: Clip(kind="cispo")),
    ("clip.low=0.2 has no effect with clip.kind='cispo'", lambda: Clip(kind="cispo", cap=5.0, low=0.2)),
    ("clip.tau=0.1 has no effect with clip.kind='none'", lambda: Clip(tau=0.1)),
    ("clip.dual must be above 1; got 1", lambda: Clip(kind="ppo", low=0.2, high=0.2, dual=1.0)),
    ("clip.low must be above 0 and at most 1; got 1.5", lambda: Clip(kind="ppo", low=1.5, high=0.2)),
    ("clip.high must be above 0 and finite; got inf", lambda: Clip(kind="ppo", low=0.2, high=float("inf"))),
    ("clip.kind must be 'ppo' or .*; got 'tanh'", lambda: Clip(kind="tanh")),  # type: ignore[arg-type]
    ("advantage.kind='rloo' has no deviation to divide by", lambda: Advantage(kind="rloo")),
    ("advantage.kind='none' has no deviation", lambda: Advantage(kind="none")),
    ("advantage.kind='batch' is a deviation", lambda: Advantage(kind="batch", scale="none")),
    ("advantage.kind='gae' needs advantage.lam; got None", lambda: Advantage(kind="gae")),
    ("advantage.kind='step_min' needs advantage.temperature", lambda: Advantage(kind="step_min")),
    ("advantage.lam=0.5 has no effect with advantage.kind='group'", lambda: Advantage(lam=0.5)),
    ("advantage.gamma=0.9 has no effect with advantage.kind='step'", lambda: Advantage(kind="step", lam=1, gamma=0.9)),
    ("advantage.lam must be at least 0 and at most 1; got 1.5", lambda: Advantage(kind="step", lam=1.5)),
    (
        "baseline of advantage.kind='step' must be None or 'others'; got 'group'",
        lambda: Advantage(kind="step", lam=1, baseline="group"),
    ),
    ("kl.coefficient=0.1 has no effect with kl.target='none'", lambda: Kl(coefficient=0.1)),
    ("kl.coefficient must be above 0; got 0.0", lambda: Kl(target="ref")),
    ("kl.schedule='linear' needs kl.final", lambda: Kl(**REWARD_KL, schedule="linear", steps=10)),
    ("kl.schedule='adaptive' needs kl.horizon", lambda: Kl(**REWARD_KL, schedule="adaptive", aim=0.1)),
    ("kl.aim=0.1 has no effect with kl.schedule='constant'", lambda: Kl(**REWARD_KL, aim=0.1)),
    ("masks.importance='truncate' needs masks.level", lambda: Masks(importance="truncate")),
    ("masks.high=2.0 has no effect with masks.importance='none'", lambda: Masks(high=2.0)),
    ("without masks.low and masks.high masks nothing", lambda: Masks(importance="mask", level="token")),
    ("shaping.cache=0.2 has no effect without shaping.overlong", lambda: Shaping(cache=0.2)),
    ("shaping.ngram=4 has no effect without shaping.repetition", lambda: Shaping(ngram=4)),
    ("critic.coefficient must be above 0; got 0", lambda: Critic(coefficient=0)),
    ("entropy must be at least 0; got -0.1", lambda: Table(entropy=-0.1)),
    ("aggregation must be 'token' or .*; got 'mean'", lambda: Table(aggregation="mean")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("said", "make"), CASES, ids=[said[:60] for said, _ in CASES])
def test_what_is_refused_and_why(said: str, make: Any) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message and len(message) > 30


def test_cautions_say_what_is_allowed_and_biased() -> None:
    k3 = preset("grpo", kl={"estimator": "k3"}).cautions()
    assert any("forward KL" in said for said in k3)
    assert not any("forward KL" in said for said in PRESETS["grpo"].table.cautions())
    k2 = preset("dapo", kl=Kl(target="ref", estimator="k2", place="loss", coefficient=0.1)).cautions()
    assert any("visited states" in said for said in k2)
    wide = preset("gspo", clip={"low": 0.2, "high": 0.2}).cautions()
    assert any("never acts" in said for said in wide)
    assert not any("never acts" in said for said in PRESETS["gspo"].table.cautions())
    discounted = preset("ppo", advantage={"gamma": 0.9}).cautions()
    assert any("without discount" in said for said in discounted)
    assert PRESETS["rloo"].table.cautions() == PRESETS["reinforce"].table.cautions() == ()


def test_the_table_of_a_step() -> None:
    bupo = PRESETS["bupo"].table
    assert bupo.at(0) == bupo == bupo.at(29)
    assert bupo.at(30) == preset("bupo", layer=None, layer_steps=None)
    late = preset("kimi_k15", shaping={"length_after": 10})
    assert late.at(9).shaping == Shaping()
    assert late.at(10) == preset("kimi_k15")
    assert PRESETS["grpo"].table.at(10**6) is PRESETS["grpo"].table


def test_the_command_line_can_show_the_table_without_torch() -> None:
    code = (
        "import sys; import rewardkit.rl.settings.presets, rewardkit.rl.settings.table;"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
