"""Scalar heads: the last layer of reward and value models. Always fp32."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from assay import rng


class ValueHead(nn.Module):
    """V = h·w + b for every token, in fp32. Starts at zero: no opinion, which is right for centred rewards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] → [...]."""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ self.weight + self.bias

    @torch.no_grad()
    def rescale(self, gain: float, bias: float) -> None:
        """V ← gain·V + bias, for when the rewards it predicts are rescaled so."""
        self.weight.mul_(gain)
        self.bias.mul_(gain).add_(bias)


@torch.no_grad()
def init_reward_head(linear: nn.Linear, seed: int) -> None:
    """Weights of standard deviation 1/√(d+1), bias 0: scores of white features start with variance d/(d+1).

    Source: Stiennon et al. 2020 (arXiv 2009.01325) as in N+ (2403.17031).
    """
    width = linear.in_features
    draw = torch.randn(linear.weight.shape, generator=rng.torch_rng(seed, "reward head"))
    linear.weight.copy_(draw / math.sqrt(width + 1))
    if linear.bias is not None:
        linear.bias.zero_()


@torch.no_grad()
def resize_head(linear: nn.Linear, rows: int) -> None:
    """Give the head that many scores, in place; their weights are zero until they are drawn or loaded."""
    linear.out_features = rows
    linear.weight = nn.Parameter(linear.weight.new_zeros(rows, linear.in_features))
    if linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.new_zeros(rows))


def score_head(model: nn.Module) -> nn.Linear:
    """The last linear layer of a transformers sequence-classification model, which makes the score."""
    for name in ("score", "classifier", "classification_head"):
        module = getattr(model, name, None)
        layers = [m for m in module.modules() if isinstance(m, nn.Linear)] if module is not None else []
        if layers:
            return layers[-1]
    raise LookupError("no head named score, classifier or classification_head")
