"""The RLHF chain and its rivals on the playground: same start, same number of generated tokens, 3 seeds, one table.

The start is the shipped policy, whose own past is the first stage of the chain: supervised learning of 8,000 steps on
worked solutions (`scripts/playground_policy.py`). More of it would add knowledge that no rival gets, so it is left out.
Every method may draw about 100,000 tokens to learn from (it ends with the first step, or problem, that reaches them):

    PPO, Bradley-Terry   40 % for pairs of right and wrong responses, a Bradley-Terry model of them, PPO on its score
                         alone with the rest: KL in the reward, critic, two passes, and 0.1 x the loss of pretraining
                         text (ptx), which is what the start learned last, solutions with slips, so that it teaches
                         nothing that the start did not know
    DPO                  pairs of all
    GRPO                 the verifier
    PPO, verifier        the verifier, KL in the reward, critic, two passes
    rejection + SFT      imitates the right ones of all; the same draw as DPO's

The pairs' verdicts stand for people's preferences; PPO on the model sees no verifier. The Bradley-Terry model grows on
the shipped PRM's trunk, as fits from the policy alone do not carry over to other problems (`outcome_playground.py`);
that trunk has read 145,888 labelled rows of its own, which nobody else gets and which are not counted below. A seed is
another order of the problems and other responses. Rates are those that were best on validation problems at half the
tokens and one seed (`--tune` does that search again and says what it costs). Processor seconds are one thread's, from
the first drawn token to the last update, with judging and without measuring. Read tokens: those that the
Bradley-Terry model learned from and scored. Intervals are bootstraps over seeds and problems, the same in all methods.
"""

from __future__ import annotations

import functools
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from claims import figure, finish
from rl_learning import Curve, mean, resampled
from rl_runs import (
    POLICY,
    SAMPLING,
    answered,
    kept,
    online,
    options,
    pass_rates,
    right_of,
    table,
    told,
    verified,
)

from rewardkit import playground
from rewardkit.offline.dpo import fit_dpo
from rewardkit.offline.dpo_config import DpoConfig
from rewardkit.offline.pairs import PairsConfig, preference_pairs
from rewardkit.offline.rejection import RejectionConfig, keep_right
from rewardkit.offline.sampling import verified_responses
from rewardkit.offline.sft import fit_sft
from rewardkit.offline.sft_config import SftConfig
from rewardkit.outcome.config import OutcomeConfig
from rewardkit.outcome.model import OutcomeModel
from rewardkit.outcome.training import fit_outcome
from rewardkit.rl.config import RlConfig
from rewardkit.rl.rewards.functions import RewardList, as_part
from rewardkit.rl.sampling.drawing import Order
from search.engines.transformers_engine import TransformersEngine
from search.strategies.best_of_n import Pool
from verifiers.checkpoints import load_tokenizer
from verifiers.core import Problem
from verifiers.jsonl import write_jsonl
from verifiers.maths import MathVerifier

DRAWN = 8
"""Responses a problem for pairs and imitation."""
PAIRS_SHARE = 0.4
PASSES = 3
"""How often fits read their rows."""
PPO = {"preset": "ppo", "epochs": 2}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to learn."""

    rate: float
    grid: tuple[float, ...]
    """Rates that --tune tries."""


METHODS = {
    "PPO, Bradley-Terry": Method(rate=3e-4, grid=(1e-4, 3e-4, 6e-4)),
    "DPO": Method(rate=1e-4, grid=(3e-5, 1e-4, 3e-4)),
    "GRPO": Method(rate=3e-4, grid=(1e-4, 3e-4, 6e-4)),
    "PPO, verifier": Method(rate=1e-4, grid=(3e-5, 1e-4, 3e-4, 6e-4)),
    "rejection + SFT": Method(rate=1e-3, grid=(3e-4, 1e-3, 3e-3)),
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of it."""

    tokens: int = 100_000
    """Drawn to learn from."""
    problems: int = 200
    samples: int = 4
    seeds: int = 3
    split: playground.Split = "test"


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What offline methods learn from."""

    pools: tuple[Pool, ...]
    how: Mapping[str, Any]
    tokens: int
    seconds: float


def train_problems(seed: int, count: int, start: int = 0) -> list[Problem]:
    """The train problems in a seed's order, as the loop takes them."""
    return Order(playground.problems(2000, split="train"), seed=seed, position=start).take(count)


