"""What is wrong with a checkpoint folder is one sentence that names the folder, never another library's error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.engines.transformers_engine import TransformersEngine
from verifiers.checkpoints import load_tokenizer, loading
from verifiers.errors import ConfigError, MissingFileError, ModelError


def config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def writing(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def removing(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (removing("config.json"), "a causal language model: Unrecognized model"),
    "no JSON": (writing("config.json", "{"), "not a valid JSON"),
    "no object": (writing("config.json", "[]"), "must be a mapping, not list"),
    "unknown family": (config(model_type="zzz"), "model type `zzz`"),
    "no decoder": (config(model_type="t5"), "T5Config"),
    "wrong size": (config(hidden_size=48), "a causal language model"),
    "no number": (config(hidden_size="abc"), "'hidden_size': TypeError: Field 'hidden_size' expected int, got str"),
    "odd heads": (config(num_attention_heads=5), "not a multiple of the number of attention heads"),
    "more layers than weights": (config(num_hidden_layers=3), r"lacks 13 of the weights .* model\.layers\.2\."),
    "another family": (config(model_type="bert"), "is not a causal language model: it lacks"),
    "no weights": (removing("model.safetensors"), "no file named model.safetensors"),
    "half the weights": (writing("model.safetensors", "\x09\x00"), "header too small"),
    "broken tokenizer": (writing("tokenizer.json", "{"), "a tokenizer"),
    "empty tokenizer": (writing("tokenizer.json", "{}"), "a tokenizer"),
    "no tokenizer": (
        removing("tokenizer.json", "tokenizer_config.json"),
        r"has no tokenizer \(looked for .*tokenizer.save_pretrained\(folder\)",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_sentence_names_the_folder_and_the_reason(name: str, tiny_policy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(tiny_policy, folder)
    change, reason = BROKEN[name]
    change(folder)
    with pytest.raises(ModelError, match=reason) as caught:
        TransformersEngine.load(folder, device="cpu")
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    assert ";" in message, "the sentence ends with what to do"


def test_the_whole_folder_loads(tiny_policy: Path, tiny_tokenizer: Any) -> None:
    text = "One apple and 2"
    assert load_tokenizer(tiny_policy)(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert load_tokenizer(str(tiny_policy)).is_fast


@pytest.mark.parametrize("path", ["./absent", "/absent/checkpoint", "~absent", "runs/policy/last"])
def test_a_missing_folder_is_missing_and_no_hub_id(path: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (path, Path(path)):
        with pytest.raises(MissingFileError, match=f"no checkpoint folder at {given}; give the path"):
            load_tokenizer(given)
        with (
            pytest.raises(MissingFileError, match="give the path of a language model or a hub id"),
            loading(given, "a language model"),
        ):
            raise AssertionError("must not be reached")
    assert issubclass(MissingFileError, FileNotFoundError)


def test_other_errors_become_one_family_and_ours_stay() -> None:
    for error in (OSError("a\nb"), KeyError("a"), TypeError("a"), Exception("a:\n b\n c"), RuntimeError()):
        with (
            pytest.raises(ModelError, match=r"^org/model cannot be loaded as a thing") as caught,
            loading("org/model", "a thing"),
        ):
            raise error
        assert caught.value.__cause__ is error
    assert "thing: RuntimeError; check" in str(caught.value)
    with pytest.raises(ModelError, match=r"thing: a: b; check"), loading("org/model", "a thing"):
        raise Exception("a:\n b\n c")
    with pytest.raises(ConfigError, match=r"^ours$"), loading("org/model", "a thing"):
        raise ConfigError("ours")
    with pytest.raises(KeyboardInterrupt), loading("org/model", "a thing"):
        raise KeyboardInterrupt
