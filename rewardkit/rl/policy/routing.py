r"""Keep routing: the trainer sends every token to the experts that the sampler sent it to (DeepSeek-V3.2, 2512.02556).

A router takes the k experts of the highest scores, so a small difference between sampler and trainer, or one update,
moves tokens to other experts, and a ratio compares two different networks. With E_tl the experts that the sampler took
for token t in layer l,

    h' = h + sum over e in E_tl of g_e(x) f_e(x)        g: the gates that the layer's own formula makes of E_tl

for the policy in every pass of an update: the experts are the sampler's, the gates the present router's, and gradient
reaches the scores of those experts as if it had chosen them. At the old parameters nothing changes.

Prompts count as well: their experts are noted when the sampler reads them, so keys and values of the prompt are made by
the same experts too. Responses behind one prompt in one row have one prompt between them, with the routes of the first;
those of the others are equal up to rounding. The last token of a response predicts nothing and is routed freely, as is
padding. Reference, teacher and a critic of its own take their own experts, as does a pass over other text (ptx).

Legend: B rows, T tokens of the longest, N = B T, L layers with experts, K experts a token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from rewardkit.shared_prompt import Family
from search.engines.routers import Routers
from verifiers.core import Engine
from verifiers.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from rewardkit.rl.policy.reader import Drawn


def routers_for(model: Any) -> Routers:
    """The routers of a policy. Raises ModelError for one without experts, or whose choice cannot be repeated."""
    try:
        return Routers(model)
    except ModelError as error:
        raise ModelError(f"masks.keep_routing repeats which experts tokens went to: {error}") from None


def with_routes(rows: Sequence[Drawn], engine: Engine) -> list[Drawn]:
    """Rows with the experts that the engine took. Raises ConfigError for one that does not report them."""
    if not hasattr(engine, "routes_of"):
        raise ConfigError(
            f"masks.keep_routing needs an engine that reports experts, and {type(engine).__name__} does not; use "
            "engine 'transformers', or leave masks.keep_routing out"
        )
    return [replace(row, routes=engine.routes_of((*row.prompt, *row.response))) for row in rows]


@contextlib.contextmanager
def replayed(routers: Routers | None, rows: Sequence[Drawn], families: Sequence[Family]) -> Iterator[None]:
    """Within it, one forward pass over these families sends tokens where their rows say."""
    if routers is None or all(row.routes is None for row in rows):
        yield
        return
    routes_NLK, known_N = routes_of(rows, families, routers)

    def choice(number: int, own_NK: torch.Tensor) -> torch.Tensor:
        wanted_NK = routes_NLK[:, number].to(own_NK)
        return torch.where(known_N.to(own_NK.device)[:, None], wanted_NK, own_NK)

    with routers.steered(choice):
        yield


def routes_of(rows: Sequence[Drawn], families: Sequence[Family], routers: Routers) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts of every position of a batch (`shared_prompt.one_row`), and where they are known: (N, L, K), (N,)."""
    width = max(family.tokens for family in families)
    routes_BTLK = torch.zeros(len(families), width, len(routers), routers.taken, dtype=routers.dtype)
    known_BT = torch.zeros(len(families), width, dtype=torch.bool)
    left = iter(rows)
    for number, family in enumerate(families):
        prompt = len(family.prompt)
        for start, response in zip(family.starts, family.responses, strict=True):
            row = next(left)
            if row.routes is None:
                continue
            assert row.response == response and len(row.routes) == prompt + len(response) - 1
            if not known_BT[number, 0]:
                routes_BTLK[number, :prompt], known_BT[number, :prompt] = row.routes[:prompt], True
            span = slice(start, start + len(response) - 1)
            routes_BTLK[number, span], known_BT[number, span] = row.routes[prompt:], True
    return routes_BTLK.flatten(0, 1), known_BT.flatten()
