"""Rows → tensors, against padding counted by hand (correctness 2)."""

from __future__ import annotations

import itertools
import random
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.padding import padded

from assay.data.pack import TokenBatch, batches, collate, parts
from assay.data.render import Row

PAD = 3  # also a token that occurs in rows: lengths must not come from it


@st.composite
def rows(draw: st.DrawFn) -> Row:
    ids = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    return Row(ids, draw(st.integers(0, len(ids) - 1)))


@pytest.mark.parametrize("side", ["left", "right"])
@given(batch=st.lists(rows(), min_size=1, max_size=5))
def test_a_padded_batch_is_what_counting_cell_by_cell_gives(side: Literal["left", "right"], batch: list[Row]) -> None:
    made = collate(batch, PAD, side=side)
    expected = padded([(row.ids, row.prompt_length) for row in batch], PAD, side)
    assert made.input_ids.tolist() == expected["ids"]
    assert made.attention_mask.int().tolist() == expected["attention"]
    assert made.loss_mask.int().tolist() == expected["loss"]
    assert made.position_ids.tolist() == expected["positions"]


def test_the_end_token_stays_a_label_where_it_is_also_the_pad() -> None:
    end = 7
    batch = collate([Row([1, 2, 5, end], 2), Row([1, 2, 5, 6, 6, end], 2)], pad_id=end)
    assert batch.loss_mask.tolist() == [
        [False, False, True, True, False, False],
        [False, False, True, True, True, True],
    ]


@given(lengths=st.lists(st.integers(1, 50), max_size=60), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_row_is_in_exactly_one_batch(lengths: list[int], size: int, seed: int) -> None:
    cut = batches(lengths, size, random.Random(seed), bucket=4)
    assert sorted(index for batch in cut for index in batch) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in cut)
    assert sum(len(batch) < size for batch in cut) <= 1
    assert cut == batches(lengths, size, random.Random(seed), bucket=4)


def test_batches_of_similar_length_pad_less_and_come_in_no_order_of_length() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 200) for _ in range(640)]

    def padding(bucket: int) -> int:
        cut = batches(lengths, 8, random.Random(1), bucket=bucket)
        return sum(max(lengths[i] for i in batch) * len(batch) for batch in cut) - sum(lengths)

    assert padding(16) < padding(1) / 4
    longest = [max(lengths[i] for i in batch) for batch in batches(lengths, 8, random.Random(1), bucket=16)]
    assert longest != sorted(longest)


@given(lengths=st.lists(st.integers(1, 30), max_size=30), tokens=st.integers(1, 60), rows=st.integers(1, 9) | st.none())
def test_parts_are_neighbours_within_both_limits(lengths: list[int], tokens: int, rows: int | None) -> None:
    found = list(parts(lengths, tokens=tokens, rows=rows))
    assert [i for part in found for i in part] == list(range(len(lengths)))
    assert all(len(part) == 1 or sum(lengths[i] for i in part) <= tokens for part in found)
    assert all(len(part) <= (rows or len(lengths)) for part in found)
    for part, after in itertools.pairwise(found):
        assert len(part) == rows or sum(lengths[i] for i in part) + lengths[after[0]] > tokens, "a part ends early"


def test_a_batch_moves_whole() -> None:
    batch = collate([Row([1, 2], 1)], 0)
    moved = batch.to("meta")
    assert isinstance(moved, TokenBatch)
    assert moved.input_ids.device.type == moved.loss_mask.device.type == "meta"
    assert moved.rows == batch.rows
