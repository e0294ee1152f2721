"""Which logged figures of a reinforcement-learning run stand in which panel, under which words.

`*` in a metric's name stands for the parts of a reward. Metrics under share/ and tokens/ are made from others
(`rl_charts.py`). The order here is the order on the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A metric, or with `*` several, and what a reader is told it is (`*`: the part)."""

    metric: str
    label: str
    idle: float | None = None
    """A value at which it has nothing to say: a line that never leaves it is left out."""
    within: float = 0.0
    """How far from it a value may be by rounding."""
    moving: bool = False
    """Left out where it keeps one value, whichever that is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """A small figure."""

    id: str
    heading: str
    lines: tuple[Line, ...]
    axis: Literal["number", "share", "unit", "log"] = "number"
    """Numbers; percent from 0; from 0 to 1; powers of ten where values span more than one."""
    caption: str = ""
    alarms: tuple[str, ...] = ()
    """Alarms that are about it."""
    band: tuple[str, str] | None = None
    """Metrics between which the first line lies."""


def lines_of(*pairs: tuple[str, str], idle: float | None = None, within: float = 0.0) -> tuple[Line, ...]:
    """Lines from (metric, label) with one idle value."""
    return tuple(Line(metric=metric, label=label, idle=idle, within=within) for metric, label in pairs)


PANELS: Mapping[str, tuple[Panel, ...]] = {
    "Does it learn?": (
        Panel(
            id="outcome",
            heading="Outcome of drawn responses",
            lines=lines_of(("outcome/mean", "mean outcome"), ("guard/best_reward", "best mean so far")),
            axis="share",
            alarms=("reward_collapse",),
        ),
        Panel(
            id="reward",
            heading="Reward",
            lines=lines_of(("reward/mean", "sum"), ("reward/*/mean", "*")),
            caption="Means of the weighted sum and of each part before its weight.",
        ),
    ),
    "The responses": (
        Panel(
            id="length",
            heading="Length in tokens",
            lines=lines_of(("length/mean", "drawn"), ("heldout/length", "held out")),
            alarms=("length_drift",),
        ),
        Panel(
            id="steps",
            heading="Steps a response",
            lines=lines_of(("guard/step_count", "steps")),
            alarms=("step_count_drift",),
        ),
        Panel(
            id="shares",
            heading="Share of the responses",
            lines=(
                *lines_of(("guard/repeated_steps", "repeat a step"), ("guard/separators_only", "have no content")),
                *lines_of(
                    ("draw/truncated", "cut at the longest length"), ("draw/repetition", "stopped as a loop"), idle=0.0
                ),
                *lines_of(("reward/unscored", "unscored"), ("reward/*/unscored", "unscored by *"), idle=0.0),
            ),
            axis="share",
            alarms=("repeated_steps", "separators_only"),
        ),
        Panel(
            id="signal",
            heading="Responses in groups of equal reward",
            lines=(
                *lines_of(("share/constant", "all of the group alike")),
                *lines_of(("share/lone", "alone in their group"), idle=0.0),
            ),
            axis="share",
        ),
        Panel(
            id="spread",
            heading="Spread of the reward",
            lines=lines_of(("reward/std", "sum"), ("reward/*/std", "*")),
            caption="Standard deviation over a step's responses.",
        ),
        Panel(
            id="draw",
            heading="Groups that the filter keeps",
            lines=lines_of(("share/kept", "kept"), idle=1.0),
            axis="share",
        ),
    ),
    "The update": (
        Panel(
            id="entropy",
            heading="Entropy a token",
            lines=lines_of(("update/entropy", "entropy"), ("entropy/drawn", "of drawn tokens")),
        ),
        Panel(
            id="clip",
            heading="Tokens that the clip stops",
            lines=(
                *lines_of(("update/clipped_high", "ratio too high"), ("update/clipped_low", "ratio too low")),
                *lines_of(
                    ("update/off_policy_dropped", "dropped as off-policy"),
                    ("update/importance_bounded", "importance cut"),
                    ("update/value_clipped", "value clipped"),
                    idle=0.0,
                ),
            ),
            axis="share",
        ),
        Panel(
            id="ratio",
            heading="Ratio new to old probability",
            lines=lines_of(
                ("update/ratio_greatest", "greatest"),
                ("update/ratio", "mean"),
                ("update/ratio_least", "least"),
                idle=1.0,
                within=1e-3,
            ),
        ),
        Panel(
            id="kl",
            heading="KL a token",
            lines=(
                *lines_of(("update/ref_kl", "to the reference")),
                *lines_of(("update/old_kl", "to the weights that drew"), idle=0.0, within=1e-8),
            ),
        ),
        Panel(
            id="beta",
            heading="Coefficient of the KL",
            lines=(Line(metric="kl/coefficient", label="beta", moving=True),),
        ),
        Panel(
            id="gap",
            heading="Gap of sampler and trainer",
            lines=lines_of(("update/gap_greatest", "greatest"), ("sampler/gap", "mean")),
            axis="log",
            caption="Difference of their log-probabilities of the same tokens.",
        ),
        Panel(
            id="gradient",
            heading="Gradient norm",
            lines=lines_of(("update/gradient_greatest", "greatest of a step")),
            caption="Before it is scaled down.",
        ),
        Panel(
            id="loss",
            heading="Loss",
            lines=lines_of(
                ("update/objective", "policy"),
                ("update/kl_loss", "KL"),
                ("update/entropy_bonus", "entropy bonus"),
                ("update/value_loss", "critic"),
                ("update/ptx_loss", "pretraining text"),
                ("implicit/loss", "implicit reward model"),
            ),
        ),
        Panel(
            id="implicit",
            heading="Implicit reward model",
            lines=lines_of(("implicit/accuracy", "outcomes it predicts")),
            axis="share",
        ),
        Panel(
            id="critic",
            heading="Squared error of the critic",
            lines=lines_of(("update/value_error", "squared error")),
        ),
    ),
    "The guards": (
        Panel(
            id="auc",
            heading="AUC of step scorer and outcome",
            lines=lines_of(("guard/step_auc", "AUC")),
            alarms=("step_scorer",),
            band=("guard/step_auc_low", "guard/step_auc_high"),
            caption="Within groups, over the last steps; 0.5 is chance. The band is the 95 % interval.",
        ),
        Panel(
            id="lambda",
            heading="Lambda",
            lines=lines_of(("guard/lambda", "lambda")),
            axis="unit",
            alarms=("step_scorer",),
            caption="1: step scores are a baseline only.",
        ),
        Panel(
            id="drift",
            heading="Drift from the first steps",
            lines=lines_of(("guard/length_ratio", "length"), ("guard/step_count_ratio", "step count")),
            alarms=("length_drift", "step_count_drift"),
            caption="Recent mean over that of the first steps.",
        ),
    ),
}
