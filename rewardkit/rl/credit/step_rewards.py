"""Step scores as rewards: what each step earns, what it is worth with what follows, and the tokens' advantages.

Phi_t is the step scorer's value of a response up to the end of step t, R its outcome, Phi_0 a start value.

    marginal  r_t = Phi_t - Phi_{t-1}, with Phi_T := R where it is anchored; then sum_t r_t = R - Phi_0 whatever the
              scorer says: potential-based shaping (Ng, Harada, Russell 1999), which moves no optimum. Without the
              anchor the sum is Phi_T - Phi_0, and the last score can be hacked
    clip      r_t = min(Phi_t - eta, 0)                               (Gao et al. 2024, arXiv 2410.15115)
    delta     r_t = Phi_t - Phi_{t+1}, r_T = Phi_T                    (the same): what follows from step t is Phi_t
    min       r_t = w_t (2 Phi_t - 1), w = softmax(-(2 Phi - 1) / T)  (PURE, arXiv 2504.15275): a soft minimum
    sum       r_t = Phi_t: for step scores that are rewards already; pays for every further good step

Marginal rewards are the errors of Phi as a value function, so their advantages are GAE over steps with gamma = 1,

    A_t = sum_{k >= t} lambda^{k-t} r_k:    lambda = 1 gives R - Phi_{t-1},  lambda = 0 the rule itself,

and no further baseline is needed. Phi_0 is the mean outcome of the group, or without the anchor and on request the mean
of its first scores, as E Phi_1 is what the scorer says of the prompt. The latter is on the scorer's own scale: a group
that failed altogether has mean outcome 0, and every first step would earn Phi_1 > 0 there. With lambda = 1 and the
anchor, Phi is a baseline only and the expected gradient is that of R alone. The others are summed to the end, minus the
group's mean total. PURE has its own baseline, that of the authors' code (github.com/CJReinforce/PURE): what the other
responses of the group have on average a token, times the tokens from step t on (one a step would pay for few steps),
and adds the outcome minus the mean of the others. The table's baseline "tokens" is the same rule; it is a price on
tokens, and moves the expectation where lengths differ.

Advantages are divided, after summing, by the deviation (n - 1) of the group's totals: one factor a group, so that the
order of steps stays. Normalising scores before summing breaks the telescoping and pays for length; normalising them
per step index turns the order around. A group whose totals are all equal has nothing to tell and gets 0.

Steps tile a response: what follows the last end belongs to the last step, as the end mark does. Only in a truncated
response is it a step of its own, which nobody scored: it leaves Phi where it was, and bears the anchor as the last one.

Legend: S steps, T tokens of one response.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rewardkit.rl.credit.step_config import StepConfig
from rewardkit.rl.credit.step_spans import Array, at_ends, over_tokens, tile
from rewardkit.rl.rewards.scored import StepRewards
from verifiers.errors import ConfigError

__all__ = ["StepConfig", "StepCredit", "lambda_returns", "soft_min_weights", "step_credit", "step_rewards"]

EQUAL = 1e-12
"""A deviation of totals up to this is none."""
PASSED_OVER = 1e6
"""Stands for a step that nobody scored beside scored ones: its weight in their soft minimum is exactly 0."""


@dataclass(frozen=True, kw_only=True)
class StepCredit:
    """Rewards and advantages of a batch's steps."""

    ends: tuple[tuple[int, ...], ...]
    """Last token of each step; steps tile the response."""
    lengths: tuple[int, ...]
    """Tokens of each response."""
    rewards: tuple[Array, ...]
    """r_t. Shape (S,) each; zeros for a response that was left out."""
    advantages: tuple[Array, ...]
    """A_t, scaled. Shape (S,) each; zeros for a response that was left out."""
    beside: tuple[Array, ...]
    """r_t without what the outcome is in it, for who adds the outcome at the end: an anchored last reward is
    -Phi_{T-1}. Of min, 2 Phi_t - 1 as it is, for who takes the soft minimum, and PASSED_OVER where nobody scored.
    Shape (S,) each."""
    used: tuple[bool, ...]
    """False for a response that was left out: it has no outcome, no steps or no tokens where the rule needs them."""
    counts: Mapping[str, int]
    """Responses by what is special: unscored, without_steps, empty (left out); outcome_only (an anchored one without
    scored steps), open_step, constant (in a group of equal totals), alone (min without others in its group)."""

    def token_advantages(self) -> list[Array]:
        """A token's advantage is that of its step. Shape (T,) each."""
        return [over_tokens(a, e, n) for a, e, n in zip(self.advantages, self.ends, self.lengths, strict=True)]

    def token_rewards(self) -> list[Array]:
        """r_t at the last token of step t, 0 elsewhere, for a critic. Shape (T,) each."""
        return [at_ends(r, e, n) for r, e, n in zip(self.rewards, self.ends, self.lengths, strict=True)]

    def table_rewards(self) -> list[Array]:
        """The same as `rewardkit/rl/loss/advantages.py` takes them beside R. Shape (T,) each."""
        return [at_ends(r, e, n) for r, e, n in zip(self.beside, self.ends, self.lengths, strict=True)]


