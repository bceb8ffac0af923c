"""Rows → tensors: padded batches, batches of similar length, and parts of a batch that fit in memory.

Shapes: B rows, T tokens. Masks come from lengths, never from comparing with the pad id.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assay.data.render import Row


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Tensors of shape [B, T]. `loss_mask[b, t]` is True where token t is a label: it is a response token."""

    input_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    rows: tuple[Row, ...] | None = None
    """What the tensors hold, for a batch that is padded on the right."""

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        tensors = (self.input_ids, self.attention_mask, self.loss_mask, self.position_ids)
        return TokenBatch(*(tensor.to(device) for tensor in tensors), rows=self.rows)

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments for a transformers model that takes `position_ids`."""
        mask = self.attention_mask
        return {"input_ids": self.input_ids, "attention_mask": mask, "position_ids": self.position_ids}


def collate(rows: Sequence[Row], pad_id: int, *, side: Literal["right", "left"] = "right") -> TokenBatch:
    """Pad rows to the longest. The first token of a row is never a label: nothing comes before it."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    loss = torch.zeros_like(attention)
    positions = torch.zeros_like(ids)
    for b, row in enumerate(rows):
        start = width - len(row.ids) if side == "left" else 0
        stop = start + len(row.ids)
        ids[b, start:stop] = torch.tensor(row.ids, dtype=torch.long)
        attention[b, start:stop] = True
        loss[b, start + max(row.prompt_length, 1) : stop] = True
        positions[b, start:stop] = torch.arange(len(row.ids))
    return TokenBatch(ids, attention, loss, positions, tuple(rows) if side == "right" else None)


def batches(lengths: Sequence[int], rows: int, rng: random.Random, *, bucket: int = 8) -> list[list[int]]:
    """Index batches of `rows` rows, every row once, in random order; rows of one batch are of similar length.

    Shuffle, sort by length within every `bucket` batches, cut, shuffle the batches. The last batch of the
    shuffled order before sorting may be short; `bucket=1` sorts nothing across batches.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    span = rows * bucket
    sorted_spans = [sorted(order[i : i + span], key=lengths.__getitem__) for i in range(0, len(order), span)]
    cut = [chunk[i : i + rows] for chunk in sorted_spans for i in range(0, len(chunk), rows)]
    rng.shuffle(cut)
    return cut


def together(rows: Sequence[Row]) -> list[int]:
    """Numbers of the rows, those of one prompt beside each other, short prompts first."""
    return sorted(range(len(rows)), key=lambda i: (rows[i].prompt_length, rows[i].ids))


def parts(lengths: Sequence[int], *, tokens: int, rows: int | None = None) -> Iterator[list[int]]:
    """Numbers of neighbours that go through a model together: at most `rows` of them, and at most `tokens` tokens.

    A single one may have more tokens: it is never cut.
    """
    part: list[int] = []
    held = 0
    for number, length in enumerate(lengths):
        if part and (len(part) == rows or held + length > tokens):
            yield part
            part, held = [], 0
        part.append(number)
        held += length
    if part:
        yield part
