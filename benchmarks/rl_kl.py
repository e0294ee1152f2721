"""KL estimators by place: the bias and noise of their values, and how far their gradients are from that of the KL.

Exact part. Policies of three tokens and at most four steps (`rewardkit/rl/loss/tabular.py`), references beside them,
drawn at random. For every estimator in every place the expected value against KL(pi || ref), the expected gradient
against that of the sequence KL and of the state KL (visits held fixed), and the noise of one response: deviation of the
value over the KL, and square root of the trace of the gradient's covariance over the sequence KL's gradient. On-policy,
and with responses of an older policy, where a reward is computed from the older policy and its gradient weighted by the
token's ratio. All terms, returns and losses are the library's own. "Least" and "greatest" are over policies.

Playground part. The shipped policy is the reference; the same after a few plain SGD steps on worked solutions is the
policy, half-way there the older one. Values by Monte Carlo; what a response's KL is, is taken as the exact KL at its
states, an unbiased estimate by itself. Standard errors by a bootstrap over problems.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from claims import arguments, figure, finish

from rewardkit import playground
from rewardkit.rl.loss.advantages import estimate
from rewardkit.rl.loss.batch import Batch, Prepared
from rewardkit.rl.loss.kl import divergence, loss_terms
from rewardkit.rl.loss.objective import policy_loss
from rewardkit.rl.loss.tabular import Tabular, batch_of, gradient_of, relative, sequence_kl, state_kl
from rewardkit.rl.policy.models import load_language_model
from rewardkit.rl.policy.reader import Drawn, TokenReader
from rewardkit.rl.settings.sections import Advantage, Kl, Ratio
from rewardkit.rl.settings.table import Table
from search.engines.transformers_engine import TransformersEngine
from search.strategies.best_of_n import draw
from verifiers.checkpoints import load_tokenizer
from verifiers.core import Sampling
from verifiers.steps import encode_prompt

DETACHED = "k3_is, ratio without gradient"
IN_LOSS = ("k1", "k2", "k2_seq", "k3", "k3_is", DETACHED, "full")
IN_REWARD = ("k1", "k2", "k2_seq", "k3")
ROWS = [(name, "loss") for name in IN_LOSS] + [(n, place) for place in ("reward", "advantage") for n in IN_REWARD]
OF_STATES = ("k2 in loss", "k3_is in loss", "full in loss", "k1 in advantage")
"""Rows whose gradient is that of the state KL."""
DISTANCES = {"near": 0.3, "far": 1.5}
"""Deviation of a reference's logits from the policy's."""
AGE = 0.3
"""That of the older policy's."""


def terms(
    name: str, new_BT: torch.Tensor, ref_BT: torch.Tensor, mask_BT: torch.Tensor, log_ratio_BT: torch.Tensor
) -> torch.Tensor:
    """The estimator's number for every token."""
    if name == "k1":
        return torch.where(mask_BT, new_BT - ref_BT, 0)
    ratio_BT = log_ratio_BT.detach() if name == DETACHED else log_ratio_BT
    return loss_terms(name.partition(",")[0], new_BT, ref_BT, mask_BT, ratio_BT)