def step_credit(
    config: StepConfig,
    *,
    groups: Sequence[Hashable],
    outcomes: Sequence[float | None],
    steps: Sequence[StepRewards | None],
    lengths: Sequence[int],
    truncated: Sequence[bool],
) -> StepCredit:
    """Rewards and advantages of a batch; row i is response i, responses of equal `groups` answer one prompt.

    An outcome of None (or NaN) is unscored, steps of None could not be read by the step scorer. An anchored rule falls
    back on the outcome alone for a response without steps; other rules leave it out.
    """
    count = len(groups)
    if not count == len(outcomes) == len(steps) == len(lengths) == len(truncated):
        raise ConfigError(
            "step_credit needs one group, outcome, list of steps, length and truncation mark a response; got "
            f"{count}, {len(outcomes)}, {len(steps)}, {len(lengths)} and {len(truncated)}"
        )
    outcomes = [None if outcome is None or math.isnan(outcome) else float(outcome) for outcome in outcomes]
    tiles = [tile(steps[n], lengths[n], truncated=truncated[n]) for n in range(count)]
    rewards = [np.zeros(len(ends)) for _, ends in tiles]
    advantages = [np.zeros(len(ends)) for _, ends in tiles]
    beside = [np.zeros(len(ends)) for _, ends in tiles]
    used = [False] * count
    counts: Counter[str] = Counter()
    members: dict[Hashable, list[int]] = {}
    for n, group in enumerate(groups):
        members.setdefault(group, []).append(n)
    for rows in members.values():
        known = [outcome for n in rows if (outcome := outcomes[n]) is not None]
        firsts = [score for n in rows for score in tiles[n][0][:1] if score is not None]
        start = _start(config, known, firsts)
        for n in rows:
            fault = _fault(config, outcomes[n], steps[n], lengths[n], start)
            counts[fault] += bool(fault)
            used[n] = not fault
            if used[n]:
                values = tiles[n][0]
                rewards[n] = step_rewards(config, values, outcomes[n], start or 0.0)
                beside[n] = _beside(config, rewards[n], values, outcomes[n])
                counts["outcome_only"] += steps[n] is None
                counts["open_step"] += values[-1] is None and len(values) > 1
        kept = [n for n in rows if used[n]]
        found = _advantages(
            config, [rewards[n] for n in kept], [outcomes[n] for n in kept], [tiles[n][1] for n in kept]
        )
        if config.rule == "min" and len(kept) == 1:
            counts["alone"] += 1
        factor = _factor(config, [math.fsum(rewards[n]) for n in kept])
        counts["constant"] += len(kept) if factor == 0.0 else 0
        for n, own in zip(kept, found, strict=True):
            advantages[n] = own * factor
    return StepCredit(
        ends=tuple(ends for _, ends in tiles),
        lengths=tuple(lengths),
        rewards=tuple(rewards),
        advantages=tuple(advantages),
        beside=tuple(beside),
        used=tuple(used),
        counts={name: number for name, number in counts.items() if number},
    )


def step_rewards(config: StepConfig, values: Sequence[float | None], outcome: float | None, start: float) -> Array:
    """r_t of one response; None is a step that nobody scored. Shape (S,)."""
    rewards_S = np.zeros(len(values))
    if config.rule == "marginal":
        before = start
        for t, value in enumerate(values):
            last = config.anchor and t == len(values) - 1
            after = outcome if last else value
            after = before if after is None else after
            rewards_S[t] = after - before
            before = after
        if config.eta is not None:
            rewards_S = np.minimum(rewards_S, config.eta)
    else:
        scored = [t for t, value in enumerate(values) if value is not None]
        rewards_S[scored] = _of_scores(config, np.array([values[t] for t in scored], dtype=np.float64))
    if config.outcome_weight and outcome is not None:
        rewards_S[-1] += config.outcome_weight * outcome
    return rewards_S


