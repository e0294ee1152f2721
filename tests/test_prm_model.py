"""ProcessModel: one pass over all steps gives what step-by-step scoring would, whatever the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prm.backbone import ModelCard, encode_steps, start_from
from prm.model import ProcessModel
from verifiers.core import Problem, Response, StepScorer
from verifiers.errors import ConfigError, DataError
from verifiers.steps import text_response

PROMPTS = ["One apple and two apples.\n", "Then three more: 1 + 2 = 3.\n", "Two\n", "One\n"]
STEPS = [
    ["Then: 1 + 2 = 3.", "So 3 + 3 = 6.", "The answer is \\boxed{6}"],
    ["The answer is \\boxed{3}"],
    ["1 + 1 = 2.", "2 + 2 = 4.", "4 + 4 = 8.", "8 + 8 = 16.", "So \\boxed{16}"],
    [],
]


@pytest.fixture(scope="module")
def folder(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A process reward model with a random but wide head."""
    model, tokenizer, _ = start_from(tiny_policy)
    torch.manual_seed(5)
    torch.nn.init.normal_(model.score.weight, std=0.2)
    path = tmp_path_factory.mktemp("prm")
    ProcessModel(model, tokenizer, ModelCard(label_rule="soft")).save(path)
    return path


@pytest.fixture
def model(folder: Path) -> ProcessModel:
    return ProcessModel.load(folder, device="cpu")


def test_it_is_a_step_scorer_with_a_card(model: ProcessModel) -> None:
    assert isinstance(model, StepScorer)
    assert model.card.label_rule == "soft"
    assert model.parameters == sum(p.numel() for p in model.model.parameters()) > 1000


def test_scores_are_probabilities_that_differ(model: ProcessModel) -> None:
    rows = model.score_batch(PROMPTS, STEPS)
    assert [len(row) for row in rows] == [3, 1, 5, 0]
    values = [score for row in rows for score in row]
    assert all(0 < score < 1 for score in values)
    assert max(values) - min(values) > 0.05


def test_one_pass_equals_a_pass_a_prefix(model: ProcessModel) -> None:
    for prompt, steps in zip(PROMPTS, STEPS, strict=True):
        whole = model.score(prompt, steps)
        assert whole == pytest.approx([model.score(prompt, steps[: n + 1])[n] for n in range(len(steps))], abs=1e-5)


def test_a_prefix_of_sampled_ids_scores_as_inside_the_whole(model: ProcessModel) -> None:
    row = encode_steps(model.tokenizer, PROMPTS[2], text_response("", STEPS[2]))
    whole = model.score(PROMPTS[2], STEPS[2])
    for count in (1, 3):
        ids = row.ids[row.prompt_length : row.ends[count - 1] + 1]
        prefix = Response(problem_id="", text=model.tokenizer.decode(ids), token_ids=ids)
        (scores,) = model.score_steps([Problem(id="", prompt=PROMPTS[2])], [prefix])
        assert list(scores) == pytest.approx(whole[:count], abs=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 60, 100, 16_384])
def test_the_batch_changes_nothing(folder: Path, batch_tokens: int) -> None:
    model = ProcessModel.load(folder, device="cpu", batch_tokens=batch_tokens)
    rows = model.score_batch(PROMPTS, STEPS)
    for row, prompt, steps in zip(rows, PROMPTS, STEPS, strict=True):
        assert row == pytest.approx(model.score(prompt, steps), abs=1e-5)
    backwards = model.score_batch(PROMPTS[::-1], STEPS[::-1])[::-1]
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(rows, backwards, strict=True))


def test_transformers_reads_the_checkpoint_to_the_same_numbers(model: ProcessModel, folder: Path) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    plain = AutoModelForTokenClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert plain.config.id2label == {0: "bad", 1: "good"}
    text = PROMPTS[0] + "\n\n".join(STEPS[0]) + "\n\n"
    ids = tokenizer(text)["input_ids"]
    blank = tokenizer("\n\n")["input_ids"]
    assert len(blank) == 1
    with torch.inference_mode():
        good = plain(input_ids=torch.tensor([ids])).logits[0].softmax(-1)[:, 1]
    wanted = [float(good[n]) for n, token in enumerate(ids) if token == blank[0]]
    assert model.score(PROMPTS[0], STEPS[0]) == pytest.approx(wanted, abs=1e-5)


def test_log_odds_neither_saturate_nor_underflow(model: ProcessModel) -> None:
    problem, response = Problem(id="a", prompt=PROMPTS[2]), text_response("a", STEPS[2])
    (before,) = model.log_odds([problem], [response])
    with torch.no_grad():
        model.model.score.weight.mul_(40 / min(abs(x) for x in before))
    (odds,) = model.log_odds([problem], [response])
    assert all(abs(x) >= 39.9 for x in odds)
    assert len(set(odds)) == len(odds)
    (scores,) = model.score_steps([problem], [response])
    assert [score > 0.5 for score in scores] == [x > 0 for x in before]
    assert all(0.0 <= score <= 1.0 for score in scores)


def test_usage_counts_what_was_read(model: ProcessModel) -> None:
    lengths = [
        len(encode_steps(model.tokenizer, p, text_response("", s)).ids) for p, s in zip(PROMPTS, STEPS, strict=True)
    ]
    model.score_batch(PROMPTS, STEPS)
    assert model.usage.prefill_tokens == sum(lengths[:3])  # a row without steps is not read
    assert model.usage.calls == 1
    assert model.usage.seconds > 0
    model.score(PROMPTS[0], STEPS[0])
    assert model.usage.prefill_tokens == sum(lengths[:3]) + lengths[0]
    assert model.usage.calls == 2


def test_too_long_is_an_error_that_names_the_response(model: ProcessModel) -> None:
    long = ["1 + 1 = 2."] * 40
    with pytest.raises(DataError, match=r"response 0 to problem 'row 1' has .* but the model reads at most 256"):
        model.score_batch(PROMPTS[:2], [STEPS[0], long])


def test_what_cannot_be_scored_is_refused(model: ProcessModel) -> None:
    with pytest.raises(ConfigError, match="one prompt a row of steps; got 2 and 1"):
        model.score_batch(PROMPTS[:2], STEPS[:1])
    with pytest.raises(ConfigError, match="must be one step"):
        model.score(PROMPTS[0], ["one\n\ntwo"])
    with pytest.raises(ConfigError, match="one problem a response; got 0 and 1"):
        model.score_steps([], [text_response("a", ["b"])])
    assert model.score_batch([], []) == []


class _Joined:
    """A tokenizer that has one token for two steps and the separator between them."""

    eos_token_id: Any = None

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [1] if text else []}

    def decode(self, ids: list[int], **options: Any) -> str:
        return "a\n\nb" * len(ids)


def test_a_step_without_a_token_is_refused(model: ProcessModel) -> None:
    broken = ProcessModel(model.model, _Joined())
    with pytest.raises(DataError, match="step without a token of its own"):
        broken.score_steps([Problem(id="a", prompt="p")], [Response(problem_id="a", text="a\n\nb", token_ids=(1,))])
