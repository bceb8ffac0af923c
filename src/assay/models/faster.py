"""The same layers by faster kernels: what transformers' models leave lying on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeGuard

import torch
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


def is_linear(module: object) -> TypeGuard[nn.Linear | Conv1D]:
    """Whether a module is a linear layer and nothing else: a router that inherits from one returns more."""
    plain = (*FASTER, *FASTER.values())
    return isinstance(module, nn.Linear | Conv1D) and type(module).forward in {kind.forward for kind in plain}


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


def last_mlp(trunk: nn.Module) -> nn.Module | None:
    """The MLP of a transformer's last block; None where the trunk names them otherwise."""
    blocks = getattr(trunk, "layers", None) or getattr(trunk, "h", None)
    mlp = getattr(blocks[-1], "mlp", None) if isinstance(blocks, nn.ModuleList) else None
    return mlp if isinstance(mlp, nn.Module) else None


@contextlib.contextmanager
def only_at(mlp: nn.Module, places_M: Tensor) -> Iterator[None]:
    """Inside, an MLP works on these tokens of the flattened batch, each named once, and adds nothing to the others.

    In the last block nobody attends to what it adds, so that only the states that are read need it.
    """
    everywhere = mlp.forward

    def forward(x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        return torch.zeros_like(flat).index_copy(0, places_M, everywhere(flat[places_M])).view(x.shape)

    mlp.forward = forward
    try:
        yield
    finally:
        del mlp.forward
