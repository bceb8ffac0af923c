"""Means, variances and whitening see what counts and nothing else (correctness.md 23)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from tests.oracles import episodes
from tests.unit.algorithms.batches import GARBAGE, Batch, assert_same, batches, quick, scattered

from assay.algorithms.masked import masked_mean, masked_sum, masked_var, whiten, zero_pads


@quick
@given(batch=batches(fields=1))
def test_moments_are_those_of_the_counted_numbers_alone(batch: Batch) -> None:
    numbers = [x for row in batch.rows(0) for x in row]
    mean = math.fsum(numbers) / len(numbers)
    variance = math.fsum((x - mean) ** 2 for x in numbers) / len(numbers)
    x, mask = batch.field(0), batch.mask_BT
    assert_same(masked_sum(x, mask), math.fsum(numbers))
    assert_same(masked_mean(x, mask), mean)
    assert_same(masked_mean(x, mask, total=7), math.fsum(numbers) / 7)
    assert_same(masked_var(x, mask), variance)


@quick
@given(batch=batches(fields=1))
@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_matches_the_definition_and_leaves_zeros_in_the_pads(batch: Batch, shift_mean: bool) -> None:
    numbers = [x for row in batch.rows(0) for x in row]
    expected = episodes.whitened(numbers, shift_mean, eps=1e-3)
    whitened = whiten(batch.field(0), batch.mask_BT, shift_mean=shift_mean, eps=1e-3)
    assert_same(whitened[batch.mask_BT], expected)
    assert not whitened[~batch.mask_BT].any()


def test_whitening_uses_the_whole_batch_not_each_row() -> None:
    x = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    assert_same(whiten(x, torch.ones(2, 2, dtype=torch.bool)), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), 1e-6)


def test_whitening_without_shift_keeps_the_mean_and_unit_variance() -> None:
    x = 5 + 3 * torch.randn(40, 25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.rand(40, 25, generator=torch.Generator().manual_seed(1)) < 0.7
    whitened = whiten(x, mask, shift_mean=False)
    assert_same(masked_mean(whitened, mask), masked_mean(x, mask))
    assert_same(masked_var(whitened, mask), 1.0, 1e-8)
    assert_same(masked_mean(whiten(x, mask), mask), 0.0)


def test_a_single_counted_number_whitens_to_zero() -> None:
    assert whiten(torch.tensor([[4.0, 9.0]]), torch.tensor([[True, False]])).tolist() == [[0.0, 0.0]]


def test_a_large_mean_does_not_cost_the_variance_its_precision() -> None:
    x = torch.tensor([1e4 - 1, 1e4, 1e4 + 1])  # E[x²] − E[x]² in float32 would be off by whole units
    assert_same(masked_var(x, torch.ones(3, dtype=torch.bool)), 2 / 3, 1e-5)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_zeroed_pads_pass_no_gradient_even_through_a_function_that_explodes_there(garbage: float) -> None:
    x = torch.tensor([0.5, garbage], requires_grad=True)
    mask = torch.tensor([True, False])
    masked_sum(zero_pads(x, mask).exp(), mask).backward()
    assert x.grad is not None
    assert_same(x.grad, [math.exp(0.5), 0.0], 1e-6)


def test_nothing_counted_has_no_mean() -> None:
    assert masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool)).isnan()


def test_the_batch_helper_puts_rows_back_where_they_were() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    batch = Batch([[(1.0,), (2.0,)], [(3.0,)]], mask, float("nan"))
    assert scattered(batch.rows(0), mask).tolist() == [[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]
    assert batch.field(0)[mask].tolist() == [1.0, 2.0, 3.0]
    assert batch.field(0)[~mask].isnan().all()
