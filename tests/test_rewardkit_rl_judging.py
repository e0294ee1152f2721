"""Rewards that are computed while others decode are those that would be computed afterwards, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_rewardkit_rl_loop import Even, Halves, settings

from rewardkit.rl.policy.models import Models
from rewardkit.rl.rewards.functions import RewardList, as_part
from rewardkit.rl.rewards.judging import Judging
from rewardkit.rl.rewards.scored import Scored, StepRewards
from rewardkit.rl.rewards.workers import RewardWorkers
from rewardkit.rl.sampling.collect import collect
from rewardkit.rl.sampling.drawing import Group, Order
from rewardkit.rl.sampling.sampler import engine_over
from rewardkit.rl.sampling.supply import Supply
from search.engines.scripted_engine import ScriptedEngine
from verifiers.core import Engine, GenerationRequest, Problem, Response, Sampling, Verdict
from verifiers.errors import ConfigError
from verifiers.length import GroupLength
from verifiers.streams import Finished, Rounds

PROBLEMS = [Problem(id=f"p-{n}", prompt=f"{n} ", answer=str(n)) for n in range(4)]


class Given:
    """A sampler that hands out one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def engine(self) -> Engine:
        return self._engine


class Half:
    """Undecided for every third length: unscored responses have reasons that must stay with them."""

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        return [
            Verdict.undecided("cannot tell")
            if len(r.token_ids) % 3 == 2
            else Verdict.graded(len(r.text) / 7, "so long")
            for r in responses
        ]


def function(id: Any, completions: Any, completion_ids: Any, log_metric: Any, log_extra: Any, **more: Any) -> Any:
    log_metric("rows", len(completions))
    log_extra("first", [ids[0] for ids in completion_ids])
    best: dict[str, int] = {}
    for own, text in zip(id, completions, strict=True):
        best[own] = max(best.get(own, 1), len(text))
    return [None if len(t) % 5 == 4 else len(t) / best[own] for own, t in zip(id, completions, strict=True)]


def stepped(prompts: Any, completions: Any, completion_ids: Any, **more: Any) -> Any:
    return [StepRewards((0.5, 1 / len(ids)), (0, len(ids) - 1)) for ids in completion_ids]


def reward_list(*, steps: Any = None) -> RewardList:
    even = Even()
    return RewardList(
        [
            as_part("even", even),
            as_part("length", GroupLength(correctness=even), weight=0.3),
            as_part("half", Half(), weight=0.7, optional=True),
            as_part("mine", RewardWorkers(function, in_process=True), weight=0.1, optional=True),
            steps or as_part("steps", RewardWorkers(stepped, in_process=True)),
        ],
        min_scored=0.0,
    )


def group(problem: Problem, lengths: Sequence[int]) -> Group:
    responses = tuple(
        Response(problem_id=problem.id, text="a" * n, token_ids=tuple(range(2, n + 2)), sample=k)
        for k, n in enumerate(lengths)
    )
    return Group(problem=problem, prompt_ids=(1,), responses=responses)


def at_once(rewards: RewardList, groups: Sequence[Group]) -> Scored:
    return rewards.score([g.problem for g in groups for _ in g.responses], [r for g in groups for r in g.responses])


@examples(max_examples=30, deadline=None)
@given(data=st.data())
def test_whatever_order_groups_end_in(data: st.DataObject) -> None:
    """A problem that is there twice is one group to whoever compares within a group; groups may also stay away."""
    ids = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(sorted))
    sizes = st.lists(st.integers(2, 12), min_size=2, max_size=4)
    groups = [group(PROBLEMS[n], data.draw(sizes)) for n in ids]
    come = data.draw(st.sets(st.sampled_from(range(len(groups))), min_size=1))
    rewards = reward_list()
    wanted = at_once(rewards, [g for n, g in enumerate(groups) if n in come])
    with Judging(rewards, [g.problem for g in groups]) as judging:
        for number in data.draw(st.permutations(range(len(groups)))):
            if number in come:
                judging.add(number, groups[number])
            else:
                judging.leave_out(number)
        found = judging.collect()
    groups = [g for n, g in enumerate(groups) if n in come]
    for name in ("rewards", "steps", "parts", "reasons", "counts", "extra"):
        assert getattr(found, name) == getattr(wanted, name), name
    # What a function logs is of its calls, which are others; their mean is weighted by rows.
    rows = [sum(len(g.responses) for g in groups if g.problem.id == key) for key in {g.problem.id for g in groups}]
    assert found.metrics["reward/mine/rows"] == pytest.approx(sum(n * n for n in rows) / sum(rows))
    assert {k: v for k, v in found.metrics.items() if k != "reward/mine/rows"} == {
        k: v for k, v in wanted.metrics.items() if k != "reward/mine/rows"
    }


