"""TRL's real trainers on one fixed batch: a tiny random Llama, eight responses written down, and our view of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from rewardkit.rl.loss.batch import Batch
from rewardkit.rl.policy.reader import Drawn

WORDS = ("<pad>", "<eos>", "\n\n", *(f"w{n} " for n in range(13)))
PAD, EOS, BREAK = 0, 1, 2
LIMIT = 7
GROUP = 4
PROMPTS = ("w0 w1 ", "w2 w3 w4 ")
RESPONSES = (
    (3, 4, BREAK, 5, EOS),
    (6, EOS),
    (7, 8, 9, 10, 11, 12, 13),  # cut off
    (3, BREAK, 4, BREAK, 5, EOS),
    (9, 9, EOS),
    (14, 15, BREAK, 6, 7, 8, 3),  # cut off
    (EOS,),
    (10, BREAK, 11, 12, EOS),
)
REWARDS = (1.0, 0.0, 0.25, 0.5, 0.75, -1.0, 2.0, 0.75)


def word_tokenizer() -> Any:
    """One token a word, two line breaks one token too."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|w[0-9]+ "), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=64
    )


def save_llama(folder: Path) -> Path:
    """A random two-layer Llama, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=None, eos_token_id=EOS,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def stepped(model: torch.nn.Module, size: float, *, seed: int) -> None:
    """Move every parameter by a random amount, so that ratios leave 1."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=drawn, dtype=torch.float64).to(parameter.dtype)


@contextmanager
def doubles() -> Iterator[None]:
    """float64 by default: what is compared then differs by its formula, not by its rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def trl_reward(values: Sequence[float | None] = REWARDS) -> Callable[..., list[float | None]]:
    """A reward function that says what is written down for each response."""
    table = dict(zip(RESPONSES, values, strict=True))

    def given(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float | None]:
        return [table[tuple(ids)] for ids in completion_ids]

    return given


def arguments(kind: Any, out: Path, **settings: Any) -> Any:
    """A GRPOConfig or RLOOConfig for the fixed batch on a processor."""
    plain = {
        "output_dir": str(out), "per_device_train_batch_size": 8, "num_generations": GROUP,
        "max_completion_length": LIMIT, "bf16": False, "use_cpu": True, "gradient_checkpointing": False,
        "report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "shuffle_dataset": False, "max_steps": 1, "lr_scheduler_type": "constant", "adam_beta2": 0.95,
    }  # fmt: skip
    return kind(**plain | settings)


def data() -> Dataset:
    return Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])


def inputs() -> list[dict[str, Any]]:
    """What TRL's data loader hands over: each prompt as often as it has responses."""
    return [{"prompt": prompt} for prompt in PROMPTS for _ in range(GROUP)]


def fixed(trainer: Any, *, sampler: Sequence[Sequence[float]] | None = None) -> Any:
    """The trainer, drawing the responses above; TRL's two trainers ask for them in two ways."""
    with_logprobs = "num_generations" in inspect.signature(trainer._generate_single_turn).parameters

    def draw(prompt_ids: Sequence[Any], *others: Any) -> Any:
        start = trainer.accelerator.process_index * len(prompt_ids)
        drawn = [list(ids) for ids in RESPONSES[start : start + len(prompt_ids)]]
        return (drawn, sampler) if with_logprobs else drawn

    trainer._generate_single_turn = draw
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def rows() -> list[Drawn]:
    """The same responses for our own reader."""
    tokenizer = word_tokenizer()
    prompts = [tuple(tokenizer(row["prompt"])["input_ids"]) for row in inputs()]
    return [Drawn(prompt=prompt, response=ids) for prompt, ids in zip(prompts, RESPONSES, strict=True)]


def our_batch(
    old_BT: torch.Tensor,
    *,
    rewards: Sequence[float | None] = REWARDS,
    sampler_BT: torch.Tensor | None = None,
    ref_BT: torch.Tensor | None = None,
) -> Batch:
    """The fixed batch as our table reads it."""
    lengths = torch.tensor([len(ids) for ids in RESPONSES])
    rewards_B = torch.tensor([math.nan if value is None else value for value in rewards], dtype=old_BT.dtype)
    return Batch(
        mask_BT=torch.arange(LIMIT) < lengths[:, None],
        old_BT=old_BT,
        sampler_BT=old_BT if sampler_BT is None else sampler_BT,
        group_B=torch.arange(len(RESPONSES)) // GROUP,
        rewards_B=rewards_B,
        outcome_B=rewards_B,
        truncated_B=torch.tensor([ids[-1] != EOS for ids in RESPONSES]),
        ref_BT=ref_BT,
    )
