"""Calling conventions: each trainer gets what it expects, abstention is never a 0, and callables pickle."""

from __future__ import annotations

import asyncio
import math
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.compose import Part, WeightedSum
from verifiers.core import Problem, Response, Verdict
from verifiers.errors import ConfigError, RewardError
from verifiers.interop import as_openrlhf, as_trl, as_verl, from_trl
from verifiers.length import GroupLength, SoftOverlong


class ExactMatch:
    """Right when the text is the answer; undecided without one."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        self.problems = list(problems)
        made = []
        for problem, response in zip(problems, responses, strict=True):
            if problem.answer is None:
                made.append(Verdict.undecided("there is no reference"))
            elif problem.answer == response.text:
                made.append(Verdict.correct("equal", extracted=response.text))
            else:
                made.append(Verdict.incorrect("different", extracted=response.text))
        return made


class Half:
    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        return [Verdict.graded(1.5, "much") for _ in responses]


def test_trl_as_the_trainer_calls_it() -> None:
    scorer = ExactMatch()
    metrics: dict[str, float] = {}
    columns: dict[str, list[str]] = {}
    rewards = as_trl(scorer)(
        prompts=["a", "a", "b", "b"],
        completions=["1", "2", "3", "4"],
        completion_ids=[[1], [2], [3], [4]],
        answer=["1", 1, None, "4"],
        level=[1, 1, 2, 2],
        trainer_state=object(),
        log_extra=columns.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert rewards == [1.0, 0.0, None, 1.0]
    assert metrics == {"exact_match/undecided": 0.25}
    assert columns == {"exact_match_reason": ["equal", "different", "there is no reference", "equal"]}
    assert [problem.metadata for problem in scorer.problems] == [{"level": level} for level in (1, 1, 2, 2)]
    first, second, third, _ = [problem.id for problem in scorer.problems]
    assert first == second != third


def test_trl_with_messages_and_parts() -> None:
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "1+1?"}]}]
    completions = [
        [{"role": "assistant", "content": "2"}],
        [{"role": "assistant", "content": [{"type": "text", "text": "2"}]}],
        [
            {"role": "assistant", "content": None},
            {"role": "tool", "content": "9"},
            {"role": "assistant", "content": "2"},
        ],
        [{"role": "assistant", "content": "3"}],
    ]
    scorer = ExactMatch()
    assert as_trl(scorer)(prompts=[prompt] * 4, completions=completions, answer=["2"] * 4) == [
        1.0,
        1.0,
        1.0,
        0.0,
    ]
    assert scorer.problems[0].prompt == ({"role": "user", "content": "1+1?"},)


def test_trl_passes_token_ids_and_groups() -> None:
    overlong = as_trl(SoftOverlong(limit=100, margin=20), answer_column=None)
    assert overlong(prompts=["p"], completions=["x"], completion_ids=[[1] * 90]) == [-0.5]
    group = as_trl(GroupLength(correctness=ExactMatch()))
    rewards = group(
        prompts=["p", "p", "q", "q"],
        completions=["1", "1", "1", "2"],
        completion_ids=[[1], [1] * 3, [1] * 2, [1] * 9],
        answer=["1"] * 4,
    )
    assert rewards == [0.5, -0.5, 0.5, -0.5]


def test_trl_wrong_input() -> None:
    reward = as_trl(ExactMatch(), answer_column="gold", name="math")
    with pytest.raises(RewardError) as caught:
        reward(prompts=["p"], completions=["1"], answer=["1"], level=[1])
    assert str(caught.value) == (
        "reward math needs the column 'gold' with reference answers; the data set has 'answer', 'level'; "
        "pass answer_column=..., or answer_column=None for a scorer that needs no reference"
    )
    with pytest.raises(RewardError, match="reward math got 2 answers for 1 completions"):
        reward(prompts=["p"], completions=["1"], gold=["1", "2"])


def test_verl() -> None:
    compute_score = as_verl(ExactMatch())
    extra = {"index": 3, "question": "1+1?"}
    assert compute_score("gsm8k", "2", "2", extra) == {
        "score": 1.0,
        "acc": 1.0,
        "undecided": 0.0,
        "outcome": "correct",
        "pred": "2",
    }
    wrong = compute_score(data_source="gsm8k", solution_str="3", ground_truth=2, extra_info=None, other=1)
    assert (wrong["score"], wrong["acc"]) == (0.0, 0.0)
    assert as_verl(Half())("d", "x", "y")["acc"] == 1.5
    with pytest.raises(RewardError) as caught:
        compute_score("gsm8k", "2", None)
    assert str(caught.value) == (
        "reward exact_match could not decide (there is no reference), and this convention has no way to "
        "abstain; pass undecided_score=... to choose a number for such responses"
    )
    chosen = as_verl(ExactMatch(), undecided_score=-0.25)("gsm8k", "2", None)
    assert chosen == {"score": -0.25, "acc": -0.25, "undecided": 1.0, "outcome": "undecided", "pred": ""}


def test_openrlhf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    reward = as_openrlhf(ExactMatch())
    made = reward(["<s>1+1?2", "1+1?3"], ["1+1?", "1+1?"], ["2", "2"])
    assert made == {"rewards": [1.0, 0.0], "scores": [1.0, 0.0], "extra_logs": {"undecided": 0.0}}
    clipped = as_openrlhf(Half())(["ab"], ["a"], [None])
    assert (clipped["rewards"], clipped["scores"]) == ([1.5], [1.0])
    with pytest.raises(RewardError, match="reward exact_match could not decide"):
        reward(["ab"], ["a"], [None])
    chosen = as_openrlhf(ExactMatch(), undecided_score=0.5)(["ab", "ab"], ["a", "a"], [None, "b"])
    assert (chosen["rewards"], chosen["extra_logs"]) == ([0.5, 1.0], {"undecided": 0.5})
    with pytest.raises(RewardError, match="cannot find the prompt in the query"):
        reward(["b"], ["a"], ["b"])
    with pytest.raises(RewardError, match="got 1 queries, 2 prompts and 1 labels; they must be as many"):
        reward(["b"], ["a", "a"], ["b"])


def test_openrlhf_gives_tensors_where_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeTorch:
        float32 = "float32"

        @staticmethod
        def tensor(values: list[float], dtype: str) -> tuple[str, list[float]]:
            return dtype, values

    monkeypatch.setitem(sys.modules, "torch", FakeTorch)  # type: ignore[arg-type]
    made = as_openrlhf(ExactMatch())(["ab"], ["a"], ["b"])
    assert made["rewards"] == made["scores"] == ("float32", [1.0])


@pytest.mark.parametrize("convention", [as_verl, as_openrlhf])
def test_one_at_a_time_refuses_group_rewards(convention: Any) -> None:
    total = WeightedSum(parts=(Part(name="length", scorer=GroupLength(correctness=ExactMatch())),))
    with pytest.raises(ConfigError, match="WeightedSum compares the responses of one problem"):
        convention(total)
    with pytest.raises(ConfigError, match="undecided_score must be a finite number or None; got nan"):
        convention(ExactMatch(), undecided_score=math.nan)
    with pytest.raises(ConfigError, match=r"a scorer with judge\(problems, responses\) is needed; got function"):
        convention(test_verl)


def test_callables_pickle_and_have_names() -> None:
    trl = pickle.loads(pickle.dumps(as_trl(ExactMatch(), name="math")))
    assert (trl.__name__, trl(["p"], ["1"], answer=["1"])) == ("math", [1.0])
    verl = pickle.loads(pickle.dumps(as_verl(ExactMatch())))
    assert (verl.__name__, verl("d", "1", "1")["score"]) == ("exact_match", 1.0)
    openrlhf = pickle.loads(pickle.dumps(as_openrlhf(SoftOverlong(limit=9, margin=1, unit="words"))))
    assert openrlhf.__name__ == "soft_overlong"
    back = pickle.loads(pickle.dumps(from_trl(length_reward)))
    assert [verdict.score for verdict in judge(back, "abc")] == [3.0]


def length_reward(prompts: list[Any], completions: list[Any], **kwargs: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def judge(scorer: Any, *texts: str, prompt: Any = "?", **metadata: Any) -> list[Verdict]:
    problems = [Problem(id="p", prompt=prompt, answer="a", metadata=metadata) for _ in texts]
    responses = [Response(problem_id="p", text=text, token_ids=(7,)) for text in texts]
    made: list[Verdict] = scorer.judge(problems, responses)
    return made


def test_from_trl_calls_as_trl_does() -> None:
    seen: dict[str, Any] = {}

    def reward(**kwargs: Any) -> list[float]:
        seen.update(kwargs)
        return [0.5]

    (verdict,) = judge(from_trl(reward), "hi", level=3)
    assert (verdict.score, verdict.reason) == (0.5, "reward returned 0.5")
    assert seen.pop("log_metric")("name", 1.0) is None
    assert seen.pop("log_extra")("name", [1]) is None
    assert seen == {
        "prompts": ["?"],
        "completions": ["hi"],
        "completion_ids": [[7]],
        "answer": ["a"],
        "level": [3],
        "trainer_state": None,
    }
    judge(from_trl(reward), "hi", prompt=({"role": "user", "content": "?"},))
    assert seen["completions"] == [[{"role": "assistant", "content": "hi"}]]
    assert seen["prompts"] == [[{"role": "user", "content": "?"}]]


def test_from_trl_without_kwargs_async_and_arrays() -> None:
    def bare(completions: list[str]) -> tuple[int, ...]:
        return tuple(len(completion) for completion in completions)

    async def later(completions: list[str], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        return [2.0 for _ in completions]

    assert [verdict.score for verdict in judge(from_trl(bare), "a", "bc")] == [1.0, 2.0]
    assert [verdict.score for verdict in judge(from_trl(later), "a")] == [2.0]

    async def inside_a_loop() -> list[Verdict]:
        return judge(from_trl(later), "a")

    assert [verdict.score for verdict in asyncio.run(inside_a_loop())] == [2.0]
    assert judge(from_trl(bare)) == []


def test_from_trl_right_and_wrong() -> None:
    def reward(completions: list[str]) -> list[float | None]:
        return [1.0, 0.5, 0.0, None]

    verdicts = judge(from_trl(reward, correct_from=0.5), "a", "b", "c", "d")
    assert [verdict.outcome.value for verdict in verdicts] == ["correct", "correct", "incorrect", "undecided"]
    assert [verdict.score for verdict in verdicts] == [1.0, 0.5, 0.0, None]
    assert verdicts[3].reason == "reward function reward abstained"


@pytest.mark.parametrize("value", [math.nan, math.inf, "1.0", [1.0], object])
def test_from_trl_values_that_are_no_numbers(value: object) -> None:
    def broken(completions: list[str]) -> list[Any]:
        return [1.0, value]

    with pytest.raises(RewardError) as caught:
        judge(from_trl(broken), "a", "b")
    message = (
        f"reward function broken returned {value!r} for completion 1; it must return a finite number, "
        f"or None to abstain"
    )
    assert str(caught.value) == message
    verdicts = judge(from_trl(broken, on_error="undecided"), "a", "b")
    assert [verdict.score for verdict in verdicts] == [1.0, None]
    assert (verdicts[1].reason, verdicts[1].kind) == (message, "reward_not_a_number")


def test_from_trl_exceptions_and_wrong_lengths() -> None:
    def broken(completions: list[str]) -> list[float]:
        raise KeyError("gold")

    with pytest.raises(RewardError, match=r"^reward function broken raised KeyError: 'gold'$"):
        judge(from_trl(broken), "a")
    verdicts = judge(from_trl(broken, on_error="undecided"), "a", "b")
    assert [(verdict.score, verdict.kind) for verdict in verdicts] == [(None, "reward_raised")] * 2

    def short(completions: list[str]) -> list[float]:
        return [1.0]

    for on_error in ("raise", "undecided"):
        with pytest.raises(RewardError, match=r"^reward function short returned 1 values for 2 completions; it"):
            judge(from_trl(short, on_error=on_error), "a", "b")  # type: ignore[arg-type]

    def number(completions: list[str]) -> float:
        return 1.0

    with pytest.raises(RewardError, match=r"^reward function number returned float for 1 completions; it must"):
        judge(from_trl(number), "a")


@given(texts=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=6))
def test_there_and_back_changes_nothing(texts: list[str]) -> None:
    direct = [verdict.score for verdict in judge(ExactMatch(), *texts)]
    assert [verdict.score for verdict in judge(from_trl(as_trl(ExactMatch())), *texts)] == direct


def test_importing_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; import verifiers.interop, verifiers.records, verifiers.repetition, verifiers.length; "
        "print(sorted({'torch', 'numpy', 'sympy', 'datasets', 'pyarrow', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
