"""Is the run still learning what it should? Detectors that read a batch and report; none of them changes anything.

    length drift, step-count drift   mean of the recent training steps over that of the first ones, outside [1/ratio,
                                     ratio]; what is measured is a mean a response
    repeated steps                   share of responses in which a step occurs twice (white space and case aside)
    separators only                  share of responses without a step, or half of whose steps have no letter or digit
    step scorer's AUC                probability that of two responses to one prompt the one with the higher outcome
                                     has the higher last step score, over the pairs of a window of training steps, with
                                     a 95 % percentile bootstrap over groups. Below a floor the step scores should
                                     serve as a baseline alone, that is with lambda = 1 (`step_rewards.py`), until the
                                     AUC is back above a higher mark
    reward collapse                  mean reward of the last few steps below half of its best ten-step mean

The last score must be the scorer's own, not the outcome that an anchor puts in its place. Within a group only: pooled
over prompts, an AUC is inflated by how hard they are. All memory is a plain dict of numbers, for a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from rewardkit.rl.credit.guard_config import GuardConfig
from verifiers.errors import ConfigError
from verifiers.steps import BLANK_LINE, split_steps

__all__ = ["Alarm", "GroupAuc", "GuardConfig", "GuardReport", "Guards", "auc_of", "blank", "pair_counts", "repeats"]

Counts: TypeAlias = list[tuple[float, int]]
"""(pairs won, pairs) of each group of one training step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """Something that is not as it should be."""

    name: str
    """length_drift, step_count_drift, repeated_steps, separators_only, step_scorer or reward_collapse; sampler_gap is
    that of `sampling/sampler_gap.py`."""
    message: str
    """One sentence with the numbers."""
    new: bool
    """Whether it was silent at the training step before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardReport:
    """What was seen at one training step."""

    metrics: dict[str, float]
    """Figures for the log, by name."""
    alarms: tuple[Alarm, ...]
    """What rings."""
    trusted: bool
    """Whether the step scores may serve as more than a baseline."""


class Guards:
    """All detectors and what they remember."""

    def __init__(self, config: GuardConfig | None = None, *, separator: str = BLANK_LINE) -> None:
        """`separator` is what steps are split at."""
        self.config = config or GuardConfig()
        self.separator = separator
        self._lengths = _Drift()
        self._steps = _Drift()
        self._pairs: list[Counts] = []
        self._rewards: list[float] = []
        self._best: float | None = None
        self._trusted = True
        self._ringing: list[str] = []

    def lam(self, configured: float) -> float:
        """The lambda to use: the configured one, or 1 while the step scores are not trusted."""
        return configured if self._trusted else 1.0

    def observe(
        self,
        *,
        texts: Sequence[str],
        lengths: Sequence[int],
        groups: Sequence[Hashable],
        rewards: Sequence[float | None],
        last_scores: Sequence[float | None] | None = None,
    ) -> GuardReport:
        """Look at one training step's batch: row i is response i; None is unscored.

        `lengths` in tokens, `rewards` the outcomes that the scorer's `last_scores` are held against.
        """
        if not len(texts) == len(lengths) == len(groups) == len(rewards):
            raise ConfigError(
                "the guards need one text, length, group and reward a response; got "
                f"{len(texts)}, {len(lengths)}, {len(groups)} and {len(rewards)}"
            )
        metrics: dict[str, float] = {}
        said: dict[str, str] = {}
        if texts:
            split = [[step.text for step in split_steps(text, separator=self.separator)] for text in texts]
            self._drift("length", self._lengths, _mean(lengths), metrics, said)
            self._drift("step_count", self._steps, _mean(list(map(len, split))), metrics, said)
            self._share("repeated_steps", _mean(list(map(repeats, split))), self.config.repeated, metrics, said)
            self._share("separators_only", _mean(list(map(blank, split))), self.config.separators, metrics, said)
        if last_scores is not None:
            self._agreement(pair_counts(groups, rewards, last_scores), metrics, said)
        self._collapse([reward for reward in rewards if reward is not None], metrics, said)
        alarms = tuple(Alarm(name=name, message=text, new=name not in self._ringing) for name, text in said.items())
        self._ringing = list(said)
        metrics["guard/alarms"] = float(len(alarms))
        return GuardReport(metrics=metrics, alarms=alarms, trusted=self._trusted)

    def to_state(self) -> dict[str, Any]:
        """What is remembered, as plain JSON-able values."""
        return {
            "lengths": self._lengths.to_state(),
            "steps": self._steps.to_state(),
            "pairs": [[list(count) for count in counts] for counts in self._pairs],
            "rewards": list(self._rewards),
            "best": self._best,
            "trusted": self._trusted,
            "ringing": list(self._ringing),
        }

    def from_state(self, state: dict[str, Any]) -> None:
        """Take up what `to_state` gave. Raises ConfigError for something else."""
        try:
            self._lengths = _Drift(**state["lengths"])
            self._steps = _Drift(**state["steps"])
            self._pairs = [[(won, pairs) for won, pairs in counts] for counts in state["pairs"]]
            self._rewards = list(state["rewards"])
            self._best, self._trusted = state["best"], state["trusted"]
            self._ringing = list(state["ringing"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this is no state of the guards: {error!r}; take one of to_state()") from error

    def _drift(self, name: str, drift: _Drift, value: float, metrics: dict[str, float], said: dict[str, str]) -> None:
        metrics[f"guard/{name}"] = value
        ratio = drift.update(value, reference=self.config.reference, recent=self.config.recent)
        if ratio is None:
            return
        metrics[f"guard/{name}_ratio"] = ratio
        most = self.config.drift
        if not 1 / most <= ratio <= most:
            said[f"{name}_drift"] = (
                f"the mean {name.replace('_', ' ')} is {ratio:.2f} times that of the first {self.config.reference} "
                f"steps, outside {1 / most:.2f} to {most:.2f}: look at samples for padding or giving up"
            )

    def _share(self, name: str, share: float, most: float, metrics: dict[str, float], said: dict[str, str]) -> None:
        metrics[f"guard/{name}"] = share
        if share >= most:
            said[name] = (
                f"{share:.0%} of the responses have {name.replace('_', ' ')}, at least {most:.0%}: look at samples"
            )

    def _agreement(self, counts: Counts, metrics: dict[str, float], said: dict[str, str]) -> None:
        self._pairs = [*self._pairs, counts][-self.config.auc_window :]
        found = auc_of([count for counts in self._pairs for count in counts])
        if found is not None:
            metrics |= {
                "guard/step_auc": found.auc,
                "guard/step_auc_low": found.low,
                "guard/step_auc_high": found.high,
            }
        if found is not None and found.pairs >= self.config.auc_pairs:
            mark = self.config.auc_floor if self._trusted else self.config.auc_back
            self._trusted = found.auc >= mark
            if not self._trusted:
                said["step_scorer"] = (
                    f"the step scorer's AUC against the outcome is {found.auc:.3f} ({found.low:.3f} to "
                    f"{found.high:.3f}, {found.pairs} pairs), below {mark:g}: its scores serve as a baseline only "
                    "(lambda 1)"
                )
        elif not self._trusted:
            said["step_scorer"] = (
                "the step scorer is still not trusted: there are too few pairs for its AUC to say more"
            )
        metrics["guard/step_pairs"] = float(found.pairs if found is not None else 0)
        metrics["guard/step_trusted"] = float(self._trusted)

    def _collapse(self, rewards: Sequence[float], metrics: dict[str, float], said: dict[str, str]) -> None:
        config = self.config
        if rewards:
            most = max(config.collapse_window, config.collapse_recent)
            self._rewards = [*self._rewards, _mean(rewards)][-most:]
        if len(self._rewards) >= config.collapse_window:
            window = _mean(self._rewards[-config.collapse_window :])
            self._best = window if self._best is None else max(self._best, window)
        if self._best is None:
            return
        metrics["guard/best_reward"] = self._best
        now = _mean(self._rewards[-config.collapse_recent :])
        if self._best > 0 and now < config.collapse * self._best:
            said["reward_collapse"] = (
                f"the mean reward of the last {config.collapse_recent} steps is {now:.3f}, below {config.collapse:g} "
                f"times its best {config.collapse_window}-step mean of {self._best:.3f}: lower the learning rate and "
                "go back to a checkpoint"
            )


@dataclass(kw_only=True)
class _Drift:
    """A mean over the first training steps, and the last values."""

    total: float = 0.0
    count: int = 0
    last: list[float] | None = None

    def update(self, value: float, *, reference: int, recent: int) -> float | None:
        """Recent mean over reference mean; None until there are steps behind the reference."""
        if self.count < reference:
            self.total += value
            self.count += 1
            return None
        self.last = [*(self.last or []), value][-recent:]
        base = self.total / self.count
        return _mean(self.last) / base if len(self.last) == recent and base > 0 else None

    def to_state(self) -> dict[str, Any]:
        return {"total": self.total, "count": self.count, "last": None if self.last is None else list(self.last)}


def repeats(steps: Sequence[str]) -> bool:
    """Whether a step occurs twice, white space and case aside."""
    plain = [" ".join(step.split()).casefold() for step in steps]
    return len(set(plain)) < len(plain)


def blank(steps: Sequence[str]) -> bool:
    """Whether there is no step, or at least half of them have no letter or digit."""
    empty = sum(not any(char.isalnum() for char in step) for step in steps)
    return not steps or 2 * empty >= len(steps)


def pair_counts(groups: Sequence[Hashable], outcomes: Sequence[float | None], scores: Sequence[float | None]) -> Counts:
    """(won, pairs) of each group with a pair: of two responses with different outcomes, does the better score higher?

    Equal scores win one half.
    """
    members: dict[Hashable, list[tuple[float, float]]] = {}
    for group, outcome, score in zip(groups, outcomes, scores, strict=True):
        if outcome is not None and score is not None:
            members.setdefault(group, []).append((outcome, score))
    found = []
    for rows in members.values():
        outcomes_G, scores_G = np.array(rows).T
        better = outcomes_G[:, None] > outcomes_G[None, :]
        ahead = scores_G[:, None] - scores_G[None, :]
        won = float((better & (ahead > 0)).sum() + 0.5 * (better & (ahead == 0)).sum())
        if better.any():
            found.append((won, int(better.sum())))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupAuc:
    """An AUC over pairs inside groups, with a 95 % interval over groups."""

    auc: float
    low: float
    high: float
    pairs: int


def auc_of(counts: Counts, *, resamples: int = 200) -> GroupAuc | None:
    """From pairs won and pairs of each group; None without a pair. The same counts give the same interval."""
    if not counts:
        return None
    won_P, pairs_P = np.array(counts, dtype=np.float64).T
    picks = np.random.default_rng(0).integers(0, len(pairs_P), size=(resamples, len(pairs_P)))
    low, high = np.quantile(won_P[picks].sum(1) / pairs_P[picks].sum(1), [0.025, 0.975])
    return GroupAuc(auc=float(won_P.sum() / pairs_P.sum()), low=float(low), high=float(high), pairs=int(pairs_P.sum()))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
