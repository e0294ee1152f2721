"""Curves are means of the estimators; the controls bound them; comparisons are paired."""

from __future__ import annotations

import numpy as np
import pytest

from rewardkit.measure import left_out
from search.curves import Curve, accuracy_curves, compare, decided, sizes, with_controls
from search.estimators import best_of, bootstrap, majority_at, paired_difference, pass_at, weighted_at
from search.strategies.best_of_n import Pool
from verifiers.core import Problem, Response, Verdict
from verifiers.errors import ConfigError


def pool(name: str, answers: list[str | None], right: str, scores: list[float] | None = None) -> Pool:
    """A judged pool; `None` is a response without an answer, '?' an undecided one."""
    verdicts = tuple(
        Verdict.undecided("?")
        if a == "?"
        else (Verdict.correct("", extracted=a) if a == right else Verdict.incorrect("", extracted=a))
        for a in answers
    )
    return Pool(
        problem=Problem(id=name, prompt="?"),
        responses=tuple(Response(problem_id=name, text=str(a), sample=i) for i, a in enumerate(answers)),
        verdicts=verdicts,
        classes=tuple(None if a in (None, "?") else "abc".index(a) for a in answers),  # type: ignore[arg-type]
        scores={} if scores is None else {"prm": tuple(scores)},
    )


def some_pools(count: int = 40, total: int = 6) -> list[Pool]:
    rng = np.random.default_rng(3)
    made = []
    for number in range(count):
        answers = [rng.choice(["a", "a", "b", "c", None, None]) for _ in range(total)]
        scores = [0.6 * (a == "a") + rng.random() for a in answers]
        made.append(pool(f"p{number}", answers, "a", scores))
    return made


def named(curves: list[Curve]) -> dict[str, Curve]:
    return {curve.rule: curve for curve in curves}


def test_sizes_are_powers_of_two_and_the_total() -> None:
    assert sizes(1) == [1]
    assert sizes(6) == [1, 2, 4, 6]
    assert sizes(16) == [1, 2, 4, 8, 16]


def test_every_point_is_the_mean_of_its_estimator() -> None:
    pools = with_controls(some_pools(), seed=5)
    curves = named(accuracy_curves(pools, seed=5))
    assert list(curves) == [
        "first",
        "majority",
        "best by prm",
        "weighted by prm",
        "best by random",
        "best by oracle",
        "any (pass@n)",
    ]
    for n in (1, 2, 4, 6):
        exact = {
            "first": [pass_at(p.right, 1) for p in pools],
            "majority": [majority_at(p.right, p.classes, n) for p in pools],
            "best by prm": [best_of(p.right, p.scores["prm"], n) for p in pools],
            "weighted by prm": [weighted_at(p.right, p.classes, p.scores["prm"], n, seed=5) for p in pools],
            "best by random": [best_of(p.right, p.scores["random"], n) for p in pools],
            "any (pass@n)": [pass_at(p.right, n) for p in pools],
        }
        for rule, values in exact.items():
            assert curves[rule].points[n] == bootstrap(values, seed=5)
            if n == 6:
                assert curves[rule].per_problem == tuple(values)
        # the oracle is the bound, and no rule passes it
        assert curves["best by oracle"].points[n].mean == pytest.approx(curves["any (pass@n)"].points[n].mean)
        for curve in curves.values():
            assert curve.points[n].mean <= curves["any (pass@n)"].points[n].mean + 1e-12
            assert curve.points[n].n == 40


def test_problems_with_an_undecided_verdict_are_left_out() -> None:
    right, wrong, open_ = pool("x", ["a", "b"], "a"), pool("y", ["b", "b"], "a"), pool("z", ["a", "?"], "a")
    with_it, without = accuracy_curves([right, wrong, open_]), accuracy_curves([right, wrong])
    assert with_it == without
    assert named(with_it)["first"].points[1].mean == 0.25 and named(with_it)["first"].points[1].n == 2
    assert decided([right, wrong, open_]) == [right, wrong]
    assert left_out([right, wrong, open_]) == [
        "1 of 3 problems are left out of all accuracies: a verdict is undecided."
    ]
    assert left_out([right, wrong]) == []
    with pytest.raises(ConfigError, match="every problem has an undecided verdict"):
        accuracy_curves([open_])


def test_a_useful_score_beats_noise_and_noise_is_the_first() -> None:
    curves = accuracy_curves(with_controls(some_pools(400)))
    gain = compare(curves, "best by prm", "best by random")
    assert gain.low > 0.15
    noise = compare(curves, "best by random", "first")
    assert noise.low < 0 < noise.high


def test_comparisons_are_paired_at_the_largest_n() -> None:
    curves = named(accuracy_curves(with_controls(some_pools())))
    found = compare(list(curves.values()), "best by prm", "majority", seed=2)
    assert found == paired_difference(curves["best by prm"].per_problem, curves["majority"].per_problem, seed=2)
    with pytest.raises(ConfigError, match="no rule 'best by luck' among first, majority"):
        compare(list(curves.values()), "best by luck", "first")


def test_controls_belong_to_the_problem_and_the_seed() -> None:
    pools = some_pools(4)
    noise = {p.problem.id: p.scores["random"] for p in with_controls(pools, seed=1)}
    assert noise == {p.problem.id: p.scores["random"] for p in with_controls(pools[::-1], seed=1)}
    assert len(set(noise.values())) == 4
    assert noise["p0"] != with_controls(pools, seed=2)[0].scores["random"]
    for before, after in zip(pools, with_controls(pools), strict=True):
        assert after.scores["oracle"] == tuple(float(right) for right in before.right)
        assert after.scores["prm"] == before.scores["prm"]


def test_pools_that_cannot_be_measured_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one pool; got none"):
        accuracy_curves([])
    with pytest.raises(ConfigError, match=r"of one size; got \[1, 2\]"):
        accuracy_curves([pool("x", ["a"], "a"), pool("y", ["a", "b"], "a")])
    raw = Pool(problem=Problem(id="x", prompt="?"), responses=(Response(problem_id="x", text="a"),))
    with pytest.raises(ConfigError, match=r"must be judged before accuracy is measured; call judge\(\) first"):
        accuracy_curves([raw])
