"""A preallocated key-value cache whose rows come and go: all rows end at the same column, padded on the left."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from assay.errors import ModelError


class SlotLayer(CacheLayerMixin):
    """Keys and values of one block, [B, heads, capacity, width]; columns before `length` are filled.

    Sliding-window models keep all columns too, and mask those outside the window.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def room(states: Tensor) -> Tensor:
            return states.new_empty(*states.shape[:2], self.capacity, states.shape[3])

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity

    def rebuilt(self, rows: Tensor, columns: int, others: SlotLayer | None, *, room: int) -> SlotLayer:
        """Some rows with their last `columns` columns, then all rows of `others`, and `room` free columns."""
        width = max(columns, others.length if others else 0)
        new = SlotLayer(width + room)
        new.length, new.is_initialized = width, True
        count = len(rows) + (others.keys.shape[0] if others else 0)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            # Zeros, not whatever memory holds: a masked NaN is still a NaN after softmax's weight of zero.
            joined = old.new_zeros(count, old.shape[1], width + room, old.shape[3])
            kept = old[:, :, self.length - columns : self.length]
            joined[: len(rows), :, width - columns : width] = kept.index_select(0, rows)
            if others:
                joined[len(rows) :, :, width - others.length : width] = getattr(others, name)[:, :, : others.length]
            setattr(new, name, joined)
        return new

    def compact(self, sources: Tensor, targets: Tensor, rows: int) -> None:
        """Copy rows into the places of others, and keep the first `rows`: no memory is asked for, and little moves."""
        for name in ("keys", "values"):
            held: Tensor = getattr(self, name)
            held[targets, :, : self.length] = held[sources, :, : self.length]
            setattr(self, name, held[:rows])

    def take(self, lines: SlotLayer, places_BW: Tensor, first: int, rows: int) -> None:
        """Rows from `first` on, of `rows` in all: column w is the token at `places_BW[b, w]` of the flattened lines."""
        count, self.length = places_BW.shape
        for name in ("keys", "values"):
            read: Tensor = getattr(lines, name)
            if not self.is_initialized:
                setattr(self, name, read.new_zeros(rows, read.shape[1], self.capacity, read.shape[3]))
            tokens = read.transpose(1, 2).flatten(0, 1).index_select(0, places_BW.flatten())
            taken = tokens.view(count, self.length, *tokens.shape[1:]).transpose(1, 2)
            getattr(self, name)[first : first + count, :, : self.length] = taken
        self.is_initialized = True


class SlotCache(Cache):
    """One `SlotLayer` a block."""

    layers: list[SlotLayer]

    def __init__(self, layers: list[SlotLayer]) -> None:
        super().__init__(layers=layers)  # pyright: ignore[reportArgumentType]

    @classmethod
    def empty(cls, blocks: int, capacity: int) -> SlotCache:
        """Room for `capacity` columns; rows are those of the first forward pass."""
        return cls([SlotLayer(capacity) for _ in range(blocks)])

    @property
    def length(self) -> int:
        """Columns filled."""
        return self.layers[0].length

    def compact(self, sources: Tensor, targets: Tensor, rows: int) -> None:
        """See `SlotLayer.compact`."""
        for layer in self.layers:
            layer.compact(sources, targets, rows)

    def take(self, lines: SlotCache, places_BW: Tensor, first: int, rows: int) -> None:
        """See `SlotLayer.take`; block by block, and nothing of `lines` is left."""
        for place, layer in enumerate(self.layers):
            layer.take(lines.layers[place], places_BW, first, rows)
            lines.layers[place] = SlotLayer(0)

    def rebuild(self, rows: Tensor, columns: int, others: SlotCache | None, *, room: int) -> None:
        """See `SlotLayer.rebuilt`; block by block as well, and nothing of `others` is left."""
        for place, layer in enumerate(self.layers):
            theirs = others.layers[place] if others else None
            self.layers[place] = layer.rebuilt(rows, columns, theirs, room=room)
            if others:
                others.layers[place] = SlotLayer(0)


def check_cacheable(model: PreTrainedModel) -> None:
    """Refuse models that remember something else than keys and values of every token."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    takes_cache = "past_key_values" in inspect.signature(model.base_model.forward).parameters
    if not takes_cache or not kinds <= {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{model.config.model_type} cannot be sampled from here: its blocks are {', '.join(sorted(kinds))}",
            hint="use a model with full or sliding-window attention in every block",
        )


def seen_columns(spans: list[int], width: int, room: int, device: str | torch.device) -> Tensor:
    """Attention mask [B, width + room] of right-aligned rows with `spans` filled columns each, and columns to come."""
    columns = torch.arange(width + room, device=device)
    return columns >= width - torch.tensor(spans, device=device)[:, None]
