"""The references of public process reward models, checked themselves: tags, counts, causality, sums done by hand."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from public_prms import NAMES, SECOND, beside, build
from reference_scores import numbered, reference
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "Tom has 12 pens and buys 30 more. He loses 2 of them. How many are left?"
STEPS = ["First, 12 + 30 = 42.", "Then he loses some: 42 - 2 = 40.", "So the answer is \\boxed{40}."]
OTHER_END = [*STEPS[:2], "Hence it is $38$ - or so he says"]
OTHER_START = ["First, 12 + 30 = 43!", *STEPS[1:]]
PROBABILITIES = [name for name in NAMES if name not in ("pqm", "eurus")]
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of every family."""
    root = tmp_path_factory.mktemp("public_prms")
    return {name: build(name, root / name, seed=3) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_score_for_each_step_by_what_came_before_it(checkpoints: dict[str, Path], name: str) -> None:
    scores = reference(name, checkpoints[name], PROMPT, STEPS)
    assert len(scores) == len(STEPS) == len({round(score, 4) for score in scores})
    assert reference(name, checkpoints[name], PROMPT, OTHER_END)[:2] == pytest.approx(scores[:2], abs=1e-6)
    by_start = reference(name, checkpoints[name], PROMPT, OTHER_START)
    by_prompt = reference(name, checkpoints[name], PROMPT.replace("12", "17"), STEPS)
    assert all(abs(a - b) > 1e-6 for other in (by_start, by_prompt) for a, b in zip(other, scores, strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "eurus"])
def test_a_step_scores_the_same_while_it_is_the_last(checkpoints: dict[str, Path], name: str) -> None:
    scores = reference(name, checkpoints[name], PROMPT, STEPS)
    assert reference(name, checkpoints[name], PROMPT, STEPS[:1]) == pytest.approx(scores[:1], abs=1e-6)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_scores_are_probabilities_apart_from_raw_values(checkpoints: dict[str, Path], name: str) -> None:
    assert all(0 < score < 1 for score in reference(name, checkpoints[name], PROMPT, STEPS))


def test_eurus_reads_on_into_the_next_step(checkpoints: dict[str, Path]) -> None:
    """As published: a step that is not the last takes in what opens the next, here two tokens of "Step"."""
    folder = checkpoints["eurus"]
    whole, alone = (reference("eurus", folder, PROMPT, steps)[0] for steps in (STEPS, STEPS[:1]))
    assert whole != pytest.approx(alone, abs=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first, second, third = numbered(STEPS)
    opening = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant"
    ids = tokenizer.encode(f"{opening}\n{first}\n\n{second}\n\n{third}<|im_end|>\n")
    start = len(tokenizer.encode(opening))
    assert tokenizer.decode(ids[start]) == "\n"
    ratios = _token_logps(folder, ids) - _token_logps(beside(folder), ids)
    scores = reference("eurus", folder, PROMPT, STEPS)
    last = len(ids) - 2  # the end of the turn, and not the newline after it
    assert scores[-1] == pytest.approx(0.001 * ratios[start - 1 : last].sum().item(), abs=1e-6)
    after = len(tokenizer.encode(f"{opening}\n{first}\n\n")) + 1
    assert tokenizer.decode(ids[after - 2 : after + 1]) == ".\n\nSt"
    assert scores[0] == pytest.approx(0.001 * ratios[start - 1 : after].sum().item(), abs=1e-6)


def _token_logps(folder: Path, ids: list[int]) -> torch.Tensor:
    logits = _logits(folder, ids)[:-1]
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def _logits(folder: Path, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0]
    return logits


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("math_shepherd", "Step 1: 42. ки\nStep", [12902]),
        ("math_shepherd", "+ -", [648, 387]),
        ("rlhflow", "+-", [10, 12]),
        ("rlhflow", "<|start_header_id|><|end_header_id|><|eot_id|>", [128006, 128007, 128009]),
        ("qwen_prm", "42.<extra_0>So", [151651]),
        ("qwen_prm", "<|im_start|><|im_end|>", [151644, 151645]),
        ("skywork", "<|endoftext|>\n<|quad_end|>", [151643, 198, 151651]),
        ("math_psa", " + -", [488, 481]),
        ("math_psa", "42. \n\n\n\n\n Step", [76325]),
        ("math_psa", "42 \n\n\n\n\n Step", [76325]),
        ("versaprm", "Why? \n\nSo 42. \n\n\n\nThen", [23535]),
        ("versaprm_qwen", "Why? \n\nSo 42) \n\n\n\n(Then", [22701]),
        ("versaprm_qwen", "+-", [10, 12]),
        ("trl", "So.\n\n", [382]),
        ("genprm", "$\\boxed{Yes}$\n", [9454]),
        ("genprm", "$\\boxed{No}$", [2753]),
        ("thinkprm", "correct? yes", [9834]),
        ("thinkprm", "correct? no", [902]),
    ],
)
def test_tags_are_hit_where_they_stand_in_a_text(
    checkpoints: dict[str, Path], name: str, text: str, ids: list[int]
) -> None:
    found = _tokenizer(checkpoints, name).encode(text, add_special_tokens=False)
    assert [number for number in found if number in ids] == ids


