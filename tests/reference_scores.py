"""Reference scores of public process reward models: each family as its card or its authors' code reads it.

One text at a time, no padding, no cache, no batching, float32. `reference(name, folder, prompt, steps)` gives one float
a step. Every function names the source it follows; where published code and its description differ, the code is
followed. Steps are handed over without their tags. Families whose text numbers its steps get "Step 1: ", "Step 2: " and
so on in place of any numbering the steps bring.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from public_prms import beside
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

ANALYSIS = "Adding and carrying are done right here. "
"""What GenPRM's critique says of every step, after the opening that its authors' code puts in the model's mouth."""
VERIFICATION = "\nStep 1: adding and carrying are done right. The step is \\boxed{correct}\n"
"""What ThinkPRM's chain of thought says of every prefix, after "Let's verify step by step:"."""

_GENPRM_SYSTEM = "You are a math teacher. Your task is to review and critique the paragraphs in solution step by step."
_THINKPRM_TASK = (
    "You are given a math problem and a proposed step-by-step solution:\n\n[Math Problem]\n\n{problem}\n\n"
    "[Solution]\n\n{solution}\n\nReview and critique each step in the proposed solution to determine whether each step "
    "is correct. If the solution is incomplete, only verify the provided steps."
)

Scores = Sequence[float] | torch.Tensor
Reading = Callable[[Path, str, list[str]], Scores]
"""How a family scores: folder, prompt and steps in, one number a step out."""


def reference(name: str, folder: Path | str, prompt: str, steps: Sequence[str]) -> list[float]:
    """One score a step, as the family `name` reads it."""
    with torch.no_grad():
        return [float(score) for score in _REFERENCES[name](Path(folder), prompt, list(steps))]


def _math_shepherd(folder: Path, prompt: str, steps: list[str]) -> Scores:
    # Card of peiyi9979/math-shepherd-mistral-7b-prm; the same in openreasoner/openr prm/infer_fns.py.
    tokenizer, model = _tokenizer(folder), _model(AutoModelForCausalLM, folder)
    candidates = tokenizer.encode("+ -")[1:]  # 648, 387
    tag = tokenizer.encode("ки")[-1]  # 12902
    ids = tokenizer.encode(f"{prompt} " + "\n".join(f"{step} ки" for step in numbered(steps)))
    logits = _logits(model, ids)[:, candidates]
    return logits.softmax(-1)[torch.tensor(ids) == tag, 0]


def _rlhflow(folder: Path, prompt: str, steps: list[str]) -> Scores:
    # RLHFlow/RLHF-Reward-Modeling math-rm/prm_evaluate.py: one forward a step, read where the sign is predicted.
    tokenizer, model = _tokenizer(folder), _model(AutoModelForCausalLM, folder)
    candidates = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]  # 10, 12
    conversation: list[dict[str, str]] = []
    scores = []
    for index, step in enumerate(steps):
        text = step.strip() if index else prompt + " " + step.strip()
        conversation += [{"role": "user", "content": text}, {"role": "assistant", "content": "+"}]
        ids = _encode(tokenizer, tokenizer.apply_chat_template(conversation, tokenize=False))
        # -1 ends the turn, -2 is "+", -3 predicts it
        logits = _logits(model, ids, logits_to_keep=3)[-3, candidates]
        scores.append(logits.softmax(-1)[0].item())
    return scores


def _qwen_prm(folder: Path, prompt: str, steps: list[str]) -> Scores:
    # Card of Qwen/Qwen2.5-Math-PRM-7B; head as in modeling_qwen2_rm.py. (The card's helper picks steps by probability
    # != 0, which loses a step whose class underflows; here the tag's places pick them.)
    tokenizer, model = _tokenizer(folder), _model(AutoModel, folder)
    state = load_file(folder / "model.safetensors")
    messages = [
        {"role": "system", "content": "Please reason step by step, and put your final answer within \\boxed{}."},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": "<extra_0>".join(steps) + "<extra_0>"},
    ]
    ids = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
    hidden = _hidden(model, ids)
    hidden = torch.relu(hidden @ state["score.0.weight"].float().T + state["score.0.bias"].float())
    logits = hidden @ state["score.2.weight"].float().T + state["score.2.bias"].float()
    tag = tokenizer.encode("<extra_0>")[0]  # 151651
    return logits.softmax(-1)[torch.tensor(ids) == tag, 1]


