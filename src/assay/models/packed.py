"""Copies of linear layers to sample with, laid out once as the processor's product reads them.

    y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ          (Hu et al. 2021, arXiv 2106.09685, eq. 3; s = α / r)

A step of decoding has a token a row: so little work that oneDNN would take a third of its time to lay the weights out.
The adapter is not merged in, so the sampler computes what the trainer computes, and log-probabilities agree to 1e-5.
Shapes: x […, I], W [O, I], A [R, I], B [O, R], b [O] → […, O].
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from assay.algorithms import product
from assay.algorithms.product import packed_product, suits_onednn
from assay.models.adapters import instead
from assay.models.backbone import Backbone

MOST = 2**28
"""Weights of a model above which no copy is made for speed: it would take more than a gigabyte."""
Linear = Callable[[Tensor], Tensor]


def packed(weight_OI: Tensor, bias_O: Tensor | None) -> Linear:
    """The layer with a copy of its weights in the best layout, or with its weights where there is no better one."""
    if suits_onednn(weight_OI):
        return packed_product(weight_OI, bias_O)
    return partial(product.product, weight_OI=weight_OI, bias_O=bias_O)


@contextlib.contextmanager
def in_packs(backbone: Backbone, adapter: str | None) -> Iterator[None]:
    """Forward passes inside, with `adapter`, see the trunk's linear layers as they are now, packed."""
    copies = dict[nn.Module, Linear]()
    for layer, weight, bias in backbone.adapters.linears(None) if worth_packing(backbone) else ():
        if suits_onednn(weight) and not (isinstance(layer, LoraLayer) and adapter in layer.lora_variant):
            copies[layer] = with_adapter(packed(weight, bias), layer, adapter)
    with instead(copies):
        yield


def worth_packing(backbone: Backbone) -> bool:
    """Whether this is a model in fp32, and small enough to be there twice."""
    return backbone.computes_in == torch.float32 and backbone.model.num_parameters() <= MOST


def copied(backbone: Backbone) -> int:
    """Bytes that `in_packs` takes, also of a model without storage."""
    if torch.device(backbone.device).type != "cpu" or not (worth_packing(backbone) and product.onednn_is_faster()):
        return 0
    linears = backbone.adapters.linears(None)
    return sum(4 * weight.numel() for _, weight, _ in linears if min(weight.shape) >= product.WIDE)


def with_adapter(base: Linear, layer: nn.Module, adapter: str | None) -> Linear:
    """A layer's base and what `adapter` adds to it; the base itself where it has none of that name."""
    if adapter is None or not isinstance(layer, LoraLayer) or adapter not in layer.scaling:
        return base
    down_RI: Tensor = layer.lora_A[adapter].weight  # pyright: ignore[reportAssignmentType]
    up_OR: Tensor = layer.lora_B[adapter].weight  # pyright: ignore[reportAssignmentType]
    scale = layer.scaling[adapter]

    def linear(x: Tensor) -> Tensor:
        x_NI = x.flatten(0, -2)
        return base(x_NI).addmm_(x_NI @ down_RI.T, up_OR.T, alpha=scale).view(*x.shape[:-1], -1)

    return linear
