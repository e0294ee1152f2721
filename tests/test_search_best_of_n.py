"""Best-of-N over the scripted engine: what is drawn, judged, scored, chosen and paid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from search.engines.scripted_engine import ScriptedEngine
from search.strategies.best_of_n import Pool, best_of_n, draw, judge, score
from verifiers.core import (
    GenerationRequest,
    Outcome,
    Problem,
    Response,
    Sampling,
    StopReason,
    Usage,
    Verdict,
    derive_seed,
)
from verifiers.errors import ConfigError, EngineError, RewardError

TEXTS = ["2+2=4\n\nSo \\boxed{4}", "It is \\boxed{4.0}", "It is \\boxed{5}", "no idea at all"]
SCRIPT = {"What is 2+2? ": TEXTS, "Größe? ": ["\\boxed{1}", "\\boxed{0.5}", "\\boxed{\\frac{1}{2}}"]}
PROBLEMS = [
    Problem(id="sum", prompt="What is 2+2? ", answer="4"),
    Problem(id="size", prompt="Größe? ", answer="1/2"),
]


class Steps:
    """Scores a step by a rule on its problem and response, and counts characters as tokens."""

    def __init__(self, table: dict[str, tuple[float, ...]]) -> None:
        self.table, self.usage = table, Usage()

    def score_steps(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        assert [p.id for p in problems] == [r.problem_id for r in responses]
        self.usage += Usage(prefill_tokens=sum(len(r.text) for r in responses), calls=1)
        return [self.table.get(r.text, ()) for r in responses]


class Judges:
    """Gives the verdict of a table; what it does not know is undecided."""

    def __init__(self, table: dict[str, float], *, lose: int = 0) -> None:
        self.table, self.lose = table, lose

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        assert [p.id for p in problems] == [r.problem_id for r in responses]
        verdicts = [
            Verdict.graded(self.table[r.text], "known") if r.text in self.table else Verdict.undecided("unknown")
            for r in responses
        ]
        return verdicts[: len(verdicts) - self.lose]


def hand_pool(texts: Sequence[str], name: str = "sum") -> Pool:
    return Pool(
        problem=Problem(id=name, prompt="What is 2+2? "),
        responses=tuple(Response(problem_id=name, text=text, sample=i) for i, text in enumerate(texts)),
    )


def test_a_pool_holds_what_the_engine_drew() -> None:
    pools = draw(PROBLEMS, engine=ScriptedEngine(SCRIPT), n=8, sampling=Sampling(), seed=3)
    assert [pool.problem for pool in pools] == PROBLEMS
    for pool in pools:
        raw = ScriptedEngine(SCRIPT).generate(
            [
                GenerationRequest(
                    prefix_ids=tuple(str(pool.problem.prompt).encode()),
                    n=8,
                    seed=derive_seed(3, pool.problem.id),
                )
            ],
            Sampling(),
        )[0]
        assert [r.token_ids for r in pool.responses] == [c.token_ids for c in raw]
        assert [r.logprobs for r in pool.responses] == [c.logprobs for c in raw]
        assert [r.sample for r in pool.responses] == list(range(8))
        assert {r.problem_id for r in pool.responses} == {pool.problem.id}
        assert {r.text for r in pool.responses} <= set(SCRIPT[str(pool.problem.prompt)])
        assert len({r.text for r in pool.responses}) > 1


def test_a_sample_depends_on_seed_problem_and_number_alone() -> None:
    def drawn(problems: Sequence[Problem], n: int, seed: int = 0, chunk: int = 64) -> dict[str, list[str]]:
        pools = draw(problems, engine=ScriptedEngine(SCRIPT), n=n, sampling=Sampling(), seed=seed, chunk=chunk)
        return {pool.problem.id: [r.text for r in pool.responses] for pool in pools}

    whole = drawn(PROBLEMS, 12)
    assert drawn(PROBLEMS[::-1], 12, chunk=1) == whole
    assert drawn(PROBLEMS, 4) == {name: texts[:4] for name, texts in whole.items()}
    assert drawn(PROBLEMS, 12, seed=1) != whole


def test_progress_counts_problems() -> None:
    seen: list[int] = []
    problems = [Problem(id=str(i), prompt="What is 2+2? ") for i in range(5)]
    draw(problems, engine=ScriptedEngine(SCRIPT), n=1, sampling=Sampling(), chunk=2, on_progress=seen.append)
    assert seen == [2, 2, 1]


def test_a_truncated_response_says_so() -> None:
    pools = draw(PROBLEMS[:1], engine=ScriptedEngine(SCRIPT), n=3, sampling=Sampling(max_new_tokens=2))
    assert {(len(r.token_ids), r.stop_reason) for r in pools[0].responses} == {(2, StopReason.LENGTH)}


def test_what_cannot_be_drawn_names_the_problem() -> None:
    with pytest.raises(EngineError, match=r"the prompt of problem 'sum' has 13 tokens, .* context holds 13"):
        draw(PROBLEMS, engine=ScriptedEngine(SCRIPT, context_length=13), n=1, sampling=Sampling())
    with pytest.raises(ConfigError, match="n must be 1 or more; got 0"):
        draw(PROBLEMS, engine=ScriptedEngine(SCRIPT), n=0, sampling=Sampling())
    with pytest.raises(ConfigError, match="at least one problem to search; got none"):
        draw([], engine=ScriptedEngine(SCRIPT), n=1, sampling=Sampling())


def test_judging_deals_verdicts_and_classes_to_their_pools() -> None:
    class Extracts:
        def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
            return [
                Verdict.undecided("silent")
                if not r.text
                else (Verdict.correct if r.text[0] == "4" else Verdict.incorrect)("", extracted=r.text)
                for r in responses
            ]

    pools = [hand_pool(["5", "4.0", "", "4", "5.0"]), hand_pool(["6", "7", "6", "4", "6"], "two")]
    judged, ledger = judge(pools, Extracts(), same=lambda a, b: float(a) == float(b))
    first, second = judged
    assert first.right == (False, True, False, True, False)
    assert first.verdicts[2].outcome is Outcome.UNDECIDED
    assert first.classes[1] == first.classes[3] != first.classes[0] == first.classes[4]
    assert first.classes[2] is None
    assert second.right == (False, False, False, True, False)
    assert len(set(second.classes)) == 3
    assert ledger.judged == 10
    assert ledger.verifier_seconds > 0
    strings = judge(pools, Extracts())[0][0]
    assert len(set(strings.classes) - {None}) == 4


def test_a_class_is_never_right_and_wrong_at_once() -> None:
    class Half:
        def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
            return [
                (Verdict.correct if i == 0 else Verdict.incorrect)("", extracted=r.text)
                for i, r in enumerate(responses)
            ]

    judged = judge([hand_pool(["0.33", "0.333", "0.3333"])], Half(), same=lambda a, b: True)[0][0]
    assert judged.classes[0] != judged.classes[1] == judged.classes[2]


def test_step_scores_are_reduced_and_paid_for() -> None:
    scorer = Steps({TEXTS[0]: (0.9, 0.5), TEXTS[1]: (0.6,)})
    scorer.usage = Usage(prefill_tokens=1000)  # paid before, by somebody else
    pools, ledger = score([hand_pool(TEXTS[:3])], scorer)
    assert pools[0].scores == {"score": (0.5, 0.6, 0.0)}
    assert (ledger.scored_tokens, ledger.scorer_calls) == (sum(map(len, TEXTS[:3])), 1)
    pools, ledger = score(pools, scorer, reduce=math.prod, name="prod", ledger=ledger)
    assert pools[0].scores == {"score": (0.5, 0.6, 0.0), "prod": pytest.approx((0.45, 0.6, 0.0))}
    assert (ledger.scored_tokens, ledger.scorer_calls) == (2 * sum(map(len, TEXTS[:3])), 2)


def test_an_undecided_verdict_is_the_lowest_of_its_own_problem() -> None:
    scorer = Judges({"a": 0.5, "b": 0.75, "c": -4.0})
    pools, _ = score([hand_pool(["a", "?", "b"]), hand_pool(["c", "?"], "two"), hand_pool(["?"], "three")], scorer)
    assert [pool.scores["score"] for pool in pools] == [(0.5, 0.5, 0.75), (-4.0, -4.0), (0.0,)]


def test_a_scorer_that_loses_a_response_is_named() -> None:
    for use in (judge, score):
        with pytest.raises(RewardError, match="one value a response; got 2 for 3 responses"):
            use([hand_pool(TEXTS[:3])], Judges({}, lose=1))  # type: ignore[operator]


@pytest.mark.parametrize("rule", ["best", "weighted", "majority", "first"])
def test_every_rule_chooses_as_it_says(rule: str) -> None:
    table = {TEXTS[0]: 0.3, TEXTS[1]: 0.2, TEXTS[2]: 0.4, TEXTS[3]: 1.0}
    scorer = Judges(table) if rule in ("best", "weighted") else None
    result = best_of_n(
        PROBLEMS[:1],
        engine=ScriptedEngine(SCRIPT),
        n=7,
        scorer=scorer,
        rule=rule,  # type: ignore[arg-type]
        seed=11,
    )
    (chosen,) = result.chosen
    drawn = [response.text for response in chosen.pool.responses]
    counts = {text: drawn.count(text) for text in TEXTS}
    assert min(counts.values()) > 0, "the seed must draw every text for this test to say anything"
    votes = {4: counts[TEXTS[0]] + counts[TEXTS[1]], 5: counts[TEXTS[2]]}
    sums = {4: 0.3 * counts[TEXTS[0]] + 0.2 * counts[TEXTS[1]], 5: 0.4 * counts[TEXTS[2]]}
    expected = {
        "first": drawn[0],
        "best": TEXTS[3],
        "majority": next(t for t in drawn if t in (TEXTS[:2] if votes[4] > votes[5] else TEXTS[2:3])),
        "weighted": TEXTS[0] if sums[4] > sums[5] else TEXTS[2],
    }
    assert votes[4] != votes[5]
    assert chosen.response is not None
    assert chosen.response.text == expected[rule]
    assert chosen.response is chosen.pool.responses[drawn.index(expected[rule])]
    assert chosen.score == (None if scorer is None else table[expected[rule]])


def test_the_ledger_is_the_engines_difference_and_the_scorers() -> None:
    engine = ScriptedEngine(SCRIPT)
    draw(PROBLEMS, engine=engine, n=2, sampling=Sampling())  # paid before
    result = best_of_n(PROBLEMS, engine=engine, n=5, scorer=Steps({}))
    texts = [r for chosen in result.chosen for r in chosen.pool.responses]
    assert result.ledger.policy == Usage(
        prefill_tokens=sum(len(str(p.prompt).encode()) for p in PROBLEMS),
        decoded_tokens=sum(len(r.token_ids) for r in texts),
        calls=1,
    )
    assert result.ledger.scored_tokens == sum(len(r.text) for r in texts)
    assert result.ledger.scorer_calls == 1
    assert best_of_n(PROBLEMS, engine=engine, n=2, rule="first").ledger.scorer_calls == 0


def test_nobody_votes_nobody_is_chosen() -> None:
    engine = ScriptedEngine({"?": ["", " "]})
    (chosen,) = best_of_n([Problem(id="x", prompt="?")], engine=engine, n=3, rule="majority").chosen
    assert (chosen.response, chosen.score) == (None, None)
    assert len(chosen.pool.responses) == 3


def test_rules_and_scorers_must_fit() -> None:
    engine = ScriptedEngine(SCRIPT)
    with pytest.raises(ConfigError, match="rule 'best' needs a scorer"):
        best_of_n(PROBLEMS, engine=engine)
    with pytest.raises(ConfigError, match="rule 'majority' uses no scorer; leave it out"):
        best_of_n(PROBLEMS, engine=engine, rule="majority", scorer=Judges({}))
    with pytest.raises(ConfigError, match="no rule 'worst'; take one of best, weighted, majority, first"):
        best_of_n(PROBLEMS, engine=engine, rule="worst")  # type: ignore[arg-type]
