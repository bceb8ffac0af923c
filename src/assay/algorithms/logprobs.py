"""Log-probabilities and entropies of tokens without keeping a [N, V] tensor; the loss of supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from assay.algorithms.masked import masked_mean
from assay.algorithms.product import add_product, autocasts, product

CHUNK = 256
"""Rows of logits alive at once: enough to keep the matrix product busy, little enough to stay in a CPU's cache."""


def token_logprobs(
    hidden_ND: Tensor,
    lm_head_weight_VD: Tensor,
    ids_N: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    with_entropy: bool = False,
    alike: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log p(id) of each token, and the entropy of the whole distribution where asked for.

        z = (h·Wᵀ + b) / temperature        log p(id) = z_id − log Σ_v e^{z_v}        H = −Σ_v p_v·log p_v

    Logits exist for `chunk` rows at a time. Where the head learns, they are computed again in the backward pass: one
    more matrix product, and nothing kept but the inputs and the entropies. Without entropies that is spared where the
    head is frozen (LoRA), or where all tokens are `alike`: the loss is their sum, be it times a number. Then
    ∂log p(id)/∂z = onehot(id) − p is used on the way, and the backward pass scales what came of it.
    The head works in float32 (float64 for float64 input), under autocast too; a half-precision weight is copied to
    float32 for the call.
    Shapes: [N, D], [V, D], [N], bias [V] → [N] and [N] or None, in nats. Raises RuntimeError where tokens that were
    said to be alike are not: in the backward pass on a CPU, on a GPU when next something waits for it.
    """
    logprobs_N, entropy_N = _ChunkedLogprobs.apply(
        hidden_ND, lm_head_weight_VD, bias, ids_N, temperature, chunk, with_entropy, alike and torch.is_grad_enabled()
    )
    return logprobs_N, entropy_N if with_entropy else None


def completion_loss(logprobs_BT: Tensor, mask_BT: Tensor, *, total: int | Tensor) -> Tensor:
    """−Σ m·log p / total: the loss of supervised fine-tuning, over response tokens only, their end included.

    `total` is the number of response tokens of the whole optimizer step, so gradient accumulation is exact.
    Shapes: [B, T], [B, T] → scalar, nats per token. Source: InstructGPT (arXiv 2203.02155), sec. 3.5.
    """
    return masked_mean(-logprobs_BT, mask_BT, total=total)


class _ChunkedLogprobs(Function):
    """The backward pass by hand: ∂log p(id)/∂z = onehot(id) − p and ∂H/∂z = −p·(log p + H), chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        ids_N: Tensor,
        temperature: float,
        chunk: int,
        with_entropy: bool,
        alike: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        logprobs_N = torch.empty(len(ids_N), dtype=dtype, device=hidden_ND.device)
        entropy_N = torch.empty(len(ids_N) if with_entropy else 0, dtype=dtype, device=hidden_ND.device)
        weight, bias = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
        needs_head = any(ctx.needs_input_grad[1:3])
        ctx.on_the_way = any(ctx.needs_input_grad) and not with_entropy and (alike or not needs_head)
        slopes = _Slopes(hidden_ND, weight, bias, ids_N, temperature, ctx.needs_input_grad) if ctx.on_the_way else None
        for rows in _chunks(len(ids_N), chunk):
            logprobs = _logprobs(hidden_ND[rows].to(dtype), weight, bias, temperature)
            logprobs_N[rows] = logprobs.gather(1, ids_N[rows, None]).squeeze(1)
            if with_entropy:
                entropy_N[rows] = logprobs.exp().mul_(logprobs).sum(dim=-1).neg_()
            if slopes:
                slopes.add(rows, logprobs.exp_().neg_(), torch.ones_like(logprobs[:, :1]))
        kept = slopes.found if slopes else (hidden_ND, weight_VD, bias_V, ids_N, entropy_N)
        ctx.save_for_backward(*kept)
        ctx.temperature, ctx.chunk, ctx.with_entropy = temperature, chunk, with_entropy
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.on_the_way:
            slope_ND, slope_VD, slope_V = ctx.saved_tensors
            return *_scaled(slope_ND, slope_VD, slope_V, grad_logprobs_N), *[None] * 5
        hidden_ND, weight_VD, bias_V, ids_N, entropy_N = ctx.saved_tensors
        dtype = grad_logprobs_N.dtype
        weight, bias = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
        slopes = _Slopes(hidden_ND, weight, bias, ids_N, ctx.temperature, ctx.needs_input_grad)
        for rows in _chunks(len(ids_N), ctx.chunk):
            logprobs = _logprobs(hidden_ND[rows].to(dtype), weight, bias, ctx.temperature)
            outer = grad_logprobs_N[rows, None]
            if ctx.with_entropy:
                grad = logprobs.exp()
                inner = logprobs.add_(entropy_N[rows, None]).mul_(grad_entropy_N[rows, None])
                grad.mul_(inner.add_(outer)).neg_()
            else:
                grad = logprobs.exp_().mul_(-outer)
            slopes.add(rows, grad, outer)
        return *slopes.found, *[None] * 5


class _Slopes:
    """Gradients of hidden states, weight and bias, those that are needed, gathered chunk by chunk."""

    def __init__(
        self,
        hidden_ND: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids_N: Tensor,
        temperature: float,
        needs: Sequence[bool],
    ) -> None:
        self.hidden_ND, self.weight, self.ids_N, self.temperature = hidden_ND, weight, ids_N, temperature
        self.found = (
            torch.empty_like(hidden_ND) if needs[0] else None,
            torch.zeros_like(weight) if needs[1] else None,
            torch.zeros_like(bias) if bias is not None and needs[2] else None,
        )

    def add(self, rows: slice, grad: Tensor, outer: Tensor) -> None:
        """`grad` is ∂/∂z of these rows but for the tokens' own share, `outer`; it is used up."""
        grad.scatter_add_(1, self.ids_N[rows, None], outer).div_(self.temperature)
        of_hidden, of_weight, of_bias = self.found
        with _in_float32(grad):
            if of_hidden is not None:
                of_hidden[rows] = product(grad, self.weight.T).to(of_hidden.dtype)
            if of_weight is not None:
                add_product(of_weight, grad.T, self.hidden_ND[rows].to(grad.dtype).T)
        if of_bias is not None:
            of_bias += grad.sum(dim=0)


def _scaled(
    slope_ND: Tensor | None, slope_VD: Tensor | None, slope_V: Tensor | None, grad_N: Tensor
) -> tuple[Tensor | None, ...]:
    """Slopes of Σ log p times what each token counts; the head's have one factor for all, and are scaled in place."""
    of_head = [slope for slope in (slope_VD, slope_V) if slope is not None]
    if of_head:  # asked on the device, which nobody waits for; a gradient that is not finite is told of elsewhere
        alike = ((grad_N == grad_N[:1]) | grad_N.isnan()).all()
        torch.ops.aten._assert_async(alike, "tokens were said to be alike, and their gradients are not")
    for slope in of_head:
        slope.mul_(grad_N[:1].sum())
    hidden = None if slope_ND is None else (slope_ND * grad_N[:, None]).to(slope_ND.dtype)
    return hidden, slope_VD, slope_V


def _in_float32(x: Tensor) -> AbstractContextManager[object]:
    """Autocast, which calls this file's forward passes with half precision in mind, is off inside."""
    return torch.autocast(x.device.type, enabled=False) if autocasts(x) else nullcontext()


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _logprobs(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Of the whole vocabulary [N, V], where the logits were: softmax reads a number before it writes there."""
    with _in_float32(hidden):
        logits = product(hidden, weight, bias)
    if temperature != 1:
        logits.div_(temperature)
    return torch.log_softmax(logits, dim=-1, out=logits)
