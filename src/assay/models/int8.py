"""Linear layers in eight bits, to sample with: a quarter of the bytes, and integer products.

    W ≈ s·Q,  s_o = max_i |W_oi| / 127        a step for every output (channel), symmetric
    x ≈ t·X,  t_n = max_i |x_ni| / 127        a step for every token, as it comes
    y = t·s·(X·Qᵀ) + b

A token has a step of its own and sums of integers are exact: what it becomes does not depend on who shares its batch.
Source: Dettmers et al. 2022 (arXiv 2208.07339), sec. 3.1. Shapes: x [N, I], W and Q [O, I], b and s [O].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the name everyone uses)

from assay.models.adapters import instead
from assay.models.backbone import Backbone

LEVELS = 127
TINY = 1e-30
"""In place of the largest of all zeros."""
ROWS = 128
"""Rows that go through together: what is made of them on the way stays in the processor's cache."""
CUDA_ROWS, CUDA_MULTIPLE = 17, 8
"""CUDA's integer product takes no fewer rows than this, and no widths but multiples of that."""


@dataclass(frozen=True, slots=True)
class Int8Linear:
    """y = x·Wᵀ + b with W, and every x as it comes, in whole steps."""

    weight_OI: Tensor
    """Q, the weights in steps."""
    step_O: Tensor
    bias_O: Tensor

    @classmethod
    def of(cls, weight_OI: Tensor, bias_O: Tensor | None) -> Int8Linear:
        """The nearest whole steps: no weight moves by more than half of one."""
        weight_OI = weight_OI.detach().float()
        step_O = weight_OI.abs().amax(1).clamp_(min=TINY) / LEVELS
        whole_OI = (weight_OI / step_O[:, None]).round_().to(torch.int8)
        return cls(whole_OI, step_O, step_O.new_zeros(()) if bias_O is None else bias_O.detach().float())

    def __call__(self, x: Tensor) -> Tensor:
        """[…, I] → […, O], in the number format of the layer that it stands for."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        x_NI, scale_O = x.flatten(0, -2).float(), self.step_O / LEVELS
        y_NO = x_NI.new_empty(len(x_NI), len(scale_O), dtype=dtype)
        for some_NI, result_NO in zip(x_NI.split(ROWS), y_NO.split(ROWS), strict=True):
            reach = some_NI.abs().amax(1, keepdim=True).clamp_(min=TINY)  # [N, 1]
            whole_NI = (some_NI * (LEVELS / reach)).round_().to(torch.int8)
            if whole_NI.is_cuda:
                whole_NI = F.pad(whole_NI, (0, 0, 0, max(0, CUDA_ROWS - len(whole_NI))))
            sums_NO = torch._int_mm(whole_NI, self.weight_OI.T)[: len(some_NI)]  # pyright: ignore[reportPrivateImportUsage]
            torch.add((sums_NO * reach).mul_(scale_O), self.bias_O, out=result_NO)
        return y_NO.view(*x.shape[:-1], -1)


def fits(weight_OI: Tensor) -> bool:
    """Whether this device has an integer product for such a layer."""
    return not weight_OI.is_cuda or all(width % CUDA_MULTIPLE == 0 for width in weight_OI.shape)


@contextlib.contextmanager
def in_int8(backbone: Backbone, adapter: str | None) -> Iterator[None]:
    """Forward passes inside see the trunk's linear layers as they are now, `adapter` merged in, in int8."""
    linears = backbone.adapters.linears(adapter)
    with instead({layer: Int8Linear.of(weight, bias) for layer, weight, bias in linears if fits(weight)}):
        yield
