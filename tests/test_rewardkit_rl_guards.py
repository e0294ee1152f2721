"""Guards: each alarm rings when it should and only then, the AUC against a brute force, fallback, state."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from rewardkit.rl.credit.guards import GuardConfig, GuardReport, Guards, auc_of, blank, pair_counts, repeats
from verifiers.errors import ConfigError

GOOD = "One: 1 + 1 = 2.\n\nTwo: 2 + 2 = 4."


def see(guards: Guards, **changes: Any) -> GuardReport:
    """A training step with two healthy responses to each of two problems, but for `changes`."""
    given_: dict[str, Any] = {
        "texts": [GOOD] * 4,
        "lengths": [20] * 4,
        "groups": ["a", "a", "b", "b"],
        "rewards": [1.0, 0.0, 1.0, 0.0],
    }
    return guards.observe(**given_ | changes)


def names(report: GuardReport) -> list[str]:
    return [alarm.name for alarm in report.alarms]


def small(**settings: Any) -> Guards:
    return Guards(GuardConfig(**{"reference": 2, "recent": 2, **settings}))


def test_a_healthy_run_is_silent() -> None:
    guards = Guards()
    for step in range(60):
        report = see(guards, last_scores=[0.9, 0.1 + step / 1000, 0.8, 0.3])
        assert report.alarms == () and report.trusted
    assert report.metrics["guard/length_ratio"] == 1.0
    assert report.metrics["guard/step_count_ratio"] == 1.0
    assert report.metrics["guard/step_auc"] == 1.0
    assert report.metrics["guard/step_pairs"] == 40.0
    assert report.metrics["guard/alarms"] == 0.0


def test_length_drift_rings_at_its_ratio_and_not_before() -> None:
    guards = small(drift=1.5)
    for _ in range(2):
        assert "guard/length_ratio" not in see(guards).metrics
    assert "guard/length_ratio" not in see(guards, lengths=[30] * 4).metrics  # recent has one step of two
    report = see(guards, lengths=[30] * 4)
    assert report.metrics["guard/length_ratio"] == 1.5 and report.alarms == ()
    report = see(guards, lengths=[31] * 4)
    assert report.metrics["guard/length_ratio"] == pytest.approx(30.5 / 20)
    assert names(report) == ["length_drift"] and report.alarms[0].new
    assert "1.52 times" in report.alarms[0].message
    assert not see(guards, lengths=[31] * 4).alarms[0].new
    assert see(guards, lengths=[20] * 4).alarms == ()  # mean 25.5
    assert names(see(guards, lengths=[8] * 4)) == []  # mean 14
    assert names(see(guards, lengths=[5] * 4)) == ["length_drift"]  # too short is a drift, too


def test_step_counts_drift_by_themselves() -> None:
    guards = small()
    many = "\n\n".join(f"Step {n}." for n in range(4))
    for _ in range(2):
        see(guards)
    for _ in range(2):
        report = see(guards, texts=[many] * 4)
    assert names(report) == ["step_count_drift"]
    assert report.metrics["guard/step_count"] == 4.0 and report.metrics["guard/step_count_ratio"] == 2.0


def test_repeated_steps_are_found() -> None:
    assert repeats(["One is  1.", "two", "one IS 1."])
    assert not repeats(["One is 1.", "One is 2."]) and not repeats([])
    guards = small(repeated=0.5)
    again = "Good step.\n\nGood step."
    assert names(see(guards, texts=[again, GOOD, GOOD, GOOD])) == []
    report = see(guards, texts=[again, GOOD, again, GOOD])
    assert report.metrics["guard/repeated_steps"] == 0.5 and names(report) == ["repeated_steps"]


@pytest.mark.parametrize(
    ("steps", "found"),
    [([], True), (["---"], True), (["...", "So 4."], True), (["...", "So", "4."], False), (["One"], False)],
)
def test_separators_only(steps: list[str], found: bool) -> None:
    assert blank(steps) is found


def test_separators_only_in_texts() -> None:
    report = see(small(separators=0.25), texts=["\n\n\n\n \n\n", GOOD, GOOD, GOOD])
    assert report.metrics["guard/separators_only"] == 0.25 and names(report) == ["separators_only"]
    other = Guards(GuardConfig(separators=1.0), separator=";")
    assert see(other, texts=[";;;", "a;b", "-;", "c"]).metrics["guard/separators_only"] == 0.5


ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.5, 1.0, None]), st.sampled_from([0.1, 0.2, 0.3, None])),
    max_size=14,
)


@given(ROWS)
def test_pairs_against_a_brute_force(rows: list[tuple[int, float | None, float | None]]) -> None:
    won = pairs = 0.0
    for (g, r, s), (h, q, t) in itertools.permutations(rows, 2):
        if g == h and None not in (r, s, q, t) and r > q:  # type: ignore[operator]
            pairs += 1
            won += 1.0 if s > t else 0.5 if s == t else 0.0  # type: ignore[operator]
    counts = pair_counts(*map(list, zip(*rows, strict=True))) if rows else pair_counts([], [], [])
    assert sum(count for _, count in counts) == pairs
    assert sum(one for one, _ in counts) == won
    found = auc_of(counts)
    assert (found is None) is (pairs == 0)
    if found is not None:
        assert found.auc == pytest.approx(won / pairs) and found.low <= found.auc + 1e-9 and found.high >= found.low


def test_one_group_is_the_usual_auc() -> None:
    outcomes, scores = [1, 0, 1, 0, 0, 1], [0.7, 0.6, 0.5, 0.5, 0.2, 0.9]
    found = auc_of(pair_counts([0] * 6, [float(o) for o in outcomes], scores))
    assert found is not None and found.auc == pytest.approx(roc_auc_score(outcomes, scores))
    # Pooled over two problems of different difficulty the same scores look better than they are.
    within = auc_of(pair_counts([0, 0, 1, 1], [1.0, 0.0, 0.0, 1.0], [0.9, 0.8, 0.2, 0.1]))
    assert within is not None and within.auc == 0.5 and within.pairs == 2


def blind(guards: Guards, share: float, steps: int = 5) -> GuardReport:
    """Training steps of ten groups of two, in which the scorer is right in a share of them."""
    groups = [n // 2 for n in range(20)]
    scores = [s for n in range(10) for s in ((0.9, 0.1) if n < share * 10 else (0.1, 0.9))]
    for _ in range(steps):
        report = see(
            guards,
            texts=[GOOD] * 20,
            lengths=[20] * 20,
            groups=groups,
            rewards=[1.0, 0.0] * 10,
            last_scores=scores,
        )
    return report


def test_a_blind_scorer_falls_back_and_comes_back_with_hysteresis() -> None:
    guards = small(auc_window=5, auc_pairs=20, auc_floor=0.55, auc_back=0.75)
    assert guards.lam(0.5) == 0.5
    report = blind(guards, 0.7)
    assert report.trusted and report.metrics["guard/step_auc"] == pytest.approx(0.7)
    assert report.metrics["guard/step_auc_low"] < 0.7 < report.metrics["guard/step_auc_high"]
    report = blind(guards, 0.5)
    assert not report.trusted and guards.lam(0.5) == 1.0
    assert names(report) == ["step_scorer"] and "below 0.75" in report.alarms[0].message
    assert not blind(guards, 0.7).trusted  # above the floor, below the mark to come back
    report = blind(guards, 0.8)
    assert report.trusted and guards.lam(0.5) == 0.5 and report.alarms == ()
    assert blind(guards, 0.7).trusted


def test_too_few_pairs_say_nothing_and_change_nothing() -> None:
    guards = small(auc_pairs=100, auc_window=5)
    report = blind(guards, 0.0)
    assert report.trusted and report.alarms == () and report.metrics["guard/step_auc"] == 0.0
    assert report.metrics["guard/step_pairs"] == 50.0
    fallen = small(auc_pairs=20, auc_window=2)
    blind(fallen, 0.0)
    unscored = [see(fallen, last_scores=[None] * 4) for _ in range(3)][-1]
    assert not unscored.trusted and names(unscored) == ["step_scorer"]


def test_reward_collapse_rings_within_a_few_steps() -> None:
    guards = small()
    rings = []
    for reward in [0.4] * 10 + [0.5] * 10 + [0.02] * 5:
        rings.append("reward_collapse" in names(see(guards, rewards=[reward, reward, None, None])))
    # best ten-step mean .5; means of three: .34, .18 (below .25), .02
    assert rings == [False] * 21 + [True] * 4
    assert see(guards, rewards=[None] * 4).metrics["guard/best_reward"] == pytest.approx(0.5)


def test_no_collapse_before_ten_steps_nor_of_a_reward_that_was_never_above_zero() -> None:
    guards = small()
    for reward in [1.0] * 9 + [0.0]:
        report = see(guards, rewards=[reward] * 4)
    assert report.alarms == ()  # mean of the last three is 2/3
    negative = small()
    for reward in [-0.1] * 10 + [-5.0] * 10:
        report = see(negative, rewards=[reward] * 4)
    assert "reward_collapse" not in names(report)


def run(guards: Guards, steps: Sequence[int]) -> list[GuardReport]:
    return [
        see(
            guards,
            lengths=[20 + n] * 4,
            rewards=[1.0 / (1 + n), 0.0, 0.0, 1.0],
            last_scores=[0.1 * n % 1, 0.5, 0.4, 0.3],
        )
        for n in steps
    ]


def test_a_state_goes_through_json_and_goes_on_exactly() -> None:
    settings: dict[str, Any] = {"reference": 3, "recent": 3, "auc_pairs": 2, "auc_window": 4, "drift": 1.1}
    straight = Guards(GuardConfig(**settings))
    expected = run(straight, range(20))
    assert any(report.alarms for report in expected)
    for stop in (0, 1, 2, 3, 5, 11):
        first = Guards(GuardConfig(**settings))
        run(first, range(stop))
        second = Guards(GuardConfig(**settings))
        second.from_state(json.loads(json.dumps(first.to_state())))
        assert run(second, range(stop, 20)) == expected[stop:]
        assert second.to_state() == straight.to_state()


def test_a_state_is_a_copy() -> None:
    guards = small()
    run(guards, range(4))
    state = guards.to_state()
    kept = json.dumps(state)
    run(guards, range(4))
    assert json.dumps(state) == kept


def test_an_empty_batch_is_survived() -> None:
    report = Guards().observe(texts=[], lengths=[], groups=[], rewards=[], last_scores=[])
    assert report.alarms == ()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"reference": 0}, "reference must be 1 or more"),
        ({"drift": 1.0}, "drift must be a ratio above 1"),
        ({"collapse": 0.0}, "collapse must be a share"),
        ({"auc_floor": 0.7}, "auc_floor <= auc_back"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GuardConfig(**settings)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ConfigError, match="got 4, 3, 4 and 4"):
        see(Guards(), lengths=[1, 2, 3])
    with pytest.raises(ConfigError, match="no state of the guards"):
        Guards().from_state({"lengths": {}})
