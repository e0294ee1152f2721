"""Checkpoint folders of public process reward models, tiny and of random weights, laid out as the public ones are.

`build(name, folder)` writes config.json in the words of the published file (architectures, model_type, rope_theta...),
weights under the published names and the tokenizer with the real ids. Two layers of width 16; weights drawn wide enough
that scores differ between steps. Where a family needs a second model (the base of an adapter, a reference, a
backbone), it goes to `beside(folder)`. What no public source settles is marked "unverified".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from public_prm_tokenizers import QWEN_MATH_TEMPLATE, save_llama3, save_mistral, save_qwen, save_r1
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

State = dict[str, torch.Tensor]
WIDTH = 16

_SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "use_cache": True,
    "transformers_version": "4.44.0",
}
# Qwen/Qwen2.5-Math-PRM-7B config.json (huggingface.co, refs/pr/5), but for the sizes.
_QWEN_CONFIG = {
    **_SHAPE,
    "model_type": "qwen2",
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "max_position_embeddings": 4096,
    "max_window_layers": 28,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
_LLAMA3_CONFIG = {
    **_SHAPE,
    "model_type": "llama",
    "bos_token_id": 128000,
    "eos_token_id": 128009,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "vocab_size": 128256,
}
_MISTRAL_CONFIG = {
    **_SHAPE,
    "model_type": "mistral",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
_LLAMA2_CONFIG = {
    **_SHAPE,
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "vocab_size": 32000,
}


def build(name: str, folder: Path | str, *, seed: int = 0, dtype: str = "float32") -> Path:
    """The folder, with a random checkpoint of the family `name` in it (and, if it needs one, a second `beside` it)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _BUILDERS[name](folder, seed, dtype)
    return folder


def beside(folder: Path | str) -> Path:
    """Where the second model goes: the base under an adapter, the reference model, the backbone of bare weights."""
    folder = Path(folder)
    return folder.with_name(folder.name + "-base")


def _math_shepherd(folder: Path, seed: int, dtype: str) -> None:
    # peiyi9979/math-shepherd-mistral-7b-prm: a plain causal LM; its card opens it by AutoModelForCausalLM.
    _language_model(folder, "MistralForCausalLM", _MISTRAL_CONFIG, seed, dtype)
    save_mistral(folder)


def _rlhflow(folder: Path, seed: int, dtype: str) -> None:
    # RLHFlow/Llama3.1-8B-PRM-*-Data: math-rm/llama-3.1-prm.yaml fine-tunes Llama-3.1-8B-Instruct whole.
    _language_model(folder, "LlamaForCausalLM", _LLAMA3_CONFIG, seed, dtype)
    save_llama3(folder)