@pytest.mark.parametrize("name", NAMES)
def test_tokenizers_keep_plain_text_and_fit_the_embedding(checkpoints: dict[str, Path], name: str) -> None:
    tokenizer = _tokenizer(checkpoints, name)
    text = "".join(map(chr, range(33, 127))) + " a\n\nb  c\t\n " + PROMPT + "\n".join(STEPS)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    folder = beside(checkpoints[name]) if name in ("math_psa", "pqm") else checkpoints[name]
    assert len(tokenizer) <= json.loads((folder / "config.json").read_text())["vocab_size"]


def _tokenizer(checkpoints: dict[str, Path], name: str) -> Any:
    return _opened(beside(checkpoints[name]) if name in SECOND else checkpoints[name])


@cache
def _opened(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_chat_templates_render_as_the_published_ones(checkpoints: dict[str, Path]) -> None:
    turns = [
        {"role": "user", "content": "Why? "},
        {"role": "assistant", "content": "+"},
        {"role": "user", "content": "B"},
    ]

    def shown(name: str, **options: bool) -> str:
        return str(_tokenizer(checkpoints, name).apply_chat_template(turns, tokenize=False, **options))

    def llama(role: str, text: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"

    dated = llama("system", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n")
    spoken = llama("user", "Why?") + llama("assistant", "+") + llama("user", "B")
    assert shown("rlhflow") == shown("versaprm") == "<|begin_of_text|>" + dated + spoken
    spoken = "<|im_start|>user\nWhy? <|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n<|im_start|>user\nB<|im_end|>\n"
    assert shown("eurus") == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{spoken}"
    begin, end, user, assistant = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"  # noqa: RUF001
    spoken = f"{begin}{user}Why? {assistant}+{end}{user}B"
    assert shown("genprm") == spoken
    assert shown("thinkprm", add_generation_prompt=True) == f"{spoken}{assistant}<think>\n"


@pytest.mark.parametrize(
    ("name", "architecture", "keys"),
    [
        ("math_shepherd", "MistralForCausalLM", {"lm_head.weight"}),
        ("rlhflow", "LlamaForCausalLM", {"lm_head.weight"}),
        (
            "qwen_prm",
            "Qwen2ForProcessRewardModel",
            {"lm_head.weight", "score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"},
        ),
        ("skywork", "Qwen2ForPrmModel", {"lm_head.weight", "v_head.summary.weight", "v_head.summary.bias"}),
        ("trl", "Qwen2ForTokenClassification", {"score.weight", "score.bias"}),
        ("trl_bos", "MistralForTokenClassification", {"score.weight", "score.bias"}),
        ("pqm", None, {"pretrained_model.lm_head.weight", "v_head.summary.weight", "v_head.summary.bias"}),
    ],
)
def test_marks_by_which_a_family_is_told(
    checkpoints: dict[str, Path], name: str, architecture: str | None, keys: set[str]
) -> None:
    folder = checkpoints[name]
    assert (folder / "config.json").exists() == (architecture is not None)
    if architecture is not None:
        assert json.loads((folder / "config.json").read_text())["architectures"] == [architecture]
    trunk = ("model.", "pretrained_model.model.")
    assert {key for key in _state(folder) if not key.startswith(trunk)} == keys


def _state(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / "pytorch_model.bin").exists():
        return dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    return load_file(folder / "model.safetensors")


def test_math_shepherd_by_hand(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["math_shepherd"]
    text = f"{PROMPT} Step 1: {STEPS[0]} ки\nStep 2: {STEPS[1]} ки"
    ids = AutoTokenizer.from_pretrained(folder).encode(text)
    assert ids[0] == 1 and ids[-1] == 12902 and ids.count(12902) == 2
    plus, minus = _logits(folder, ids)[-1, [648, 387]].tolist()
    by_hand = math.exp(plus) / (math.exp(plus) + math.exp(minus))
    assert reference("math_shepherd", folder, PROMPT, STEPS[:2])[1] == pytest.approx(by_hand, abs=1e-6)


def test_rlhflow_reads_the_blank_line_that_predicts_the_sign(checkpoints: dict[str, Path]) -> None:
    folder = checkpoints["rlhflow"]
    text = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    text += "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    text += f"{PROMPT} {STEPS[0]}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ids = AutoTokenizer.from_pretrained(folder).encode(text, add_special_tokens=False)
    assert ids[-2:] == [128007, 271]
    plus, minus = _logits(folder, ids)[-1, [10, 12]].tolist()
    by_hand = 1 / (1 + math.exp(minus - plus))
    assert reference("rlhflow", folder, PROMPT, STEPS)[0] == pytest.approx(by_hand, abs=1e-6)


def test_math_psa_is_its_base_with_the_adapter_merged(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = checkpoints["math_psa"]
    state, adapter = _state(beside(folder)), load_file(folder / "adapter_model.safetensors")
    for key in [key for key in adapter if "lora_A" in key]:
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        state[name] = state[name] + 32 / 8 * adapter[key.replace("lora_A", "lora_B")] @ adapter[key]
    model = AutoModelForCausalLM.from_pretrained(beside(folder)).eval()
    plain = model(torch.tensor([[1, 2, 76325]])).logits
    model.load_state_dict(state)
    text = f"{PROMPT} {STEPS[0]} \n\n\n\n\n"
    ids = AutoTokenizer.from_pretrained(beside(folder)).encode(text)
    assert not torch.allclose(plain, model(torch.tensor([[1, 2, 76325]])).logits)
    plus, minus = model(torch.tensor([ids])).logits[0, -1, [488, 481]].tolist()
    by_hand = 1 / (1 + math.exp(minus - plus))
    assert reference("math_psa", folder, PROMPT, STEPS[:1])[0] == pytest.approx(by_hand, abs=1e-5)


def test_steps_tokenised_alone_differ_from_a_text(checkpoints: dict[str, Path]) -> None:
    tokenizer = _tokenizer(checkpoints, "trl")
    alone = tokenizer.encode("42.") + tokenizer.encode("\n")
    assert tokenizer.encode("42.\n") != alone and alone[-1] == 198
    assert _tokenizer(checkpoints, "trl_bos").encode("\n", add_special_tokens=False) == [28705, 13]
    assert _tokenizer(checkpoints, "skywork").bos_token == "<|im_start|>"


def test_a_seed_and_a_type_of_number_fix_the_weights(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    again = build("trl_bos", tmp_path / "again", seed=3)
    assert (again / "model.safetensors").read_bytes() == (checkpoints["trl_bos"] / "model.safetensors").read_bytes()
    half = build("trl_bos", tmp_path / "half", seed=3, dtype="bfloat16")
    with safe_open(half / "model.safetensors", framework="pt") as weights:
        assert weights.get_tensor("score.weight").dtype == torch.bfloat16
    scores = reference("trl_bos", checkpoints["trl_bos"], PROMPT, STEPS)
    assert reference("trl_bos", half, PROMPT, STEPS) == pytest.approx(scores, abs=0.05)
    other = build("trl_bos", tmp_path / "other", seed=4)
    assert reference("trl_bos", other, PROMPT, STEPS) != pytest.approx(scores, abs=1e-3)