class Case:
    """A policy, its reference and the older policy that drew the responses (or the policy itself)."""

    def __init__(self, seed: int, distance: float, age: float) -> None:
        self.policy = Tabular(vocabulary=3, length=4, end=2)
        self.logits = self.policy.logits(3 * seed)
        self.ref = (self.logits + distance * self.policy.logits(3 * seed + 1)).detach()
        self.old = (self.logits + age * self.policy.logits(3 * seed + 2)).detach()
        self.q = self.policy.probabilities(self.old).detach()
        self.batch = batch_of(self.policy, self.old, torch.zeros(len(self.q), dtype=torch.float64), ref=self.ref)
        self.kl = sequence_kl(self.policy, self.logits, self.ref)
        self.sequence = gradient_of(self.kl, self.logits)
        self.state = gradient_of(state_kl(self.policy, self.logits, self.ref), self.logits)
        self.full_S = divergence(self.logits, self.ref)
        visits = self.q[:, None] * self.policy.mask_NT
        self.sampled = gradient_of((visits * self.full_S[self.policy.states_NT]).sum(), self.logits)

    def measured(self, name: str, place: str) -> dict[str, float]:
        """Bias, noise and gradient errors of one row."""
        batch, mask_NT, states_NT = self.batch, self.policy.mask_NT, self.policy.states_NT
        assert batch.ref_BT is not None
        new_NT = self.policy.logprobs(self.logits).detach().requires_grad_()
        weights_NT = mask_NT.to(torch.float64)
        if name == "full":
            values_N = (self.full_S.detach()[states_NT] * mask_NT).sum(1)
            by_state = torch.stack([gradient_of(value, self.logits)[s] for s, value in enumerate(self.full_S)])
            gradients_NTV = by_state[states_NT] * mask_NT[..., None]
        else:
            if place == "loss":
                terms_NT = terms(name, new_NT, batch.ref_BT, mask_NT, new_NT - batch.old_BT) * mask_NT
                loss = self.loss_of(name, new_NT, weights_NT) if name in ("k2", "k2_seq", "k3", "k3_is") else None
                total = terms_NT.sum() if loss is None else loss
            else:
                terms_NT = terms(name, batch.old_BT, batch.ref_BT, mask_NT, torch.zeros_like(new_NT)) * mask_NT
                total = self.surrogate(name, place, terms_NT, new_NT, weights_NT)
            values_N = terms_NT.detach().sum(1)
            (slopes_NT,) = torch.autograd.grad(total, new_NT)
            # The gradient of log pi(y_t | s_t) is one-hot(y_t) - pi( . | s_t), in the row of its state alone.
            chosen_NTV = torch.nn.functional.one_hot(self.policy.ids_NT, self.policy.shape[1]).to(torch.float64)
            scores_NTV = (chosen_NTV - self.logits.detach().softmax(-1)[states_NT]) * mask_NT[..., None]
            gradients_NTV = slopes_NT[..., None] * scores_NTV
        mean = torch.zeros(self.policy.shape, dtype=torch.float64)
        mean.index_put_((states_NT,), self.q[:, None, None] * gradients_NTV, accumulate=True)
        expected = float((self.q * values_N).sum())
        spread = float((self.q * (values_N - expected) ** 2).sum())
        trace = float((self.q * gradients_NTV.square().sum((1, 2))).sum() - mean.square().sum())
        size = float(self.sequence.norm())
        return {
            "bias": (expected - self.kl.item()) / self.kl.item(),
            "value_noise": spread**0.5 / self.kl.item(),
            "value_variance": spread,
            "sequence_error": relative(mean, self.sequence),
            "state_error": relative(mean, self.state),
            "sampled_state_error": relative(mean, self.sampled),
            "gradient_noise": max(trace, 0.0) ** 0.5 / size,
            "gradient_trace": trace,
        }

    def loss_of(self, name: str, new_NT: torch.Tensor, weights_NT: torch.Tensor) -> torch.Tensor:
        """The KL term of the library's loss, every response with weight 1."""
        kl: Any = Kl(target="ref", estimator=name, place="loss", coefficient=1.0)  # type: ignore[arg-type]
        table = Table(advantage=Advantage(kind="none", scale="none"), ratio=Ratio(level="none"), kl=kl)
        table = Table(advantage=table.advantage, ratio=table.ratio, kl=kl, aggregation="sequence_sum")
        part = Prepared(batch=self.batch, advantages_BT=torch.zeros_like(weights_NT), weights_BT=weights_NT)
        return policy_loss(new_NT, part, table).total

    def surrogate(
        self, name: str, place: str, terms_NT: torch.Tensor, new_NT: torch.Tensor, weights_NT: torch.Tensor
    ) -> torch.Tensor:
        """The library's policy loss with the terms taken from rewards to go, or from each token's own advantage."""
        advantage, ratio = Advantage(kind="none", scale="none"), Ratio(level="token")
        if name == "k1":
            kl: Any = Kl(target="ref", estimator="k1", place=place, coefficient=1.0)  # type: ignore[arg-type]
            table = Table(advantage=advantage, ratio=ratio, kl=kl, aggregation="sequence_sum")
            batch = self.batch
        else:
            # The table refuses the others there: their terms go in as rewards of tokens, discounted to nothing where
            # a token answers for its own alone.
            gamma = 1.0 if place == "reward" else 0.0
            advantage = Advantage(kind="none", scale="none", gamma=gamma)
            table = Table(advantage=advantage, ratio=ratio, aggregation="sequence_sum")
            batch = Batch(**{**vars(self.batch), "token_rewards_BT": -terms_NT.detach()})
        found = estimate(batch, table)
        part = Prepared(batch=batch, advantages_BT=found.advantages_BT, weights_BT=weights_NT)
        return policy_loss(new_NT, part, table).total