def _skywork(folder: Path, prompt: str, steps: list[str]) -> Scores:
    # SkyworkAI/skywork-o1-prm-inference model_utils/io_utils.py (prepare_input) and prm_model.py: prompt and steps are
    # tokenised apart, the newline's id is appended to each step, the head reads it, a sigmoid closes.
    tokenizer, model = _tokenizer(folder), _model(AutoModel, folder)
    state: dict[str, torch.Tensor] = torch.load(folder / "pytorch_model.bin", weights_only=True)
    newline = tokenizer.encode("\n")[-1]
    ids = tokenizer.encode(tokenizer.bos_token + prompt + "\n")
    places = []
    for step in steps:
        ids += (tokenizer.encode(step) if step else []) + [newline]
        places.append(len(ids) - 1)
    hidden = _hidden(model, ids)[places]
    values = hidden @ state["v_head.summary.weight"].float().T + state["v_head.summary.bias"].float()
    return values[:, 0].sigmoid()


def _eurus(folder: Path, prompt: str, steps: list[str]) -> Scores:
    # Card of PRIME-RL/EurusPRM-Stage2, followed with its off-by-ones: the sum of log-ratios begins at the newline
    # before the answer, and for every step but the last it takes two more tokens than the step has by itself: the blank
    # line and one token (or, where the full stop and the blank line are one token, two tokens of the next step).
    tokenizer = _tokenizer(folder)
    answer = numbered(steps)

    def rendered(count: int) -> str:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "\n\n".join(answer[:count])}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False))

    ends = []
    for count in range(len(answer) + 1):
        text = rendered(count).strip() + ("\n\n" if 0 < count < len(answer) else "")
        ends.append(len(_encode(tokenizer, text)) - 2)
    ids = _encode(tokenizer, rendered(len(answer)))
    ratios = _token_logps(_model(AutoModelForCausalLM, folder), ids)
    ratios = ratios - _token_logps(_model(AutoModelForCausalLM, beside(folder)), ids)
    mask = torch.tensor([0] * ends[0] + [1] * (len(ids) - ends[0]))[1:]
    return (0.001 * ratios * mask).cumsum(-1)[ends[1:]]


def _math_psa(folder: Path, prompt: str, steps: list[str]) -> Scores:
    # openreasoner/openr prm/code/test_qwen.py (text) and prm/infer_fns.py (reading). That script's steps say "Step 1: "
    # and so on themselves; the training rows (MATH-APS, PRM800K) do not, so nothing is added here.
    tokenizer = _tokenizer(beside(folder))
    base = _model(AutoModelForCausalLM, beside(folder))
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    candidates = tokenizer.encode(" + -")  # 488, 481
    tag = tokenizer.encode(" \n\n\n\n\n")[-1]  # 76325
    ids = tokenizer.encode(f"{prompt} " + " ".join(f"{step} \n\n\n\n\n" for step in steps))
    logits = _logits(model, ids)[:, candidates]
    return logits.softmax(-1)[torch.tensor(ids) == tag, 0]


def _versaprm(tag: int) -> Reading:
    # Card of UW-Madison-Lee-Lab/VersaPRM as its users quote it: question, blank line, steps each before the tag; labels
    # [12, 10] are "-" and "+", so the second is P(+); read at the tag itself.
    def score(folder: Path, prompt: str, steps: list[str]) -> Scores:
        tokenizer, model = _tokenizer(folder), _model(AutoModelForCausalLM, folder)
        ids = tokenizer.encode(prompt + " \n\n" + " \n\n\n\n".join(steps) + " \n\n\n\n")
        logits = _logits(model, ids)[:, [12, 10]]
        return logits.softmax(-1)[torch.tensor(ids) == tag, 1]

    return score


def _trl(folder: Path, prompt: str, steps: list[str]) -> Scores:
    # huggingface/trl PRMTrainer.tokenize_row (trl/experimental/prm/prm_trainer.py), default step_separator "\n": the
    # prompt and every step tokenised alone and without specials, the separator's ids after each step, a bos in front
    # where the tokenizer has one; the label, and so the score, is on the last id of the separator.
    tokenizer, model = _tokenizer(folder), _model(AutoModelForTokenClassification, folder)
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids += _encode(tokenizer, prompt)
    places = []
    for step in steps:
        ids += _encode(tokenizer, step) + _encode(tokenizer, "\n")
        places.append(len(ids) - 1)
    return _logits(model, ids)[places].softmax(-1)[:, 1]


