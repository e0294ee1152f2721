"""Where a step ends in token space, and which checkpoints are read as what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prm.backbone import (
    ModelCard,
    check_length,
    context_of,
    encode_steps,
    load_backbone,
    pad_right,
    start_from,
)
from prm.growth import add_layers
from verifiers.core import Response, StopReason
from verifiers.errors import DataError, MissingFileError, ModelError
from verifiers.steps import text_response

PROMPT = "One apple and two apples.\n"
STEPS = ["Then: 1 + 2 = 3.", "So three more: 3 + 3 = 6.", "The answer is \\boxed{6}"]


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_ids_are_prompt_then_sampled_then_separator_without_eos(tiny_tokenizer: Any) -> None:
    # Ids no tokenizer would give for this text: every character by itself.
    text = "\n\n".join(STEPS)
    sampled = tuple(n for character in text for n in ids_of(tiny_tokenizer, character))
    sampled = (*sampled, tiny_tokenizer.eos_token_id)
    assert sampled != (*ids_of(tiny_tokenizer, text), tiny_tokenizer.eos_token_id)
    row = encode_steps(tiny_tokenizer, PROMPT, Response(problem_id="", text=text, token_ids=sampled))
    prompt, blank = ids_of(tiny_tokenizer, PROMPT), ids_of(tiny_tokenizer, "\n\n")
    assert row.ids == (*prompt, *sampled[:-1], *blank)
    assert row.prompt_length == len(prompt)


def test_step_ends_by_hand(tiny_tokenizer: Any) -> None:
    row = encode_steps(tiny_tokenizer, PROMPT, text_response("", STEPS))
    blank = ids_of(tiny_tokenizer, "\n\n")
    assert len(blank) == 1
    place = len(ids_of(tiny_tokenizer, PROMPT))
    wanted = []
    for step in STEPS:
        place += len(ids_of(tiny_tokenizer, step)) + 1
        wanted.append(place - 1)
    assert row.ends == tuple(wanted)
    assert [row.ids[end] for end in row.ends] == [blank[0]] * 3
    assert row.ends[-1] == len(row.ids) - 1
    assert [step.text for step in row.steps] == STEPS


def test_text_and_token_paths_agree(tiny_tokenizer: Any) -> None:
    text = "\n\n".join(STEPS)
    by_text = encode_steps(tiny_tokenizer, PROMPT, Response(problem_id="", text=text))
    sampled = (*ids_of(tiny_tokenizer, text), tiny_tokenizer.eos_token_id)
    assert encode_steps(tiny_tokenizer, PROMPT, Response(problem_id="", text=text, token_ids=sampled)) == by_text
    cut = Response(problem_id="", text=text, stop_reason=StopReason.LENGTH)  # no end of sequence, the same steps
    assert encode_steps(tiny_tokenizer, PROMPT, cut) == by_text


def test_another_special_token_ends_a_response_too(tiny_tokenizer: Any) -> None:
    other = next(n for n in tiny_tokenizer.all_special_ids if n != tiny_tokenizer.eos_token_id)
    text = "\n\n".join(STEPS)
    plain = encode_steps(tiny_tokenizer, PROMPT, Response(problem_id="", text=text))
    ended = Response(problem_id="", text=text, token_ids=(*ids_of(tiny_tokenizer, text), other))
    assert encode_steps(tiny_tokenizer, PROMPT, ended) == plain


def test_missing_weights_are_refused(tiny_policy: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, tokenizer, _ = start_from(tiny_policy)
    for folder, drop, load in (
        ("headless", "score.weight", load_backbone),
        ("bottomless", "model.layers.0.mlp.up_proj.weight", load_backbone),
        ("bottomless", "model.layers.0.mlp.up_proj.weight", start_from),
    ):
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
        weights = load_file(tmp_path / folder / "model.safetensors")
        del weights[drop]
        save_file(weights, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=f"lacks 1 of the weights its config.json asks for, {drop} first"):
            load(tmp_path / folder)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_prefix_is_closed_once(tiny_tokenizer: Any, count: int) -> None:
    """The ids of a prefix that ends with its separator are those of the whole response up to there."""
    whole = encode_steps(tiny_tokenizer, PROMPT, text_response("", STEPS))
    kept = whole.ids[whole.prompt_length : whole.ends[count - 1] + 1]
    text = tiny_tokenizer.decode(kept)
    assert text.endswith("\n\n")
    row = encode_steps(
        tiny_tokenizer, PROMPT, Response(problem_id="", text=text, token_ids=kept, stop_reason=StopReason.LENGTH)
    )
    assert row.ids == whole.ids[: whole.ends[count - 1] + 1]
    assert row.ends == whole.ends[:count]


def test_another_separator(tiny_tokenizer: Any) -> None:
    row = encode_steps(tiny_tokenizer, PROMPT, Response(problem_id="", text="a; b; c"), separator=";")
    semicolon = ids_of(tiny_tokenizer, ";")[0]
    assert [row.ids[end] for end in row.ends] == [semicolon] * 3
    closed = encode_steps(tiny_tokenizer, PROMPT, Response(problem_id="", text="a; b; c;"), separator=";")
    assert (closed.ids, closed.ends) == (row.ids, row.ends)


def test_a_response_without_steps_has_no_ends(tiny_tokenizer: Any) -> None:
    eos = (tiny_tokenizer.eos_token_id,)
    for response in (Response(problem_id="", text=""), Response(problem_id="", text="", token_ids=eos)):
        row = encode_steps(tiny_tokenizer, PROMPT, response)
        assert row.ends == row.steps == ()
    assert ModelCard().separator == "\n\n"


def test_lengths(tiny_tokenizer: Any) -> None:
    row = encode_steps(tiny_tokenizer, PROMPT, text_response("", STEPS))
    check_length(row, len(row.ids), "it")
    with pytest.raises(DataError, match=f"it has {len(row.ids)} tokens, prompt included, but .* at most 5"):
        check_length(row, 5, "it")
    assert pad_right([(1, 2), (3,)]).tolist() == [[1, 2], [3, 0]]


def test_a_fresh_head_on_a_tied_checkpoint(tiny_policy: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer, lm_head = start_from(tiny_policy, seed=3)
    policy = AutoModelForCausalLM.from_pretrained(tiny_policy)
    assert model.config.num_labels == 2
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert context_of(model) == 256
    assert lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, policy.get_input_embeddings().weight)
    ids = torch.tensor([ids_of(tokenizer, PROMPT)])
    with torch.inference_mode():
        hidden = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(lm_head(hidden), policy(input_ids=ids).logits, atol=1e-5)
    again, other = start_from(tiny_policy, seed=3)[0], start_from(tiny_policy, seed=4)[0]
    assert torch.equal(model.score.weight, again.score.weight)
    assert not torch.equal(model.score.weight, other.score.weight)


def test_added_layers_change_nothing_at_first(tiny_policy: Path) -> None:
    import torch

    model, tokenizer, _ = start_from(tiny_policy)
    ids = torch.tensor([ids_of(tokenizer, PROMPT)])
    with torch.inference_mode():
        before = model.eval()(input_ids=ids).logits
        add_layers(model, 2)
        assert model.config.num_hidden_layers == len(model.base_model.layers) == 4
        assert torch.allclose(model(input_ids=ids, use_cache=False).logits, before, atol=1e-6)
    other = torch.nn.Module()
    other.base_model = torch.nn.Module()  # an architecture that names its layers otherwise
    add_layers(other, 0)
    with pytest.raises(
        ModelError, match=r"extra_layers needs decoder layers .* Module has none; set extra_layers to 0"
    ):
        add_layers(other, 1)


def test_checkpoint_and_card_round_trip(tiny_policy: Path, tmp_path: Path) -> None:
    import torch

    model, tokenizer, _ = start_from(tiny_policy)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    card = ModelCard(separator=";", label_rule="soft", provenance={"steps": 3})
    card.save(tmp_path)
    loaded, _, found = load_backbone(tmp_path, device="cpu")
    assert found == card
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert loaded.config.id2label[1] == "good"
    # Going on from it keeps the head.
    assert torch.equal(start_from(tmp_path, seed=9)[0].score.weight, model.score.weight)
    (tmp_path / "rewardkit.json").unlink()
    assert ModelCard.load(tmp_path) == ModelCard()


@pytest.mark.parametrize("text", ["{", "[1]", '{"colour": 1}'])
def test_a_broken_card_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rewardkit.json").write_text(text)
    with pytest.raises(ModelError, match=r"rewardkit\.json is not a RewardKit model card"):
        ModelCard.load(tmp_path)


def test_wrong_checkpoints_are_told_in_one_sentence(tiny_policy: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_backbone(tiny_policy)
    assert str(caught.value) == (
        f"{tiny_policy} is no process reward model: it holds LlamaForCausalLM, not a token-classification head; "
        "train one from it with `rewardkit prm train --init`"
    )
    with pytest.raises(MissingFileError, match="no checkpoint folder at"):
        load_backbone(tmp_path / "none")
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_backbone(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded as a process reward model"):
        load_backbone(tmp_path)
    config = json.loads((tiny_policy / "config.json").read_text())
    config |= {"architectures": ["LlamaForTokenClassification"], "id2label": {str(n): str(n) for n in range(3)}}
    config |= {"label2id": {str(n): n for n in range(3)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_backbone(tmp_path)
    assert str(caught.value) == f"{tmp_path} has 3 labels a token; a process reward model has 2 or 1 (a scalar)"
