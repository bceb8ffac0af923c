"""Monotone or not: ranks and their exact test against listing every order, steps against a hand-made curve."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from bench.monotone import steps, trend, verdict
from hypothesis import given
from hypothesis import strategies as st

from assay.statistics import Interval


def rho(values: list[float]) -> float:
    """Spearman's ρ with 1, 2, 3 … as Pearson's of the ranks, ties halved."""
    ranks = [sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]
    n = len(values)
    x, y = [i - (n - 1) / 2 for i in range(n)], [rank - (n - 1) / 2 for rank in ranks]
    norm = (sum(a * a for a in x) * sum(b * b for b in y)) ** 0.5
    return sum(a * b for a, b in zip(x, y, strict=True)) / norm if norm else 0.0


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=2))
def test_the_trend_is_that_of_listing_every_order_of_every_seed(rows: list[list[int]]) -> None:
    observed = sum(rho(list(map(float, row))) for row in rows)
    orders = list(product(*([rho(list(map(float, order))) for order in permutations(row)] for row in rows)))
    p = sum(sum(each) >= observed - 1e-6 for each in orders) / len(orders)
    found = trend(np.array(rows, dtype=float))
    assert (found.rho, found.p) == pytest.approx((observed / len(rows), p), abs=1e-6)


def test_two_seeds_that_rise_all_the_way_are_chance_once_in_14400() -> None:
    found = trend(np.array([[1.0, 2, 3, 4, 5], [0.1, 0.2, 0.5, 0.6, 0.7]]))
    assert found == pytest.approx((1.0, 1 / 120**2))
    assert trend(-np.array([[1.0, 2, 3, 4, 5]])) == pytest.approx((-1.0, 1.0))


def test_a_curve_without_differences_shows_nothing() -> None:
    assert trend(np.full((2, 5), 0.3)) == (0.0, 1.0)


def test_steps_are_paired_by_prompt() -> None:
    prompts = np.random.default_rng(0).normal(size=(50, 1)) * 10  # what a prompt is worth everywhere cancels
    one, two = steps(prompts + np.array([0.0, 1.0, 0.5]), seed=0)
    assert [one.value, one.low, one.high] == pytest.approx([1.0, 1.0, 1.0])
    assert [two.value, two.low, two.high] == pytest.approx([-0.5, -0.5, -0.5])


@pytest.mark.parametrize(
    ("rises", "words"),
    [
        ([Interval(0.1, -0.1, 0.3), Interval(0.0, -0.1, 0.1)], "monotone"),
        ([Interval(0.1, 0.05, 0.3), Interval(-0.01, -0.1, 0.1)], "monotone within its intervals"),
        ([Interval(0.1, 0.05, 0.3), Interval(-0.2, -0.3, -0.1)], "not monotone, steps that go the other way: 1"),
    ],
)
def test_only_a_step_that_chance_does_not_explain_breaks_the_curve(rises: list[Interval], words: str) -> None:
    assert verdict(rises) == words
