"""Attention that computes little in vain: along lines of trees, and over rows of a cache that are of unequal length.

Registered with transformers under `NAME`; a forward pass says by keyword which of the two it is, or neither.

    A = softmax(scale·Q·Kᵀ + bias)          O = A·V          for the queries of a block and all that they may attend to

A mask over a line of everything would compute each tree's attention to every other; a block computes little in vain and
is small enough for plain matrix products. The backward pass computes A again instead of keeping it:

    dV = Aᵀ·dO     dA = dO·Vᵀ     dS = A ∘ (dA − Σ dA ∘ A)     dQ = scale·dS·K     dK = scale·dSᵀ·Q

Shapes: L lines of W tokens; H heads of keys and values, each with G heads of queries (arXiv 2305.13245).
Source: recomputation as in FlashAttention (arXiv 2205.14135), alg. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from assay.data.forest import Block

NAME = "assay_trees"

Stretch = tuple[slice, int]
"""Neighbouring rows, and the first column that any of them fills."""


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    blocks: Sequence[Block] | None = None,
    stretches: Sequence[Stretch] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' interface: [B, heads, T, D] → [B, T, heads, D]; its own sdpa, unless it is told more.

    `blocks` cut lines of trees. `stretches` are rows of a cache with the column at which they begin.
    """
    sdpa = partial(sdpa_attention_forward, module, scaling=scaling, dropout=dropout, **kwargs)
    if stretches is not None:
        assert attention_mask is not None
        parts = [
            sdpa(query[rows], key[rows, :, start:], value[rows, :, start:], attention_mask[rows, :, :, start:])[0]
            for rows, start in stretches
        ]
        return torch.cat(parts), None
    if blocks is None:
        return sdpa(query, key, value, attention_mask)
    if dropout or any(kwargs.get(name) is not None for name in ("softcap", "position_bias", "s_aux")):
        raise ValueError("attention over blocks knows no dropout, softcap, position bias or sinks")
    grouped = query.unflatten(1, (key.shape[1], -1))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found: Tensor = BlockAttention.apply(grouped, key, value, scale, blocks)
    return found.flatten(1, 2).transpose(1, 2), None


class BlockAttention(torch.autograd.Function):
    """[L, H, G, W, D] queries, [L, H, W, D] keys and values → [L, H, G, W, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, blocks: Sequence[Block]) -> Tensor:
        found = torch.empty_like(q)
        for block in blocks:
            weights = attention_weights(q, k, scale, block)
            put_queries(found, weights @ attended(v, block), block)
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.blocks = scale, blocks
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for block in ctx.blocks:
            weights = attention_weights(q, k, ctx.scale, block)
            do = queries(gradients[0], block)
            add_attended(dv, weights.transpose(1, 2) @ do, block)
            ds = do @ attended(v, block).transpose(1, 2)
            ds = torch.ops.aten._softmax_backward_data(ds, weights, -1, ds.dtype).mul_(ctx.scale)
            put_queries(dq, ds @ attended(k, block), block)
            add_attended(dk, ds.transpose(1, 2) @ queries(q, block), block)
        return dq, dk, dv, None, None


def attention_weights(q: Tensor, k: Tensor, scale: float, block: Block) -> Tensor:
    """A of one block, [L·H, G·own, prompt + own]."""
    scores = (queries(q, block) * scale) @ attended(k, block).transpose(1, 2)
    scores.view(*q.shape[:3], *block.bias.shape[1:]).add_(block.bias[:, None, None])
    return scores.softmax(-1)


def queries(x: Tensor, block: Block) -> Tensor:
    """The block's own tokens, [L, H, G, W, D] → [L·H, G·own, D]."""
    return x[:, :, :, block.own].flatten(2, 3).flatten(0, 1)


def put_queries(x: Tensor, part: Tensor, block: Block) -> None:
    """Write what is shaped like `queries` in its places."""
    own = x[:, :, :, block.own]
    own.copy_(part.view(own.shape))


def attended(x: Tensor, block: Block) -> Tensor:
    """What the block attends to, [L, H, W, D] → [L·H, prompt + own, D]."""
    own = x[:, :, block.own]
    return (own if block.prompt is None else torch.cat([x[:, :, block.prompt], own], 2)).flatten(0, 1)


def add_attended(total: Tensor, part: Tensor, block: Block) -> None:
    """Add gradients of `attended` in their places."""
    part = part.view(*total.shape[:2], *part.shape[1:])
    shared = 0 if block.prompt is None else block.prompt.stop - block.prompt.start
    if block.prompt is not None:
        total[:, :, block.prompt] += part[:, :, :shared]
    total[:, :, block.own] += part[:, :, shared:]


def stretches_of(spans: Sequence[int], width: int, count: int = 4) -> list[Stretch]:
    """Rows that fill the last `spans` of `width` columns, in at most `count` stretches of neighbours."""
    size = -(-len(spans) // count)
    return [
        (slice(start, start + size), width - max(spans[start : start + size])) for start in range(0, len(spans), size)
    ]


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
