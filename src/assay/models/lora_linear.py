"""A frozen linear layer with a low-rank addition, as one operation: nothing of the output's size is written twice.

    y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ          (Hu et al. 2021, arXiv 2106.09685, eq. 3; s = α / r)

Where peft makes four tensors of the output's size, this makes one; where autograd would keep what it does not need,
this keeps x and x·Aᵀ. Shapes: x [N, I], W [O, I], A [R, I], B [O, R].
"""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from assay.algorithms.product import autocasts, product
from assay.models.faster import is_linear


def fuse(layer: LoraLayer) -> None:
    """Give a layer the forward pass of this file, wherever that is the same as peft's; peft's own serves the rest."""
    assert isinstance(layer, nn.Module)
    plain = layer.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        active, base = layer._active_adapter, layer.base_layer
        if not active or active[0] not in layer.scaling:  # no adapter, or one that is on other layers
            return base(x)
        (name,) = active
        drops = layer.training and getattr(layer.lora_dropout[name], "p", 0.0) > 0
        if drops or base.weight.requires_grad or autocasts(x):
            return plain(x, *args, **kwargs)
        weight = base.weight.T if isinstance(base, Conv1D) else base.weight
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        return _LoraLinear.apply(x, weight, base.bias, down, up, layer.scaling[name])

    if not any(layer.lora_variant) and is_linear(layer.base_layer):
        layer.forward = forward


class _LoraLinear(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float
    ) -> Tensor:
        x_NI = x.flatten(0, -2)
        low_NR = x_NI @ down_RI.T
        y_NO = product(x_NI, weight_OI, bias_O).addmm_(low_NR, up_OR.T, alpha=scale)
        ctx.save_for_backward(x_NI, weight_OI, down_RI, up_OR, low_NR)
        ctx.scale, ctx.shape = scale, x.shape
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, down_RI, up_OR, low_NR = ctx.saved_tensors
        needs_x, _, _, needs_down, needs_up, _ = ctx.needs_input_grad
        grad_NO = grad.flatten(0, -2)
        # Thin results as transposes of flat ones, which MKL multiplies two to four times as fast.
        grad_low_NR = (up_OR.T @ grad_NO.T).mul_(ctx.scale).T
        grad_x = product(grad_NO, weight_OI.T).addmm_(grad_low_NR, down_RI).view(ctx.shape) if needs_x else None
        grad_down = grad_low_NR.T @ x_NI if needs_down else None
        grad_up = (low_NR.T @ grad_NO).mul_(ctx.scale).T if needs_up else None
        return grad_x, None, None, grad_down, grad_up, None
