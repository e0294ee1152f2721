"""An implicit process reward model: a language model whose log-ratio to a frozen reference is the reward.

Yuan et al. 2024 (arXiv 2412.01981): a causal language model pi is trained on outcomes alone, by cross-entropy of
sigma(r) with the outcome of the response y (`objectives.step_loss` with r in place of a margin), where

    r = beta sum_i log [ pi(y_i | x, y_<i) / pi_ref(y_i | x, y_<i) ]

The partial sum up to the last token of step t is then the exponential average of r over what may follow under the
reference, beta log E[exp(r / beta)], so it scores the step without a step label.

The tokens of y are those of `backbone.encode_steps`: the response's ids without the end-of-sequence token, closed by
the separator unless they end with it. So r is the score of the last step, and a step's score does not change when more
steps follow. (The authors' code reads the end-of-sequence token too; a prefix has none.)

The reference gives every response one number, which is computed once before training. The reference is what training
starts from, unless another is named; an implicit model that is trained on keeps its own.

Legend: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prm.backbone import ModelCard
from prm.objectives import response_logprobs
from prm.step_data import collate
from prm.train_config import TrainConfig
from verifiers.checkpoints import load_tokenizer, loading, refuse_missing
from verifiers.errors import ModelError

REFERENCE = "reference"
"""The reference's folder inside a checkpoint."""


def start_implicit(path: str | Path, *, seed: int = 0) -> tuple[Any, Any]:
    """(model, tokenizer) of a causal language model in float32. Raises ModelError for anything else."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = load_tokenizer(path)
    torch.manual_seed(seed)
    with loading(path, "a causal language model"):
        config = AutoConfig.from_pretrained(path)
        if not any("ForCausalLM" in name or "LMHead" in name for name in config.architectures or ()):
            raise ModelError(
                f"{path} holds {', '.join(config.architectures or ['nothing'])}, but an implicit model is a causal "
                "language model; start from one, or choose another head"
            )
        model, report = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    refuse_missing(path, "a causal language model", report["missing_keys"])
    return model, tokenizer


def reference_of(config: TrainConfig) -> str:
    """The checkpoint that a fit compares with."""
    if config.reference:
        return config.reference
    card = ModelCard.load(config.init)
    if card.head != "implicit":
        return config.init
    inside = Path(config.init, card.reference)
    return str(inside) if inside.is_dir() else card.reference


def check_same_tokens(tokenizer: Any, reference: str) -> None:
    """Raise ModelError unless the reference reads ids as the trained model does."""
    if load_tokenizer(reference).get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"the reference {reference} has another vocabulary than the model that is trained; "
            "a log-ratio needs the same tokens in both, so name a reference of the same family"
        )


@torch.no_grad()
def reference_logprobs(model: Any, items: Sequence[dict[str, Any]], accelerator: Any, *, rows: int) -> list[float]:
    """Log-probability of every response under the reference, in the order of the items.

    Batches of `rows` of about the same length are shared out over the processes.
    """
    model.eval()
    by_length = sorted(range(len(items)), key=lambda number: len(items[number]["input_ids"]))
    batches = [by_length[first : first + rows] for first in range(0, len(items), rows)]
    found = torch.zeros(len(items), device=accelerator.device)
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        inputs = collate([items[number] for number in batch])
        with accelerator.autocast():
            logprobs_B = response_logprobs(
                model, inputs["input_ids"].to(found.device), inputs["response_mask"].to(found.device)
            )
        found[batch] = logprobs_B
    logprobs: list[float] = accelerator.reduce(found, reduction="sum").tolist()
    return logprobs


def save_reference(config: TrainConfig, out: str | Path) -> str:
    """Put the reference beside the trained model, unless it has a place of its own; returns what the card says."""
    source = reference_of(config)
    own = source == config.init or Path(source).parent == Path(config.init)
    if config.reference or not own:
        return str(Path(source).resolve()) if Path(source).exists() else source
    model, tokenizer = start_implicit(source)
    model.save_pretrained(Path(out, REFERENCE))
    tokenizer.save_pretrained(Path(out, REFERENCE))
    return REFERENCE
