"""x·Wᵀ + b in fp32 by the faster of the two libraries that torch carries for it.

torch multiplies fp32 matrices by MKL. On AMD's processors with AVX-512 that is two thirds to three quarters as fast as
oneDNN (docs/LOG.md), by which torch's compiler multiplies (`mkldnn::_linear_pointwise`), and so do wide layers here.
Which it is follows from the processor and the weight, never from a measurement: a run that goes on rounds as it began.
Shapes: x […, I], W [O, I], b [O] → […, O].
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  (the name everyone uses)

WIDE = 256
"""Inputs or outputs of a layer below which what oneDNN prepares and keeps for every shape costs more than it saves."""
ROWS = 64
"""For which weights are laid out; the layout serves any number of rows."""
SLICE = 8192
"""Rows of a sum of products that are multiplied at once."""
KEPT = "128"
"""Products whose code oneDNN keeps: 0.4 MB for a layer's shape with a number of rows, made in half a millisecond.
Ragged batches have new numbers of rows in every step, and by itself it keeps 1,024."""
if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # read once, before the first product; a user's own stays
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KEPT)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b, as `torch.nn.functional.linear`, with gradients of the first order."""
    if not _by_onednn(x, weight_OI):
        return F.linear(x, weight_OI, bias_O)
    if torch.is_grad_enabled() and (x.requires_grad or weight_OI.requires_grad):
        return _Linear.apply(x, weight_OI, bias_O)
    return _onednn(x, weight_OI, bias_O)


def product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """The same where no gradient is asked for; either matrix may be the transpose of something."""
    return (_onednn if _by_onednn(x, weight_OI) else F.linear)(x, weight_OI, bias_O)


def add_product(to_NO: Tensor, x_NI: Tensor, weight_OI: Tensor) -> None:
    """Add x·Wᵀ to a matrix, in place; no gradient is asked for."""
    if not _by_onednn(x_NI, weight_OI):
        to_NO.addmm_(x_NI, weight_OI.T)
        return
    for start in range(0, len(to_NO), SLICE):  # what is added exists for a slice at a time
        to_NO[start : start + SLICE] += _onednn(x_NI[start : start + SLICE], weight_OI)


def packed_product(weight_OI: Tensor, bias_O: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """`product` with a copy of W that is laid out once; for a W that `suits_onednn`."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), ROWS)
    return functools.partial(_onednn, weight_OI=packed, bias_O=None if bias_O is None else bias_O.detach())


class _Linear(Function):
    """dx = dy·W, dW = dyᵀ·x, db = Σ dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        return _onednn(x, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_NO, x_NI = grad.flatten(0, -2), x.flatten(0, -2)
        grad_weight = None
        if needs_weight and weight_OI.is_contiguous():
            grad_weight = _onednn(grad_NO.T, x_NI.T)
        elif needs_weight:  # laid out as the weight is, or autograd would copy it
            grad_weight = _onednn(x_NI.T, grad_NO.T).T
        return (
            _onednn(grad_NO, weight_OI.T).view(x.shape) if needs_x else None,
            grad_weight,
            grad_NO.sum(0) if needs_bias else None,
        )


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on where this tensor is; never for one without storage, of which autocast knows nothing."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def suits_onednn(weight_OI: Tensor) -> bool:
    """Whether oneDNN is the faster library for this weight here."""
    on_cpu, in_fp32 = weight_OI.device.type == "cpu", weight_OI.dtype == torch.float32
    return on_cpu and in_fp32 and min(weight_OI.shape) >= WIDE and onednn_is_faster()


def _by_onednn(x: Tensor, weight_OI: Tensor) -> bool:
    return x.dtype == torch.float32 and suits_onednn(weight_OI) and not torch.is_autocast_enabled("cpu")


def _onednn(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is a processor on which MKL leaves speed behind, and this torch has the other product."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    described = Path("/proc/cpuinfo")
    name = described.read_text(encoding="utf-8") if described.is_file() else platform.processor()
    return "AuthenticAMD" in name and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
