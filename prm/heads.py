"""From a hidden state to the log-odds of "good": the heads of process reward models.

    PairHead     logits of a linear layer for "good" and "bad": their difference   (two labels, or two tokens)
    ScalarHead   one number, whose logistic is the score
    LayeredHead  linear, ReLU, then a pair                                         (Qwen2.5-Math-PRM)

With two classes softmax(l)[good] = sigmoid(l_good - l_bad), so one number holds all; it is computed in float32 from the
hidden state, by the difference of two rows of weights, and neither underflows nor saturates. A language model's other
151,000 logits are never computed.

Legend: N positions, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel


class PairHead(torch.nn.Module):
    """Row `good` of a linear layer minus row `bad`."""

    def __init__(self, linear: Any, good: int, bad: int) -> None:
        super().__init__()
        # Kept outside the module's own parameters: the layer belongs to the model.
        self.linear = [linear]
        self.good, self.bad = good, bad

    def forward(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Log-odds, shape (N,)."""
        (linear,) = self.linear
        weight_D = linear.weight[self.good].float() - linear.weight[self.bad].float()
        margin_N: torch.Tensor = hidden_ND.float() @ weight_D
        if linear.bias is not None:
            margin_N = margin_N + (linear.bias[self.good].float() - linear.bias[self.bad].float())
        return margin_N


class ScalarHead(torch.nn.Module):
    """The single output of a linear layer."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.linear = [linear]

    def forward(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Log-odds, shape (N,)."""
        (linear,) = self.linear
        bias = None if linear.bias is None else linear.bias.float()
        return F.linear(hidden_ND.float(), linear.weight.float(), bias)[:, 0]


class LayeredHead(torch.nn.Module):
    """relu(first(h)), then `second`."""

    def __init__(self, first: Any, second: PairHead) -> None:
        super().__init__()
        self.first = [first]
        self.second = second

    def forward(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Log-odds, shape (N,)."""
        (first,) = self.first
        bias = None if first.bias is None else first.bias.float()
        margin_N: torch.Tensor = self.second(F.relu(F.linear(hidden_ND.float(), first.weight.float(), bias)))
        return margin_N


class _Trunk(PreTrainedModel):  # type: ignore[misc]
    """A decoder called `model` in the checkpoint, below a head of its own; other weights stored there are unused."""

    base_model_prefix = "model"
    _keys_to_ignore_on_load_unexpected = (r"lm_head\.",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config)
        self.add_head(config.hidden_size)
        self.post_init()

    def add_head(self, width: int) -> None:
        """Make the layers of the head under the names that the checkpoint has."""
        raise NotImplementedError

    def forward(self, **inputs: Any) -> Any:
        """The decoder's output; heads are applied where they are needed."""
        return self.model(**inputs)


class LayeredTrunk(_Trunk):
    """Decoder with `score.0`, ReLU, `score.2`: Qwen2ForProcessRewardModel without its remote code."""

    def add_head(self, width: int) -> None:
        """Linear (D, D), ReLU, Linear (D, 2)."""
        self.score = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))


class ValueTrunk(_Trunk):
    """Decoder with `v_head.summary`: the value head of TRL and of Skywork-o1-Open-PRM."""

    def add_head(self, width: int) -> None:
        """Linear (D, 1)."""
        self.v_head = torch.nn.ModuleDict({"summary": torch.nn.Linear(width, 1)})


def head_of(model: Any) -> torch.nn.Module:
    """The head of a token-classification model with two labels, or one."""
    return ScalarHead(model.score) if model.config.num_labels == 1 else PairHead(model.score, 1, 0)
