"""Added layers change nothing at first, and heads that look back do so exactly."""

from __future__ import annotations

from pathlib import Path

import torch

from prm.growth import AMPLITUDE, add_layers, look_back


def test_heads_look_at_the_position_before(tiny_policy: Path) -> None:
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(tiny_policy, num_labels=2, attn_implementation="eager")
    add_layers(model, 1)
    assert look_back(model, 2, 3)  # two query heads share a key head: all four are set
    ids = torch.arange(40)[None] % 300
    with torch.inference_mode():
        weights = model.eval()(input_ids=ids, output_attentions=True).attentions[2][0]
    assert weights.shape == (4, 40, 40)
    back = weights[:, torch.arange(1, 40), torch.arange(39)]
    assert back.min() > 0.9  # every position from the second on looks at the one before it


def test_the_score_is_the_stated_sum_of_cosines(tiny_policy: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_policy)
    assert look_back(model, 0, 1)
    attention = model.model.layers[0].self_attn
    pairs = attention.head_dim // 2 * 5 // 8
    # |bias|^2 is the sum over pairs of a^2 cos(0) for the key, and turning does not change the query's length
    for projection in (attention.q_proj, attention.k_proj):
        assert torch.allclose(projection.bias[: attention.head_dim].square().sum(), torch.tensor(pairs * AMPLITUDE**2))
        assert projection.weight[: attention.head_dim].abs().max() == 0


def test_models_without_biases_are_left_alone(tiny_policy: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_policy)
    config.attention_bias = False
    model = AutoModelForCausalLM.from_config(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not look_back(model, 0, 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
