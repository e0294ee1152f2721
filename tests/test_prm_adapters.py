"""Every public convention against an independent reference, on small checkpoints laid out as the public ones are.

The references (`reference_scores.py`) were written from the authors' code by someone who had not seen ours.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from public_prms import NAMES, SECOND, beside, build
from reference_scores import ANALYSIS, VERIFICATION, genprm_critique, reference

from prm.adapters import ADAPTERS, recognise
from prm.generative import GenPrm, ThinkPrm
from prm.model import ProcessModel
from verifiers.core import Problem, StepScorer
from verifiers.errors import ConfigError, DataError, MissingFileError, ModelError
from verifiers.steps import text_response

PROMPTS = [
    "Tom has 12 pens and buys 30 more. He loses 2 of them. How many are left?",
    "What is 3 * 4?",
    "Ann reads 14 pages a day for 5 days. How many pages does she read in all, and how many in one more day?",
]
STEPS = [
    ["First, 12 + 30 = 42.", "Then he loses some: 42 - 2 = 40.", "So the answer is \\boxed{40}."],
    ["\\boxed{12}"],
    ["14 * 5 = 70.", "Another day: 70 + 14 = 85.", "Check: 85 - 14 = 71, not 70.", "So it is 84.", "\\boxed{70}, 84"],
]
RAW = ("pqm", "eurus")
"""Families whose published score is no probability."""
OPTIONS = {"eurus": "reference", "math_psa": "base", "pqm": "base"}
KNOWN_AS = {"versaprm_qwen": "versaprm", "trl_bos": "trl"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("public")
    return {name: build(name, root / name, seed=11) for name in NAMES}


def load(name: str, folder: Path, **more: Any) -> ProcessModel:
    options = {OPTIONS[name]: str(beside(folder))} if name in OPTIONS else {}
    model = ProcessModel.load(folder, adapter=KNOWN_AS.get(name, name), device="cpu", **options, **more)
    if isinstance(model, GenPrm):
        model.write = lambda rows, until: [critique(model, row, until) for row in rows]
    if isinstance(model, ThinkPrm):
        model.write = lambda rows, until: [VERIFICATION] * len(rows)
    return model


def critique(model: ProcessModel, row: Sequence[int], until: str) -> str:
    """What the reference lets GenPRM write behind this prompt."""
    _, asked = model.tokenizer.decode(row).rsplit("Paragraph ", 1)
    whole = genprm_critique(int(asked.split()[0]))
    return whole.split("step by step: ", 1)[1].split(until)[0] + until


@cache
def wanted(name: str, folder: Path) -> list[list[float]]:
    return [reference(name, folder, prompt, steps) for prompt, steps in zip(PROMPTS, STEPS, strict=True)]


def found_by(name: str, model: ProcessModel) -> list[tuple[float, ...]]:
    problems = [Problem(id=str(n), prompt=prompt) for n, prompt in enumerate(PROMPTS)]
    responses = [text_response(str(n), steps) for n, steps in enumerate(STEPS)]
    return (model.log_odds if name in RAW else model.score_steps)(problems, responses)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_references(folders: dict[str, Path], name: str) -> None:
    model = load(name, folders[name], dtype="float32")
    assert isinstance(model, StepScorer)
    for batch_tokens, side in ((1, "left"), (150, "right"), (16_384, "left")):
        model.batch_tokens, model.tokenizer.padding_side = batch_tokens, side
        for mine, theirs in zip(found_by(name, model), wanted(name, folders[name]), strict=True):
            assert list(mine) == pytest.approx(theirs, abs=1e-5)
    values = [value for row in wanted(name, folders[name]) for value in row]
    assert max(values) - min(values) > (1e-3 if name == "eurus" else 0.02)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_other_precisions(folders: dict[str, Path], name: str, dtype: str) -> None:
    """Double precision agrees to 1e-5; bfloat16 keeps 8 bits, so its scores are near and in order only."""
    model = load(name, folders[name], dtype=dtype)
    assert next(model.model.parameters()).dtype == getattr(torch, dtype)
    allowed = 1e-5 if dtype == "float64" else 0.15 * (10 if name == "pqm" else 1)
    for mine, theirs in zip(found_by(name, model), wanted(name, folders[name]), strict=True):
        assert list(mine) == pytest.approx(theirs, abs=allowed)


def test_the_stored_precision_is_kept(tmp_path: Path) -> None:
    model = load("versaprm", build("versaprm", tmp_path / "versaprm", dtype="bfloat16"))
    assert next(model.model.parameters()).dtype == torch.bfloat16


HUB = {
    "math_shepherd": "math-shepherd-mistral-7b-prm",
    "rlhflow": "Llama3.1-8B-PRM-Deepseek-Data",
    "qwen_prm": "anything",
    "skywork": "whatever",
    "eurus": "EurusPRM-Stage2",
    "math_psa": "Math-psa",
    "versaprm": "VersaPRM",
    "versaprm_qwen": "Qwen-PRM800K",
    "trl": "some-model",
    "trl_bos": "other-model",
    "pqm": "PQM",
    "genprm": "GenPRM-7B",
    "thinkprm": "ThinkPRM-1.5B",
}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_recognised_without_a_word(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    folder = tmp_path / HUB[name]
    folder.symlink_to(folders[name])
    assert recognise(str(folder)) == KNOWN_AS.get(name, name)


def test_loading_takes_what_is_recognised(folders: dict[str, Path], tmp_path: Path) -> None:
    model = ProcessModel.load(folders["qwen_prm"], device="cpu")
    assert model.adapter == "qwen_prm"
    assert model.score(PROMPTS[0], STEPS[0]) == pytest.approx(
        reference("qwen_prm", folders["qwen_prm"], PROMPTS[0], STEPS[0]), abs=1e-5
    )


def test_an_unknown_model_names_the_conventions(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.symlink_to(folders["math_shepherd"])
    with pytest.raises(ModelError, match=r"MistralForCausalLM\); name its convention by adapter=, one of rewardkit"):
        ProcessModel.load(plain)
    with pytest.raises(ConfigError, match=r"adapter must be one of rewardkit, implicit, .*; got 'nothing'"):
        ProcessModel.load(plain, adapter="nothing")
    with pytest.raises(ConfigError, match="holds bare weights; say whose configuration"):
        ProcessModel.load(folders["pqm"], adapter="pqm")


def test_a_name_without_a_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"^nowhere is no folder, and the hub gave no config\.json of that name"):
        recognise("nowhere")
    with pytest.raises(MissingFileError, match="no checkpoint folder at"):
        ProcessModel.load(tmp_path / "nowhere")


def test_missing_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(folders["qwen_prm"], broken)
    state = load_file(broken / "model.safetensors")
    save_file({k: v for k, v in state.items() if k != "score.2.bias"}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights its config.json asks for, score.2.bias"):
        ProcessModel.load(broken)


def test_no_remote_code_is_run(folders: dict[str, Path], tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(folders["qwen_prm"], hostile)
    (hostile / "modeling_qwen2_rm.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    (hostile / "configuration_qwen2_rm.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    assert "auto_map" in json.loads((hostile / "config.json").read_text())
    ProcessModel.load(hostile, device="cpu").score(PROMPTS[1], STEPS[1])
    assert not (tmp_path / "ran").exists()


def test_a_step_that_underflows_is_neither_lost_nor_nan(folders: dict[str, Path]) -> None:
    """The helper on Qwen's card picks steps by probability != 0, which in fp16 drops one at logits 17.5 apart."""
    model = load("qwen_prm", folders["qwen_prm"], dtype="float16")
    with torch.no_grad():
        model.model.score[2].weight.mul_(500)
    scores = model.score(PROMPTS[2], STEPS[2])
    assert len(scores) == 5
    assert all(math.isfinite(score) for score in scores)
    (odds,) = model.log_odds([Problem(id="", prompt=PROMPTS[2])], [text_response("", STEPS[2])])
    assert max(map(abs, odds)) > 40
    assert all(math.isfinite(x) for x in odds)