def _qwen_prm(folder: Path, seed: int, dtype: str) -> None:
    # Qwen/Qwen2.5-Math-PRM-7B: config.json's words; the head is Linear, ReLU, Linear on the trunk's last state, with
    # two labels (vllm/model_executor/models/qwen2_rm.py, after modeling_qwen2_rm.py). An unused lm_head.weight is
    # stored too: the hub lists shards of 3.97 + 3.86 + 3.86 + 3.56 GB, which trunk and head alone do not fill, and
    # vLLM's loader skips that name.
    auto = {"AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig"}
    auto |= {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"}
    config = _QWEN_CONFIG | {"auto_map": auto}
    state = _language_model(folder, "Qwen2ForProcessRewardModel", config, seed, dtype, save=False)
    for part, rows in (("score.0", WIDTH), ("score.2", 2)):
        state |= {f"{part}.weight": torch.empty(rows, WIDTH), f"{part}.bias": torch.empty(rows)}
    _save(state, folder / "model.safetensors", seed, dtype)
    save_qwen(folder, rename={"<|quad_end|>": "<extra_0>"}, chat_template=QWEN_MATH_TEMPLATE)  # 151651


def _skywork(folder: Path, seed: int, dtype: str) -> None:
    # Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B: listed as PyTorch (no safetensors) with custom code; registered as
    # Qwen2ForPrmModel (SkyworkAI/skywork-o1-prm-inference vllm_add_dummy_model/prm_model.py); that repository's
    # SkyworkPRMModel.state_dict names the causal LM's weights plainly and adds v_head.summary.*.
    extra = {
        "auto_map": {"AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig"},
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    }
    state = _language_model(folder, "Qwen2ForPrmModel", _QWEN_CONFIG | extra, seed, dtype, save=False)
    state |= {"v_head.summary.weight": torch.empty(1, WIDTH), "v_head.summary.bias": torch.empty(1)}
    _save(state, folder / "pytorch_model.bin", seed, dtype)
    save_qwen(folder, bos_token="<|im_start|>", chat_template=QWEN_MATH_TEMPLATE)  # special_tokens_map.json: this bos


def _eurus(folder: Path, seed: int, dtype: str) -> None:
    # PRIME-RL/EurusPRM-Stage1 and -Stage2: causal LMs from Qwen2.5-Math-7B-Instruct, which is also their reference.
    for place, number in ((folder, seed), (beside(folder), seed + 1)):
        _language_model(place, "Qwen2ForCausalLM", _QWEN_CONFIG, number, dtype)
        save_qwen(place, chat_template=QWEN_MATH_TEMPLATE)


def _math_psa(folder: Path, seed: int, dtype: str) -> None:
    # openreasoner/Math-psa: openr's prm/code/finetune_qwen.py trains LoRA on q_proj and v_proj of
    # Qwen2.5-Math-7B-Instruct with these numbers, and test_qwen.py takes the tokenizer from the base. Unverified: the
    # files of the hub's folder.
    base = beside(folder)
    _language_model(base, "Qwen2ForCausalLM", _QWEN_CONFIG, seed, dtype)
    save_qwen(base, chat_template=QWEN_MATH_TEMPLATE)
    lora = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "bias": "none",
    }
    lora |= {"target_modules": ["q_proj", "v_proj"], "fan_in_fan_out": False, "inference_mode": True}
    _write_json(folder / "adapter_config.json", {"base_model_name_or_path": str(base), **lora})
    state: State = {}
    for layer in range(2):
        for part, rows in (("q_proj", WIDTH), ("v_proj", WIDTH // 2)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            state |= {f"{name}.lora_A.weight": torch.empty(8, WIDTH), f"{name}.lora_B.weight": torch.empty(rows, 8)}
    _save(state, folder / "adapter_model.safetensors", seed + 1, dtype)


def _versaprm(folder: Path, seed: int, dtype: str) -> None:
    # UW-Madison-Lee-Lab/VersaPRM: opened by AutoModelForCausalLM with the tokenizer of its own folder. Unverified:
    # whether that folder holds whole weights or, like VersaPRM-Math-Subset's adapter_config.json, LoRA (r 16, all seven
    # projections) on Llama-PRM800K.
    _language_model(folder, "LlamaForCausalLM", _LLAMA3_CONFIG, seed, dtype)
    save_llama3(folder)


def _versaprm_qwen(folder: Path, seed: int, dtype: str) -> None:
    # UW-Madison-Lee-Lab/Qwen-PRM800K: the same reading on Qwen's tokenizer, whose tag is 22701.
    _language_model(folder, "Qwen2ForCausalLM", _QWEN_CONFIG, seed, dtype)
    save_qwen(folder, chat_template=QWEN_MATH_TEMPLATE)


def _trl(folder: Path, seed: int, dtype: str) -> None:
    # trl's PRMTrainer saves an AutoModelForTokenClassification of two labels, e.g.
    # HuggingFaceH4/Qwen2.5-Math-7B-Instruct-PRM-0.2 (listed as such: token classification, trl, prm).
    _classifier(folder, "Qwen2ForTokenClassification", _QWEN_CONFIG, seed, dtype)
    save_qwen(folder, chat_template=QWEN_MATH_TEMPLATE)


def _trl_bos(folder: Path, seed: int, dtype: str) -> None:
    # plaguss/Mistral-7B-v0.1-Math-Shepherd-PRM-0.2: the same by a tokenizer with a bos, and a separator of two tokens.
    _classifier(folder, "MistralForTokenClassification", _MISTRAL_CONFIG, seed, dtype)
    save_mistral(folder)


def _pqm(folder: Path, seed: int, dtype: str) -> None:
    # Windy0822/PQM: bare weights of a wrapper around a causal LM (WindyLee0822/Process_Q_Model bon_eval_hf.py loads
    # them into AutoModelForCausalLMWithValueHead by name); config and tokenizer come from the backbone, to which
    # "[PRM]" is added. Unverified: the names of the hub's files, and which backbone each was trained from.
    base = beside(folder)
    _language_model(base, "LlamaForCausalLM", _LLAMA2_CONFIG, seed + 1, dtype)
    save_mistral(base)
    wider = _causal(base, vocab_size=32001)
    state = {f"pretrained_model.{name}": value for name, value in wider.items()}
    state |= {"v_head.summary.weight": torch.empty(1, WIDTH), "v_head.summary.bias": torch.empty(1)}
    _save(state, folder / "model.safetensors", seed, dtype)


def _generative(folder: Path, seed: int, dtype: str) -> None:
    # GenPRM/GenPRM-7B (its demo.ipynb prints DeepSeek-R1's specials), launch/ThinkPRM-1.5B (from R1-Distill-Qwen).
    ids = {"bos_token_id": 151646, "eos_token_id": 151643, "vocab_size": 151936}
    _language_model(folder, "Qwen2ForCausalLM", _QWEN_CONFIG | ids, seed, dtype)
    save_r1(folder)


_BUILDERS: dict[str, Callable[[Path, int, str], None]] = {
    "math_shepherd": _math_shepherd,
    "rlhflow": _rlhflow,
    "qwen_prm": _qwen_prm,
    "skywork": _skywork,
    "eurus": _eurus,
    "math_psa": _math_psa,
    "versaprm": _versaprm,
    "versaprm_qwen": _versaprm_qwen,
    "trl": _trl,
    "trl_bos": _trl_bos,
    "pqm": _pqm,
    "genprm": _generative,
    "thinkprm": _generative,
}
NAMES = tuple(_BUILDERS)
SECOND = ("eurus", "math_psa", "pqm")
"""The families that need the model `beside` their folder."""


def _language_model(
    folder: Path, architecture: str, config: Mapping[str, Any], seed: int, dtype: str, *, save: bool = True
) -> State:
    _write_config(folder, architecture, config, dtype)
    state = _causal(folder)
    if save:
        _save(state, folder / "model.safetensors", seed, dtype)
    return state


def _classifier(folder: Path, architecture: str, config: Mapping[str, Any], seed: int, dtype: str) -> None:
    _write_config(folder, architecture, config, dtype)
    model = AutoModelForTokenClassification.from_config(AutoConfig.from_pretrained(folder))
    _save(model.state_dict(), folder / "model.safetensors", seed, dtype)


def _causal(folder: Path, **changes: Any) -> State:
    """The names and shapes of the causal LM that the folder's config describes."""
    config = AutoConfig.from_pretrained(folder, **changes)
    return dict(AutoModelForCausalLM.from_config(config).state_dict())


def _save(state: Mapping[str, torch.Tensor], path: Path, seed: int, dtype: str) -> None:
    """Draw every matrix and bias from N(0, 0.3), leave norms near 1, and write the file."""
    source = torch.Generator().manual_seed(seed)
    drawn: State = {}
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=source) * 0.3
        tensor = 1 + 0.3 * noise if "norm" in name else noise
        drawn[name] = tensor.to(getattr(torch, dtype)).contiguous()
    if "lm_head.weight" in drawn and json.loads((path.parent / "config.json").read_text())["tie_word_embeddings"]:
        drawn["lm_head.weight"] = drawn["model.embed_tokens.weight"]
    if path.suffix == ".bin":
        torch.save(drawn, path)
    else:
        save_file(drawn, path, metadata={"format": "pt"})


def _write_config(folder: Path, architecture: str, config: Mapping[str, Any], dtype: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", {"architectures": [architecture], **config, "torch_dtype": dtype})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
