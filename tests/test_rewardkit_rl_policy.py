"""Reading responses: equal to the model's own logits, whatever stands in one row and however the head is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rewardkit.rl.policy import reader
from rewardkit.rl.policy.reader import Drawn, TokenReader, best_row, families_of, positions_before
from rewardkit.shared_prompt import Family
from verifiers.errors import ModelError

ROWS = [
    Drawn(prompt=(5, 6, 7), response=(8, 9, 1)),
    Drawn(prompt=(5, 6, 7), response=(10,)),
    Drawn(prompt=(5, 6, 7), response=(8, 8, 8, 8, 1)),
    Drawn(prompt=(11,), response=(12, 1)),
]


@pytest.fixture(scope="module")
def model(tiny_policy: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)


def by_hand(model: Any, row: Drawn, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies from the model's own logits, a row at a time."""
    logits = model(torch.tensor([[*row.prompt, *row.response]])).logits[0, len(row.prompt) - 1 : -1] / temperature
    logprobs = torch.log_softmax(logits, -1)
    own = logprobs[torch.arange(len(row.response)), torch.tensor(row.response)]
    return own, -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("row_tokens", [0, 7, 512, None])
def test_every_token_is_read_as_by_the_model_itself(model: Any, temperature: float, row_tokens: int | None) -> None:
    reader = TokenReader(model, temperature=temperature, row_tokens=row_tokens)
    reader.check(ROWS[0].prompt)
    found = reader.read(ROWS, entropies=True)
    assert found.logprobs.shape == (4, 5)
    assert found.entropies is not None
    for number, row in enumerate(ROWS):
        logprobs, entropies = by_hand(model, row, temperature)
        count = len(row.response)
        assert torch.allclose(found.logprobs[number, :count], logprobs, atol=1e-5)
        assert torch.allclose(found.entropies[number, :count], entropies, atol=1e-5)
        assert not found.logprobs[number, count:].any()


@pytest.mark.parametrize(("prompt", "width"), [(6, 128), (50, 128), (200, 128), (200, 1536)])
def test_a_row_is_as_long_as_makes_its_work_least(model: Any, prompt: int, width: int) -> None:
    def work(count: int) -> float:
        """Of one of `count` responses of one token, in tokens: linear layers 12 D^2, attention 2 D a pair."""
        tokens = prompt + count
        return (tokens + tokens**2 / (6 * width)) / count

    best = min(range(1, 10_000), key=work)
    assert abs(best_row(prompt, width) - prompt - best) <= 1
    assert TokenReader(model).most(prompt) == best_row(prompt, model.config.hidden_size)


def test_rows_share_their_prompt_while_there_is_room() -> None:
    assert [len(one.responses) for one in families_of(ROWS, most=lambda prompt: 512)] == [3, 1]
    assert [len(one.responses) for one in families_of(ROWS, most=lambda prompt: 7)] == [2, 1, 1]
    assert [len(one.responses) for one in families_of(ROWS, most=lambda prompt: 0)] == [1, 1, 1, 1]
    family = Family(prompt=(5, 6, 7), responses=((8, 9), (10,)))
    assert positions_before([family]) == ([0, 0, 0], [2, 3, 2])


def gradient(model: Any, reader: TokenReader, rows: list[Drawn]) -> torch.Tensor:
    model.zero_grad()
    found = reader.read(rows, entropies=True)
    assert found.entropies is not None
    (
        (found.logprobs * torch.arange(found.logprobs.numel()).view_as(found.logprobs)).sum() + found.entropies.sum()
    ).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_neither_sharing_nor_pieces_change_the_gradient(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gradient(model, TokenReader(model, row_tokens=512), ROWS)
    alone = gradient(model, TokenReader(model, row_tokens=0), ROWS)
    monkeypatch.setattr(reader, "PIECE", 2 * model.config.vocab_size)
    pieces = gradient(model, TokenReader(model, row_tokens=512), ROWS)
    for other in (alone, pieces):
        assert (other - whole).norm() <= 1e-5 * whole.norm()


def test_values_are_read_where_the_token_is_not_yet_known(model: Any) -> None:
    head = torch.nn.Linear(model.config.hidden_size, 1)
    found = TokenReader(model, row_tokens=512).read(ROWS, value_head=head)
    assert found.values is not None
    for number, row in enumerate(ROWS):
        hidden = model.model(torch.tensor([[*row.prompt, *row.response]])).last_hidden_state[0]
        wanted = head(hidden[len(row.prompt) - 1 : -1])[:, 0]
        assert torch.allclose(found.values[number, : len(row.response)], wanted, atol=1e-5)


def test_a_model_that_changes_its_logits_is_refused(tiny_policy: Path) -> None:
    changed = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    forward = changed.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        found = forward(*args, **kwargs)
        found.logits = 3.0 * torch.tanh(found.logits / 3.0)
        return found

    changed.forward = capped
    with pytest.raises(ModelError, match="changes its logits behind the head"):
        TokenReader(changed).check((5, 6, 7))
