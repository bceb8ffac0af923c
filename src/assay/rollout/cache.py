"""A preallocated key-value cache whose rows come and go: all rows end at the same column, padded on the left."""

from __future__ import annotations

import inspect
import math
import mmap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from assay.errors import ModelError


class SlotLayer(CacheLayerMixin):
    """Keys and values of one block, [B, heads, capacity, width], of which the rows in use are seen.

    Columns before `length` are filled. Sliding-window models keep all columns too, and mask those outside the window.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__()
        self.rows = rows
        self.capacity = capacity
        self.length = 0
        self._held: dict[str, Tensor] = {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        def room(states: Tensor) -> Tensor:
            return zeros_like(states, (self.rows, states.shape[1], self.capacity, states.shape[3]))

        self._held = {"keys": room(key_states), "values": room(value_states)}
        self.is_initialized = True
        self.use(self.rows)

    def use(self, rows: int) -> None:
        """See the first `rows`."""
        self.keys, self.values = self._held["keys"][:rows], self._held["values"][:rows]

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

    def take(self, lines: LineLayer, places_BW: Tensor) -> None:
        """New rows below those in use: their last W columns are the tokens at `places_BW` of the flattened lines."""
        if not self.is_initialized:
            self.lazy_initialization(lines.keys, lines.values)
            self.use(0)
        first, (count, width) = self.keys.shape[0], places_BW.shape
        self.use(first + count)
        for name in ("keys", "values"):
            tokens = getattr(lines, name).transpose(1, 2).flatten(0, 1).index_select(0, places_BW.flatten())
            taken = tokens.view(count, width, *tokens.shape[1:]).transpose(1, 2)
            getattr(self, name)[first:, :, self.length - width : self.length] = taken

    def compact(self, sources: Tensor, targets: Tensor, rows: int, columns: int) -> None:
        """Copy rows, of which the last `columns` are needed, into the places of others, and see the first `rows`."""
        needed = slice(self.length - columns, self.length)
        for held in (self.keys, self.values):
            held[targets, :, needed] = held[sources, :, needed]
        self.use(rows)

    def align(self, columns: int, length: int) -> None:
        """Let the rows, of which the last `columns` are needed, end at column `length`."""
        if columns:
            for held in (self.keys, self.values):
                held[:, :, length - columns : length] = held[:, :, self.length - columns : self.length].clone()
        self.length = length


class LineLayer(CacheLayerMixin):
    """Keys and values of one block as a forward pass over prompts made them, [L, heads, W, width]."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values, self.is_initialized = key_states, value_states, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states, value_states)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class LineCache(Cache):
    """One `LineLayer` a block."""

    layers: list[LineLayer]

    def __init__(self, blocks: int) -> None:
        super().__init__(layers=[LineLayer() for _ in range(blocks)])


class SlotCache(Cache):
    """One `SlotLayer` a block: room for `rows` of `capacity` columns; their memory is asked for once."""

    layers: list[SlotLayer]

    def __init__(self, blocks: int, rows: int, capacity: int) -> None:
        layers = [SlotLayer(rows, capacity) for _ in range(blocks)]
        super().__init__(layers=layers)  # pyright: ignore[reportArgumentType]
        self.capacity = capacity

    @property
    def length(self) -> int:
        """Columns filled."""
        return self.layers[0].length

    @property
    def full(self) -> bool:
        """Whether no column is left for the next token."""
        return self.length == self.capacity

    def take(self, lines: LineCache, places_BW: Tensor) -> None:
        """See `SlotLayer.take`; block by block, and nothing of `lines` is left."""
        for place, layer in enumerate(self.layers):
            layer.take(lines.layers[place], places_BW)
            lines.layers[place] = LineLayer()

    def compact(self, sources: Tensor, targets: Tensor, rows: int, columns: int) -> None:
        """See `SlotLayer.compact`."""
        for layer in self.layers:
            layer.compact(sources, targets, rows, columns)

    def align(self, columns: int, length: int) -> None:
        """See `SlotLayer.align`."""
        for layer in self.layers:
            layer.align(columns, length)


def zeros_like(states: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of that kind; on a CPU, memory that takes no page before something is written to it.

    Zeros, not whatever memory holds: a masked NaN is still a NaN after softmax's weight of zero. A row fills its own
    columns alone, so most of a cache that has room for the longest in every row is never touched.
    """
    if states.device.type != "cpu":
        return states.new_zeros(shape)
    size = math.prod(shape) * states.itemsize
    return torch.frombuffer(mmap.mmap(-1, size, access=mmap.ACCESS_COPY), dtype=states.dtype).view(shape)


def check_cacheable(model: PreTrainedModel) -> None:
    """Refuse models that remember something else than keys and values of every token."""
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    takes_cache = "past_key_values" in inspect.signature(model.base_model.forward).parameters
    if not takes_cache or not kinds <= {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{model.config.model_type} cannot be sampled from here: its blocks are {', '.join(sorted(kinds))}",
            hint="use a model with full or sliding-window attention in every block",
        )


def seen_columns(spans: list[int], width: int, capacity: int, device: str | torch.device) -> Tensor:
    """Attention mask [B, capacity] of rows that end at column `width` with `spans` filled columns each.

    Columns after `width` are seen as well: tokens to come.
    """
    columns = torch.arange(capacity, device=device)
    return columns >= width - torch.tensor(spans, device=device)[:, None]
