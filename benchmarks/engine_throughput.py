"""TransformersEngine against model.generate: tokens per second with the same model, prompts and lengths.

Two workloads on the playground policy, both arms interleaved in one run, best of the rounds for each arm:

    equal    greedy, prompts whose answers are longer than the limit, so that every row draws the same number
    varied   sampling to the end of each answer: rows of very different lengths

Tokens are those before and including the end-of-sequence token; padding does not count. The ratio is
engine / generate at 256 rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from claims import arguments, figure, finish

from rewardkit import playground
from search.engines.transformers_engine import TransformersEngine
from verifiers.core import GenerationRequest, Problem, Sampling
from verifiers.steps import encode_prompt


def main() -> None:
    """Run both workloads."""
    options = arguments(__doc__)
    rows, rounds = (64, 2) if options.quick else (256, 4)
    engine = TransformersEngine.load(playground.asset("policy"), max_rows=rows)
    pool = playground.problems(40 * rows, split="test")
    long = [p for p in pool if p.metadata["solution"].count(playground.STEP_SEPARATOR) >= 5][:rows]
    figures = []
    for name, problems, sampling, floor in (
        ("equal lengths", long, Sampling(temperature=0.0, max_new_tokens=48), 1.0),
        ("varied lengths", pool[:rows], Sampling(temperature=1.0, max_new_tokens=playground.MAX_NEW_TOKENS), 1.5),
    ):
        best = {"engine": 0.0, "generate": 0.0}
        arms: dict[str, Callable[[], int]] = {
            "engine": lambda problems=problems, sampling=sampling: by_engine(engine, problems, sampling),
            "generate": lambda problems=problems, sampling=sampling: by_generate(engine, problems, sampling),
        }
        for _ in range(rounds):
            for arm, run in arms.items():
                begin = time.perf_counter()
                tokens = run()
                best[arm] = max(best[arm], tokens / (time.perf_counter() - begin))
        print(f"{name}: engine {best['engine']:.0f} tokens/s, generate {best['generate']:.0f} tokens/s, {rows} rows")
        figures.append(
            figure(
                f"{name}, {rows} rows: engine / generate",
                best["engine"] / best["generate"],
                floor=floor,
                unit="x",
                engine_tokens_per_s=best["engine"],
                generate_tokens_per_s=best["generate"],
                threads=torch.get_num_threads(),
            )
        )
    finish("engine_throughput", figures, options)


def by_engine(engine: TransformersEngine, problems: list[Problem], sampling: Sampling) -> int:
    """Tokens drawn by the engine."""
    requests = [
        GenerationRequest(prefix_ids=encode_prompt(engine.tokenizer, p.prompt), seed=n) for n, p in enumerate(problems)
    ]
    return sum(len(c.token_ids) for row in engine.generate(requests, sampling) for c in row)


def by_generate(engine: TransformersEngine, problems: list[Problem], sampling: Sampling) -> int:
    """Tokens drawn by model.generate on the same prompts, left-padded."""
    batch = engine.tokenizer([str(p.prompt) for p in problems], return_tensors="pt", padding=True, padding_side="left")
    sampled = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    out = engine.model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=engine.tokenizer.pad_token_id,
        **(sampled if sampling.temperature else {"do_sample": False}),
    )[:, batch["input_ids"].shape[1] :]
    return int((out != engine.tokenizer.pad_token_id).sum())


if __name__ == "__main__":
    main()
