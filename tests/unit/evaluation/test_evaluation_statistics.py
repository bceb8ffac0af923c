"""Intervals cover what they promise, and know about ties, groups and small samples."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.evaluation import slow_bootstrap_means, slow_cluster_variance, slow_wilson

from assay.data.agreement import accuracy_ceiling
from assay.errors import DataError
from assay.statistics import (
    Interval,
    binomial_test,
    bootstrap_mean,
    design_effect,
    numbers,
    paired_bootstrap,
    percentile_interval,
    proportion,
    sign_test,
    wilson,
)

Z95 = 1.959963984540054


def bounds(interval: Interval) -> tuple[float, float]:
    assert interval.low is not None
    assert interval.high is not None
    return interval.low, interval.high


def covers(interval: Interval, value: float) -> bool:
    low, high = bounds(interval)
    return low <= value <= high


def test_94_percent_of_500_lies_between_91_6_and_95_8():
    interval = wilson(470, 500)
    assert (interval.value, *bounds(interval)) == pytest.approx((0.94, 0.916, 0.958), abs=5e-4)


@given(half_successes=st.integers(0, 400), n=st.integers(1, 200))
def test_wilson_is_the_inverted_score_test(half_successes, n):
    successes = min(half_successes / 2, n)
    interval = wilson(successes, n)
    low, high = slow_wilson(successes, n, Z95)
    assert bounds(interval) == pytest.approx((low, high), abs=1e-9)
    assert covers(interval, interval.value)
    assert 0 <= min(bounds(interval)) <= max(bounds(interval)) <= 1


@pytest.mark.parametrize("p", [0.5, 0.65, 0.9, 0.97])
@pytest.mark.parametrize("n", [20, 100, 500])
def test_wilson_covers_95_percent_of_all_outcomes(p, n):
    """By enumeration: the chance of every possible count, where its interval holds p."""
    covered = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if covers(wilson(k, n), p))
    assert covered > 0.92


def test_all_right_is_not_certainty():
    assert wilson(20, 20).low == pytest.approx(0.8389, abs=1e-4)
    assert wilson(20, 20).high == 1
    assert wilson(0, 20).low == 0


def test_the_proportion_of_single_outcomes_is_wilsons():
    outcomes = [1, 1, 0, 0.5, 1]
    assert proportion(outcomes) == wilson(3.5, 5)
    assert proportion(outcomes, groups="abcde") == wilson(3.5, 5)


def test_copies_of_one_outcome_are_worth_one_outcome():
    rng = np.random.default_rng(0)
    single = (rng.random(200) < 0.7).astype(float)
    copied = proportion(np.repeat(single, 4), groups=list(np.repeat(np.arange(200), 4)))
    alone = proportion(single)
    assert copied.value == alone.value
    assert np.ptp(bounds(copied)) == pytest.approx(np.ptp(bounds(alone)), rel=0.01)


@given(
    rows=st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 4)), min_size=4, max_size=30).filter(
        lambda rows: len({g for _, g in rows}) > 1 and len({x for x, _ in rows}) > 1
    )
)
def test_design_effect_is_the_ratio_of_variances(rows):
    values, groups = zip(*rows, strict=True)
    plain = float(np.var(values, ddof=1)) / len(values)
    expected = max(1.0, slow_cluster_variance(values, groups) / plain)
    assert design_effect(np.array(values), groups) == pytest.approx(expected)


def test_ignoring_that_pairs_share_a_prompt_is_overconfident_and_groups_repair_it():
    rng = np.random.default_rng(1)
    covered = {"alone": 0, "grouped": 0}
    for _ in range(300):
        difficulty = np.clip(rng.normal(0.7, 0.3, 80), 0, 1)
        groups = np.repeat(np.arange(80), 5)
        outcomes = (rng.random(400) < difficulty[groups]).astype(float)
        truth = 0.6726  # E[clip(N(0.7, 0.3), 0, 1)]
        for name, interval in (("alone", proportion(outcomes)), ("grouped", proportion(outcomes, groups=list(groups)))):
            covered[name] += covers(interval, truth)
    assert covered["grouped"] / 300 > 0.92
    assert covered["alone"] / 300 < 0.88


@pytest.mark.parametrize(("size", "skewed"), [(8, False), (40, False), (40, True)])
def test_the_bootstrap_of_a_mean_covers_it(size, skewed):
    rng = np.random.default_rng(size)
    draw = (lambda: rng.exponential(1, size)) if skewed else (lambda: rng.normal(1, 1, size))
    covered = 0
    for trial in range(300):
        interval = bootstrap_mean(draw(), seed=trial, resamples=800)
        covered += covers(interval, 1)
    assert covered / 300 > (0.89 if skewed else 0.92)


@pytest.mark.parametrize(("size", "t"), [(5, 2.776445), (20, 2.093024)])
def test_the_interval_of_a_normal_sample_is_students(size, t):
    """Bootstrap means of a sample with deviation 1 spread by √((n − 1)/n)/√n; Student's half-width is t/√n."""
    grid = (np.arange(200_000) + 0.5) / 200_000
    spread = math.sqrt((size - 1) / size) / math.sqrt(size)
    samples = spread * np.array([NormalDist().inv_cdf(share) for share in grid])
    interval = percentile_interval(0.0, samples, groups=size)
    assert bounds(interval) == pytest.approx((-t / math.sqrt(size), t / math.sqrt(size)), rel=0.01)


