"""Which experts a mixture-of-experts model takes for every token: reported while it draws, and imposed when it is read.

A router scores all experts of its layer for a token and takes the k best (`topk`); its own formula makes gates of
their scores, with or without renormalising. `Routers.steered` steps in at that one call: it sees the indices that the
router would take and may put others in their place, with the scores that these have now. The formula goes on as it is
written in the model, so gates are those of the present router, and gradient reaches the scores of the experts taken.
A router whose gates do not come from such a call (or are 0 for an expert that it would not have taken) is refused.

`SlotRoutes` holds the routes of the texts that are being decoded, position by position beside their keys and values
(`slots.SlotCache`), and `PrefixStore` those of prefixes.

Legend: N tokens of a forward pass, R rows (slots), T positions, L routers, K experts a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from verifiers.errors import ModelError

Choice = Callable[[int, torch.Tensor], torch.Tensor]
"""From a router's number and the experts that it would take, shape (N, K), to those that it takes."""


class Routers:
    """The routers of a model, in the order of its layers. Raises ModelError where there are none to be steered."""

    def __init__(self, model: Any) -> None:
        found = [module for module in model.modules() if _is_router(module)]
        name = type(model).__name__
        if not found:
            raise ModelError(f"{name} has no routers of experts; take a mixture-of-experts model, or leave routes out")
        self.modules = found
        self.experts = found[0].num_experts
        self.taken = found[0].top_k
        if any((one.num_experts, one.top_k) != (self.experts, self.taken) for one in found):
            raise ModelError(f"{name} has layers with different numbers of experts; its routes cannot be kept")
        self.dtype = torch.uint8 if self.experts <= 256 else torch.int16
        for number in range(len(found)):
            self._check(number, name, model.config.hidden_size)

    def __len__(self) -> int:
        return len(self.modules)

    @contextlib.contextmanager
    def steered(self, choice: Choice) -> Iterator[None]:
        """Within it every router takes the experts that `choice` gives."""
        before = [vars(module).get("forward") for module in self.modules]
        for number, module in enumerate(self.modules):
            module.forward = partial(_steered, module, module.forward, partial(choice, number))
        try:
            yield
        finally:
            for module, own in zip(self.modules, before, strict=True):
                if own is None:
                    del module.forward
                else:
                    module.forward = own

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[torch.Tensor]]:
        """A list that holds each router's experts after a forward pass, shape (N, K), in their order."""
        found: list[torch.Tensor] = [torch.empty(0)] * len(self)

        def note(number: int, own_NK: torch.Tensor) -> torch.Tensor:
            found[number] = own_NK
            return own_NK

        with self.steered(note):
            yield found

    @torch.no_grad()
    def _check(self, number: int, name: str, width: int) -> None:
        """Whether other experts can be imposed on a router, with gates that are theirs."""
        module = self.modules[number]
        states = torch.linspace(-1, 1, 4 * width, device=next(module.parameters()).device).view(4, width)
        seen: list[torch.Tensor] = []

        def next_ones(at: int, own_NK: torch.Tensor) -> torch.Tensor:
            if at != number:
                return own_NK
            seen.append((own_NK + 1) % self.experts)
            return seen[-1]

        with self.steered(next_ones):
            found = module(states.to(next(module.parameters()).dtype))
        parts = [one for one in found if isinstance(one, torch.Tensor) and one.shape == (4, self.taken)]
        taken = [one for one in parts if not one.is_floating_point()]
        gates = [one for one in parts if one.is_floating_point()]
        if (
            len(seen) != 1
            or not any(torch.equal(one, seen[0]) for one in taken)
            or not all((g > 0).all() for g in gates)
        ):
            raise ModelError(
                f"{name} chooses experts in a way that cannot be repeated ({type(module).__name__}); leave routes out"
            )


class SlotRoutes:
    """The routes of every slot's text from position 0 on; filled, moved and copied as its keys and values are."""

    def __init__(self, routers: Routers, slots: int, device: torch.device | str) -> None:
        self.routers, self.last = routers, [torch.empty(0)]
        self.held_RTLK = torch.zeros(slots, 0, len(routers), routers.taken, dtype=routers.dtype, device=device)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around one forward pass of the model."""
        with self.routers.recorded() as self.last:
            yield

    def read(self, rows: int) -> torch.Tensor:
        """Routes of that pass. Shape (rows, T, L, K)."""
        found_NLK = torch.stack(self.last, 1).to(self.routers.dtype)
        return found_NLK.view(rows, -1, *found_NLK.shape[1:])

    def store(self, slot_rows: torch.Tensor, routes_RTLK: torch.Tensor, width: int) -> None:
        """Put whole rows (of a prefill) into slots."""
        self._grow(width)
        self.held_RTLK[slot_rows, :width] = routes_RTLK[:, :width]

    def add(self, lengths_R: torch.Tensor) -> None:
        """The pass read one token a row, at these positions."""
        self._grow(int(lengths_R.max()) + 1)
        rows = torch.arange(len(lengths_R), device=lengths_R.device)
        self.held_RTLK[rows, lengths_R] = self.read(len(rows))[:, 0]

    def move(self, source_rows: torch.Tensor, target_rows: torch.Tensor) -> None:
        """Copy rows into freed slots."""
        self.held_RTLK[target_rows] = self.held_RTLK[source_rows]

    def _grow(self, width: int) -> None:
        held = self.held_RTLK.shape[1]
        if width > held:
            more = -(-max(width, held * 3 // 2) // 64) * 64 - held
            self.held_RTLK = torch.nn.functional.pad(self.held_RTLK, (0, 0, 0, 0, 0, more))


def _is_router(module: Any) -> bool:
    sizes = (getattr(module, "top_k", None), getattr(module, "num_experts", None))
    return all(isinstance(size, int) for size in sizes) and any(True for _ in module.parameters(recurse=False))


def _steered(
    module: Any, forward: Any, choice: Callable[[torch.Tensor], torch.Tensor], *args: Any, **named: Any
) -> Any:
    with _Steering(module.num_experts, module.top_k, choice):
        return forward(*args, **named)


class _Steering(TorchFunctionMode):
    """Takes the place of the one `topk` that chooses experts; those that choose groups have another shape."""

    def __init__(self, experts: int, taken: int, choice: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.experts, self.taken, self.choice = experts, taken, choice

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func not in (torch.topk, torch.Tensor.topk):
            return found
        scores_NE = args[0] if args else kwargs["input"]
        if scores_NE.dim() != 2 or scores_NE.shape[1] != self.experts or found.indices.shape[1] != self.taken:
            return found
        own_NK = found.indices
        wanted_NK = self.choice(own_NK)
        if wanted_NK is own_NK:
            return found
        return torch.return_types.topk((scores_NE.gather(1, wanted_NK), wanted_NK))
