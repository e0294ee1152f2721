"""Fixtures: tiny checkpoints made on the spot, real data that may be absent, and a quiet transformers."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

if importlib.util.find_spec("hypothesis"):  # vLLM's environment has no use for it
    from hypothesis import settings

    # The same examples on every run, so that a failure is the change's own; `make explore` draws new ones.
    settings.register_profile("fixed", derandomize=True)
    settings.load_profile("default" if os.environ.get("REWARDKIT_EXPLORE") else "fixed")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data for development beside the checkout; tests that use it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.exists():
        pytest.skip("the development data (shared/data beside the checkout) is absent")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE with single digits and the blank line as one token, made from twenty words."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+|\\boxed\{|[0-9]| ?[A-Za-z]+|."), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "One apple and two apples. Then three more: 1 + 2 = 3.\n\nSo the answer is \\boxed{3}\n"
    tokenizer.train_from_iterator([text] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=256
    )


@pytest.fixture(scope="session")
def tiny_policy(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder: a random 2-layer Llama (grouped key/value heads) of context 256 and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attention_bias=True,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tiny_tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("policy")
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tiny_policy: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy with other weights and the same tokenizer."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_policy, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("teacher")
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def playground_prm() -> Path:
    """The shipped process reward model."""
    from rewardkit.playground import asset

    return asset("prm")


@pytest.fixture(scope="session")
def playground_policy() -> Path:
    """The shipped policy checkpoint."""
    from rewardkit.playground import asset

    return asset("policy")
