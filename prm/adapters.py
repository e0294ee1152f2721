r"""Which checkpoint is read how: every public process reward model, found by its files or its name.

    name            read by        head                         sources
    rewardkit       OwnReading     two labels or a scalar       ours: rewardkit.json
    implicit        OwnReading     log-ratio to a reference     ours; Yuan et al. 2024, arXiv 2412.01981
    math_shepherd   TaggedText     tokens "+", "-" at "ки"      card of peiyi9979/math-shepherd-mistral-7b-prm
    rlhflow         Turns          tokens "+", "-"              RLHFlow/RLHF-Reward-Modeling math-rm/prm_evaluate.py
    qwen_prm        TaggedChat     layered, at "<extra_0>"      card of Qwen/Qwen2.5-Math-PRM-7B; also ReasonFlux-PRM
    skywork         Pieces         scalar v_head                SkyworkAI/skywork-o1-prm-inference
    eurus           AnswerSpan     log-ratio, beta 0.001        card of PRIME-RL/EurusPRM-Stage2
    math_psa        TaggedText     tokens " +", " -"            openreasoner/openr prm/
    versaprm        TaggedText     ids 10 (+), 12 (-)           card of UW-Madison-Lee-Lab/VersaPRM; also *-PRM800K
    trl             Pieces         two labels                   TRL <= 1.13 PRMTrainer.tokenize_row
    pqm             TaggedText     scalar v_head, raw           WindyLee0822/Process_Q_Model
    genprm          generative     "Yes" against "No"           RyanLiu112/GenPRM
    thinkprm        generative     " yes" against " no"         mukhal/ThinkPRM

A checkpoint is recognised by rewardkit.json, by the architecture that its config.json names, or by its hub id; plain
language models of an unknown name need `adapter=`. No remote code is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prm.backbone import CARD, ModelCard, load_backbone
from prm.heads import LayeredHead, LayeredTrunk, PairHead, ScalarHead, ValueTrunk, head_of
from prm.readings import AnswerSpan, OwnReading, Pieces, Reading, TaggedChat, TaggedText, Turns
from verifiers.checkpoints import load_tokenizer, loading, refuse_missing
from verifiers.errors import ConfigError, MissingFileError, ModelError

WHAT = "a process reward model"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A loaded checkpoint: what `prm.model.ProcessModel` is made of."""

    model: Any
    tokenizer: Any
    reading: Reading
    head: torch.nn.Module | None = None
    """None for models that are read otherwise (implicit, generative)."""
    reference: Any = None
    """The reference model of an implicit one."""
    beta: float = 0.0
    card: ModelCard = field(default_factory=ModelCard)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is to be loaded, and from where its second model comes, if it has one."""

    path: str
    dtype: str = "auto"
    base: str | None = None
    """Base of a LoRA adapter, or backbone of bare weights."""
    reference: str | None = None
    """Reference of an implicit model."""
    separator: str | None = None
    """Step separator of a `trl` checkpoint, which does not store it."""

    def language_model(self, path: str | None = None) -> Any:
        """A causal language model, all its weights present."""
        from transformers import AutoModelForCausalLM

        return self._open(AutoModelForCausalLM, path or self.path)

    def trunk(self, kind: Any) -> Any:
        """One of `prm.heads`' trunks."""
        return self._open(kind, self.path, config=_config(self.path))

    def _open(self, kind: Any, path: str, **options: Any) -> Any:
        with loading(path, WHAT):
            model, report = kind.from_pretrained(
                path, dtype=self.dtype, output_loading_info=True, trust_remote_code=False, **options
            )
        refuse_missing(path, WHAT, report["missing_keys"])
        return model


def _config(path: str) -> Any:
    with loading(path, WHAT):
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def _signs(tokenizer: Any, good: str, bad: str) -> tuple[int, int]:
    first, second = (tokenizer.encode(word, add_special_tokens=False)[-1] for word in (good, bad))
    return first, second


def _tokens(source: Source, reading: Reading, good: str | int, bad: str | int) -> Parts:
    """A language model that says one of two tokens."""
    tokenizer, model = load_tokenizer(source.path), source.language_model()
    if isinstance(good, str) and isinstance(bad, str):
        good, bad = _signs(tokenizer, good, bad)
    assert isinstance(good, int) and isinstance(bad, int)
    return Parts(
        model=model, tokenizer=tokenizer, reading=reading, head=PairHead(model.get_output_embeddings(), good, bad)
    )


