"""Lists of rewards: spelling, sums, what is unscored and why, models as rewards, figures; and what a batch comes to."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm.credit import response_score
from rewardkit.rl.rewards.functions import RewardList, RewardPart, as_part, reward_list
from rewardkit.rl.rewards.scored import (
    PartValues,
    Scored,
    StepRewards,
    Unscored,
    Value,
    first_details,
    require_no_failure,
    require_scored,
)
from rewardkit.rl.rewards.sources import FunctionSource, OutcomeSource, ScorerSource, StepSource, step_source
from rewardkit.rl.rewards.specs import RewardConfig, RewardSpec, parse_reward
from rewardkit.rl.rewards.workers import RewardWorkers
from verifiers.core import Outcome, Problem, Response, StopReason, Verdict
from verifiers.errors import ConfigError, DataError, MissingFileError, RewardError
from verifiers.steps import token_steps

ABSTAINS = Unscored(kind="abstained", detail="reward f returned None")
BREAKS = Unscored(kind="raised", detail="reward f raised ValueError", failed=True)


class Given:
    """A source that says what it is told to."""

    def __init__(self, *values: Value, steps: bool = False) -> None:
        self.values = values
        self.steps = steps
        self.closed = False

    def submit(self, problems: Sequence[Problem], responses: Sequence[Response]) -> Any:
        return lambda: PartValues(values=self.values)

    def close(self) -> None:
        self.closed = True


def rows(count: int, answer: str = "4") -> tuple[list[Problem], list[Response]]:
    problems = [Problem(id=f"p{n // 2}", prompt="2 + 2?", answer=answer) for n in range(count)]
    responses = [Response(problem_id=f"p{n // 2}", text=rf"\boxed{{{n}}}", sample=n) for n in range(count)]
    return problems, responses


def total(*parts: RewardPart, count: int, **settings: Any) -> Scored:
    return RewardList(parts, **settings).score(*rows(count))


def part(name: str, *values: Value, weight: float = 1.0, optional: bool = False, steps: bool = False) -> RewardPart:
    return RewardPart(name=name, source=Given(*values, steps=steps), weight=weight, optional=optional)


# -- spelling --


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("math", RewardSpec(name="math", kind="math")),
        ("length:0.1", RewardSpec(name="length", kind="length", weight=0.1)),
        ("short=length:-2e-1?", RewardSpec(name="short", kind="length", weight=-0.2, optional=True)),
        ("prm:runs/prm-0.5", RewardSpec(name="prm", kind="prm", target="runs/prm-0.5")),
        ("prm:a/b:0.5", RewardSpec(name="prm", kind="prm", target="a/b", weight=0.5)),
        ("prm-min:x=y", RewardSpec(name="prm-min", kind="prm-min", target="x=y")),
        ("judge=orm:org/model:2", RewardSpec(name="judge", kind="orm", target="org/model", weight=2.0)),
        ("orm-raw:m?", RewardSpec(name="orm-raw", kind="orm-raw", target="m", optional=True)),
        ("pack.mod:f", RewardSpec(name="f", kind="function", target="pack.mod:f")),
        ("mine=pack.mod:f:.5", RewardSpec(name="mine", kind="function", target="pack.mod:f", weight=0.5)),
        (" math ", RewardSpec(name="math", kind="math")),
    ],
)
def test_spellings(text: str, spec: RewardSpec) -> None:
    assert parse_reward(text) == spec


def test_a_file_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text("")
    found = parse_reward(f"{tmp_path}/my_rewards.py:reward:0.3")
    assert (found.name, found.kind, found.weight) == ("reward", "function", 0.3)
    with pytest.raises(MissingFileError, match="there is no file"):
        parse_reward("other_rewards.py:reward")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("maths", r"there is no reward 'maths'; take one of math, box, length, repetition, file\.py:function"),
        ("math:0", "reward 'math:0' needs a weight other than 0"),
        ("prm", "there is no reward 'prm'|names no model"),
        ("prm:0.5", "the reward 'prm:0.5' names no model; write prm:PATH"),
        ("math:fast", "is neither a .py file nor the dotted name|there is no reward|No module"),
        ("", "there is no reward ''"),
        ("my rewards:f", "is neither a .py file nor the dotted name of a module"),
    ],
)
def test_misspellings_in_one_sentence(text: str, said: str) -> None:
    if text == "math:fast":  # a module named math may have a function named so: it is found out when it is loaded
        assert parse_reward(text).kind == "function"
        return
    with pytest.raises(ConfigError, match=said) as caught:
        parse_reward(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rewards": ()}, "rewards must name at least one"),
        ({"rewards": ("math", "math:0.5")}, "two rewards are named 'math'"),
        ({"rewards": ("math", "prm:a", "second=prm:b")}, "two process reward models for steps"),
        ({"min_scored": 1.5}, "min_scored must be a share"),
        ({"on_error": "ignore"}, "on_error must be 'unscored' or 'raise'"),
        ({"reward_workers": 2}, "reward_workers=2 has no effect: no reward is a function"),
        ({"rewards": ("m:f",), "reward_workers": 0}, "reward_workers must be 1 or more"),
        ({"rewards": ("m:f",), "reward_timeout": 0.0}, "reward_timeout must be above 0"),
        ({"rewards": ("nothing",)}, "there is no reward 'nothing'"),
    ],
)
def test_configs_are_checked_before_anything_is_loaded(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RewardConfig(**settings)


def test_specs_and_types_load_no_torch() -> None:
    code = (
        "import sys, rewardkit.rl.rewards.scored, rewardkit.rl.rewards.specs, rewardkit.rl.rewards.workers\n"
        "print(sorted({'torch', 'numpy', 'transformers'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -- sums --


def test_weighted_sums_by_hand() -> None:
    found = total(part("a", 1.0, 0.0, 0.5), part("b", 2.0, -1.0, 4.0, weight=0.25), count=3)
    assert found.rewards == (1.5, -0.25, 1.5)
    assert found.reasons == (None, None, None) and found.counts == {} and found.steps is None
    assert found.parts == {"a": (1.0, 0.0, 0.5), "b": (2.0, -1.0, 4.0)}
    assert found.metrics["reward/mean"] == pytest.approx(11 / 12)
    assert found.metrics["reward/a/mean"] == 0.5
    assert found.metrics["reward/a/std"] == pytest.approx(math.sqrt(1 / 6))
    assert found.metrics["reward/b/unscored"] == 0.0


def test_an_unscored_part_leaves_the_response_unscored() -> None:
    found = total(part("a", 1.0, 0.0, 0.5), part("f", 2.0, ABSTAINS, BREAKS), count=3, min_scored=0.3)
    assert found.rewards == (3.0, None, None) and found.reasons == (None, ABSTAINS, BREAKS)
    assert found.counts == {"f/abstained": 1, "f/raised": 1}
    assert found.metrics["reward/f/unscored"] == pytest.approx(2 / 3)
    assert found.metrics["reward/f/abstained"] == 1.0 and found.metrics["reward/unscored"] == pytest.approx(2 / 3)
    assert found.metrics["reward/f/mean"] == 2.0  # of what is scored, never with a 0 in its place
    assert found.scored == 1
    assert found.with_nan()[0] == 3.0 and all(map(math.isnan, found.with_nan()[1:]))


def test_an_optional_part_is_left_out_of_the_sum() -> None:
    found = total(part("a", 1.0, ABSTAINS), part("f", ABSTAINS, 2.0, optional=True), count=2)
    assert found.rewards == (1.0, None)  # the other way round it is not optional
    alone = total(part("f", ABSTAINS, 2.0, optional=True), count=2)
    assert alone.rewards == (None, 2.0) and alone.reasons[0] == ABSTAINS
    assert found.counts == {"f/abstained": 1, "a/abstained": 1}


@given(st.lists(st.one_of(st.floats(-5, 5), st.just(ABSTAINS)), min_size=1, max_size=8), st.floats(0, 1))
def test_the_run_goes_on_while_enough_is_scored(values: list[Value], share: float) -> None:
    scored = sum(not isinstance(value, Unscored) for value in values)
    rewards = RewardList([part("f", *values)], min_scored=share)
    if scored < share * len(values):
        with pytest.raises(RewardError, match=f"only {scored} of {len(values)} responses got a reward"):
            rewards.score(*rows(len(values)))
    else:
        assert rewards.score(*rows(len(values))).scored == scored


def test_too_few_rewards_are_explained_in_one_sentence() -> None:
    with pytest.raises(RewardError) as caught:
        total(part("f", BREAKS, ABSTAINS, BREAKS, 1.0), count=4)
    assert str(caught.value) == (
        "only 1 of 4 responses got a reward, fewer than min_scored=0.5 asks for (2 x reward f raised ValueError; "
        "1 x reward f returned None); mend the reward, or lower min_scored"
    )
    assert first_details([ABSTAINS, None, BREAKS], most=1).endswith("; and 1 more reasons")
    require_scored([], share=1.0)


def test_on_error_raise_ends_at_failures_and_not_at_abstentions() -> None:
    assert total(part("f", 1.0, ABSTAINS), count=2, on_error="raise").rewards == (1.0, None)
    with pytest.raises(RewardError, match=r"reward f raised ValueError \(on_error='unscored'"):
        total(part("f", 1.0, BREAKS), count=2, on_error="raise")
    require_no_failure([1.0, ABSTAINS])


# -- steps --


def test_steps_stand_beside_the_sum() -> None:
    steps = (StepRewards((0.5, 0.25), (1, 3)), ABSTAINS, StepRewards((), ()))
    found = total(part("math", 1.0, 0.0, 1.0), part("prm", *steps, weight=2.0, steps=True), count=3)
    assert found.rewards == (1.0, 0.0, 1.0)
    assert found.steps == (StepRewards((1.0, 0.5), (1, 3)), None, StepRewards((), ()))
    assert found.parts["prm"] == (0.25, None, None)
    assert found.counts == {"prm/abstained": 1}


def test_steps_alone_give_their_last_value() -> None:
    steps = (StepRewards((0.5, 0.25), (1, 3)), ABSTAINS, StepRewards((), ()))
    found = total(part("prm", *steps, weight=2.0, steps=True), count=3, min_scored=0.0)
    assert found.rewards == (0.5, None, None)
    assert [reason and reason.kind for reason in found.reasons] == [None, "abstained", "no_steps"]


def test_a_function_may_turn_out_to_score_steps() -> None:
    found = total(part("f", 1.0, StepRewards((0.5,), (0,))), part("math", 0.0, 1.0), count=2)
    assert found.rewards == (1.0, 1.0) and found.steps == (None, StepRewards((0.5,), (0,)))
    two = [part("f", StepRewards((0.5,), (0,))), part("g", StepRewards((0.5,), (0,)))]
    with pytest.raises(RewardError, match="'f' and 'g' both scored the steps"):
        total(*two, count=1)
    with pytest.raises(ConfigError, match="two rewards score steps"):
        RewardList([part("f", steps=True), part("g", steps=True)])


@pytest.mark.parametrize(
    ("values", "ends", "fault"),
    [
        ((0.5, 0.6), (0, 2), ""),
        ((), (), ""),
        ([0.5], [2], ""),
        ((0.5,), (0, 2), "1 values for 2 ends"),
        ((0.5, 0.5), (2, 2), "ends that do not rise from 0: [2, 2]"),
        ((0.5,), (-1,), "ends that do not rise from 0: [-1]"),
        ((0.5,), (3,), "the end 3 in a response of 3 tokens"),
        ((0.5,), (1.0,), "ends that are no whole numbers: [1.0]"),
        ((math.inf,), (1,), "values that are no finite numbers up to 1e+18: [inf]"),
        (("a",), (1,), "values that are no finite numbers up to 1e+18: ['a']"),
    ],
)
def test_faults_of_step_rewards(values: Any, ends: Any, fault: str) -> None:
    assert StepRewards(values, ends).fault(3) == fault


# -- verifiers --


def test_undecided_is_unscored_with_the_verdicts_kind() -> None:
    problems, responses = rows(6)
    problems[0] = replace(problems[0], answer="")
    rewards = reward_list(RewardConfig(rewards=("math", "box:0.1")), tokenizer=None)
    found = rewards.score(problems, responses)
    rewards.close()
    reason = found.reasons[0]
    assert found.rewards[0] is None and reason is not None and not reason.failed
    assert reason.detail.startswith("reward math cannot tell: ") and found.counts == {f"math/{reason.kind}": 1}
    assert found.rewards[1:] == (0.1, 0.1, 0.1, 1.1, 0.1)
    assert rewards.about == "1 x math + 0.1 x box" and not rewards.has_steps


def test_length_is_relative_to_the_problem_and_shares_the_verdict() -> None:
    rewards = reward_list(RewardConfig(rewards=("math", "length:0.5", "repetition")), tokenizer=None)
    shared = [one.source.scorer for one in rewards.parts if isinstance(one.source, ScorerSource)]
    assert shared[1].correctness is shared[0]  # type: ignore[attr-defined]
    problem = Problem(id="p", prompt="2 + 2?", answer="4")
    ids = [(1, 2), (1, 2, 3), (1, 2, 3, 4)]
    responses = [Response(problem_id="p", text=r"\boxed{4}", token_ids=row, sample=n) for n, row in enumerate(ids)]
    assert rewards.score([problem] * 3, responses).rewards == (1.25, 1.0, 0.75)
    rewards.close()


def test_a_missing_reference_is_the_users_to_mend() -> None:
    problems, responses = rows(2)
    rewards = RewardList([as_part("math", __import__("verifiers").MathVerifier())])
    with pytest.raises(ConfigError, match="has no reference answer"):
        rewards.score([replace(problem, answer=None) for problem in problems], responses)


class Odd:
    """A scorer that breaks its contract."""

    def __init__(self, what: str) -> None:
        self.what = what

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        if self.what == "raise":
            raise KeyError("oops")
        if self.what == "short":
            return []
        score = math.nan if self.what == "nan" else 0.5
        return [Verdict(outcome=Outcome.GRADED, score=score, reason="") for _ in responses]


@pytest.mark.parametrize("what", ["raise", "short", "nan"])
def test_scorers_that_break_are_unscored_and_named(what: str) -> None:
    found = RewardList([as_part("odd", Odd(what))], min_scored=0.0).score(*rows(2))
    assert found.rewards == (None, None) and found.counts == {"odd/raised": 2}
    assert found.reasons[0] is not None and found.reasons[0].failed and "odd" in found.reasons[0].detail


# -- models --


class Scores:
    """An outcome model and step scorer in one: numbers from the text; it can read ten characters at most."""

    reduction = "last"

    def score_rows(self, rows_: Sequence[tuple[Problem, Response, str]]) -> list[float]:
        for _, response, _ in rows_:
            if len(response.text) > 10:
                raise DataError(f"response {response.sample} is too long")
        return [float(response.text) for _, response, _ in rows_]

    def graded(self, scores: Sequence[float]) -> list[float]:
        return [1 / (1 + math.exp(-score)) for score in scores]


def texts(*given_: str) -> tuple[list[Problem], list[Response]]:
    problems = [Problem(id="p", prompt="ask") for _ in given_]
    return problems, [Response(problem_id="p", text=text, sample=n) for n, text in enumerate(given_)]


def test_outcome_models_raw_and_graded() -> None:
    raw = OutcomeSource(name="orm", model=Scores(), graded=False)
    values = raw.submit(*texts("1.5", "2", "12345678.901", "nan"))().values
    assert values[:2] == (1.5, 2.0)
    assert isinstance(values[2], Unscored) and values[2].kind == "unreadable"
    assert values[2].detail == "reward orm cannot read a response: response 2 is too long"
    assert isinstance(values[3], Unscored) and values[3].kind == "not_a_number"
    graded = RewardList([as_part("orm", Scores())]).score(*texts("0", "2"))
    assert graded.rewards == pytest.approx((0.5, 1 / (1 + math.exp(-2))))


class Steps:
    """A step scorer that gives out what it holds."""

    def __init__(self, *scores: tuple[float, ...]) -> None:
        self.scores = scores
        self.asked: list[Response] = []

    def score_steps(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[tuple[float, ...]]:
        self.asked += responses
        return list(self.scores)


def test_step_scores_get_the_ends_of_the_policys_tokens(tiny_tokenizer: Any) -> None:
    whole = "One: 1 + 1 = 2.\n\nTwo: 2 + 2 = 4."
    ids = tuple(tiny_tokenizer(whole)["input_ids"])
    finished = Response(problem_id="p", text=whole, token_ids=(*ids, tiny_tokenizer.eos_token_id))
    cut = Response(problem_id="p", text=whole, token_ids=ids[:-3], stop_reason=StopReason.LENGTH)
    problem = Problem(id="p", prompt="ask")
    source = StepSource(name="prm", scorer=Steps((0.5, 0.75), (0.5, 0.25)), tokenizer=tiny_tokenizer)
    one, two = source.submit([problem] * 2, [finished, cut])().values
    spans = token_steps(tiny_tokenizer, finished, finished.token_ids)
    assert one == StepRewards((0.5, 0.75), (spans[0].token_end - 1, len(ids) - 1))
    assert two == StepRewards((0.5, 0.25), (spans[0].token_end - 1, len(ids) - 4))
    (wrong,) = StepSource(name="prm", scorer=Steps((0.5,)), tokenizer=tiny_tokenizer).submit([problem], [cut])().values
    assert isinstance(wrong, Unscored) and wrong.kind == "bad_steps" and "scored 1 steps where" in wrong.detail
    (lost,) = (
        StepSource(name="prm", scorer=Steps((math.nan, 1)), tokenizer=tiny_tokenizer).submit([problem], [cut])().values
    )
    assert isinstance(lost, Unscored) and lost.kind == "not_a_number"
    for reduction, score in (("min", 0.25), ("last", 0.25), ("mean", 0.375), ("product", 0.125)):
        made = as_part("prm", Steps((0.5, 0.25)), tokenizer=tiny_tokenizer, reduction=reduction)  # type: ignore[arg-type]
        assert not made.source.steps and made.source.submit([problem], [cut])().values == (score,)


@pytest.mark.slow
def test_the_shipped_step_scorer_as_a_reward(
    playground_prm: Path, playground_policy: Path, tiny_tokenizer: Any
) -> None:
    from prm.model import ProcessModel
    from rewardkit.playground import problems
    from verifiers.checkpoints import load_tokenizer

    asked = problems(3)
    tokenizer = load_tokenizer(playground_policy)
    text = "Part: 3 * 6 = 18.\n\nApples: 14 + 18 = 32. \\boxed{32}"
    ids = (*tokenizer(text)["input_ids"], tokenizer.eos_token_id)
    responses = [Response(problem_id=one.id, text=text, token_ids=ids) for one in asked]
    scores = ProcessModel.load(playground_prm).score_steps(asked, responses)
    spans = token_steps(tokenizer, responses[0], ids)
    config = RewardConfig(rewards=("math", f"prm:{playground_prm}"))
    found = reward_list(config, tokenizer=tokenizer).score(asked, responses)
    assert found.steps is not None
    for one, own in zip(found.steps, scores, strict=True):
        assert one is not None and one.values == pytest.approx(own, abs=1e-6)
        assert one.ends == (spans[0].token_end - 1, len(ids) - 2) and one.fault(len(ids)) == ""
    low = reward_list(RewardConfig(rewards=(f"prm-min:{playground_prm}:2",)), tokenizer=tokenizer)
    assert low.score(asked, responses).rewards == pytest.approx([2 * response_score(own) for own in scores], abs=1e-6)
    # A policy with another tokenizer: its ids mean nothing to the scorer, which reads the text; ends are the policy's.
    foreign = (*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id)
    others = [replace(response, token_ids=foreign) for response in responses]
    source = step_source("prm", ProcessModel.load(playground_prm), tiny_tokenizer)
    for value, own in zip(source.submit(asked, others)().values, scores, strict=True):
        assert isinstance(value, StepRewards) and value.values == pytest.approx(own, abs=1e-5)
        assert value.ends[-1] == len(foreign) - 2


# -- functions in the list, and the list itself --

FUNCTIONS = """
from rewardkit.rl.rewards.scored import StepRewards

