"""The same layers by faster kernels: what transformers' models leave lying on a CPU."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation
from transformers.pytorch_utils import Conv1D

from assay.algorithms.product import linear


class ProductLinear(nn.Linear):
    """nn.Linear by algorithms/product.py."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class ProductConv1D(Conv1D):
    """GPT-2's linear layer, whose weight lies the other way round, by algorithms/product.py."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


FASTER: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: ProductLinear, Conv1D: ProductConv1D}


def use_faster_kernels(model: nn.Module) -> None:
    """GELU's tanh form, which GPT-2 and its kin spell out in eight passes over memory, as one; and faster products.

    Weights and their names stay. A module of a class of its own keeps its forward pass.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation | FastGELUActivation):
                setattr(module, name, GELUTanh())
        if type(module) in FASTER:
            module.__class__ = FASTER[type(module)]