def _pqm(folder: Path, prompt: str, steps: list[str]) -> Scores:
    # WindyLee0822/Process_Q_Model bon_eval_hf.py: the tag is a new special token of the backbone, no bos, a raw scalar.
    tokenizer = AutoTokenizer.from_pretrained(beside(folder))
    tokenizer.add_tokens(["[PRM]"], special_tokens=True)
    query = (
        "Below is an instruction that describes a task.\nWrite a response that appropriately completes the request."
        f"\n\n### Instruction:\n{prompt}\n\n### Response: Let's think step by step"
    )
    ids = _encode(tokenizer, query + "\n" + " [PRM]\n".join(numbered(steps)) + " [PRM]")
    state = load_file(folder / "model.safetensors")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(beside(folder), vocab_size=len(tokenizer)))
    named = "pretrained_model."
    model.load_state_dict({k.removeprefix(named): v.float() for k, v in state.items() if k.startswith(named)})
    hidden = _hidden(model.eval().model, ids)
    values = hidden @ state["v_head.summary.weight"].float().T + state["v_head.summary.bias"].float()
    return values[torch.tensor(ids) == _encode(tokenizer, "[PRM]")[-1], 0]


def genprm_critique(step: int) -> str:
    """What GenPRM writes of the step (from 1) when it writes ANALYSIS and runs no code."""
    opening = f"<analyze>\nLet's analyze the Paragraph {step} step by step: {ANALYSIS}</analyze>\n"
    return opening + "<output>\n**Judgement**: $\\boxed{Yes}$\n</output>\n"


def _genprm(folder: Path, prompt: str, steps: list[str]) -> Scores:
    # RyanLiu112/GenPRM infer_module/genprm_inference.py and example/demo.ipynb: a paragraph a user turn, the critique
    # follows without an assistant mark, earlier critiques stand as assistant turns; Yes against No at the verdict.
    tokenizer, model = _tokenizer(folder), _model(AutoModelForCausalLM, folder)
    yes, no = (tokenizer.encode(word)[-1] for word in ("Yes", "No"))
    messages = [{"role": "system", "content": _GENPRM_SYSTEM}]
    scores = []
    for number, step in enumerate(steps, 1):
        text = step if number > 1 else f"Question: {prompt}\n\n{step}"
        messages.append({"role": "user", "content": text})
        opening = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix(tokenizer.eos_token)
        ids = _encode(tokenizer, opening + genprm_critique(number))
        verdict = len(ids) - 1 - ids[::-1].index(yes)
        logits = _logits(model, ids, logits_to_keep=torch.tensor([verdict - 1]))[0, [yes, no]]
        scores.append(logits.softmax(-1)[0].item())
        messages.append({"role": "assistant", "content": genprm_critique(number)})
    return scores


def _thinkprm(folder: Path, prompt: str, steps: list[str]) -> Scores:
    # mukhal/ThinkPRM utils/helper.py (prompt) and prm/thinkprm_api.py (score): one score for a prefix of the solution,
    # yes against no after the question; the prefix that ends with a step gives the step's score.
    tokenizer, model = _tokenizer(folder), _model(AutoModelForCausalLM, folder)
    candidates = [_encode(tokenizer, " yes")[-1], _encode(tokenizer, " no")[-1]]
    scores = []
    for count in range(1, len(steps) + 1):
        task = _THINKPRM_TASK.replace("{problem}", prompt).replace("{solution}", "\n".join(numbered(steps[:count])))
        turns = [{"role": "user", "content": task}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        text += "\nLet's verify step by step:" + VERIFICATION + "\nIs the solution correct?"
        logits = _logits(model, _encode(tokenizer, text), logits_to_keep=1)[-1, candidates]
        scores.append(logits.softmax(-1)[0].item())
    return scores


_REFERENCES: dict[str, Reading] = {
    "math_shepherd": _math_shepherd,
    "rlhflow": _rlhflow,
    "qwen_prm": _qwen_prm,
    "skywork": _skywork,
    "eurus": _eurus,
    "math_psa": _math_psa,
    "versaprm": _versaprm(23535),
    "versaprm_qwen": _versaprm(22701),
    "trl": _trl,
    "trl_bos": _trl,
    "pqm": _pqm,
    "genprm": _genprm,
    "thinkprm": _thinkprm,
}


def numbered(steps: Sequence[str]) -> list[str]:
    """The steps with "Step 1: ", "Step 2: ", ... in front, whatever numbering they bring taken off."""
    bare = [re.sub(r"^\s*Step \d+:", "", step).strip() for step in steps]
    return [f"Step {number}: {step}" for number, step in enumerate(bare, 1)]


def _logits(model: Any, ids: list[int], **options: Any) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([ids]), **options).logits[0]
    return logits


def _hidden(model: Any, ids: list[int]) -> torch.Tensor:
    hidden: torch.Tensor = model(torch.tensor([ids])).last_hidden_state[0]
    return hidden


def _token_logps(model: Any, ids: list[int]) -> torch.Tensor:
    logps = _logits(model, ids)[:-1].log_softmax(-1)
    return logps.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


@cache
def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)  # kept: a folder's tokenizer does not change with its seed


def _model(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, dtype=torch.float32).eval()
