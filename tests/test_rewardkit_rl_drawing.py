"""The order of problems and the responses of a step depend on the seed and the position, and on nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rewardkit.rl.policy.reader import Drawn, TokenReader
from rewardkit.rl.sampling.drawing import Draw, Limits, Order, open_groups
from rewardkit.rl.sampling.sampler import engine_over
from verifiers.core import Problem, Sampling
from verifiers.errors import ConfigError

PROBLEMS = [Problem(id=f"p-{n}", prompt=f"{n} + 1 = ") for n in range(5)]
SAMPLING = Sampling(temperature=0.8, max_new_tokens=6)


def test_every_problem_comes_once_a_round_and_a_position_goes_on() -> None:
    order = Order(PROBLEMS, seed=5)
    ids = [problem.id for problem in order.take(13)]
    assert Counter(ids[:5]) == Counter(ids[5:10]) == Counter(one.id for one in PROBLEMS)
    assert ids[:5] != ids[5:10]
    assert [one.id for one in Order(PROBLEMS, seed=5, position=7).take(6)] == ids[7:13]
    assert [one.id for one in Order(PROBLEMS, seed=6).take(13)] != ids
    with pytest.raises(ConfigError, match="at least one problem"):
        Order([], seed=0)


@pytest.fixture(scope="module")
def model(tiny_policy: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)


def groups(model: Any, tokenizer: Any, problems: list[Problem], **more: Any) -> Any:
    engine = engine_over(model, tokenizer)
    opened = open_groups(engine, problems, **{"n": 3, "seed": 1, "stream": "step 0"} | more)
    limits = Limits(most=SAMPLING.max_new_tokens)
    return Draw(opened, engine=engine, stream=engine.stream(SAMPLING), limits=limits, version=0).collect()


def test_responses_depend_on_seed_step_and_problem(model: Any, tiny_tokenizer: Any) -> None:
    first = groups(model, tiny_tokenizer, PROBLEMS)
    assert [one.problem.id for one in first] == [one.id for one in PROBLEMS]
    alone = groups(model, tiny_tokenizer, PROBLEMS[2:3])
    assert [r.token_ids for r in alone[0].responses] == [r.token_ids for r in first[2].responses]
    for more in ({"seed": 2}, {"stream": "step 1"}):
        other = groups(model, tiny_tokenizer, PROBLEMS, **more)
        assert [r.token_ids for one in other for r in one.responses] != [
            r.token_ids for one in first for r in one.responses
        ]
    twice = groups(model, tiny_tokenizer, [PROBLEMS[0], PROBLEMS[1], PROBLEMS[0]])
    assert [r.token_ids for r in twice[0].responses] == [r.token_ids for r in first[0].responses]
    assert [r.token_ids for r in twice[2].responses] != [r.token_ids for r in first[0].responses]


def test_the_sampler_s_log_probabilities_are_the_trainer_s(model: Any, tiny_tokenizer: Any) -> None:
    drawn = groups(model, tiny_tokenizer, PROBLEMS)
    rows = [Drawn(prompt=one.prompt_ids, response=r.token_ids) for one in drawn for r in one.responses]
    with torch.no_grad():
        found = TokenReader(model, temperature=0.8).read(rows).logprobs
    for row, response in zip(found, (r for one in drawn for r in one.responses), strict=True):
        assert row[: len(response.token_ids)].tolist() == pytest.approx(response.logprobs, abs=1e-5)


def test_new_weights_are_drawn_from_at_once(tiny_policy: Path, tiny_tokenizer: Any) -> None:
    changing = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    before = groups(changing, tiny_tokenizer, PROBLEMS)
    with torch.no_grad():
        for parameter in changing.parameters():
            parameter.mul_(0.5)
    after = groups(changing, tiny_tokenizer, PROBLEMS)
    rows = [Drawn(prompt=one.prompt_ids, response=r.token_ids) for one in after for r in one.responses]
    with torch.no_grad():
        found = TokenReader(changing, temperature=0.8).read(rows).logprobs
    for row, response in zip(found, (r for one in after for r in one.responses), strict=True):
        assert row[: len(response.token_ids)].tolist() == pytest.approx(response.logprobs, abs=1e-5)
    assert [r.logprobs for one in before for r in one.responses] != [r.logprobs for one in after for r in one.responses]