@functools.lru_cache(maxsize=2)
def drawn(seed: int, tokens: int) -> Drawn:
    """Judged responses to as many problems as `tokens` are enough for."""
    engine = TransformersEngine.load(POLICY, dtype="float32")
    since = time.process_time()
    pools: list[Pool] = []
    count, spent = min(16, max(1, tokens // 1000)), 0
    how: Mapping[str, Any] = {}
    while spent < tokens:
        found = verified_responses(
            train_problems(seed, count, start=len(pools)),
            engine=engine,
            verifier=MathVerifier(),
            n=DRAWN,
            sampling=SAMPLING,
            seed=seed,
            policy=POLICY,
        )
        pools += found.pools
        how = found.drawn
        spent = sum(len(one.token_ids) for pool in pools for one in pool.responses)
        # A bit less than what seems to be missing, since problems differ in length.
        count = max(1, int(0.85 * (tokens - spent) / spent * len(pools)))
    return Drawn(pools=tuple(pools), how=how, tokens=spent, seconds=time.process_time() - since)


def answers(policy: str | Path, size: Size) -> list[Pool]:
    """What a saved policy answers to the held-out problems."""
    return answered(TransformersEngine.load(policy, dtype="float32"), held_out(size), size.samples)


def held_out(size: Size) -> list[Problem]:
    """Problems to measure on."""
    return playground.problems(size.problems, split=size.split)


@functools.lru_cache(maxsize=1)
def start_answers(size: Size) -> list[Pool]:
    """What the start answers to them."""
    return answers(POLICY, size)


def schedule(rows: int) -> dict[str, int]:
    """Optimiser steps of 32 rows, a tenth of them to warm up."""
    steps = math.ceil(PASSES * rows / 32)
    return {"steps": steps, "rows": 32, "warmup": steps // 10}


def run(name: str, method: Method, seed: int, size: Size) -> dict[str, Any]:
    """One method with one seed: right responses, generated and read tokens, seconds, and what else is worth knowing."""
    with tempfile.TemporaryDirectory() as made:
        if name in ("GRPO", "PPO, verifier"):
            return learn_online(name, method, seed, size)
        if name == "PPO, Bradley-Terry":
            return learn_from_people(method, seed, size, Path(made))
        own = drawn(seed, size.tokens)
        since = time.process_time()
        common: dict[str, Any] = {"init": POLICY, "rate": method.rate, "seed": seed}
        out, work = Path(made, "model"), Path(made, "work")
        if name == "DPO":
            pairs = preference_pairs(own.pools, PairsConfig(k=DRAWN), drawn=own.how, seed=seed).rows
            dpo = fit_dpo(pairs, DpoConfig(micro_rows=16, **schedule(len(pairs)), **common), out, work=work)
            said = {"pairs": len(pairs), "accuracy": dpo.final_accuracy}
        else:
            kept_rows = keep_right(own.pools, RejectionConfig(keep="all"), drawn=own.how, seed=seed).rows
            sft = fit_sft(kept_rows, SftConfig(**schedule(len(kept_rows)), **common), out, work=work)
            said = {"rows": len(kept_rows), "loss": sft.final_loss}
        seconds = own.seconds + time.process_time() - since
        return {"right": right_of(answers(out, size)), "tokens": own.tokens, "read": 0, "seconds": seconds, **said}


def rl_config(method: Method, seed: int, **more: Any) -> RlConfig:
    """8 x 4 responses a step; the tokens end the run."""
    size: dict[str, Any] = {"steps": 100_000, "prompts": 8, "group": 4, "max_new_tokens": playground.MAX_NEW_TOKENS}
    return RlConfig(init=POLICY, rate=method.rate, seed=seed, **size, **more)


def learn_online(name: str, method: Method, seed: int, size: Size) -> dict[str, Any]:
    """GRPO or PPO with the verifier."""
    more: dict[str, Any] = {"preset": "grpo", "change": ("kl=null",)} if name == "GRPO" else PPO
    found = online(
        rl_config(method, seed, **more),
        playground.problems(2000, split="train"),
        verified(),
        tests=held_out(size),
        samples=size.samples,
        tokens=size.tokens,
    )
    return {**found.to_json(), "right": found.right[found.steps], "read": 0}


def learn_from_people(method: Method, seed: int, size: Size, folder: Path) -> dict[str, Any]:
    """Pairs, a Bradley-Terry model, and PPO on its score alone."""
    own = drawn(seed, round(PAIRS_SHARE * size.tokens))
    since = time.process_time()
    pairs = preference_pairs(own.pools, PairsConfig(k=DRAWN), drawn=own.how, seed=seed).rows
    config = OutcomeConfig(init=str(playground.asset("prm")), rate=1e-4, seed=seed, **schedule(len(pairs)))
    fit = fit_outcome(pairs, config, folder / "bt", work=folder / "bt-work")
    seconds = own.seconds + time.process_time() - since
    model = OutcomeModel.load(folder / "bt")
    agreed = pairwise(model, start_answers(size))
    before = model.usage.prefill_tokens
    text = folder / "text.jsonl"
    write_jsonl(text, pretraining_text(500, seed))
    # Other problems than the pairs', so that the model is not asked about what it learned by heart.
    found = online(
        rl_config(method, seed, change=("ptx=0.1",), ptx_text=str(text), **PPO),
        train_problems(seed, 2000 - len(own.pools), start=len(own.pools)),
        RewardList([as_part("bt", model, tokenizer=load_tokenizer(POLICY))]),
        outcome="bt",
        tests=held_out(size),
        samples=size.samples,
        tokens=size.tokens - own.tokens,
    )
    read = round(fit.tokens * config.steps * config.rows / fit.rows) + model.usage.prefill_tokens - before
    return {
        **found.to_json(),
        "right": found.right[found.steps],
        "tokens": own.tokens + found.tokens,
        "read": read,
        "seconds": seconds + found.seconds,
        "pairs": len(pairs),
        "pairwise accuracy": agreed,
    }


def pairwise(model: OutcomeModel, pools: Sequence[Pool]) -> float:
    """Share of the start's held-out right and wrong responses to one problem that the model has in the right order."""
    shares = []
    for pool in pools:
        scores = model.score_rows([(pool.problem, response, "") for response in pool.responses])
        judged = list(zip(scores, pool.right, strict=True))
        won = [float(a > b) for a, good in judged for b, bad in judged if good and not bad]
        shares += [float(np.mean(won))] if won else []
    return float(np.mean(shares)) if shares else float("nan")


def pretraining_text(count: int, seed: int) -> list[dict[str, Any]]:
    """What the start learned last: train problems with solutions that slip."""
    sys.path.append(str(Path(__file__).parents[1] / "scripts"))
    from playground_slips import slipped_solution

    order = random.Random(seed)
    problems = playground.problems(count, split="train", seed=1)
    return [{"prompt": problem.prompt, "completion": slipped_solution(problem, order)} for problem in problems]


def tune(size: Size, *, resume: bool) -> None:
    """Every method's rates on validation problems with half the tokens, and what that cost."""
    size = Size(tokens=size.tokens // 2, problems=size.problems // 2, samples=2, seeds=1, split="validation")
    spent = 0.0
    for name, method in METHODS.items():
        found = {}
        for rate in method.grid:
            make = functools.partial(run, name, Method(rate=rate, grid=()), 50, size)
            row = kept(f"tune-{name}-{rate:g}", [name, rate, asdict(size)], make, resume=resume)
            found[rate] = float(pass_rates(row["right"])[0].mean())
            spent += row["seconds"]
        best = max(found, key=lambda rate: found[rate])
        said = ", ".join(f"{rate:g}: {value:.3f}" for rate, value in found.items())
        mark = "" if best == method.rate else f"; the file has {method.rate:g}"
        print(f"{name}: {said}; best {best:g}{mark}", flush=True)
    print(f"the search cost {spent:.0f} processor seconds beside its measurements")


def main() -> None:
    """Learn and report."""
    chosen = options(__doc__)
    size = Size(tokens=2_000, problems=10, samples=4, seeds=1) if chosen.quick else Size()
    if chosen.tune:
        return tune(size, resume=chosen.resume)
    start = pass_rates(right_of(start_answers(size)))
    curves: dict[str, Curve] = {"the start": np.stack([start] * size.seeds)}
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in range(size.seeds):
        for name, method in METHODS.items():
            what = [name, method.rate, seed, asdict(size)]
            make = functools.partial(run, name, method, seed, size)
            row = kept(f"recipe-{name}-{seed}", what, make, resume=chosen.resume)
            runs.setdefault(name, []).append(row)
            rates = pass_rates(row["right"]).mean(1).round(3).tolist()
            rest = {key: row[key] for key in row if key not in ("right", "reward")}
            print(f"{name}, seed {seed}: pass@1, pass@{size.samples} {rates}; {rest}", flush=True)
    for name, rows in runs.items():
        curves[name] = np.stack([pass_rates(row["right"]) for row in rows])
    finish("rl_recipe", report(curves, runs, size), chosen)


def at(name: str, place: int, other: str | None = None) -> Callable[[Mapping[str, Curve]], float]:
    """A method's pass@1 (place 0) or pass@N (1), less that of another one."""
    return lambda curves: float(mean(curves[name])[place] - (0.0 if other is None else mean(curves[other])[place]))


def report(curves: Mapping[str, Curve], runs: Mapping[str, list[dict[str, Any]]], size: Size) -> list[dict[str, Any]]:
    """The figures; the table is printed."""
    figures, lines = [], []
    for name in curves:
        first, last = (resampled(curves, at(name, place)) for place in (0, 1))
        own = runs.get(name, [])
        cost = {key: float(np.mean([row[key] for row in own])) if own else 0.0 for key in ("tokens", "seconds", "read")}
        figures.append(figure(f"{name}: pass@1", **first, seeds=len(own), problems=size.problems, **cost))
        figures.append(figure(f"    pass@{size.samples}", **last))
        gain = resampled(curves, at(name, 0, "the start"))
        if own:
            figures.append(figure("    minus the start", **gain, floor=0.1 if name == "GRPO" else 0.0))
        if name == "PPO, Bradley-Terry":
            agreed = [row["pairwise accuracy"] for row in own]
            figures.append(figure("    its model's pairwise accuracy", float(np.mean(agreed))))
        if own and name != "GRPO":
            figures.append(figure("    GRPO minus it", **resampled(curves, at("GRPO", 0, name))))
        costs = [f"{cost['tokens']:,.0f}", f"{cost['seconds']:.0f}", f"{cost['read']:,.0f}"]
        lines.append([name, told(first), told(last), told(gain) if own else "", *costs])
    head = ["method", "pass@1", f"pass@{size.samples}", "gain of pass@1", "tokens drawn", "processor s", "tokens read"]
    print(table(head, lines))
    return figures


if __name__ == "__main__":
    main()
