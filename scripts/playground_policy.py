"""Train the playground's policy: a one-million-parameter Qwen2 that solves the word problems by imitation.

    python scripts/playground_policy.py --out data/playground/policy

Phase 1 imitates right solutions of fresh problems of the train split until the model can do the arithmetic;
phase 2, short, imitates solutions with slips (`playground_slips.py`), so that sampling errs as an able but
careless pupil does. The loss is the next-token cross-entropy of the solution. The tokenizer is a byte-level BPE
whose words may not cross digits, operators or blank lines: every digit is one token and a step is about a dozen.
One seed fixes everything; seed, steps, seconds and accuracies on validation problems go into training.json.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from playground_slips import slipped_solution
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rewardkit import playground

PIECES = r"\n+|\\boxed\{|[0-9]| [-+*/=] | ?[A-Za-z]+ ?|[:.,] ?|."
"""Blank lines, the box, single digits, spaced operators and words with their spaces are the units."""

SHARED_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "tie_word_embeddings",
    "rms_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
"""What a Qwen2 and a Llama configuration have in common."""


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on 20,000 problems; any other text falls back to bytes."""
    texts = [
        str(problem.prompt) + problem.metadata["solution"]
        for problem in playground.problems(20_000, split="train", seed=seed + 1)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=20,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", model_max_length=512
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """4 layers of width 128: 1.0 million parameters with the embedding."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen2ForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, rows: int, *, slips: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels) batches of fresh problems, sorted by length inside windows of 16 batches."""
    start = 0
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed + 7)
    while True:
        window = playground.problems(16 * rows, split="train", seed=seed, start=start)
        start += len(window)
        prompts = tokenizer([str(problem.prompt) for problem in window])["input_ids"]
        solutions = tokenizer([slipped_solution(p, rng) if slips else p.metadata["solution"] for p in window])[
            "input_ids"
        ]
        pairs = sorted(zip(prompts, solutions, strict=True), key=lambda pair: len(pair[0]) + len(pair[1]))
        for number in torch.randperm(16, generator=generator).tolist():
            chosen = pairs[number * rows : (number + 1) * rows]
            width = max(len(a) + len(b) + 1 for a, b in chosen)
            ids = torch.full((rows, width), tokenizer.pad_token_id)
            labels = torch.full((rows, width), -100)
            for row, (a, b) in enumerate(chosen):
                whole = [*a, *b, tokenizer.eos_token_id]
                ids[row, : len(whole)] = torch.tensor(whole)
                labels[row, len(a) : len(whole)] = torch.tensor(whole[len(a) :])
            yield ids, labels


def export(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Save as the same function in a Llama checkpoint.

    AutoTokenizer forces Qwen2's own pre-tokenizer upon every checkpoint of model type qwen2 (transformers 5.19,
    `MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS`) and would cut our text into other tokens; a Llama checkpoint
    keeps the tokenizer that stands beside it. Llama with attention biases is Qwen2 plus an output bias, here 0.
    """
    config = LlamaConfig(
        **{name: getattr(model.config, name) for name in SHARED_SETTINGS},
        attention_bias=True,
        rope_parameters=model.config.rope_parameters,
    )
    llama = LlamaForCausalLM(config)
    missing, unexpected = llama.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and all(name.endswith("o_proj.bias") for name in missing), (missing, unexpected)
    for layer in llama.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.bias)
    llama.save_pretrained(out)
    tokenizer.save_pretrained(out)


def solution_loss(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the solution tokens; logits are computed for those positions alone.

    Padding stands on the right, where a causal model cannot see it, so no attention mask is needed.
    """
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), labels[:, 1:][wanted])


@torch.no_grad()
def accuracy(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, temperature: float, count: int) -> float:
    """Share of validation problems whose boxed answer is the reference, one sample each."""
    model.eval()
    right = 0
    for start in range(0, count, 128):
        chosen = playground.problems(min(128, count - start), split="validation", start=start)
        batch = tokenizer([str(p.prompt) for p in chosen], return_tensors="pt", padding=True, padding_side="left")
        out = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=playground.MAX_NEW_TOKENS,
            do_sample=temperature > 0,
            **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(text.endswith(f"\\boxed{{{problem.answer}}}") for text, problem in zip(texts, chosen, strict=True))
    model.train()
    return right / count


def train(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    rows: int,
    rate: float,
    seed: int,
    slips: bool,
) -> None:
    """One phase: AdamW, warm-up over 100 steps, cosine down to 2 % of the peak rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * max(0.02, _cosine(step / steps))
    )
    begin, total = time.time(), 0.0
    for step, (ids, labels) in enumerate(batches(tokenizer, seed, rows, slips=slips)):
        if step == steps:
            break
        loss = solution_loss(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {total / 100:.4f} seconds {time.time() - begin:.0f}", flush=True)
            total = 0.0


def main() -> None:
    """Train both phases and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7000, help="phase 1, right solutions")
    parser.add_argument("--slip-steps", type=int, default=1000, help="phase 2, solutions with slips")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", type=Path, help="a saved phase-1 checkpoint; leaves phase 1 out")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    begin = time.time()
    if args.init:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.init)
        model = AutoModelForCausalLM.from_pretrained(args.init)
    else:
        tokenizer = make_tokenizer(args.seed)
        model = make_model(tokenizer)
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
        common = {"rows": args.rows, "seed": args.seed}
        train(model, tokenizer, steps=args.steps, rate=2e-3, slips=False, **common)
        export(model, tokenizer, args.out.with_name(args.out.name + "-right"))
    right = accuracy(model, tokenizer, 0.0, 500)
    train(model, tokenizer, steps=args.slip_steps, rate=6e-4, rows=args.rows, seed=args.seed + 1, slips=True)
    export(model, tokenizer, args.out)
    record = {
        "command": "python scripts/playground_policy.py --out data/playground/policy",
        "seed": args.seed,
        "steps": args.steps,
        "slip_steps": args.slip_steps,
        "rows": args.rows,
        "seconds": round(time.time() - begin),
        "threads": torch.get_num_threads(),
        "phase_1_greedy_accuracy_500": right,
        "greedy_accuracy_500": accuracy(model, tokenizer, 0.0, 500),
        "accuracy_at_temperature_500": accuracy(model, tokenizer, playground.TEMPERATURE, 500),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


def _cosine(share: float) -> float:
    return 0.5 + 0.5 * float(torch.cos(torch.tensor(share * torch.pi)))


if __name__ == "__main__":
    main()
