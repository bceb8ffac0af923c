"""A prompt read once for several answers by a model that cannot read a tree: its key-value cache is read on from.

    prompt, alone  →  keys and values, in the graph  →  answer 1 after it, answer 2 after it, …

Every token stands in its line at the index that it has in its row, which is what local attention counts by (GPT-Neo);
so its state, and every gradient through it, is that of the row alone. Shapes: B rows of T tokens, M tokens read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from assay.data.forest import grown
from assay.data.pack import collate, to_device
from assay.data.render import Row

if TYPE_CHECKING:
    from assay.models.backbone import Backbone


def read_on(backbone: Backbone, rows: Sequence[Row], adapter: str | None) -> tuple[Tensor, Tensor]:
    """Last hidden states [M, D], and the place among them of every token of the padded rows, [B, T], 0 on pads."""
    places_BT = torch.zeros(len(rows), max(len(row.ids) for row in rows), dtype=torch.long)
    states: list[Tensor] = []
    read = 0
    for _, members in grown(rows, sys.maxsize):
        first = rows[members[0]]
        shared = first.prompt_length if len(members) > 1 else len(first.ids)
        cache = DynamicCache()
        root = collate([Row(first.ids[:shared], 0)], 0).to(backbone.device)
        states.append(
            backbone.forward(
                root.input_ids, position_ids=root.position_ids, adapter=adapter, past_key_values=cache, use_cache=True
            )
        )
        places_BT[members, :shared] = read + torch.arange(shared)
        read += shared
        lengths = [len(rows[b].ids) - shared for b in members]
        if not any(lengths):
            continue
        cache.batch_repeat_interleave(len(members))
        answers = collate([Row(rows[b].ids[shared:], 0) for b in members], 0).to(backbone.device)
        seen_BT = torch.nn.functional.pad(answers.attention_mask, (shared, 0), value=True)
        states.append(
            backbone.forward(
                answers.input_ids,
                position_ids=answers.position_ids + shared,
                adapter=adapter,
                attention_mask=seen_BT,
                past_key_values=cache,
                use_cache=True,
            )
        )
        for b, length in zip(members, lengths, strict=True):
            places_BT[b, shared : shared + length] = read + torch.arange(length)
            read += max(lengths)
    return torch.cat([part.flatten(0, 1) for part in states]), to_device(places_BT, backbone.device)
