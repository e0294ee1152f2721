r"""A checkpoint whose weights are the weighted average of other checkpoints' weights.

    w = sum_i a_i w_i / sum_i a_i        for every weight tensor by itself

Kimi k1.5 (arXiv 2501.12599, section 2.4) averages a policy that thinks at length and a short one, without training, as
the first of its four ways from long answers to short ones; averages of fits of one start are known as model soups
(arXiv 2203.05482). Nothing promises that the average of two policies is a policy between them, the less so the further
they are apart: measure it.

What is averaged must compute the same function of its weights: equal configurations (bar limits and marks that change
no weight's meaning), one tokenizer, the same tensors of the same shapes. Sums are in float64, a piece of a tensor at a
time, so equal weights stay what they are to the last bit whatever the a_i are, as do the weights of the one model that
has all of the a_i. Types, files, tokenizer and everything else are the first checkpoint's; one of its files is in
memory at a time. A card (rewardkit.json) is not carried over: it holds what was measured on other weights.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rewardkit.rl.policy.models import refuse_other_tokens
from verifiers.checkpoints import load_tokenizer, loading
from verifiers.errors import ConfigError, ExistingRunError, ModelError

PIECE = 2**24
"""Numbers of a tensor that are averaged at once."""

AVERAGED = ("F64", "F32", "F16", "BF16")
"""Types that are averaged, as safetensors calls them; tensors of others must be equal."""

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
KEPT_FILES = ("config.json", "generation_config.json")
ELSEWHERE = frozenset(
    (
        *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "max_position_embeddings"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    )
)
"""Settings of a configuration that may differ: none of them changes what a weight means."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What was averaged."""

    models: tuple[str, ...]
    weights: tuple[float, ...]
    """Shares, which add up to 1."""
    tensors: int
    parameters: int
    differing: int
    """Tensors that are not the same in all models that have a share."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A checkpoint that is read from."""

    name: str
    folder: Path
    config: Any
    tokenizer: Any
    files: dict[str, str]
    """File that holds a tensor, by the tensor's name."""
    kinds: dict[str, tuple[tuple[int, ...], str]]
    """Shape and type of every tensor."""

    def tensor(self, name: str) -> torch.Tensor:
        with safe_open(self.folder / self.files[name], "pt") as stored:
            found: torch.Tensor = stored.get_tensor(name)
        return found


