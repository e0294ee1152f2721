"""New weights for a vLLM in this process, straight from tensors: no file, no restart, compiled graphs stay.

vLLM usually decodes in a process of its own, which tensors reach by files or messages only. Where its engine runs in
this process (`in_this_process`), the tensors of a model that is being trained are copied into vLLM's own, cast to its
type and laid out as its kernels want them. `replace_weights` asks vLLM which of its parameters got a value: one that
got none would go on with its old one, which vLLM itself only logs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from verifiers.errors import EngineError, ModelError

MULTIPROCESSING = "VLLM_ENABLE_V1_MULTIPROCESSING"


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """A `vllm.LLM` made inside keeps its engine in this process, and torch's random state is left as it was."""
    before = os.environ.get(MULTIPROCESSING)
    os.environ[MULTIPROCESSING] = "0"
    try:
        with torch.random.fork_rng():
            yield
    finally:
        if before is None:
            del os.environ[MULTIPROCESSING]
        else:
            os.environ[MULTIPROCESSING] = before


def is_in_this_process(llm: Any) -> bool:
    """Whether an LLM's engine runs here."""
    return hasattr(llm.llm_engine, "model_executor")


def replace_weights(llm: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Set every weight; names are those of a transformers checkpoint, any floating type and device will do.

    Raises EngineError where vLLM runs in another process or does not take a weight, ModelError where some of vLLM's
    parameters got no value. Both leave it half-way between old and new.
    """
    if not is_in_this_process(llm):
        raise EngineError("weights can be set only where vLLM runs in this process; load it with in_process=True")
    try:
        missing = {name for names in llm.collective_rpc(_replace, args=(weights,)) for name in names}
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise EngineError(
            f"vLLM did not take the new weights ({reason}); they must be those of the checkpoint it was loaded from; "
            "make a new engine"
        ) from error
    if missing:
        raise ModelError(
            f"vLLM got no new value for {len(missing)} of its weights, {min(missing)} first, and would draw with old "
            "ones; give all weights of the checkpoint, by its names, and make a new engine"
        )


def _replace(worker: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
    """Runs in vLLM's worker; its parameters that got no value."""
    model = worker.model_runner.get_model()
    wanted = {name for name, _ in model.named_parameters()}
    taken: set[str] = set()
    load = model.load_weights

    def remembering(given: Iterable[tuple[str, torch.Tensor]]) -> Any:
        found = load(given)
        taken.update(wanted if found is None else found)
        return found

    model.load_weights = remembering
    try:
        worker.reload_weights(weights_iterator=iter(weights))
    finally:
        del model.load_weights
    return wanted - taken