def exact_figures(policies: int) -> list[dict[str, Any]]:
    """One figure a row, distance and age; its value is the gradient's error against the sequence KL's."""
    found = []
    for age_name, age in (("on-policy", 0.0), ("off-policy", AGE)):
        for distance_name, distance in DISTANCES.items():
            cases = [Case(seed, distance, age) for seed in range(policies)]
            kl = float(np.mean([case.kl.item() for case in cases]))
            for name, place in ROWS:
                each = [case.measured(name, place) for case in cases]
                means = {key: float(np.mean([one[key] for one in each])) for key in each[0]}
                # Off-policy biases have either sign, which a mean would hide.
                means["signed_bias"] = means["bias"]
                means["bias"] = float(np.mean([abs(one["bias"]) for one in each]))
                errors = [one["sequence_error"] for one in each]
                held: dict[str, float] = {}
                if age == 0.0 and (name, place) in (("k1", "reward"), ("k2_seq", "loss")):
                    held = {"ceiling": 1e-10}
                found.append(
                    figure(
                        f"{age_name}, {distance_name}: {name} in {place}",
                        means.pop("sequence_error"),
                        **held,
                        least=min(errors),
                        greatest=max(errors),
                        policies=policies,
                        kl=kl,
                        **means,
                    )
                )
    state = [row for row in found if row["name"].startswith("on-policy") and row["name"].split(": ")[1] in OF_STATES]
    sampled = [row for row in found if row["name"].startswith("off-policy") and ": k3_is in loss" in row["name"]]
    for name, rows, key in (
        ("on-policy, of " + ", ".join(OF_STATES), state, "state_error"),
        ("off-policy at the older policy's states, of k3_is in loss", sampled, "sampled_state_error"),
    ):
        found.append(
            figure(f"greatest error against the state KL {name}", max(row[key] for row in rows), ceiling=1e-10)
        )
    return found