@dataclass(frozen=True, kw_only=True)
class Merging:
    """Checkpoints that fit together, and what each counts."""

    sources: tuple[_Source, ...]
    shares: tuple[float, ...]

    def write(self, out: str | Path) -> MergeReport:
        """Write the average to the new folder `out`. Raises ExistingRunError where it holds something."""
        out = Path(out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ExistingRunError(f"{out} exists already and is not empty; choose another folder for the merged model")
        out.mkdir(parents=True, exist_ok=True)
        first = self.sources[0]
        differing = parameters = 0
        for file in sorted(set(first.files.values())):
            made = {}
            for name in sorted(name for name, where in first.files.items() if where == file):
                kept = first.tensor(name)
                parts = [
                    (kept if source is first else source.tensor(name), share)
                    for source, share in zip(self.sources, self.shares, strict=True)
                    if share
                ]
                made[name] = _average(parts, kept.dtype)
                parameters += kept.numel()
                differing += any(not torch.equal(parts[0][0].to(part.dtype), part) for part, _ in parts[1:])
            save_file(made, out / file, metadata={"format": "pt"})
        first.tokenizer.save_pretrained(out)
        for name in (INDEX, *reversed(KEPT_FILES)):  # config.json last: a folder without it is no checkpoint yet
            if (first.folder / name).exists():
                shutil.copyfile(first.folder / name, out / name)
        return MergeReport(
            models=tuple(source.name for source in self.sources),
            weights=self.shares,
            tensors=len(first.files),
            parameters=parameters,
            differing=differing,
        )


def merge(paths: Sequence[str | Path], weights: Sequence[float], out: str | Path) -> MergeReport:
    """Write the average of checkpoints (folders or hub ids) to the new folder `out`, as a plain checkpoint.

    `weights` are the a_i, one a checkpoint: 0 or more, not all 0, whatever their sum. Raises ConfigError for other
    weights, ModelError where checkpoints do not fit together, ExistingRunError where `out` holds something.
    """
    return prepare(paths, weights).write(out)


def prepare(paths: Sequence[str | Path], weights: Sequence[float]) -> Merging:
    """Everything that `merge` checks before it writes; only the heads of files are read."""
    shares = _shares(paths, weights)
    sources = [_opened(path) for path in paths]
    for other in sources[1:]:
        _refuse_other_model(sources[0], other)
    return Merging(sources=tuple(sources), shares=shares)


def _shares(paths: Sequence[str | Path], weights: Sequence[float]) -> tuple[float, ...]:
    if len(paths) < 2 or len(weights) != len(paths):
        raise ConfigError(
            f"merging takes two models or more and one weight for each; got {len(paths)} models and {len(weights)} "
            "weights"
        )
    total = sum(weights)
    if not all(weight >= 0 for weight in weights) or not 0 < total < math.inf:
        raise ConfigError(
            f"weights must be finite, with a finite sum, 0 or more and not all 0; got {', '.join(map(str, weights))}"
        )
    return tuple(weight / total for weight in weights)


def _opened(path: str | Path) -> _Source:
    tokenizer = load_tokenizer(path)
    with loading(path, "a model to merge"):
        from huggingface_hub import snapshot_download
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(path)
        folder = Path(path)
        if not folder.is_dir():
            folder = Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"]))
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{path} holds quantised weights, whose average means nothing; merge the unquantised models")
    if (folder / INDEX).exists():
        files: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    elif (folder / WHOLE).exists():
        with loading(path, "a model to merge"), safe_open(folder / WHOLE, "pt") as stored:
            files = dict.fromkeys(stored.keys(), WHOLE)
    else:
        raise ModelError(f"{path} has no weights to merge (looked for {WHOLE} and {INDEX}); save them there")
    kinds = {}
    with loading(path, "a model to merge"):
        for file in set(files.values()):
            with safe_open(folder / file, "pt") as stored:
                held = set(stored.keys())
                for name in (name for name, where in files.items() if where == file and name in held):
                    one = stored.get_slice(name)
                    kinds[name] = tuple(one.get_shape()), str(one.get_dtype())
    if lacking := sorted(set(files) - set(kinds)):
        raise ModelError(f"{path} lacks {lacking[0]}, which its {INDEX} names; check that its files belong together")
    return _Source(name=str(path), folder=folder, config=config, tokenizer=tokenizer, files=files, kinds=kinds)


def _refuse_other_model(first: _Source, other: _Source) -> None:
    """Raise ModelError unless weights of one mean the same in the other."""
    remedy = "merge fits of the same model"
    if first.config.model_type != other.config.model_type:
        raise ModelError(
            f"{other.name} is a model of type {other.config.model_type!r} and {first.name} of "
            f"{first.config.model_type!r}; {remedy}"
        )
    tied, others = (bool(getattr(one.config, "tie_word_embeddings", False)) for one in (first, other))
    if tied is not others:
        raise ModelError(
            f"{first.name if tied else other.name} has one tensor for embedding and head (tie_word_embeddings), and "
            f"{other.name if tied else first.name} has two; {remedy}"
        )
    ours, theirs = first.config.to_dict(), other.config.to_dict()
    for name in sorted((ours.keys() | theirs.keys()) - ELSEWHERE):
        if ours.get(name) != theirs.get(name):
            raise ModelError(
                f"{other.name} was configured with {name}={theirs.get(name)!r} and {first.name} with "
                f"{ours.get(name)!r}, so their weights do not mean the same; {remedy}"
            )
    refuse_other_tokens(
        first.tokenizer, first.name, other.tokenizer, other.name, roles=("first model", "model to merge")
    )
    if strange := sorted(first.kinds.keys() ^ other.kinds.keys()):
        has, lacks = (first, other) if strange[0] in first.kinds else (other, first)
        raise ModelError(f"{has.name} has a weight {strange[0]} and {lacks.name} has none; {remedy}")
    for name, (shape, kind) in first.kinds.items():
        other_shape, other_kind = other.kinds[name]
        if other_shape != shape:
            raise ModelError(
                f"weight {name} has shape {other_shape} in {other.name} and {shape} in {first.name}; {remedy}"
            )
        averaged = kind in AVERAGED and other_kind in AVERAGED
        if not averaged and not (kind == other_kind and torch.equal(first.tensor(name), other.tensor(name))):
            raise ModelError(
                f"weight {name} holds {other_kind} in {other.name} and {kind} in {first.name}, and they differ; only "
                f"{', '.join(AVERAGED)} have an average; {remedy}"
            )


def _average(parts: Sequence[tuple[torch.Tensor, float]], dtype: torch.dtype) -> torch.Tensor:
    """The average of tensors of one shape, in a type; of equal ones of another kind than AVERAGED the first."""
    first = parts[0][0]
    if not first.is_floating_point() or first.dtype.itemsize == 1:
        return first
    found = torch.empty(first.shape, dtype=dtype)
    for start in range(0, found.numel(), PIECE):
        piece = slice(start, start + PIECE)
        terms = [tensor.reshape(-1)[piece].double() * share for tensor, share in parts]
        # From the first term and not from 0, which would make 0 of -0.
        found.view(-1)[piece] = reduce(torch.add, terms).to(dtype)
    return found
