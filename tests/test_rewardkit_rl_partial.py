"""Responses in pieces: what is drawn in several is what is drawn at once, and each piece keeps its own weights."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_rewardkit_rl_background import ending, read_with, timeless
from test_rewardkit_rl_judging import Given
from test_rewardkit_rl_loop import PROBLEMS, distance, loop, settings, weights

from rewardkit.rl.config import RlConfig
from rewardkit.rl.loop import StepReport
from rewardkit.rl.policy.models import Models, load_language_model
from rewardkit.rl.policy.reader import Drawn
from rewardkit.rl.rewards.functions import RewardList, as_part
from rewardkit.rl.sampling.collect import collect
from rewardkit.rl.sampling.drawing import Draw, Limits, OpenGroup, Order, open_groups
from rewardkit.rl.sampling.rollouts import Rollout, first_repetition
from rewardkit.rl.sampling.sampler import engine_over, module_weights
from rewardkit.rl.sampling.supply import Supply
from search.engines.rows import RepetitionRule
from search.engines.scripted_engine import ScriptedEngine
from verifiers.core import Continuation, Problem, Response, Sampling, StopReason, Verdict
from verifiers.repetition import find_loop


def pieced(init: Path, **more: Any) -> RlConfig:
    return settings(init, **{"segment_tokens": 3, "steps": 5, "rate": 1e-2, "change": ("kl=null",), **more})


@pytest.fixture(scope="module")
def policy(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ending(tiny_policy, tmp_path_factory.mktemp("ending"))


@pytest.mark.parametrize("rule", [None, RepetitionRule(longest=3, times=2)])
def test_three_pieces_are_the_response_drawn_at_once(
    rule: RepetitionRule | None, policy: Path, tiny_tokenizer: Any
) -> None:
    engine = engine_over(load_language_model(str(policy)), tiny_tokenizer, repetition=rule)
    sampling = Sampling(max_new_tokens=24)
    opened = open_groups(engine, PROBLEMS, n=16, seed=2, stream="step 0")

    def drawn_in(piece: int) -> tuple[list[OpenGroup], int]:
        groups, draws = opened, 0
        limits = Limits(most=24, piece=piece, repetition=rule)
        while not all(group.whole for group in groups):
            draw = Draw(groups, engine=engine, stream=engine.stream(sampling), limits=limits, version=draws)
            draw.collect()
            groups, draws = draw.groups, draws + 1
        return groups, draws

    (whole, once), (cut, thrice) = drawn_in(0), drawn_in(8)
    assert (once, thrice) == (1, 3)
    reasons = set()
    for one, other in zip(whole, cut, strict=True):
        for a, b in zip(one.rollouts, other.rollouts, strict=True):
            assert a.token_ids == b.token_ids and a.stop_reason is b.stop_reason
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
            assert [piece.tokens for piece in b.pieces] == [
                min(8, len(a.token_ids) - at) for at in range(0, len(a.token_ids), 8)
            ]
            assert [piece.version for piece in b.pieces] == list(range(len(b.pieces)))
            reasons.add((a.stop_reason, len(b.pieces)))
    # Each way to end is there, in the first piece and later.
    ends = [StopReason.STOP, *([StopReason.REPETITION] if rule else [])]
    assert {(end, pieces) for end in ends for pieces in (1, 2)} | {(StopReason.LENGTH, 3)} <= reasons


@examples(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2), min_size=1, max_size=30),
    cuts=st.lists(st.integers(1, 8), min_size=30, max_size=30),
    ended=st.booleans(),
)
def test_wherever_a_response_is_cut_it_ends_at_the_same_token(ids: list[int], cuts: list[int], ended: bool) -> None:
    """An engine that looks at one piece alone: its own repetitions come before its end token, and that before a cut."""
    rule = RepetitionRule(longest=3, times=3)
    loops = (end for end in range(1, len(ids) + 1) if find_loop(ids[:end], max_period=3, min_repeats=3, min_length=1))
    at = next(loops, None)
    assert first_repetition(tuple(ids), rule) == at
    wanted = StopReason.STOP if ended else StopReason.LENGTH
    if at is not None and at < len(ids):
        ids_wanted, wanted = ids[:at], StopReason.REPETITION
    else:
        ids_wanted = ids
    found, lengths = Rollout(), iter(cuts)
    while found.stop_reason is None:
        begun = len(found.token_ids)
        piece = ids[begun : begun + next(lengths)]
        own = first_repetition(tuple(piece), rule)
        last = begun + len(piece) == len(ids)
        reason = StopReason.LENGTH
        if own is not None and not (own == len(piece) and last):
            piece, reason = piece[:own], StopReason.REPETITION
        elif last and ended:
            reason = StopReason.STOP
        drawn = Continuation(token_ids=tuple(piece), logprobs=(-1.0,) * len(piece), stop_reason=reason)
        found = found.gone_on(drawn, version=len(found.pieces), most=len(ids), rule=rule)
    assert (list(found.token_ids), found.stop_reason) == (ids_wanted, wanted)
    assert sum(piece.tokens for piece in found.pieces) == len(found.logprobs) == len(ids_wanted)
    assert Rollout.from_state(json.loads(json.dumps(found.to_state()))) == found


def test_each_piece_keeps_the_log_probabilities_of_its_own_weights(policy: Path) -> None:
    config = pieced(policy, max_new_tokens=12, prompts=6, temperature=0.9)
    own = loop(config)
    seen = [copy.deepcopy(dict(module_weights(own.models.policy)))]
    reports: list[StepReport] = []

    def on_step(report: StepReport) -> None:
        reports.append(report)
        seen.append(copy.deepcopy(dict(module_weights(own.models.policy))))

    own.run(on_step=on_step)
    old = 0
    for step, report in enumerate(reports):
        # Every piece as a row of its own, with what was told of its tokens, by the weights that drew it.
        rows: dict[int, list[tuple[Drawn, list[float]]]] = {}
        for group in report.sampled.groups:
            for response, pieces in zip(group.responses, group.pieces, strict=True):
                ids, start = response.token_ids, 0
                for piece in pieces:
                    end = start + piece.tokens
                    row = Drawn(prompt=group.prompt_ids + ids[:start], response=ids[start:end])
                    rows.setdefault(piece.version, []).append((row, list(response.logprobs[start:end])))
                    start = end
                assert start == len(ids)
        for version, given_rows in rows.items():
            read = read_with(config, seen[version], [row for row, _ in given_rows])
            now = read_with(config, seen[step], [row for row, _ in given_rows])
            for one, other, (_, told) in zip(read, now, given_rows, strict=True):
                assert one == pytest.approx(told, abs=1e-5)
                assert version == step or other != pytest.approx(told, abs=1e-5)
            old += len(given_rows) * (version < step)
        lengths = {version: sum(len(told) for _, told in own) for version, own in rows.items()}
        behind = sum((step - version) * tokens for version, tokens in lengths.items())
        assert report.metrics["draw/staleness"] == pytest.approx(behind / sum(lengths.values()))
        # What is drawn now is from these weights, whatever the rest is from.
        assert 0 < report.metrics["sampler/gap"] < 1e-5
    assert old > 20


class Right:
    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        return [Verdict.correct("yes") if len(r.text) % 2 else Verdict.incorrect("no") for r in responses]


def test_what_is_too_old_is_dropped_and_counted(tiny_policy: Path) -> None:
    """Five problems end in the first piece; the long one needs 6 pieces of 4 and may be in 3: dropped in step 3."""
    script = {f"{n} ": ["ab" if n else "x" * 22] for n in range(6)}
    problems = [Problem(id=str(n), prompt=f"{n} ", answer="") for n in range(6)]
    config = pieced(tiny_policy, prompts=6, group=2, segment_tokens=4, segment_age=2, max_new_tokens=32, epochs=2)
    supply = Supply(config, Order(problems, seed=0), Given(ScriptedEngine(script)), models=Models(config))
    rewards = RewardList([as_part("right", Right())])
    told = []
    for step in range(5):
        sampled, metrics = collect(config, supply, rewards, outcome="right", step=step)
        assert {group.problem.id for group in sampled.groups} == set("12345")
        told.append((metrics["draw/stale_dropped"], metrics["draw/put_away"], metrics["draw/kept"]))
    # Each step begins the long problem again: after step 2 there are those of steps 0 to 2, two responses each.
    assert told == [(0, 2, 5), (0, 4, 5), (0, 6, 5), (2, 6, 5), (2, 6, 5)]
    # With time for all of it, the long one is learned from in its sixth step, each piece a step younger.
    config = pieced(tiny_policy, prompts=6, group=2, segment_tokens=4, segment_age=5, max_new_tokens=32)
    supply = Supply(config, Order(problems, seed=0), Given(ScriptedEngine(script)), models=Models(config))
    for step in range(6):
        sampled, metrics = collect(config, supply, rewards, outcome="right", step=step)
        assert metrics["draw/stale_dropped"] == 0
        assert [group.problem.id for group in sampled.groups].count("0") == (step == 5)
    (long,) = (group for group in sampled.groups if group.problem.id == "0")
    assert [[(p.version, p.tokens) for p in pieces] for pieces in long.pieces] == [
        [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (5, 3)]
    ] * 2
    # 2 x (20 + 16 + 12 + 8 + 4) steps behind, over 2 x 23 tokens and 5 x 2 x 3 of this step.
    assert metrics["draw/staleness"] == pytest.approx(120 / 76)


def test_a_step_without_a_whole_group_goes_on_until_there_is_one(tiny_policy: Path) -> None:
    script = {f"{n} ": ["x" * (6 + 4 * n)] for n in range(4)}
    problems = [Problem(id=str(n), prompt=f"{n} ", answer="") for n in range(4)]
    config = pieced(tiny_policy, prompts=4, group=2, segment_tokens=2, max_new_tokens=64)
    engine = ScriptedEngine(script)
    supply = Supply(config, Order(problems, seed=0), Given(engine), models=Models(config))
    rewards = RewardList([as_part("right", Right())])
    sampled, metrics = collect(config, supply, rewards, outcome="right", step=0)
    assert [group.problem.id for group in sampled.groups] == ["0"]
    # 6 tokens and the end in pieces of 2, 2, 2 and 1; the others have 8 each by then.
    assert [piece.tokens for piece in sampled.groups[0].pieces[0]] == [2, 2, 2, 1]
    assert engine.usage.decoded_tokens == 2 * (7 + 3 * 8)
    assert supply.order.position == 4 and metrics["draw/put_away"] == 6


def test_a_filter_draws_others_for_whole_groups_alone(tiny_policy: Path) -> None:
    """Of four groups two are whole and one of them says nothing: one more is drawn for it, none for what goes on."""
    script = {"0 ": ["ab", "abc"], "1 ": ["ab"], "2 ": ["x" * 9], "3 ": ["x" * 9]}
    problems = [Problem(id=str(n), prompt=f"{n} ", answer="") for n in range(4)]
    config = pieced(tiny_policy, preset="dapo", prompts=4, group=6, segment_tokens=5, rounds=2, max_new_tokens=64)
    supply = Supply(config, Order(problems, seed=0), Given(ScriptedEngine(script)), models=Models(config))
    rewards = RewardList([as_part("right", Right())])
    sampled, metrics = collect(config, supply, rewards, outcome="right", step=0)
    (again,) = Order(problems, seed=0, position=4).take(1)
    kept = ["0"] + (["0"] if again.id == "0" else [])
    assert [group.problem.id for group in sampled.groups] == kept
    assert supply.order.position == 8
    assert metrics["draw/put_away"] == 6 * (2 + (again.id in "23"))


def test_half_finished_responses_are_in_a_checkpoint(policy: Path, tmp_path: Path) -> None:
    config = pieced(policy, prompts=6, save_steps=1, preset="dr_grpo", updates=2, change=())
    whole: list[StepReport] = []
    straight = loop(config)
    straight.run(on_step=whole.append)
    assert sum(report.metrics["draw/put_away"] for report in whole) > 20

    def keep(report: StepReport) -> None:
        if report.step == 4:
            shutil.copytree(tmp_path / "work", tmp_path / f"stopped-{report.step - 1}")

    loop(config).run(work=tmp_path / "work", on_step=keep)
    work = tmp_path / "stopped-3"
    left = json.loads((work / "step-000003" / "state.json").read_text())["state"]["supply"]["left"]
    assert any(rollout["stop"] is None and rollout["ids"] for one in left for rollout in one["rollouts"])
    found: list[StepReport] = []
    again = loop(config)
    again.run(work=work, resume=True, on_step=found.append)
    assert distance(weights(straight), weights(again)) == 0.0
    assert [timeless(one) for one in found] == [timeless(one) for one in whole[3:]]