def trained(steps: int, rate: float) -> tuple[Any, Any, Any]:
    """(reference, older policy, policy): the shipped one, and that after half of and all the SGD steps."""
    init = str(playground.asset("policy"))
    reference = load_language_model(init)
    policy, tokenizer = copy.deepcopy(reference), load_tokenizer(init)
    reader, older = TokenReader(policy), None
    optimiser = torch.optim.SGD(policy.parameters(), lr=rate)
    problems = playground.problems(16 * steps, split="train", seed=71)
    for step in range(steps):
        older = copy.deepcopy(policy) if step == steps // 2 else older
        rows = [
            Drawn(
                prompt=encode_prompt(tokenizer, p.prompt),
                response=tuple(tokenizer(p.metadata["solution"])["input_ids"]),
            )
            for p in problems[16 * step : 16 * step + 16]
        ]
        optimiser.zero_grad()
        (-reader.read(rows).logprobs.sum() / sum(len(row.response) for row in rows)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return reference, older, policy


@torch.no_grad()
def responses_values(
    sampler: Any, reference: Any, policy: Any, problems: list[Any], samples: int, seed: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Every estimator's value of every response. Shapes (problems, samples)."""
    tokenizer = load_tokenizer(str(playground.asset("policy")))
    pools = draw(
        problems,
        engine=TransformersEngine(sampler, tokenizer),
        n=samples,
        sampling=Sampling(temperature=1.0, max_new_tokens=playground.MAX_NEW_TOKENS),
        seed=seed,
    )
    values: dict[str, list[float]] = {name: [] for name in (*IN_LOSS, "old k1")}
    for pool in pools:
        prompt = encode_prompt(tokenizer, pool.problem.prompt)
        for response in pool.responses:
            ids = torch.tensor([[*prompt, *response.token_ids]])
            own_TV, ref_TV, old_TV = (
                model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double() for model in (policy, reference, sampler)
            )
            picked = ids[0, len(prompt) :, None]
            new, ref, old = (x.log_softmax(-1).gather(-1, picked)[None, :, 0] for x in (own_TV, ref_TV, old_TV))
            mask = torch.ones_like(new, dtype=torch.bool)
            for name in IN_LOSS:
                one = divergence(own_TV, ref_TV) if name == "full" else terms(name, new, ref, mask, new - old)
                values[name].append(float(one.sum()))
            values["old k1"].append(float((old - ref).sum()))
    return {name: np.array(rows).reshape(len(problems), samples) for name, rows in values.items()}


def playground_figures(quick: bool) -> list[dict[str, Any]]:
    """Bias and noise of the values on real responses."""
    steps, count, samples = (4, 8, 2) if quick else (8, 150, 4)
    reference, older, policy = trained(steps, rate=0.5)
    problems = playground.problems(count, split="test", seed=72)
    rng, found = np.random.default_rng(0), []
    on = responses_values(policy, reference, policy, problems, samples, seed=1)
    off = responses_values(older, reference, policy, problems, samples, seed=2)
    for age, drawn in (("on-policy", on), ("off-policy", off)):
        for name in IN_LOSS[:5] + (("old k1",) if age == "off-policy" else ()):
            own, full = drawn[name], on["full"]

            def figures_of(rows: Any, own: Any = own, full: Any = full) -> tuple[float, float, float]:
                kl = full[rows].mean()
                return (own[rows].mean() - kl) / kl, own[rows].std() / kl, kl

            bias, noise, kl = figures_of(slice(None))
            again = np.array([figures_of(rng.integers(0, count, count)) for _ in range(400)])
            errors = again.std(0, ddof=1)
            found.append(
                figure(
                    f"playground, {age}: value of {'k1 of the older policy' if name == 'old k1' else name}",
                    float(bias),
                    standard_error=float(errors[0]),
                    value_noise=float(noise),
                    value_noise_error=float(errors[1]),
                    value_variance=float(own.var()),
                    kl=float(kl),
                    responses=count * samples,
                    unit="bias / KL",
                )
            )
    return found


COLUMNS = {
    "bias": "value: bias",
    "value_noise": "value: noise",
    "value": "gradient: off the sequence KL's",
    "state_error": "off the state KL's",
    "gradient_noise": "gradient: noise",
}


def tables(figures: list[dict[str, Any]]) -> str:
    """The figures as the Markdown tables of docs/kl.md."""
    by_name = {row["name"]: row for row in figures}
    lines = []
    for age in ("on-policy", "off-policy"):
        columns = COLUMNS | (
            {"sampled_state_error": "off it at the older policy's states"} if age == "off-policy" else {}
        )
        lines += ["", f"| {age} | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
        for name, place in ROWS:
            pair = [by_name[f"{age}, {distance}: {name} in {place}"] for distance in DISTANCES]
            cells = [" / ".join(shown(row[key]) for row in pair) for key in columns]
            lines.append(f"| {name} in {place} | " + " | ".join(cells) + " |")
    lines += ["", "| playground | bias of the value | noise |", "|---|---|---|"]
    for row in figures:
        if row["name"].startswith("playground, "):
            bias = f"{shown(row['value'])} ± {shown(row['standard_error'])}"
            noise = f"{shown(row['value_noise'])} ± {shown(row['value_noise_error'])}"
            lines.append(f"| {row['name'].removeprefix('playground, ').replace('value of ', '')} | {bias} | {noise} |")
    return "\n".join(lines[1:])


def shown(value: float) -> str:
    """Two decimals; 0 for what is rounding."""
    return "0" if abs(value) < 1e-9 else f"{value:.2f}".replace("-0.00", "0.00")


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__)
    figures = exact_figures(3 if options.quick else 8) + playground_figures(options.quick)
    print(tables(figures))
    finish("rl_kl", figures, options)


if __name__ == "__main__":
    main()
