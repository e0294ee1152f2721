"""Merging: the average to the last bit, what must fit together said in one sentence, and a model that still writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rewardkit.cli import main
from rewardkit.offline import merge as module
from rewardkit.offline.merge import INDEX, WHOLE, merge
from search.engines.transformers_engine import TransformersEngine
from verifiers.core import GenerationRequest, Sampling
from verifiers.errors import ConfigError, ExistingRunError, MissingFileError, ModelError

Weights = dict[str, torch.Tensor]


def weights(folder: Path) -> Weights:
    """All tensors of a checkpoint, however many files they are in."""
    found: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def changed(source: Path, folder: Path, edit: Callable[[Weights], None]) -> Path:
    """A copy of a checkpoint of one file with other tensors."""
    shutil.copytree(source, folder)
    held = load_file(folder / WHOLE)
    edit(held)
    save_file(held, folder / WHOLE, metadata={"format": "pt"})
    return folder


def configured(source: Path, folder: Path, **values: Any) -> Path:
    """A copy of a checkpoint with other settings."""
    shutil.copytree(source, folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **values}))
    return folder


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def test_it_is_the_weighted_average_of_every_tensor(tiny_policy: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    report = merge([tiny_policy, tiny_teacher], [1, 3], tmp_path / "made")
    ours, theirs, made = weights(tiny_policy), weights(tiny_teacher), weights(tmp_path / "made")
    assert made.keys() == ours.keys() and "lm_head.weight" not in made
    for name, value in made.items():
        assert torch.equal(value, ((ours[name].double() + 3 * theirs[name].double()) / 4).float()), name
        assert not torch.equal(value, ours[name])
    assert report.weights == (0.25, 0.75) and report.tensors == report.differing == len(ours)
    assert report.parameters == sum(value.numel() for value in ours.values())
    whole = merge([tiny_policy, tiny_teacher, tiny_policy], [1, 2, 1], tmp_path / "three")
    assert whole.weights == (0.25, 0.5, 0.25)
    for name, value in weights(tmp_path / "three").items():
        assert torch.equal(value, ((ours[name].double() + theirs[name].double()) / 2).float()), name


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shares=st.lists(st.floats(0, 1e6), min_size=2, max_size=3).filter(lambda found: sum(found) > 0))
def test_a_model_merged_with_itself_is_itself(
    shares: list[float], tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("same") / "made"
    assert merge([tiny_policy] * len(shares), shares, out).differing == 0
    assert (out / WHOLE).read_bytes() == (tiny_policy / WHOLE).read_bytes()


def test_all_of_the_weight_on_one_model_is_that_model_bit_for_bit(tiny_policy: Path, tmp_path: Path) -> None:
    def signs(held: Weights) -> None:
        held["model.norm.weight"][:2] = torch.tensor([-0.0, 1e-42])

    def spoiled(held: Weights) -> None:
        held["model.norm.weight"][:3] = torch.tensor([torch.inf, torch.nan, 3e38])

    one, other = changed(tiny_policy, tmp_path / "one", signs), changed(tiny_policy, tmp_path / "other", spoiled)
    for number, (shares, wanted) in enumerate((((1.0, 0.0), one), ((0.0, 2.0), other))):
        out = tmp_path / f"made{number}"
        assert merge([one, other], shares, out).differing == 0
        held = weights(wanted)
        assert {name: bits(value) for name, value in weights(out).items()} == {n: bits(v) for n, v in held.items()}


def test_types_are_the_first_models_and_sums_lose_nothing(
    tiny_policy: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    def halved(held: Weights) -> None:
        for name in held:
            held[name] = held[name].bfloat16()

    small = changed(tiny_policy, tmp_path / "small", halved)
    merge([small, tiny_teacher], [0.5, 0.5], tmp_path / "made")
    merge([tiny_teacher, small], [0.5, 0.5], tmp_path / "turned")
    made, turned, ours, theirs = (
        weights(folder) for folder in (tmp_path / "made", tmp_path / "turned", small, tiny_teacher)
    )
    for name, value in made.items():
        exact = (ours[name].double() + theirs[name].double()) / 2
        assert value.dtype == torch.bfloat16 and torch.equal(value, exact.bfloat16())
        assert turned[name].dtype == torch.float32 and torch.equal(turned[name], exact.float())


def test_files_are_the_first_models_and_pieces_change_nothing(
    tiny_policy: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(tiny_policy, parts)
    (parts / WHOLE).unlink()
    LlamaForCausalLM.from_pretrained(tiny_policy).save_pretrained(parts, max_shard_size="20KB")
    assert len(list(parts.glob("model-*.safetensors"))) > 2
    monkeypatch.setattr(module, "PIECE", 7)
    merge([parts, tiny_teacher], [0.3, 0.7], tmp_path / "made")
    assert sorted(p.name for p in (tmp_path / "made").glob("model*")) == sorted(p.name for p in parts.glob("model*"))
    monkeypatch.undo()
    merge([tiny_policy, tiny_teacher], [0.3, 0.7], tmp_path / "whole")
    made, whole = weights(tmp_path / "made"), weights(tmp_path / "whole")
    assert made.keys() == whole.keys() and all(torch.equal(made[name], whole[name]) for name in made)
    index = json.loads((parts / INDEX).read_text())
    index["weight_map"]["z"] = min(index["weight_map"].values())
    (parts / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"parts lacks z, which its model\.safetensors\.index\.json names"):
        merge([parts, tiny_teacher], [1, 1], tmp_path / "never")


def test_the_merged_model_writes_what_a_model_with_these_weights_writes(
    tiny_policy: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    merge([tiny_policy, tiny_teacher], [0.5, 0.5], tmp_path / "made")
    by_hand = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    other = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32)
    with torch.no_grad():
        for own, more in zip(by_hand.parameters(), other.parameters(), strict=True):
            own.add_(more).div_(2)
    engine = TransformersEngine.load(tmp_path / "made", device="cpu")
    assert engine.model.lm_head.weight.data_ptr() == engine.model.model.embed_tokens.weight.data_ptr()
    request = GenerationRequest(prefix_ids=(5, 6, 7), n=4, seed=3)
    drawn = engine.generate([request], Sampling(max_new_tokens=12))[0]
    wanted = TransformersEngine(by_hand, engine.tokenizer).generate([request], Sampling(max_new_tokens=12))[0]
    assert [one.token_ids for one in drawn] == [one.token_ids for one in wanted]
    assert torch.tensor(drawn[0].logprobs) == pytest.approx(torch.tensor(wanted[0].logprobs), abs=1e-5)
    plain = TransformersEngine.load(tiny_policy, device="cpu").generate([request], Sampling(max_new_tokens=12))[0]
    assert [one.token_ids for one in drawn] != [one.token_ids for one in plain]


def test_what_does_not_fit_is_refused_in_one_sentence(
    tiny_policy: Path, tiny_teacher: Path, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    own = LlamaConfig.from_pretrained(tiny_policy)
    mistral = tmp_path / "mistral"
    MistralForCausalLM(
        MistralConfig(vocab_size=8, hidden_size=32, intermediate_size=8, num_hidden_layers=1)
    ).save_pretrained(mistral)
    untied = tmp_path / "untied"
    LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_policy, tie_word_embeddings=False)).save_pretrained(untied)
    for folder in (mistral, untied):
        tiny_tokenizer.save_pretrained(folder)
    tokens = tmp_path / "tokens"
    shutil.copytree(tiny_policy, tokens)
    more = type(tiny_tokenizer).from_pretrained(tiny_policy)
    more.add_tokens(["<new>"])
    more.save_pretrained(tokens)
    empty = tmp_path / "empty"
    shutil.copytree(tiny_policy, empty)
    (empty / WHOLE).unlink()

    def lacking(held: Weights) -> None:
        del held["model.norm.weight"]

    def wider(held: Weights) -> None:
        held["model.norm.weight"] = torch.ones(33)

    def counted(value: int) -> Callable[[Weights], None]:
        return lambda held: held.update({"model.count": torch.tensor([value])})

    same_shapes = configured(
        tiny_policy, tmp_path / "heads", rope_parameters={"rope_theta": 5e5, "rope_type": "default"}
    )
    assert own.rope_parameters["rope_theta"] != 5e5
    quantised = configured(tiny_policy, tmp_path / "quantised", quantization_config={"quant_method": "fp8"})
    one, two = (changed(tiny_policy, tmp_path / f"count{n}", counted(n)) for n in (1, 2))
    cases: list[tuple[Path, Path, str]] = [
        (tiny_policy, mistral, r"mistral is a model of type 'mistral' and .* of 'llama'; merge fits of the same model"),
        (tiny_policy, untied, r"has one tensor for embedding and head \(tie_word_embeddings\), and .*untied has two"),
        (tiny_policy, same_shapes, r"was configured with rope_parameters=\{.*500000.*so their weights do not mean"),
        (tiny_policy, tokens, r"the model to merge .*tokens has another tokenizer than the first model .*: 1 tokens"),
        (
            tiny_policy,
            changed(tiny_policy, tmp_path / "l", lacking),
            r"has a weight model\.norm\.weight and .*l has none",
        ),
        (
            tiny_policy,
            changed(tiny_policy, tmp_path / "w", wider),
            r"model\.norm\.weight has shape \(33,\) in .*w and \(",
        ),
        (
            one,
            two,
            r"weight model\.count holds I64 in .*count2 and I64 in .*count1, and they differ; only F64, F32, F16",
        ),
        (tiny_policy, quantised, r"quantised holds quantised weights, whose average means nothing"),
        (tiny_policy, empty, r"empty has no weights to merge \(looked for model\.safetensors and"),
    ]
    for first, other, message in cases:
        with pytest.raises(ModelError, match=message):
            merge([first, other], [0.5, 0.5], tmp_path / "never")
    torn = tmp_path / "torn"
    shutil.copytree(tiny_policy, torn)
    (torn / WHOLE).write_bytes((tiny_policy / WHOLE).read_bytes()[:100])
    with pytest.raises(ModelError, match="torn cannot be loaded as a model to merge"):
        merge([tiny_policy, torn], [0.5, 0.5], tmp_path / "never")
    with pytest.raises(MissingFileError, match="no checkpoint folder"):
        merge([tiny_policy, tmp_path / "nowhere"], [0.5, 0.5], tmp_path / "never")
    merge([one, one], [1, 2], tmp_path / "counted")
    assert weights(tmp_path / "counted")["model.count"].tolist() == [1]
    for shares, message in (
        ((1.0,), "one weight for each; got 2 models and 1 weights"),
        ((0.0, 0.0), "not all 0; got 0.0, 0.0"),
        ((1.5, -0.5), "got 1.5, -0.5"),
        ((float("nan"), 1.0), "got nan, 1.0"),
        ((1e308, 1e308), r"finite sum, .*; got 1e\+308, 1e\+308"),
    ):
        with pytest.raises(ConfigError, match=message):
            merge([tiny_policy, tiny_teacher], shares, tmp_path / "never")
    assert not (tmp_path / "never").exists()
    before = (tiny_policy / WHOLE).read_bytes()
    with pytest.raises(ExistingRunError, match="exists already and is not empty"):
        merge([tiny_policy, tiny_teacher], [1, 1], tiny_policy)
    assert (tiny_policy / WHOLE).read_bytes() == before


def test_limits_and_end_tokens_may_differ(tiny_policy: Path, tmp_path: Path) -> None:
    other = configured(tiny_policy, tmp_path / "other", max_position_embeddings=512, eos_token_id=[1, 2])
    merge([tiny_policy, other], [0.5, 0.5], tmp_path / "made")
    assert (tmp_path / "made" / "config.json").read_bytes() == (tiny_policy / "config.json").read_bytes()


def test_the_command_leaves_a_run_folder(
    tiny_policy: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", str(tiny_policy), str(tiny_teacher), "--weights", "0.5", "0.5", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[0])
    assert told["weights"] == [0.5, 0.5] and told["models"] == [str(tiny_policy), str(tiny_teacher)]
    assert {"config.yaml", "env.json", "results.json", "report.html", "model"} == {
        path.name for path in (tmp_path / "run").iterdir()
    }
    assert main(["merge", "--config", str(tmp_path / "run" / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    again, first = (tmp_path / name / "model" / WHOLE for name in ("again", "run"))
    assert again.read_bytes() == first.read_bytes() != (tiny_policy / WHOLE).read_bytes()
    assert main(words) == 2
    assert main(["merge", str(tiny_policy), "--weights", "1", "--out", str(tmp_path / "one")]) == 2
    assert "got 1 models and 1 weights" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()
