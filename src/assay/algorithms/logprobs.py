"""Log-probabilities and entropies of tokens without keeping a [N, V] tensor; the loss of supervised fine-tuning."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from assay.algorithms.masked import masked_mean
from assay.algorithms.product import autocasts, product

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
) -> tuple[Tensor, Tensor | None]:
    """log p(id) of each token, and the entropy of the whole distribution where asked for.

        z = (h·Wᵀ + b) / temperature        log p(id) = z_id − log Σ_v e^{z_v}        H = −Σ_v p_v·log p_v

    Logits exist for `chunk` rows at a time. Where the head learns, they are computed again in the backward pass: one
    more matrix product, and nothing kept but the inputs and the entropies. Where it is frozen (LoRA) and no entropy is
    asked for, ∂log p(id)/∂h = (W_id − Σ_v p_v·W_v) / temperature is taken on the way, and the backward pass scales it.
    The head works in float32 (float64 for float64 input), under autocast too; a half-precision weight is copied to
    float32 for the call.
    Shapes: [N, D], [V, D], [N], bias [V] → [N] and [N] or None, in nats.
    """
    logprobs_N, entropy_N = _ChunkedLogprobs.apply(
        hidden_ND, lm_head_weight_VD, bias, ids_N, temperature, chunk, with_entropy
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
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        logprobs_N = torch.empty(len(ids_N), dtype=dtype, device=hidden_ND.device)
        entropy_N = torch.empty(len(ids_N) if with_entropy else 0, dtype=dtype, device=hidden_ND.device)
        weight, bias = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
        ctx.on_the_way = ctx.needs_input_grad[:3] == (True, False, False) and not with_entropy
        slope_ND = torch.empty_like(hidden_ND) if ctx.on_the_way else None
        for rows in _chunks(len(ids_N), chunk):
            logprobs = _logits(hidden_ND[rows].to(dtype), weight, bias, temperature).log_softmax(dim=-1)
            logprobs_N[rows] = logprobs.gather(1, ids_N[rows, None]).squeeze(1)
            if with_entropy:
                entropy_N[rows] = logprobs.exp().mul_(logprobs).sum(dim=-1).neg_()
            if slope_ND is not None:
                expected = product(logprobs.exp_(), weight.T)
                slope_ND[rows] = ((weight[ids_N[rows]] - expected) / temperature).to(hidden_ND.dtype)
        kept = (slope_ND,) if ctx.on_the_way else (hidden_ND, weight_VD, bias_V, ids_N, entropy_N)
        ctx.save_for_backward(*kept)
        ctx.temperature, ctx.chunk, ctx.with_entropy = temperature, chunk, with_entropy
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.on_the_way:
            (slope_ND,) = ctx.saved_tensors
            return slope_ND * grad_logprobs_N[:, None].to(slope_ND.dtype), *[None] * 6
        hidden_ND, weight_VD, bias_V, ids_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype = grad_logprobs_N.dtype
        weight, bias = weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
        grad_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_bias else None
        for rows in _chunks(len(ids_N), ctx.chunk):
            hidden = hidden_ND[rows].to(dtype)
            logprobs = _logits(hidden, weight, bias, ctx.temperature).log_softmax(dim=-1)
            grad = logprobs.exp()
            outer = grad_logprobs_N[rows, None]
            if ctx.with_entropy:
                inner = (logprobs + entropy_N[rows, None]).mul_(grad_entropy_N[rows, None])
                grad.mul_(inner.add_(outer)).neg_()
            else:
                grad.mul_(-outer)
            grad.scatter_add_(1, ids_N[rows, None], outer).div_(ctx.temperature)
            if grad_hidden is not None:
                grad_hidden[rows] = product(grad, weight.T).to(hidden_ND.dtype)
            if grad_weight is not None:
                grad_weight.addmm_(grad.T, hidden)
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False) if autocasts(hidden) else nullcontext():
        logits = product(hidden, weight, bias)
    return logits if temperature == 1 else logits.div_(temperature)