def even(completions, log_metric, log_extra, **columns):
    log_metric("seen", len(completions))
    log_extra("text", completions)
    return [None if "9" in text else float("2" in text) for text in completions]

def hangs(completions, **columns):
    while True:
        pass

def ends(completions, completion_ids, **columns):
    return [StepRewards([1.0], [len(ids) - 1]) for ids in completion_ids]
"""


def test_functions_by_name(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)
    config = RewardConfig(rewards=("math", f"two={tmp_path}/my_rewards.py:even:0.5"), reward_timeout=20.0)
    rewards = reward_list(config, tokenizer=None)
    rewards.start()
    pending = rewards.submit(*rows(6))
    found = pending.collect()
    assert found.rewards == (0.0, 0.0, 0.5, 0.0, 1.0, 0.0)
    assert found.metrics["reward/two/seen"] == 6.0
    assert found.extra["two/text"][2] == r"\boxed{2}"
    assert rewards.about == ("1 x math + 0.5 x two; two: 1 process, killed after 20 s or at 8192 MiB")
    rewards.close()


def test_a_hanging_function_ends_by_the_setting(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)
    workers = RewardWorkers(f"{tmp_path}/my_rewards.py:hangs", timeout_s=0.3)
    workers.start()
    parts = [part("a", 1.0, 1.0), as_part("hangs", workers, optional=True)]
    found = RewardList(parts).score(*rows(2))
    assert found.rewards == (1.0, 1.0) and found.counts == {"hangs/timeout": 2}
    with pytest.raises(RewardError, match=r"did not return within 0\.3 s and was killed"):
        RewardList(parts, on_error="raise").score(*rows(2))
    with pytest.raises(RewardError, match="only 0 of 2 responses got a reward"):
        RewardList([parts[0], replace(parts[1], optional=False)]).score(*rows(2))
    workers.close()


def test_what_can_be_a_part(tmp_path: Path, tiny_tokenizer: Any) -> None:
    (tmp_path / "my_rewards.py").write_text(FUNCTIONS)
    assert isinstance(as_part("a", f"{tmp_path}/my_rewards.py:even").source, FunctionSource)
    assert isinstance(as_part("a", Odd("")).source, ScorerSource)
    assert isinstance(as_part("a", Scores()).source, OutcomeSource)
    assert as_part("a", Steps(), tokenizer=tiny_tokenizer).source.steps
    with pytest.raises(ConfigError, match="needs the policy's tokenizer"):
        as_part("a", Steps())
    with pytest.raises(ConfigError, match="is a int, which is no function"):
        as_part("a", 3)
    with pytest.raises(ConfigError, match="reduction='min' has no effect on reward 'a'"):
        as_part("a", Odd(""), reduction="min")
    with pytest.raises(ConfigError, match="needs a weight other than 0; got nan"):
        part("a", weight=math.nan)


def test_the_list_is_checked_and_closed() -> None:
    with pytest.raises(ConfigError, match="at least one reward"):
        RewardList([])
    with pytest.raises(ConfigError, match="two rewards are named 'a'"):
        RewardList([part("a"), part("a")])
    with pytest.raises(ConfigError, match="got 2 problems and 1 responses"):
        RewardList([part("a", 1.0)]).submit(rows(2)[0], rows(1)[1])
    source = Given(1.0)
    rewards = RewardList([RewardPart(name="a", source=source)])
    rewards.close()
    assert source.closed
    empty = RewardList([part("a")]).score([], [])
    assert empty.rewards == () and empty.metrics["reward/unscored"] == 0.0
