"""What engines that hold no model themselves must know of a checkpoint: its end tokens, its ids, weight shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verifiers.checkpoints import loading
from verifiers.errors import ModelError


def end_tokens(path: str | Path, tokenizer: Any) -> set[int]:
    """Every id that ends a sequence: those of the checkpoint's generation settings, and the tokenizer's."""
    from transformers import AutoConfig, GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(path).eos_token_id
    except OSError:  # no generation_config.json: the model's own configuration says it
        ends = None
    if ends is None:
        try:
            ends = getattr(AutoConfig.from_pretrained(path), "eos_token_id", None)
        except OSError:  # a folder with nothing but a tokenizer
            ends = None
    found = {ends} if isinstance(ends, int) else set(ends or ())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return found


def vocabulary(path: str | Path, tokenizer: Any) -> int:
    """One more than the largest id: models often have a few rows more than the tokenizer has tokens."""
    from transformers import AutoConfig

    try:
        sized = getattr(AutoConfig.from_pretrained(path), "vocab_size", 0) or 0
    except (OSError, ValueError):  # a folder with nothing but a tokenizer
        sized = 0
    return max(int(sized), len(tokenizer))


def refuse_other_shapes(old: str | Path, new: str | Path) -> None:
    """Raise where a checkpoint's weights cannot take the place of another's: vLLM itself would only warn."""
    from safetensors import safe_open
    from transformers import AutoConfig

    def shapes(folder: str | Path) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, "pt") as weights:
                found |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        return found

    with loading(new, "new weights in vLLM"):
        config = AutoConfig.from_pretrained(new)
        theirs = shapes(new)
    if Path(new).is_dir() and not theirs:
        raise ModelError(f"{new} holds no *.safetensors; save the model there with save_pretrained")
    ours = shapes(old) if Path(old).is_dir() else {}
    if config.tie_word_embeddings:
        ours.pop("lm_head.weight", None)
    for name, shape in ours.items() if theirs else ():
        if theirs.get(name) != shape:
            got = "none" if name not in theirs else f"shape {theirs[name]}"
            raise ModelError(
                f"{new} cannot take the place of {old}: weight {name} has shape {shape} there, and here {got}; "
                "give a checkpoint of the same architecture"
            )
