"""Decoder layers added on top of a trained language model, so that it can check what it wrote.

A language model says at position i what token i + 1 should be; whether the token that came is that one can only be
seen at position i + 1, from the *final* state of position i. A network that has spent all its layers on predicting
has none left to look. `add_layers` appends layers that change nothing at first (output projections are zero, as in
block expansion, Wu et al. 2024, arXiv 2401.02415; inner weights are drawn fresh, scaled by 1 / sqrt(fan-in)).

`look_back` sets some attention heads of a layer to attend to the position before, from the start. With rotary
embeddings the score of query m and key n depends on m - n only when both come from biases: for key bias k and query
bias R(-1) k the score is

    sum_j a^2 cos(theta_j (m - n - 1)),   theta_j = base^(-2j / D)

which is largest at m - n = 1. Training is free to move it. D is the size of a head.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from verifiers.errors import ModelError

AMPLITUDE = 12.0
"""Size of the biases: large enough that a head looks at one position and no other."""


def add_layers(model: Any, count: int) -> None:
    """Append `count` decoder layers that leave the model's function as it is.

    Raises ModelError for an architecture whose layers have no self_attn.o_proj and mlp.down_proj.
    """
    if not count:
        return
    for _ in range(count):
        try:
            layers = model.base_model.layers
            layer = copy.deepcopy(layers[-1])
            outputs = (layer.self_attn.o_proj, layer.mlp.down_proj)
        except AttributeError as error:
            raise ModelError(
                f"extra_layers needs decoder layers with self_attn.o_proj and mlp.down_proj; "
                f"{type(model).__name__} has none; set extra_layers to 0"
            ) from error
        for name, parameter in layer.named_parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))
            else:
                torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        for projection in outputs:
            for parameter in projection.parameters():
                torch.nn.init.zeros_(parameter)
        layer.self_attn.layer_idx = len(layers)
        layer.requires_grad_(True)
        layers.append(layer)
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [*model.config.layer_types, *model.config.layer_types[-1:] * count]


@torch.no_grad()
def look_back(model: Any, layer: int, heads: int) -> bool:
    """Let at least `heads` query heads of a layer attend to the position before, from the start.

    Query heads that share a key head are set together. Possible with query and key biases and plain rotary
    embeddings (Qwen2; Llama with attention_bias); elsewhere nothing is changed, the result is False, and training
    has to find the heads by itself.
    """
    attention = model.base_model.layers[layer].self_attn
    query, key = getattr(attention, "q_proj", None), getattr(attention, "k_proj", None)
    rope = getattr(model.config, "rope_parameters", None) or {}
    biased = all(getattr(projection, "bias", None) is not None for projection in (query, key))
    if query is None or key is None or not biased or rope.get("rope_type") != "default":
        return False
    size = attention.head_dim
    shared = model.config.num_attention_heads // model.config.num_key_value_heads
    key_heads = -(-heads // shared)
    _point_back(key, key_heads, size, rope["rope_theta"], distance=0)
    _point_back(query, key_heads * shared, size, rope["rope_theta"], distance=1)
    return True


def _point_back(projection: Any, heads: int, size: int, theta: float, *, distance: int) -> None:
    """Give the first heads a constant vector, turned back by `distance` positions, and nothing else."""
    half = size // 2
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        projection.weight[rows] = 0.0
        projection.bias[rows] = 0.0
        # The slowest pairs hardly turn within a text and would only flatten the scores.
        for pair in range(half * 5 // 8):
            angle = -distance * theta ** (-2 * pair / size)
            projection.bias[head * size + pair] = AMPLITUDE * math.cos(angle)
            projection.bias[head * size + pair + half] = AMPLITUDE * math.sin(angle)
