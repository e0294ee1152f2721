"""The shipped policy on 500 test problems: pass@1 between 35 and 65 %, pass@16 at least 90 %.

Sampled at the playground's temperature, 16 responses a problem, judged by MathVerifier; majority@16 beside it.
"""

from __future__ import annotations

from claims import arguments, figure, finish

from rewardkit import playground
from rewardkit.measure import run_search
from search.engines.transformers_engine import TransformersEngine
from search.estimators import bootstrap, majority_at, pass_at
from verifiers.core import Sampling
from verifiers.maths import MathVerifier


def main() -> None:
    """Draw, judge and estimate."""
    options = arguments(__doc__)
    count = 100 if options.quick else 500
    found = run_search(
        playground.problems(count, split="test"),
        engine=TransformersEngine.load(playground.asset("policy")),
        n=16,
        sampling=Sampling(temperature=playground.TEMPERATURE, max_new_tokens=playground.MAX_NEW_TOKENS),
        verifier=MathVerifier(),
    )
    figures = []
    for name, values, floor in (
        ("pass@1", [pass_at(pool.right, 1) for pool in found.pools], 0.35),
        ("pass@16", [pass_at(pool.right, 16) for pool in found.pools], 0.90),
        ("majority@16", [majority_at(pool.right, pool.classes, 16) for pool in found.pools], 0.0),
    ):
        estimate = bootstrap(values)
        figures.append(figure(name, estimate.mean, floor=floor, low=estimate.low, high=estimate.high, problems=count))
    ceiling = figure("0.65 - pass@1 (pass@1 is at most 0.65)", 0.65 - figures[0]["value"], floor=0.0)
    finish("playground_policy", [*figures, ceiling], options)


if __name__ == "__main__":
    main()