def _math_shepherd(source: Source) -> Parts:
    reading = TaggedText(opening="{question} ", tag=" ки", between="\n", number=True)
    return _tokens(source, reading, "+", "-")


def _rlhflow(source: Source) -> Parts:
    return _tokens(source, Turns(), "+", "-")


def _versaprm(source: Source) -> Parts:
    # The ids stand in the card as numbers; they are "+" and "-" in Llama-3's and in Qwen's vocabulary alike.
    return _tokens(source, TaggedText(opening="{question} \n\n", tag=" \n\n\n\n"), 10, 12)


def _math_psa(source: Source) -> Parts:
    from peft import PeftConfig, PeftModel

    with loading(source.path, "a LoRA adapter"):
        base = source.base or PeftConfig.from_pretrained(source.path).base_model_name_or_path
        model = source.language_model(base)
        tokenizer = load_tokenizer(base)
        model = PeftModel.from_pretrained(model, source.path).merge_and_unload()
    good, bad = _signs(tokenizer, " +", " -")
    reading = TaggedText(opening="{question} ", tag=" \n\n\n\n\n", between=" ")
    return Parts(
        model=model, tokenizer=tokenizer, reading=reading, head=PairHead(model.get_output_embeddings(), good, bad)
    )


def _qwen_prm(source: Source) -> Parts:
    model = source.trunk(LayeredTrunk)
    reading = TaggedChat(
        tag="<extra_0>", system="Please reason step by step, and put your final answer within \\boxed{}."
    )
    head = LayeredHead(model.score[0], PairHead(model.score[2], 1, 0))
    return Parts(model=model, tokenizer=load_tokenizer(source.path), reading=reading, head=head)


def _skywork(source: Source) -> Parts:
    model = source.trunk(ValueTrunk)
    return Parts(
        model=model,
        tokenizer=load_tokenizer(source.path),
        reading=Pieces(begin=False, begin_text=True),
        head=ScalarHead(model.v_head["summary"]),
    )


def _pqm(source: Source) -> Parts:
    if source.base is None:
        raise ConfigError(f"{source.path} holds bare weights; say whose configuration and tokenizer they have by base=")
    tokenizer = load_tokenizer(source.base)
    tokenizer.add_tokens(["[PRM]"], special_tokens=True)
    config = _config(source.base)
    with loading(source.path, WHAT):
        state = _weights(Path(source.path))
        config.vocab_size = state["model.embed_tokens.weight"].shape[0]
        model = ValueTrunk(config)
        missing, _ = model.load_state_dict(state, strict=False)
    refuse_missing(source.path, WHAT, missing)
    kept = state["v_head.summary.weight"].dtype
    model.to(kept if source.dtype == "auto" else getattr(torch, source.dtype))
    opening = (
        "Below is an instruction that describes a task.\nWrite a response that appropriately completes the request."
        "\n\n### Instruction:\n{question}\n\n### Response: Let's think step by step\n"
    )
    reading = TaggedText(opening=opening, tag=" [PRM]", between="\n", number=True, special=False)
    return Parts(model=model, tokenizer=tokenizer, reading=reading, head=ScalarHead(model.v_head["summary"]))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, without the wrapper's prefix."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")) or sorted(folder.glob("*.pt"))
    if not files:
        raise ModelError(f"{folder} holds no weights (looked for .safetensors, .bin and .pt)")
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state |= load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    return {name.removeprefix("pretrained_model."): tensor for name, tensor in state.items()}


def _trl(source: Source) -> Parts:
    model, tokenizer, _ = load_backbone(source.path, dtype=source.dtype)
    reading = Pieces(separator="\n" if source.separator is None else source.separator)
    return Parts(model=model, tokenizer=tokenizer, reading=reading, head=head_of(model))


def _eurus(source: Source) -> Parts:
    return Parts(
        model=source.language_model(),
        reference=source.language_model(source.reference or "Qwen/Qwen2.5-Math-7B-Instruct"),
        tokenizer=load_tokenizer(source.path),
        reading=AnswerSpan(),
        beta=0.001,
    )


def _rewardkit(source: Source) -> Parts:
    model, tokenizer, card = load_backbone(source.path, dtype=source.dtype)
    return Parts(
        model=model,
        tokenizer=tokenizer,
        reading=OwnReading(separator=card.separator),
        head=head_of(model),
        card=card,
    )