def _of_scores(config: StepConfig, scores_S: Array) -> Array:
    if config.rule == "clip":
        assert config.eta is not None
        clipped_S: Array = np.minimum(scores_S - config.eta, 0.0)
        return clipped_S
    if config.rule == "delta":
        following_S = np.zeros_like(scores_S)
        following_S[:-1] = scores_S[1:]
        return scores_S - following_S
    if config.rule == "min":
        signed_S = 2.0 * scores_S - 1.0
        weighted_S: Array = soft_min_weights(signed_S, config.temperature) * signed_S
        return weighted_S
    return scores_S


def soft_min_weights(rewards_S: npt.ArrayLike, temperature: float) -> Array:
    """softmax(-r / T): they sum to 1, and lie on the least reward as T goes to 0. Shape (S,)."""
    logits_S = -np.asarray(rewards_S, dtype=np.float64) / temperature
    if not len(logits_S):
        return logits_S
    raised_S = np.exp(logits_S - logits_S.max())
    weights_S: Array = raised_S / raised_S.sum()
    return weights_S


def lambda_returns(rewards_S: npt.ArrayLike, lam: float) -> Array:
    """sum_{k >= t} lam^{k-t} r_k for every t. Shape (S,)."""
    returns_S = np.array(rewards_S, dtype=np.float64)
    for t in range(len(returns_S) - 2, -1, -1):
        returns_S[t] += lam * returns_S[t + 1]
    return returns_S


def _start(config: StepConfig, outcomes: Sequence[float], firsts: Sequence[float]) -> float | None:
    """Phi_0 of a group; None where nothing says it."""
    if config.start is not None:
        return config.start
    known = firsts if config.starts_from == "scores" and firsts else outcomes
    return math.fsum(known) / len(known) if known else None


def _beside(config: StepConfig, rewards_S: Array, values: Sequence[float | None], outcome: float | None) -> Array:
    if config.rule == "min":
        unscored = 0.0 if all(value is None for value in values) else PASSED_OVER
        return np.array([unscored if value is None else 2.0 * value - 1.0 for value in values])
    beside_S = rewards_S.copy()
    beside_S[-1] -= (outcome or 0.0) * (1.0 if config.anchored else config.outcome_weight)
    return beside_S


def _fault(
    config: StepConfig, outcome: float | None, steps: StepRewards | None, length: int, start: float | None
) -> str:
    """Why a response is left out; "" if it is not."""
    if not length:
        return "empty"
    if outcome is None and (config.anchored or config.outcome_weight):
        return "unscored"
    if config.rule == "marginal" and start is None:
        return "unscored"
    return "without_steps" if steps is None and not config.anchored else ""


def _advantages(
    config: StepConfig,
    rewards: Sequence[Array],
    outcomes: Sequence[float | None],
    ends: Sequence[tuple[int, ...]],
) -> list[Array]:
    """A_t of one group's responses, not scaled."""
    if config.rule == "marginal":
        return [lambda_returns(own, config.lam) for own in rewards]
    returns = [lambda_returns(own, 1.0) for own in rewards]
    if config.rule != "min":
        mean = math.fsum(math.fsum(own) for own in rewards) / max(len(rewards), 1)
        return [own - mean for own in returns]
    if len(rewards) == 1:
        return [np.zeros_like(rewards[0])]
    weight = config.outcome_weight
    gains = [weight * (outcome or 0.0) if weight else 0.0 for outcome in outcomes]
    sums = [math.fsum(own) - gain for own, gain in zip(rewards, gains, strict=True)]
    tokens = [row[-1] + 1 for row in ends]
    found = []
    for n, own in enumerate(returns):
        others = [k for k in range(len(rewards)) if k != n]
        rate = math.fsum(sums[k] for k in others) / sum(tokens[k] for k in others)
        to_go_S = tokens[n] - np.array([0, *(end + 1 for end in ends[n][:-1])])
        found.append(own - rate * to_go_S - math.fsum(gains[k] for k in others) / len(others))
    return found


def _factor(config: StepConfig, totals: Sequence[float]) -> float:
    """What a group's advantages are multiplied by; 0 where its totals are all equal."""
    if config.scale == "none":
        return 1.0
    deviation = float(np.std(totals, ddof=1)) if len(totals) > 1 else 0.0
    return 0.0 if deviation <= EQUAL else 1.0 / (deviation + config.eps)
