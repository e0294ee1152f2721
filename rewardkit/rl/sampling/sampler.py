"""Who draws a run's responses: the model that is trained, or vLLM in the same process with that model's weights.

    transformers  decodes with the very model, whose weights have just changed: a new engine each time forgets what the
                  old weights had read, and no weight is copied
    vllm          one engine for the whole run; each time it is asked for, all weights are copied into it and its prefix
                  cache is emptied. W + (alpha / rank) B A stands for a weight with LoRA adapters, which are not touched

Either way an engine that is handed out draws with the weights as they are, until they change. Both report the
log-probabilities of softmax(logits / temperature), which the loop holds against the trainer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rewardkit.rl.config import RlConfig
from rewardkit.rl.policy.models import Models
from search.engines.rows import RepetitionRule
from search.engines.transformers_engine import TransformersEngine
from verifiers.core import Engine
from verifiers.errors import ConfigError

if TYPE_CHECKING:
    from search.engines.vllm_engine import VllmEngine


class Sampler(Protocol):
    """Something that hands out engines which draw from the policy."""

    def engine(self) -> Engine:
        """An engine that draws with the weights as they are now."""
        ...


class OwnSampler:
    """Implements `Sampler` with the trained model itself."""

    def __init__(self, config: RlConfig, models: Models) -> None:
        self._config, self._models = config, models

    def engine(self) -> Engine:
        """See `Sampler`."""
        own = self._config
        return engine_over(
            self._models.policy,
            self._models.tokenizer,
            max_rows=own.engine_rows,
            repetition=own.repetition_rule,
            routes=own.table.masks.keep_routing,
        )


class VllmSampler:
    """Implements `Sampler` with one vLLM engine, loaded from the run's first checkpoint."""

    def __init__(self, vllm: VllmEngine, policy: Any) -> None:
        self._vllm, self._policy = vllm, policy

    @classmethod
    def load(cls, config: RlConfig, models: Models) -> VllmSampler:
        """Raises MissingExtraError without vLLM, ModelError where it cannot load the checkpoint."""
        from search.engines.vllm_engine import VllmEngine

        vllm = VllmEngine.load(
            config.init,
            dtype="bfloat16" if config.bf16 else "float32",
            max_rows=config.engine_rows,
            max_model_len=config.vllm_context or None,
            gpu_memory_utilization=config.vllm_memory,
            enforce_eager=config.vllm_eager,
            in_process=True,
            repetition=config.repetition_rule,
        )
        return cls(vllm, models.policy)

    def engine(self) -> Engine:
        """See `Sampler`."""
        self._vllm.set_weights(plain_weights(self._policy))
        return self._vllm


def sampler_for(config: RlConfig, models: Models, *, processes: int) -> Sampler:
    """What `config.engine` names. Raises ConfigError for vLLM with several processes."""
    if config.engine == "transformers":
        return OwnSampler(config, models)
    if processes > 1:
        raise ConfigError(
            f"engine='vllm' draws in one process so far; got {processes}; start one, or take engine='transformers'"
        )
    return VllmSampler.load(config, models)


def engine_over(
    model: Any,
    tokenizer: Any,
    *,
    max_rows: int = 256,
    repetition: RepetitionRule | None = None,
    routes: bool = False,
) -> TransformersEngine:
    """An engine that decodes with a model that is being trained, adapters included; `routes` notes experts."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return TransformersEngine(plain, tokenizer, max_rows=max_rows, repetition=repetition, routes=routes)


@torch.no_grad()
def plain_weights(model: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """The weights that `save_pretrained` would write, by its names, adapters multiplied out; the model stays as it is.

    One after another, so that adapters cost the memory of one weight, except where transformers has merged what
    checkpoints keep apart (experts): there all are made first.
    """
    from transformers.core_model_loading import revert_weight_conversion

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not getattr(plain, "_weight_conversions", None):
        return _merged(plain)
    return list(revert_weight_conversion(plain, dict(_merged(plain))).items())


def module_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The same by the names that the model without adapters has for them itself, one after another."""
    return _merged(model.get_base_model() if hasattr(model, "get_base_model") else model)


def _merged(plain: Any) -> Iterator[tuple[str, torch.Tensor]]:
    from peft.tuners.lora import LoraLayer

    adapted = {name: module for name, module in plain.named_modules() if isinstance(module, LoraLayer)}
    tied = set(getattr(plain, "all_tied_weights_keys", None) or ())
    for name, value in plain.state_dict().items():
        owner, base, leaf = name.rpartition(".base_layer.")
        if base and owner in adapted:
            name = f"{owner}.{leaf}"
            if leaf == "weight":
                with torch.no_grad():
                    value = value + adapted[owner].get_delta_weight(adapted[owner].active_adapters[0])
        elif ".lora_" in name:
            continue
        if name not in tied:
            yield name, value