@pytest.mark.parametrize("preset", ["grpo", "dapo"])
def test_a_step_is_the_same_with_and_without_overlap(preset: str, tiny_policy: Path, tmp_path: Path) -> None:
    """Also where groups are drawn anew; with a function in a process of its own and a model that scores steps."""
    (tmp_path / "mine.py").write_text(
        "def reward(completions, **more):\n    return [len(t) / 9 for t in completions]\n"
    )
    found = []
    more = {"rounds": 6} if preset == "dapo" else {}
    for overlap in (True, False):
        config = settings(tiny_policy, preset=preset, group=2, overlap=overlap, change=("kl=null",), **more)
        models = Models(config)
        rewards = reward_list(steps=as_part("halves", Halves(), tokenizer=models.tokenizer))
        rewards = RewardList([*rewards.parts, as_part("file", f"{tmp_path}/mine.py:reward")], min_scored=0.0)
        rewards.start()
        torch.manual_seed(0)
        try:
            engine, order = engine_over(models.policy, models.tokenizer, max_rows=3), Order(PROBLEMS, seed=2)
            supply = Supply(config, order, Given(engine))
            kept, metrics = collect(config, supply, rewards, outcome="even", step=0)
        finally:
            rewards.close()
        assert metrics.pop("seconds/reward_work") > 0
        metrics.pop("reward/mine/rows")
        found.append((kept.groups, kept.outcomes, kept.scored.rewards, kept.scored.steps, kept.scored.parts))
        found[-1] += (kept.scored.reasons, metrics, order.position)  # type: ignore[operator]
    assert found[0] == found[1]
    assert found[0][6]["draw/groups"] > 4 or preset == "grpo"  # type: ignore[index, misc]


class OneByOne(Rounds):
    """Finishes one request a call, and before the second one waits until the first one's reward is being computed."""

    def __init__(self, engine: Any, sampling: Sampling, seen: threading.Event) -> None:
        super().__init__(engine, sampling)
        self._seen, self._done = seen, 0

    def collect(self) -> list[Finished]:
        if self._done:
            assert self._seen.wait(20), "nothing was judged while this decoded"
        self._done += 1
        ticket, request = next(iter(self._requests.items()))
        del self._requests[ticket]
        return [(ticket, self._engine.generate([request], self._sampling)[0])]


class Slow(ScriptedEngine):
    """Streams one request after another."""

    seen: threading.Event

    def stream(self, sampling: Sampling, *, keep: bool = False) -> OneByOne:
        return OneByOne(self, sampling, self.seen)

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Any:
        return super().generate(requests, sampling)


def test_a_group_is_judged_while_others_decode(tiny_policy: Path) -> None:
    engine = Slow({f"{n} ": ["one", "three", "seven"] for n in range(4)})
    engine.seen = threading.Event()
    calls: list[list[str]] = []

    class Watching:
        def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
            engine.seen.set()
            calls.append([problem.id for problem in problems])
            return [Verdict.graded(1.0, "seen") for _ in responses]

    config = settings(tiny_policy, change=("kl=null",))
    rewards = RewardList([as_part("watching", Watching())])
    supply = Supply(config, Order(PROBLEMS, seed=0), Given(engine))
    collect(config, supply, rewards, outcome="watching", step=0)
    assert sorted(calls) == [[problem.id] * 4 for problem in PROBLEMS]


def test_what_the_user_must_mend_is_told(tiny_policy: Path) -> None:
    class Broken:
        def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
            raise ConfigError("no reference answer")

    engine = ScriptedEngine({f"{n} ": ["one", "two"] for n in range(4)})
    config = settings(tiny_policy, change=("kl=null",))
    rewards = RewardList([as_part("broken", Broken())])
    supply = Supply(config, Order(PROBLEMS, seed=0), Given(engine))
    with pytest.raises(ConfigError, match="no reference answer"):
        collect(config, supply, rewards, outcome="broken", step=0)