def _implicit(source: Source) -> Parts:
    card = ModelCard.load(source.path)
    inside = Path(source.path, card.reference)
    where = source.reference or (str(inside) if card.reference and inside.exists() else card.reference)
    if not where:
        raise ConfigError(f"{source.path} is an implicit model without a reference; give one by reference=")
    return Parts(
        model=source.language_model(),
        reference=source.language_model(where),
        tokenizer=load_tokenizer(source.path),
        reading=OwnReading(separator=card.separator),
        beta=card.beta,
        card=card,
    )


def _generative(source: Source) -> Parts:
    return Parts(model=source.language_model(), tokenizer=load_tokenizer(source.path), reading=OwnReading())


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One convention: how to load it, and how to know it."""

    load: Callable[[Source], Parts]
    hub_id: str = ""
    """Pattern in the path or hub id."""
    architecture: str = ""
    """Pattern in the architecture that config.json names."""


ADAPTERS: dict[str, Adapter] = {
    "rewardkit": Adapter(load=_rewardkit),
    "implicit": Adapter(load=_implicit),
    "math_shepherd": Adapter(load=_math_shepherd, hub_id=r"math-?shepherd.*prm"),
    "rlhflow": Adapter(load=_rlhflow, hub_id=r"llama3\.1-8b-prm-(mistral|deepseek)"),
    "qwen_prm": Adapter(load=_qwen_prm, architecture=r"ForProcessRewardModel$"),
    "skywork": Adapter(load=_skywork, architecture=r"ForPrmModel$", hub_id=r"skywork-o1-open-prm"),
    "eurus": Adapter(load=_eurus, hub_id=r"eurusprm"),
    "math_psa": Adapter(load=_math_psa, hub_id=r"math-psa"),
    "versaprm": Adapter(load=_versaprm, hub_id=r"versaprm|(llama|qwen)-prm800k"),
    "trl": Adapter(load=_trl, architecture=r"ForTokenClassification$"),
    "pqm": Adapter(load=_pqm, hub_id=r"(^|/)pqm"),
    "genprm": Adapter(load=_generative, hub_id=r"genprm"),
    "thinkprm": Adapter(load=_generative, hub_id=r"thinkprm"),
}


def recognise(path: str) -> str:
    """The adapter of a checkpoint. Raises ModelError, with the names there are, where nothing tells.

    MissingFileError where there is neither a folder nor a hub id of that name.
    """
    if Path(path, CARD).exists():
        card = ModelCard.load(path)
        return card.adapter or ("implicit" if card.head == "implicit" else "rewardkit")
    architectures: list[str] = []
    if Path(path, "config.json").exists():
        architectures = json.loads(Path(path, "config.json").read_text()).get("architectures") or []
    elif not Path(path).exists():
        architectures = _config(path).architectures or [] if _has_config(path) else []
    for name, adapter in ADAPTERS.items():
        if adapter.architecture and any(re.search(adapter.architecture, known) for known in architectures):
            return name
    for name, adapter in ADAPTERS.items():
        if adapter.hub_id and re.search(adapter.hub_id, path, re.IGNORECASE):
            return name
    if not Path(path).exists() and not architectures:
        raise MissingFileError(
            f"{path} is no folder, and the hub gave no config.json of that name; give the path of a process reward "
            "model or a hub id"
        )
    raise ModelError(
        f"{path} is not known as a process reward model (it holds {', '.join(architectures) or 'no architecture'}); "
        f"name its convention by adapter=, one of {', '.join(ADAPTERS)}, or train one from it with "
        "`rewardkit prm train --init`"
    )


def _has_config(path: str) -> bool:
    """Whether a hub id has a config.json; adapters and bare weights have none."""
    from transformers.utils import cached_file

    return cached_file(path, "config.json", _raise_exceptions_for_missing_entries=False) is not None


def load_parts(source: Source, adapter: str | None = None) -> tuple[str, Parts]:
    """(adapter name, parts) of a checkpoint. Raises ModelError, MissingFileError, ConfigError."""
    if adapter is not None and adapter not in ADAPTERS:
        raise ConfigError(f"adapter must be one of {', '.join(ADAPTERS)}; got {adapter!r}")
    with loading(source.path, WHAT):
        name = adapter or recognise(source.path)
    return name, replace(ADAPTERS[name].load(source), card=ModelCard.load(source.path))
