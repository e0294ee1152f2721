"""Scores from the cache are those of reading everything again, whatever a search does between calls."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prm.backbone import ModelCard, start_from
from prm.cache import CachedScorer
from prm.model import ProcessModel
from verifiers.core import Problem, Response, StepScorer
from verifiers.errors import ConfigError, ModelError
from verifiers.steps import text_response

PROBLEMS = [Problem(id=f"p{n}", prompt=text) for n, text in enumerate(["One apple and two apples.\n", "Then three\n"])]
LINES = ["1 + 2 = 3.", "So the answer is 3.", "Then three more: 3 + 3 = 6.", "One apple.", "So 9."]


@pytest.fixture(scope="module")
def model(tiny_policy: Path) -> ProcessModel:
    backbone, tokenizer, _ = start_from(tiny_policy)
    torch.manual_seed(5)
    torch.nn.init.normal_(backbone.score.weight, std=0.2)
    return ProcessModel(backbone, tokenizer, ModelCard())


def response(problem: Problem, steps: list[str]) -> Response:
    return text_response(problem.id, steps)


def gap(cached: CachedScorer, asked: list[tuple[Problem, list[str]]]) -> float:
    """Greatest difference between the cache's log-odds and those of reading everything again."""
    problems = [problem for problem, _ in asked]
    responses = [response(problem, steps) for problem, steps in asked]
    pairs = zip(cached.log_odds(problems, responses), cached.model.log_odds(problems, responses), strict=True)
    return max(abs(a - b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))


def test_it_is_a_step_scorer_of_the_same_scores(model: ProcessModel) -> None:
    cached = CachedScorer(model)
    assert isinstance(cached, StepScorer)
    rows = [response(PROBLEMS[0], LINES[:n]) for n in (3, 1, 5)] + [Response(problem_id="p0", text="")]
    found = cached.score_steps([PROBLEMS[0]] * 4, rows)
    for mine, theirs in zip(found, model.score_steps([PROBLEMS[0]] * 4, rows), strict=True):
        assert list(mine) == pytest.approx(theirs, abs=1e-5)
    assert [len(row) for row in found] == [3, 1, 5, 0]


@given(seed=st.integers(0, 10**6), kept=st.sampled_from([0, 40, 150, 131_072]), width=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_any_search_branching_reordering_dropping_and_cutting_back(
    model: ProcessModel, seed: int, kept: int, width: int
) -> None:
    rng = random.Random(seed)
    cached = CachedScorer(model, kept_tokens=kept)
    beams: list[tuple[Problem, list[str]]] = [(problem, []) for problem in PROBLEMS]
    for _ in range(5):
        grown = []
        for _ in range(width):
            problem, steps = rng.choice(beams)
            kept = steps[: rng.randrange(len(steps) + 1)] if rng.random() < 0.2 else steps
            grown.append((problem, [*kept, *rng.sample(LINES, rng.choice([1, 1, 2]))]))
        rng.shuffle(grown)
        assert gap(cached, grown) <= 1e-5
        beams = [*rng.sample(grown, rng.randrange(1, len(grown) + 1)), (rng.choice(PROBLEMS), [])]


def rows_read(cached: CachedScorer, asked: list[tuple[Problem, list[str]]]) -> int:
    before = cached.usage.prefill_tokens
    assert gap(cached, asked) <= 1e-5
    return cached.usage.prefill_tokens - before


def length(model: ProcessModel, steps: list[str]) -> int:
    (row,) = model.encode([PROBLEMS[0]], [response(PROBLEMS[0], steps)])
    return len(row.ids)


def test_only_new_tokens_are_read(model: ProcessModel) -> None:
    cached = CachedScorer(model)
    one, two = (length(model, LINES[:n]) for n in (1, 2))
    assert rows_read(cached, [(PROBLEMS[0], LINES[:1])]) == one
    assert rows_read(cached, [(PROBLEMS[0], LINES[:2])]) == two - one
    # The same again, and a beginning of it: nothing.
    assert rows_read(cached, [(PROBLEMS[0], LINES[:2]), (PROBLEMS[0], LINES[:1])]) == 0
    # Two branches of the first step: each its own step.
    branches = [[LINES[0], LINES[2]], [LINES[0], LINES[3]]]
    new = sum(length(model, steps) - one for steps in branches)
    assert rows_read(cached, [(PROBLEMS[0], steps) for steps in branches]) <= new
    assert cached.skipped_tokens > 0


def test_what_is_new_to_all_rows_of_a_call_is_read_once(model: ProcessModel) -> None:
    cached = CachedScorer(model)
    prompt = PROBLEMS[0].prompt
    assert isinstance(prompt, str)
    long = Problem(id="long", prompt=prompt * 3)
    asked = [(long, [line]) for line in LINES]
    problems, responses = [p for p, _ in asked], [response(p, s) for p, s in asked]
    whole = sum(len(row.ids) for row in model.encode(problems, responses))
    shared = len(model.tokenizer(long.prompt)["input_ids"])
    assert rows_read(cached, asked) <= whole - (len(LINES) - 1) * shared
    # Twins are read once.
    assert rows_read(cached, [(PROBLEMS[1], LINES)] * 5) == len(
        model.encode([PROBLEMS[1]], [response(PROBLEMS[1], LINES)])[0].ids
    )


def test_what_was_used_longest_ago_is_given_up(model: ProcessModel) -> None:
    rows = [[line] for line in LINES[:3]]
    sizes = [length(model, row) for row in rows]
    cached = CachedScorer(model, kept_tokens=sizes[0] + sizes[2])
    for row in rows[:2]:
        assert gap(cached, [(PROBLEMS[0], row)]) <= 1e-5
    assert rows_read(cached, [(PROBLEMS[0], rows[2])]) > 0
    assert rows_read(cached, [(PROBLEMS[0], rows[2])]) == 0
    assert rows_read(cached, [(PROBLEMS[0], rows[0])]) > 0


def test_what_has_no_head_is_refused(model: ProcessModel, tiny_policy: Path) -> None:
    from transformers import AutoModelForCausalLM

    from prm.implicit import ImplicitModel

    language = AutoModelForCausalLM.from_pretrained(tiny_policy)
    implicit = ImplicitModel(language, model.tokenizer, reference=language, beta=0.1)
    with pytest.raises(ModelError, match="ImplicitModel has no head to read new tokens by"):
        CachedScorer(implicit)
    with pytest.raises(ConfigError, match="kept_tokens must be 0 or more; got -1"):
        CachedScorer(model, kept_tokens=-1)
