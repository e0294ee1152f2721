"""Ensembles of scorers: combination rules by hand, laws of copies, and what disagreement is worth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from rewardkit.outcome.ensemble import (
    COVERAGES,
    Combine,
    Ensemble,
    PairDisagreement,
    Scale,
    disagreement_report,
    evaluate_disagreement,
)
from rewardkit.outcome.evaluate import ResponseScorer, ScoreRow, evaluate_preferences
from rewardkit.outcome.rows import PreferenceRow
from search.estimators import Estimate
from verifiers.core import Problem, Response
from verifiers.errors import ConfigError, DataError

RULES: tuple[Combine, ...] = ("mean", "min", "mean_minus_std")


@dataclass
class Table:
    """Scores by the text of the response."""

    scores: dict[str, float]
    calls: int = 0

    def score_rows(self, rows: Sequence[ScoreRow]) -> list[float]:
        self.calls += 1
        return [self.scores[response.text] for _, response, _ in rows]


def asked(texts: Sequence[str]) -> list[ScoreRow]:
    return [(Problem(id="p", prompt="Q"), Response(problem_id="p", text=text), "") for text in texts]


def pair(n: int | str, chosen: str, rejected: str, *, tie: bool = False) -> PreferenceRow:
    made = [Response(problem_id=str(n), text=text) for text in (chosen, rejected)]
    return PreferenceRow(prompt="Q", chosen=made[0], rejected=made[1], problem_id=str(n), tie=tie)


def value(found: Estimate | None) -> float:
    assert found is not None
    return found.mean


def test_rules_by_hand() -> None:
    members = [Table({"a": 1.0, "b": 0.0}), Table({"a": 5.0, "b": 2.0}), Table({"a": 3.0, "b": -2.0})]
    rows, deviation = asked("ab"), [math.sqrt(8 / 3)] * 2
    assert Ensemble(members).score_rows(rows) == [3.0, 0.0]
    assert Ensemble(members, combine="min").score_rows(rows) == [1.0, -2.0]
    cautious = Ensemble(members, combine="mean_minus_std", k=0.5)
    assert cautious.score_rows(rows) == pytest.approx([3 - deviation[0] / 2, -deviation[1] / 2])
    assert Ensemble(members, combine="mean_minus_std").score_rows(rows) == pytest.approx(
        [3 - deviation[0], -deviation[1]]
    )
    assert cautious.disagreement(rows) == pytest.approx(deviation)
    assert Ensemble(members, scales=[Scale(slope=3.0, shift=1.0), Scale(), Scale()]).score_rows(rows) == [4.0, 1 / 3]
    assert [member.calls for member in members] == [6] * 3


def test_pair_disagreement_by_hand() -> None:
    # Gaps of the first pair: 1, 3, 5; of the second: 1, 0, -1 (0 is half a vote each way).
    members = [
        Table({"a": 1, "b": 0, "c": 1, "d": 0}),
        Table({"a": 5, "b": 2, "c": 7, "d": 7}),
        Table({"a": 3, "b": -2, "c": 0, "d": 1}),
    ]
    found = Ensemble(members).pair_disagreement([pair(1, "a", "b"), pair(2, "c", "d")])
    assert found.gap == pytest.approx((3.0, 0.0))
    assert found.deviation == pytest.approx((math.sqrt(8 / 3), math.sqrt(2 / 3)))
    assert found.minority == pytest.approx((0.0, 0.5))
    two_to_one = Ensemble([*members[:2], Table({"a": 0, "b": 9})]).pair_disagreement([pair(1, "a", "b")])
    assert two_to_one.minority == pytest.approx((1 / 3,))


@settings(max_examples=60, deadline=None)
@given(
    # Apart by what standardising keeps: 1e-300 and 0, less a mean, are the same number.
    st.lists(st.floats(-50, 50).map(lambda score: round(score, 6)), min_size=2, max_size=8),
    st.integers(2, 4),
    st.sampled_from(RULES),
    st.booleans(),
)
def test_an_ensemble_of_copies_is_its_member(
    scores: list[float], copies: int, rule: Combine, standardised: bool
) -> None:
    texts = [str(n) for n in range(len(scores))]
    member = Table(dict(zip(texts, scores, strict=True)))
    rows, pairs = asked(texts), [pair(n, texts[n - 1], texts[n]) for n in range(1, len(texts))]
    if standardised and np.std(scores) > 1e-3:
        ensemble = Ensemble.standardised([member] * copies, rows, combine=rule)
    else:
        ensemble = Ensemble([member] * copies, combine=rule)
    assert ensemble.score_rows(rows) == pytest.approx(scores, abs=1e-9)
    assert ensemble.disagreement(rows) == pytest.approx([0.0] * len(rows), abs=1e-9)
    found = ensemble.pair_disagreement(pairs)
    assert found.deviation == pytest.approx([0.0] * len(pairs), abs=1e-9)
    equal = [scores[n - 1] == scores[n] for n in range(1, len(texts))]
    assert all(minority == (0.5 if same else 0.0) for minority, same in zip(found.minority, equal, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=8, unique=True),
    st.floats(0.1, 20),
    st.floats(-100, 100),
)
def test_standardisation_forgets_a_members_own_scale(scores: list[tuple[int, int]], slope: float, shift: float) -> None:
    first, second = ([float(pair[m]) for pair in scores] for m in (0, 1))
    if len(set(first)) < 2 or len(set(second)) < 2:
        return
    texts = [str(n) for n in range(len(scores))]
    rows = asked(texts)
    members = [Table(dict(zip(texts, some, strict=True))) for some in (first, second)]
    other = Table({text: slope * score + shift for text, score in members[1].scores.items()})
    one, two = (Ensemble.standardised([members[0], m], rows, combine="min") for m in (members[1], other))
    for ensemble in (one, two):
        score_MN = ensemble.member_scores(rows)
        assert score_MN.mean(1) == pytest.approx([score_MN.mean()] * 2, abs=1e-7)
        assert score_MN.std(1) == pytest.approx([score_MN.std(1)[0]] * 2, rel=1e-6)
    # Only the common zero and scale may differ, and with them no comparison does.
    standard = [(m - m.mean()) / m.std(1)[0] for m in (one.member_scores(rows), two.member_scores(rows))]
    assert standard[0] == pytest.approx(standard[1], abs=1e-6)


def test_standardised_scores_keep_the_mean_scale_of_the_members() -> None:
    members = [Table({"a": 0.0, "b": 2.0}), Table({"a": 10.0, "b": 16.0})]
    ensemble = Ensemble.standardised(members, asked("ab"))
    # Means 1 and 13, deviations 1 and 3: both become mean 7 and deviation 2.
    assert ensemble.member_scores(asked("ab")).tolist() == [[5.0, 9.0], [5.0, 9.0]]
    assert ensemble.scales == (Scale(slope=2.0, shift=5.0), Scale(slope=2 / 3, shift=pytest.approx(7 - 26 / 3)))


def test_an_ensemble_is_a_scorer() -> None:
    rows = [pair(n, "a", "b") for n in range(3)]
    ensemble: ResponseScorer = Ensemble([Table({"a": 1.0, "b": 0.0}), Table({"a": 0.0, "b": 3.0})])
    assert value(evaluate_preferences(ensemble, rows, resamples=20).accuracy) == 0.0
    nested = Ensemble([ensemble, Table({"a": 9.0, "b": 0.0})])
    assert nested.score_rows(asked("ab")) == [4.75, 0.75]


def given_pairs(gaps: Sequence[float], doubts: Sequence[float]) -> tuple[list[PreferenceRow], PairDisagreement]:
    rows = [pair(n, "a", "b") for n in range(len(gaps))]
    return rows, PairDisagreement(gap=tuple(gaps), deviation=tuple(doubts), minority=(0.0,) * len(gaps))


def test_risk_and_coverage_by_hand() -> None:
    # Ten pairs, doubted in order; the three most doubted are wrong, and so is the second least doubted.
    gaps = [1.0, -1.0] + [1.0] * 5 + [-1.0] * 3
    found = disagreement_report(*given_pairs(gaps, list(range(10))), resamples=20).measures["deviation"]
    curve = {point.coverage: point.accuracy.mean for point in found.curve}
    expected = {
        1.0: 0.6,
        0.9: 6 / 9,
        0.8: 6 / 8,
        0.7: 6 / 7,
        0.6: 5 / 6,
        0.5: 0.8,
        0.4: 0.75,
        0.3: 2 / 3,
        0.2: 0.5,
        0.1: 1,
    }
    assert curve == pytest.approx(expected)
    # Of 24 pairs of a wrong and a right decision, 18 + 1 have the wrong one more doubted.
    assert value(found.auc) == pytest.approx((3 * 6 + 1) / 24)


def test_equal_doubts_are_kept_in_equal_parts() -> None:
    gaps = [1.0, 1.0, -1.0, 0.0]
    report = disagreement_report(*given_pairs(gaps, [0.0, 1.0, 1.0, 1.0]), resamples=20)
    curve = {point.coverage: point.accuracy.mean for point in report.measures["deviation"].curve}
    # Accuracy 1 on the first row and (1 + 0 + 1/2) / 3 on each of the other three.
    assert curve[1.0] == pytest.approx(2.5 / 4) and curve[0.5] == pytest.approx((1 + 0.5) / 2) and curve[0.1] == 1.0
    flat = report.measures["minority"]
    assert [point.accuracy.mean for point in flat.curve] == pytest.approx([2.5 / 4] * len(COVERAGES))
    assert value(flat.auc) == 0.5 and report.equal == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3)), min_size=1, max_size=12))
def test_error_auc_counts_pairs_of_decisions(data: list[tuple[int, int]]) -> None:
    rows, found = given_pairs([float(gap) for gap, _ in data], [float(doubt) for _, doubt in data])
    auc = disagreement_report(rows, found, resamples=10).measures["deviation"].auc
    wrong = [((gap < 0) + (gap == 0) / 2, doubt) for gap, doubt in data]
    duels = [(w * (1 - v), (a > b) + (a == b) / 2) for w, a in wrong for v, b in wrong if w * (1 - v)]
    if duels:
        assert value(auc) == pytest.approx(sum(n * won for n, won in duels) / sum(n for n, _ in duels))
    else:
        assert auc is None
    if duels and all(gap for gap, _ in data):
        assert value(auc) == pytest.approx(roc_auc_score([w for w, _ in wrong], [doubt for _, doubt in wrong]))


def test_disagreement_finds_errors_of_noisy_members_and_is_compared() -> None:
    rng = np.random.default_rng(0)
    texts = [f"{side}{n}" for n in range(600) for side in "cr"]
    hard = np.repeat(rng.random(600) < 0.5, 2)
    truth = np.tile([1.0, 0.0], 600)
    members = [
        Table(dict(zip(texts, truth + rng.normal(size=1200) * np.where(hard, 2.0, 0.1), strict=True))) for _ in range(4)
    ]
    rows = [pair(n, f"c{n}", f"r{n}", tie=n >= 590) for n in range(600)]
    found = evaluate_disagreement(Ensemble(members), rows, resamples=50)
    assert (found.rows, found.ties) == (590, 10)
    for name, measure in found.measures.items():
        assert value(measure.auc) > 0.65, name
        at = {point.coverage: value(point.accuracy) for point in measure.curve}
        assert at[0.5] > at[1.0] + 0.04, name
    assert [member.calls for member in members] == [1] * 4
    assert len({measure.curve[0].accuracy.mean for measure in found.measures.values()}) == 1
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["measures"].keys() == found.measures.keys()


def test_errors_are_sentences() -> None:
    member = Table({"a": 1.0, "b": 1.0, "c": 2.0})
    with pytest.raises(ConfigError, match="two members or more; got 1"):
        Ensemble([member])
    with pytest.raises(ConfigError, match="combine must be one of mean, min, mean_minus_std; got 'max'"):
        Ensemble([member] * 2, combine="max")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"k weighs the deviation .* got k=2.0 with 'mean'"):
        Ensemble([member] * 2, k=2.0)
    with pytest.raises(ConfigError, match="k must be above 0; got -1"):
        Ensemble([member] * 2, combine="mean_minus_std", k=-1)
    with pytest.raises(ConfigError, match="one scale a member; got 1 for 2"):
        Ensemble([member] * 2, scales=[Scale()])
    with pytest.raises(DataError, match=r"member 0 .* gives all 2 calibration rows the score 1"):
        Ensemble.standardised([member] * 2, asked("ab"))
    with pytest.raises(DataError, match="two rows or more to calibrate on; got 1"):
        Ensemble.standardised([member] * 2, asked("a"))
    with pytest.raises(DataError, match="all 1 pairs are ties"):
        evaluate_disagreement(Ensemble([member] * 2), [pair(1, "a", "b", tie=True)])
