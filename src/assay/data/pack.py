"""Rows → tensors: padded batches, batches of similar length, and parts of a batch that fit in memory.

All of it is made on the host, where lengths are known, and then moved: no device is asked where its labels are.
Shapes: B rows, T tokens, N labels in all, R the most of any row. Masks come from lengths, never from comparing with
the pad id.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from assay.data.render import Row


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on a device, without waiting for what the device still has to do."""
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()  # a copy from other memory may wait for the work before it
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class LabelIndex:
    """Where the N labels of a batch are."""

    ids_N: Tensor
    """The labels themselves."""
    before_N: Tensor
    """Places, in the flattened batch, of the states that they are predicted from: one token earlier."""
    rows_N: Tensor
    slots_N: Tensor
    """Which label of its row each is, from 0."""
    mask_BR: Tensor

    @classmethod
    def of(cls, input_ids: Tensor, loss_mask: Tensor) -> LabelIndex:
        """From tensors of the host, [B, T] each."""
        rows_N, columns_N = loss_mask.nonzero(as_tuple=True)
        counts_B = loss_mask.sum(1)
        width = int(counts_B.max()) if len(counts_B) else 0
        return cls(
            input_ids[rows_N, columns_N],
            rows_N * loss_mask.shape[1] + columns_N - 1,
            rows_N,
            (loss_mask.cumsum(1) - 1)[rows_N, columns_N],
            torch.arange(width) < counts_B[:, None],
        )

    def to(self, device: torch.device | str) -> LabelIndex:
        """The same on a device."""
        tensors = (self.ids_N, self.before_N, self.rows_N, self.slots_N, self.mask_BR)
        return LabelIndex(*(to_device(tensor, device) for tensor in tensors))

    def spread(self, values_N: Tensor) -> Tensor:
        """One value a label to [B, R], zero where there is none."""
        out = torch.zeros(self.mask_BR.shape, dtype=values_N.dtype, device=values_N.device)
        return out.index_put((self.rows_N, self.slots_N), values_N)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Tensors of shape [B, T]. `loss_mask[b, t]` is True where token t is a label: it is a response token."""

    input_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    labels: LabelIndex
    rows: tuple[Row, ...] | None = None
    """What the tensors hold, for a batch that is padded on the right."""

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on a device."""
        tensors = (self.input_ids, self.attention_mask, self.loss_mask, self.position_ids)
        labels = self.labels.to(device)
        return TokenBatch(*(to_device(tensor, device) for tensor in tensors), labels=labels, rows=self.rows)

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
    labels = LabelIndex.of(ids, loss)
    return TokenBatch(ids, attention, loss, positions, labels, tuple(rows) if side == "right" else None)


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


def parts(
    examples: Sequence[Sequence[Row]], *, tokens: int, most: int | None = None, shared: bool = True
) -> list[list[int]]:
    """Numbers of the examples that go through a model together: at most `most`, and at most `tokens` tokens.

    An example is one row, or several that must not be parted. Where the model reads a prompt once for all its answers
    (`shared`), it counts once, and examples with the same prompt are neighbours; elsewhere those of like length are. An
    example that alone has more tokens is a part of its own.
    """
    found: list[list[int]] = []
    read: set[tuple[int, ...]] = set()
    held = 0
    key = _first_prompt if shared else _length
    for number in sorted(range(len(examples)), key=lambda number: key(examples[number])):
        prompts = {tuple(row.ids[: row.prompt_length]) for row in examples[number]} if shared else set()
        answers = sum(len(row.ids) - (row.prompt_length if shared else 0) for row in examples[number])
        more = answers + sum(map(len, prompts - read))
        if not found or len(found[-1]) == most or held + more > tokens:
            found.append([])
            held, read, more = 0, set(), answers + sum(map(len, prompts))
        found[-1].append(number)
        held += more
        read |= prompts
    return found


def _first_prompt(example: Sequence[Row]) -> tuple[int, list[int]]:
    """Short prompts first, then by what they say."""
    return example[0].prompt_length, example[0].ids


def _length(example: Sequence[Row]) -> tuple[int, list[int]]:
    return sum(len(row.ids) for row in example), []
