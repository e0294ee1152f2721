"""Small tokenizers with the real ids of public process reward models, and the chat templates they come with.

Two kinds: a byte-level BPE (Qwen 2.5, Llama 3.1, DeepSeek-R1 distilled into Qwen) and a SentencePiece-like BPE with
byte fallback (Mistral, Llama 2). The first kind's byte ids are the real ones (both families list bytes in GPT-2's
order, so "+" is 10, "-" is 12 and the newline 198), and so are the ids of tags and specials; every id we know no piece
for holds a filler, so that `len(tokenizer)` is real too. ASCII text survives a round trip. Chat templates keep the
branches for plain system, user and assistant turns; the branches for tools are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

# transformers/models/qwen2/tokenization_qwen2.py (5.19) forces this pattern on every qwen2 checkpoint; Llama 3.1's
# tokenizer.json differs in one place only, digits in threes.
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

Merge = tuple[str, str, int | None]
"""Left part, right part, real id of the whole (None: real id not known, any free one will do)."""

_NEWLINES: list[Merge] = [("\n", "\n", 271), ("\n\n", "\n\n", None), ("\n\n\n\n", "\n", None)]
_FULL_STOPS: list[Merge] = [
    (".", "\n", None),
    (".", "\n\n", 382),
]  # why a step tokenised alone differs from one in a text
_WORDS: list[Merge] = [("Y", "e", None), ("Ye", "s", 9454), ("N", "o", 2753), ("y", "e", None), ("ye", "s", None)]
_WORDS += [(" ", "yes", 9834), ("n", "o", None), (" ", "no", 902)]
# Tags: openreasoner/openr prm/infer_fns.py (76325, 488, 481); Daewon0808/prm800k_qwen_fulltune's scorer (22701).
_QWEN_MERGES: list[Merge] = [
    *_NEWLINES,
    (" ", "\n\n", 4710),
    (" ", "\n\n\n\n", 22701),
    (" ", "\n\n\n\n\n", 76325),
    (" ", "+", 488),
    (" ", "-", 481),
    *_FULL_STOPS,
    *_WORDS,
]
# Tag: UW-Madison-Lee-Lab/VersaPRM's card, as its users quote it (step id 23535, labels [12, 10]).
_LLAMA3_MERGES: list[Merge] = [*_NEWLINES, (" ", "\n\n", 4815), (" ", "\n\n\n\n", 23535), *_FULL_STOPS]

_QWEN_NAMES = "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>"
_QWEN_NAMES += " <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
QWEN_SPECIALS = {name: 151643 + n for n, name in enumerate(_QWEN_NAMES.split())}  # special_tokens_map.json of Skywork's
_LLAMA3_NAMES = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eom_id", "eot_id"]
LLAMA3_SPECIALS = dict(
    zip([f"<|{n}|>" for n in _LLAMA3_NAMES], [128000, 128001, 128006, 128007, 128008, 128009], strict=True)
)
_R1_NAMES = ["<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>"]  # noqa: RUF001
R1_SPECIALS = {name: 151643 + n for n, name in enumerate([*_R1_NAMES, "<think>", "</think>"])}

# Qwen2.5-Math-*-Instruct: like Qwen 2.5's, with another system prompt where the messages bring none.
QWEN_MATH_TEMPLATE = r"""{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant") %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
# Llama-3.1-8B-Instruct: the dated system block is there even where the messages bring no system turn.
LLAMA3_TEMPLATE = r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
# DeepSeek-R1-Distill-Qwen: the system text stands bare before the first turn; only what follows </think> is kept.
R1_TEMPLATE = (
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}"  # noqa: RUF001
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"  # noqa: RUF001
    "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"  # noqa: RUF001
)


def save_qwen(folder: Path, *, rename: Mapping[str, str] | None = None, **settings: Any) -> None:
    """Qwen 2.5's tokenizer, of 151,665 tokens; `rename` gives the id of one special to another name."""
    specials = {(rename or {}).get(name, name): number for name, number in QWEN_SPECIALS.items()}
    tokenizer = _byte_level(_QWEN, _QWEN_MERGES, specials, 151665)
    tokenizer.normalizer = normalizers.NFC()
    defaults = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    _write(folder, tokenizer, {"tokenizer_class": "Qwen2Tokenizer", "unk_token": None, **defaults, **settings})


def save_r1(folder: Path) -> None:
    """DeepSeek-R1-Distill-Qwen's: Qwen's text, other specials (transformers 5.19 overrules the class for qwen2)."""
    tokenizer = _byte_level(_QWEN, _QWEN_MERGES, R1_SPECIALS, 151665)
    names = {"bos_token": _R1_NAMES[3], "eos_token": _R1_NAMES[0], "pad_token": _R1_NAMES[0]}
    settings = {"tokenizer_class": "LlamaTokenizerFast", "unk_token": None, "chat_template": R1_TEMPLATE}
    _write(folder, tokenizer, {**settings, **names})


def save_llama3(folder: Path) -> None:
    """Llama 3.1's tokenizer, of 128,256 tokens, which opens what it encodes with its begin-of-text token."""
    tokenizer = _byte_level(_LLAMA3, _LLAMA3_MERGES, LLAMA3_SPECIALS, 128256)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 128000)]
    )
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": LLAMA3_TEMPLATE, **names}
    _write(folder, tokenizer, settings)


def save_mistral(folder: Path) -> None:
    """Mistral's tokenizer, of 32,000 tokens: a space before every text, bytes for what it has no piece for."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    # Card of peiyi9979/math-shepherd-mistral-7b-prm: encode("+ -")[1:] is [648, 387], encode("ки")[-1] is 12902.
    vocab |= {"▁-": 387, "▁+": 648, "ки": 12902, "▁": 28705, "-": 28733, "+": 28806}
    free = (number for number in range(29000, 32000) if number not in vocab.values())
    vocab |= {piece: next(free) for piece in [*map(chr, range(33, 127)), "к", "и"] if piece not in vocab}
    merges = [("▁", "+"), ("▁", "-"), ("к", "и")]
    tokenizer = Tokenizer(
        models.BPE(_filled(vocab, 32000), merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(folder, tokenizer, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **names})


def _byte_level(pattern: str, merges: Iterable[Merge], specials: Mapping[str, int], size: int) -> Tokenizer:
    """A byte-level BPE of `size` tokens whose merges and specials sit at their real ids."""
    letters = _byte_letters()
    vocab = {letter: number for number, letter in enumerate(letters.values())}  # GPT-2's order, shared by both families
    vocab |= dict(specials)
    pairs, taken = [], set(vocab.values()) | {number for _, _, number in merges if number is not None}
    free = (number for number in range(100_000, size) if number not in taken)
    for left, right, number in merges:
        pair = tuple("".join(letters[byte] for byte in part.encode()) for part in (left, right))
        pairs.append((pair[0], pair[1]))
        vocab["".join(pair)] = next(free) if number is None else number
    tokenizer = Tokenizer(models.BPE(_filled(vocab, size), pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return tokenizer


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte, visible ones first, as GPT-2 orders its vocabulary."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def _filled(vocab: Mapping[str, int], size: int) -> dict[str, int]:
    taken = set(vocab.values())
    return dict(vocab) | {f"<|filler_{number}|>": number for number in range(size) if number not in taken}


def _write(folder: Path, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    text = json.dumps({"model_max_length": 4096, **settings}, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
