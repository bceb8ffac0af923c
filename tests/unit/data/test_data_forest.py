"""Rows as trees: nothing is lost, nothing is there twice, and no token sees what its row does not hold."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from assay.data.forest import Forest, fitted, recurring
from assay.data.pack import collate
from assay.data.render import Row

TOKENS = st.lists(st.integers(1, 3), min_size=1, max_size=6)


@st.composite
def batches(draw: st.DrawFn) -> list[Row]:
    """Few prompts, several answers to each; some rows are all answer, as a document is."""
    prompts = draw(st.lists(TOKENS | st.just([]), min_size=1, max_size=3))
    answers = draw(st.lists(st.tuples(st.sampled_from(prompts), TOKENS), min_size=1, max_size=8))
    return [Row([*prompt, *answer], len(prompt)) for prompt, answer in answers]


@given(rows=batches(), width=st.integers(1, 40))
def test_every_token_finds_its_own_row_before_it_and_nothing_else(rows: list[Row], width: int) -> None:
    """What a token attends to, read off the mask one by one, is the row up to itself: ids and positions."""
    batch, forest = collate(rows, pad_id=0), Forest.of(rows, width=width)
    ids = batch.input_ids.flatten()[forest.sources_LW].flatten()
    positions = batch.position_ids.flatten()[forest.sources_LW].flatten()
    size, mask = forest.sources_LW.shape[1], forest.mask
    for row, places in zip(rows, forest.places_BT.tolist(), strict=True):
        for t, place in enumerate(places[: len(row.ids)]):
            line, column = divmod(place, size)
            seen = mask[line, 0, column].nonzero().flatten() + line * size
            assert ids[seen].tolist() == row.ids[: t + 1]
            assert positions[seen].tolist() == list(range(t + 1))


@given(rows=batches(), width=st.integers(1, 40))
def test_a_prompt_is_there_once_as_far_as_a_line_can_hold_its_answers(rows: list[Row], width: int) -> None:
    forest = Forest.of(rows, width=width)
    assert forest.sources_LW.shape[1] <= max(width, *(len(row.ids) for row in rows), 0)
    assert int((forest.trees_LW > 0).sum()) <= sum(len(row.ids) for row in rows)
    everything = Forest.of(rows, width=10_000)
    prompts = {tuple(row.ids[: row.prompt_length]) for row in rows}
    answers = sum(len(row.ids) - row.prompt_length for row in rows)
    assert int((everything.trees_LW > 0).sum()) == sum(map(len, prompts)) + answers


def test_pads_attend_to_something_and_nothing_attends_to_them() -> None:
    forest = Forest.of([Row([1, 2, 3], 1), Row([4, 5], 0)], width=3)
    assert forest.trees_LW.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert forest.mask[1, 0].tolist() == [[True, False, False], [True, True, False], [False, False, True]]


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30), spare=st.integers(0, 10))
def test_lines_hold_everything_once_and_waste_less_than_half(sizes: list[int], spare: int) -> None:
    capacity = max(sizes) + spare
    lines = fitted(sizes, capacity)
    assert sorted(thing for line in lines for thing in line) == list(range(len(sizes)))
    assert all(sum(sizes[thing] for thing in line) <= capacity for line in lines)
    assert len(lines) <= 2 * -(-sum(sizes) // capacity), "best fit never needs twice the lines"


def test_a_forest_moves_whole() -> None:
    moved = Forest.of([Row([1, 2], 1)], width=2).to("meta")
    tensors = (moved.sources_LW, moved.trees_LW, moved.branches_LW, moved.places_BT, moved.mask)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert all(torch.is_tensor(tensor) for tensor in tensors)


@given(size=st.integers(1, 10_000), step=st.sampled_from([32, 64, 256]))
def test_few_sizes_come_again_and_none_is_over_an_eighth_more(size: int, step: int) -> None:
    found = recurring(size, step)
    assert size <= found < size + step
    assert found - size <= size / 8
    assert recurring(found, step) == found


def test_an_octave_has_eight_sizes_until_they_are_a_step_apart() -> None:
    assert len({recurring(size, 256) for size in range(1025, 2049)}) == 8
    assert len({recurring(size, 32) for size in range(1025, 2049)}) == 32