def test_the_bootstrap_agrees_with_one_drawn_group_by_group():
    rng = np.random.default_rng(3)
    groups = list(rng.integers(0, 60, 150))
    values = rng.normal(size=150) + np.array(groups) / 30
    ours = bootstrap_mean(values, seed=1, groups=groups, resamples=4000)
    slow = slow_bootstrap_means(list(values), groups, 2000, seed=2)
    spread = slow[-51] - slow[50]
    assert ours.value == pytest.approx(np.mean(values))
    assert ours.low == pytest.approx(slow[50], abs=0.06 * spread)
    assert ours.high == pytest.approx(slow[-51], abs=0.06 * spread)


def test_the_bootstrap_is_a_function_of_its_seed():
    values = list(range(30))
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_chunks_do_not_change_the_bootstrap_distribution(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean(values, seed=5)
    monkeypatch.setattr("assay.statistics.CHUNK", 50 * 7)
    chunked = bootstrap_mean(values, seed=5)
    assert (chunked.low, chunked.high) == pytest.approx((whole.low, whole.high))


def test_pairing_removes_what_prompts_have_in_common():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 10, 200)
    before, after = difficulty + rng.normal(0, 0.1, 200), difficulty + 1 + rng.normal(0, 0.1, 200)
    assert bounds(paired_bootstrap(before, after, seed=0))[0] > 0.9
    assert bounds(bootstrap_mean(after, seed=0))[0] < bounds(bootstrap_mean(before, seed=0))[1]


def test_one_value_has_a_mean_and_no_interval():
    interval = bootstrap_mean([3.0], seed=0)
    assert (interval.value, interval.low, interval.high) == (3.0, None, None)
    assert bootstrap_mean([1.0, 2.0], seed=0, groups=["a", "a"]).low is None


def test_constant_values_have_a_constant_interval():
    interval = bootstrap_mean([2.0] * 9, seed=0)
    assert interval.low == pytest.approx(2)
    assert interval.high == pytest.approx(2)


def test_3_of_10_is_no_evidence_against_a_coin():
    assert binomial_test(3, 10, alternative="less") == pytest.approx(0.171875)
    by_hand = 2 * sum(math.comb(10, k) for k in range(4)) / 2**10
    assert sign_test(3, 7) == pytest.approx(by_hand)
    assert sign_test(0, 0) is None


@pytest.mark.parametrize(("agreement", "ceiling"), [(0.63, 0.755), (0.726, 0.836), (0.5, 0.5), (1.0, 1.0)])
def test_the_ceiling_of_published_agreements(agreement, ceiling):
    assert accuracy_ceiling(agreement) == pytest.approx(ceiling, abs=5e-4)


@given(chances=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_nobody_beats_the_ceiling(chances):
    """Item i is labelled one way with chance p_i: enumerate both annotators, and the best guess against one."""
    agreement = sum(p * p + (1 - p) * (1 - p) for p in chances) / len(chances)
    best = sum(max(p, 1 - p) for p in chances) / len(chances)
    ceiling = accuracy_ceiling(max(agreement, 0.5))
    assert ceiling is not None
    assert best <= ceiling + 1e-9
    if len(set(chances)) == 1:
        assert best == pytest.approx(ceiling)


def test_agreement_below_chance_has_no_ceiling_and_a_non_share_is_refused():
    assert accuracy_ceiling(0.4) is None
    with pytest.raises(DataError, match=r"1\.2 is not a share"):
        accuracy_ceiling(1.2)


@settings(max_examples=20)
@given(bad=st.sampled_from([float("nan"), float("inf"), -float("inf")]), row=st.integers(0, 4))
def test_numbers_that_are_not_finite_are_named(bad, row):
    values = [1.0] * 5
    values[row] = bad
    with pytest.raises(DataError, match=rf"scores: 1 of 5 values are not finite \(rows {row}\)"):
        numbers("scores", values)


def test_nothing_to_evaluate_is_an_error_and_so_are_columns_of_different_length():
    with pytest.raises(DataError, match="nothing to evaluate"):
        bootstrap_mean([], seed=0)
    with pytest.raises(DataError, match="before has 2, after has 1"):
        paired_bootstrap([1, 2], [1], seed=0)
    with pytest.raises(DataError, match="3 successes of 2"):
        wilson(3, 2)
