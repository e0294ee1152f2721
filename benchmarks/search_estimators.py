"""How much an exact estimator saves: the variance of Best-of-8 measured by the first 8 of 64 responses, or by all.

For each problem 256 responses of the shipped policy, scored by the shipped PRM, stand for the policy itself. From them
64 are drawn again and again (with replacement); each time Best-of-8 is estimated by the best of the first 8, by the
mean over the 8 disjoint chunks of 8, and exactly over all subsets (`search/estimators.py`). Figures are ratios of the
estimates' variances, summed over problems; the interval is a bootstrap over seeds (other problems, other draws). All
three must have the same mean.
"""

from __future__ import annotations

import numpy as np
from claims import arguments, figure, finish
from prm_labels import BASE, interval

from prm.model import ProcessModel
from rewardkit import playground
from rewardkit.measure import add_step_scores, same_answer
from search.engines.transformers_engine import TransformersEngine
from search.estimators import best_of
from search.strategies.best_of_n import draw, judge
from verifiers.maths import MathVerifier


def one_seed(
    engine: TransformersEngine, model: ProcessModel, problems: int, repeats: int, seed: int
) -> dict[str, float]:
    """Variances and means of the three estimates."""
    asked = playground.problems(problems, split="test", seed=seed + 800)
    pools = draw(asked, engine=engine, n=256, sampling=BASE.sampling, seed=seed)
    pools, _ = judge(pools, MathVerifier(), same=same_answer)
    pools, _ = add_step_scores(pools, model)
    rng = np.random.default_rng(seed)
    variances, means = np.zeros(3), np.zeros(3)
    for pool in pools:
        right, scores = np.array(pool.right), np.array(pool.scores["PRM min"])
        found = []
        for _ in range(repeats):
            picked = rng.integers(0, 256, size=64)
            hits, marks = right[picked].tolist(), scores[picked].tolist()
            chunks = [best_of(hits[k : k + 8], marks[k : k + 8], 8) for k in range(0, 64, 8)]
            found.append((chunks[0], float(np.mean(chunks)), best_of(hits, marks, 8)))
        variances += np.array(found).var(0, ddof=1)
        means += np.array(found).mean(0)
    first, chunked, exact = variances
    return {
        "first": first / exact,
        "chunks": chunked / exact,
        "bias": float(np.abs(means - means[2]).max() / problems),
    }


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__)
    engine = TransformersEngine.load(playground.asset("policy"), dtype="float32")
    model = ProcessModel.load(playground.asset("prm"))
    sizes = (4, 200) if options.quick else (16, 1000)
    found = [one_seed(engine, model, *sizes, seed) for seed in range(2 if options.quick else 5)]
    first, chunks = (interval([one[name] for one in found]) for name in ("first", "chunks"))
    finish(
        "search_estimators",
        [
            figure("variance of BoN@8: first 8 / exact", **first, floor=8.0, unit="x"),
            figure("variance of BoN@8: chunks of 8 / exact", **chunks, floor=1.3, unit="x"),
            figure("greatest difference of means", max(one["bias"] for one in found), ceiling=0.02),
        ],
        options,
    )


if __name__ == "__main__":
    main()
