"""Weights, gradients and optimiser state cut over processes: FSDP2, torch's `fully_shard`.

Every decoder layer is a unit; embeddings, last norm and head are one together. A process holds its share of each.

    drawing, reading without a gradient   weights are whole on every process (`whole`), so each may take as many passes
                                          as its responses need
    update                                a unit's weights are gathered when it is its turn, forward and back, and its
                                          gradients added up (not averaged: weights of tokens are those of all
                                          processes) and cut; so all take as many passes as the one that has most
    checkpoint                            plain tensors, the same for any number of processes

What is not cut (a value head, a critic of its own, the reference) is whole everywhere.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from rewardkit.rl.config import RlConfig
from verifiers.errors import ConfigError

Item = TypeVar("Item")


class Shards:
    """A causal language model whose weights are cut over all processes."""

    def __init__(self, model: Any, layers: Sequence[torch.nn.Module]) -> None:
        """`model` is the one with trunk and head; `layers` are its decoder layers."""
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        for part in (*layers, model):
            fully_shard(part, mesh=mesh)
        self._model = model
        self._units: list[FSDPModule] = [part for part in model.modules() if isinstance(part, FSDPModule)]
        for unit in self._units:
            unit.set_gradient_divide_factor(1.0)
            # Gloo has no sum with a factor.
            unit.set_force_sum_reduction_for_comms(True)
        # Trunk and head are called by themselves; within this method their weights are there, as in `forward`.
        model.enter = types.MethodType(_call, model)
        register_fsdp_forward_method(model, "enter")
        self._is_whole = False
        # The first thing that runs must be the whole model, or a layer takes itself for it.
        self.enter(lambda: None)
        self._cut()

    def enter(self, work: Callable[[], Item]) -> Item:
        """Do work that reads the model by its parts and gives tensors, or tuples of them."""
        found: Item = self._model.enter(work)
        return found

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """All weights on every process; in here no pass waits for another process. Entered by all at the same time."""
        if self._is_whole:
            yield
            return
        for unit in self._units:
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)
        self._is_whole = True
        try:
            yield
        finally:
            self._is_whole = False
            # Passes without a gradient leave traces of their order, which would have each process gather by its own.
            self._model.reset_iter_state()
            self._cut()

    def most(self, passes: int) -> int:
        """The greatest number of passes that any process has; asked by all at the same time."""
        device = next(self._model.parameters()).device
        count = torch.tensor(passes, device=device)
        distributed.all_reduce(count, op=distributed.ReduceOp.MAX)
        return int(count)

    def _cut(self) -> None:
        for unit in self._units:
            # What is outside the layers is wanted at both ends of a pass.
            unit.set_reshard_after_forward(unit is not self._model, recurse=False)
            unit.reshard()


def check_launch(config: RlConfig, kind: str, processes: int) -> None:
    """Raise ConfigError for a launch or numbers that responses cannot be shared out in; `kind` is accelerate's."""
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ConfigError(
            f"rl train cuts weights by itself, with shard; got {kind}, launch it without FSDP, DeepSpeed and Megatron"
        )
    if config.prompts % (processes * config.updates):
        raise ConfigError(
            f"prompts={config.prompts} cannot be shared out over {processes} processes and {config.updates} updates; "
            f"make it a multiple of {processes * config.updates}"
        )
    if config.shard and processes == 1:
        raise ConfigError(
            "shard cuts weights over several processes, and this is the only one; start more, for example with "
            "torchrun --nproc_per_node 2, or leave it out"
        )
    if config.shard and not hasattr(FSDPModule, "reset_iter_state"):
        raise ConfigError(f"shard needs torch 2.13 or newer; got {torch.__version__}, upgrade torch or leave shard out")


def _call(model: Any, work: Callable[[], Item]) -> Item:
    return work()


def is_cut(parameter: torch.Tensor) -> bool:
    """Whether processes hold shares of it."""
    return isinstance(parameter, DTensor)


def gathered(state: Any) -> Any:
    """A state dict with whole tensors in place of shares, on the CPU; asked by all processes at the same time."""
    if isinstance(state, DTensor):
        whole: torch.Tensor = state.full_tensor()
        return whole.detach().cpu()
    if isinstance(state, Mapping):
        return {key: gathered(value) for key, value in state.items()}
    return [gathered(value) for value in state] if isinstance(state, list) else state


def share_of(whole: Any, like: torch.Tensor) -> Any:
    """What this process holds of a whole tensor, cut as `like` is; anything of another shape, or uncut, as it is."""
    if not isinstance(like, DTensor) or not isinstance(whole, torch.Tensor) or whole.shape != like.shape:
        return whole
    # Every process has read the whole tensor, so nothing has to be sent.
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def module_state(module: torch.nn.Module, whole: Mapping[str, Any]) -> dict[str, Any]:
    """A module's state of whole tensors, as `load_state_dict` takes it."""
    own = module.state_dict()
    return {name: share_of(value, own[name]) if name in own else value for name, value in whole.items()}


def optimiser_state(optimiser: torch.optim.Optimizer, whole: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser's state of whole tensors, as `load_state_dict` takes it."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {
        place: {name: share_of(value, parameters[place]) for name, value in moments.items()}
        for place, moments in whole["state"].items()
    }
    return {**whole, "state": state}


def clip_gradients(parameters: Sequence[torch.nn.Parameter], most: float) -> torch.Tensor:
    """Scale gradients down to the norm `most` of all together; the norm that they had, the same on every process."""
    given = [parameter.grad for parameter in parameters if parameter.grad is not None]
    cut, whole = [one for one in given if is_cut(one)], [one for one in given if not is_cut(one)]
    if not cut:
        own: torch.Tensor = torch.nn.utils.clip_grad_norm_(parameters, most)
        return own
    norms = [torch.nn.utils.get_total_norm(kind) for kind in (cut, whole) if kind]
    plain = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(plain))
    # A number: shares and whole tensors cannot be multiplied by one tensor.
    factor = min(1.0, most / (float(norm) + 1e-6))
    for one in given:
        one.mul_(factor)
    return norm
