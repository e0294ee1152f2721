"""Small language models of random weights whose tokenizer has one token a word, for benchmarks of time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def word_model(folder: Path, words: Sequence[str], **settings: Any) -> Path:
    """A Llama checkpoint with `<pad>`, `<eos>` and the words; `settings` are LlamaConfig's."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: n for n, word in enumerate(["<pad>", "<eos>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    room = settings["max_position_embeddings"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", model_max_length=room
    )
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(vocabulary), eos_token_id=1, pad_token_id=0, bos_token_id=None, **settings)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert len(tokenizer(" ".join(words[:3])).input_ids) == 3, "words were lost in tokenising"
    return folder
