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


EXAMPLES = st.lists(
    st.builds(
        lambda prompt, answers: [Row([*prompt, *[9] * own], len(prompt)) for own in answers],
        st.sampled_from([(), (1,), (1, 2), (1, 2, 3, 4), (5, 6, 7, 8)]),
        st.lists(st.integers(1, 6), min_size=1, max_size=2),
    ),
    max_size=12,
)


def tokens_read(examples: list[list[Row]], shared: bool) -> int:
    """Every prompt once, counted over the rows themselves."""
    if not shared:
        return sum(len(row.ids) for rows in examples for row in rows)
    prompts = {tuple(row.ids[: row.prompt_length]) for rows in examples for row in rows}
    return sum(map(len, prompts)) + sum(len(row.ids) - row.prompt_length for rows in examples for row in rows)


@given(examples=EXAMPLES, tokens=st.integers(1, 40), most=st.integers(1, 5) | st.none(), shared=st.booleans())
def test_parts_hold_every_example_once_within_both_limits(
    examples: list[list[Row]], tokens: int, most: int | None, shared: bool
) -> None:
    found = list(parts(examples, tokens=tokens, most=most, shared=shared))
    assert sorted(i for part in found for i in part) == list(range(len(examples)))
    assert all(len(part) <= (most or len(examples)) for part in found)
    sizes = [tokens_read([examples[i] for i in part], shared) for part in found]
    assert all(len(part) == 1 or size <= tokens for part, size in zip(found, sizes, strict=True))
    for part, after in itertools.pairwise(found):
        fuller = tokens_read([examples[i] for i in [*part, after[0]]], shared)
        assert len(part) == most or fuller > tokens, "a part ends early"


def test_a_group_whose_prompt_is_read_once_is_one_part() -> None:
    """Eight answers of 4 tokens to a prompt of 20: 52 tokens, where rows alone would count 192."""
    group = [[Row([*range(20), 30 + n, 1, 2, 3], 20)] for n in range(8)]
    assert list(parts(group, tokens=52)) == [list(range(8))]
    assert len(list(parts(group, tokens=52, shared=False))) == 4
    assert len(list(parts(group, tokens=51))) == 2


def test_a_batch_moves_whole() -> None:
    batch = collate([Row([1, 2], 1)], 0)
    moved = batch.to("meta")
    assert isinstance(moved, TokenBatch)
    assert moved.input_ids.device.type == moved.loss_mask.device.type == "meta"
    assert moved.rows == batch.rows