def test_a_tag_in_the_problem_is_said(folders: dict[str, Path]) -> None:
    model = load("qwen_prm", folders["qwen_prm"])
    with pytest.raises(DataError, match="has 3 steps, but its text as this model reads it has 4 step marks"):
        model.score("What is <extra_0>?", STEPS[0])


def test_chat_prompts_give_their_question(folders: dict[str, Path]) -> None:
    model = load("versaprm", folders["versaprm"])
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPTS[0]})
    assert model.score(chat, STEPS[0]) == model.score(PROMPTS[0], STEPS[0])


def test_numbering_that_steps_bring_is_replaced(folders: dict[str, Path]) -> None:
    model = load("math_shepherd", folders["math_shepherd"])
    own = [f"Step {n}: {step}" for n, step in enumerate(STEPS[0], start=4)]
    assert model.score(PROMPTS[0], own) == model.score(PROMPTS[0], STEPS[0])


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"eurus", "genprm", "thinkprm"}))
def test_a_prefix_scores_as_inside_the_whole(folders: dict[str, Path], name: str) -> None:
    model = load(name, folders[name], dtype="float32")
    whole = model.score(PROMPTS[2], STEPS[2])
    for count in (1, 3):
        assert model.score(PROMPTS[2], STEPS[2][:count]) == pytest.approx(whole[:count], abs=1e-5)


def test_generated_critiques_are_greedy_and_read_at_the_verdict(folders: dict[str, Path]) -> None:
    """The random model writes no verdict: its opening is put in its mouth, and the score is read behind it."""
    model = ProcessModel.load(folders["genprm"], adapter="genprm", device="cpu", dtype="float32")
    assert isinstance(model, GenPrm)
    model.max_new_tokens = 8
    first, again = (model.score(PROMPTS[1], STEPS[1]) for _ in range(2))
    assert first == again
    assert model.usage.decoded_tokens > 0
    tokenizer = model.tokenizer
    written = []
    write = model.write
    model.write = lambda rows, until: written.extend(write(rows, until)) or written[-len(rows) :]  # type: ignore[func-returns-value]
    model.score(PROMPTS[1], STEPS[1])
    opening = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "You are a math teacher. Your task is to review and critique the paragraphs "
             "in solution step by step."},
            {"role": "user", "content": f"Question: {PROMPTS[1]}\n\n{STEPS[1][0]}"},
        ],
        tokenize=False,
    ).removesuffix(tokenizer.eos_token)  # fmt: skip
    text = f"{opening}<analyze>\nLet's analyze the Paragraph 1 step by step: {written[0].rstrip(chr(10))}\n"
    ids = tokenizer.encode(text + "<output>\n**Judgement**: $\\boxed{", add_special_tokens=False)
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[0, -1]
    yes, no = (tokenizer.encode(word)[-1] for word in ("Yes", "No"))
    assert first == pytest.approx([logits[[yes, no]].softmax(-1)[0].item()], abs=1e-5)


def test_every_adapter_has_a_reference_or_is_ours() -> None:
    covered = {KNOWN_AS.get(name, name) for name in NAMES}
    assert set(ADAPTERS) == covered | {"rewardkit", "implicit"}
    assert set(SECOND) == set(OPTIONS)
    assert ANALYSIS in genprm_critique(1)
