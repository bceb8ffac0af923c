"""What every training loop shares: whose turn it is."""

from __future__ import annotations

import pytest

from assay import rng
from assay.errors import DataError
from assay.stages import loop


@pytest.mark.parametrize("count", [1, 3, 7, 17])
def test_prompts_come_in_shuffled_passes_whatever_the_size_of_a_batch(count: int) -> None:
    prompts = [f"prompt {i}" for i in range(7)]
    expected = []
    for epoch in range(6):
        once = prompts.copy()
        rng.python_rng(5, "prompts", epoch).shuffle(once)
        expected += once
    taken = [prompt for iteration in range(42 // count) for prompt in loop.pick(prompts, count, iteration, 5)]
    assert taken == expected[: len(taken)]
    assert loop.pick(prompts, count, 1, 5) == expected[count : 2 * count]  # a resumed stage asks for this one first


def test_a_pass_is_shuffled_once_though_two_lists_take_turns() -> None:
    loop.order.cache_clear()
    prompts, demonstrations = range(1000), range(900)
    for iteration in range(40):  # of 30: the second pass begins
        loop.pick(prompts, 30, iteration, 0)
        loop.pick(demonstrations, 30, iteration, 0)
    assert loop.order.cache_info().misses == 4


def test_without_prompts_there_is_one_error() -> None:
    with pytest.raises(DataError, match="no training prompts"):
        loop.pick([], 4, 0, 0)
