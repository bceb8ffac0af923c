"""Fits of reward against distance: known numbers come back, peaks stand where calculus puts them, arms are paired."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from bench.growth import BEST_OF_N, LEARNED, Fit, Form, best_of_n_study, findings, fit, learned_study
from hypothesis import given
from hypothesis import strategies as st

from assay.statistics import Floats

FORMS = pytest.mark.parametrize("form", [BEST_OF_N, LEARNED], ids=["best-of-n", "learned"])
NUMBERS = st.floats(-3, 3)


def by_hand(form: Form, alpha: float, beta: float, d: float) -> float:
    """The formulas of the paper, a number at a time."""
    if d == 0:
        return 0.0
    return d * (alpha - beta * (d if form is BEST_OF_N else math.log(d)))


def curve(form: Form, d: Floats, proxy: tuple[float, float], truth: tuple[float, float]) -> Floats:
    return np.array([d, *([by_hand(form, *numbers, each) for each in d] for numbers in (proxy, truth))])


@FORMS
@given(
    alpha=NUMBERS, beta=NUMBERS, d=st.lists(st.floats(0.05, 5), min_size=2, max_size=9, unique_by=lambda d: int(20 * d))
)
def test_a_curve_of_the_form_gives_its_numbers_back(form: Form, alpha: float, beta: float, d: list[float]) -> None:
    found = fit(form, np.array([0.0, *d]), np.array([by_hand(form, alpha, beta, each) for each in [0.0, *d]]))
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-6)
    assert found.misfit(np.array(d), found.at(np.array(d)) + 0.3) == pytest.approx(0.3)


@FORMS
def test_a_fit_is_where_any_step_away_is_worse(form: Form) -> None:
    noise = np.random.default_rng(0)
    d, gain = noise.uniform(0.1, 3, 12), noise.normal(size=12)
    best = fit(form, d, gain)
    for alpha, beta in product((-1e-3, 0, 1e-3), repeat=2):
        assert Fit(form, best.alpha + alpha, best.beta + beta).misfit(d, gain) >= best.misfit(d, gain)


@FORMS
@pytest.mark.parametrize("d", [[], [0.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
def test_one_distance_cannot_tell_two_numbers(form: Form, d: list[float]) -> None:
    with pytest.raises(ValueError, match="two distances above 0"):
        fit(form, np.array(d), np.array(d))


@pytest.mark.parametrize(
    ("found", "reach", "d", "peak"),
    [
        (Fit(BEST_OF_N, 2.0, 0.5), 4.0, 2.0, 2.0),  # α/2β, α²/4β
        (Fit(BEST_OF_N, 2.0, 0.5), 1.0, 1.0, 1.5),  # not reached: the end of what was measured
        (Fit(BEST_OF_N, 1.0, -1.0), 2.0, 2.0, 6.0),
        (Fit(BEST_OF_N, -1.0, 0.1), 2.0, 0.0, 0.0),  # every step is a loss
        (Fit(LEARNED, 1.0, 1.0), 3.0, 1.0, 1.0),  # exp(α/β − 1), β·d
        (Fit(LEARNED, 1.0, 0.5), 9.0, math.e, 0.5 * math.e),
    ],
)
def test_the_peak_is_where_calculus_puts_it(found: Fit, reach: float, d: float, peak: float) -> None:
    assert found.peak(reach) == pytest.approx((d, peak), abs=3e-3)


@FORMS
def test_every_finding_by_hand(form: Form) -> None:
    d = np.array([0.5, 1.0, 2.0])
    curves = {
        "single": curve(form, d, (2.0, 0.0), (1.0, 0.5)),
        "mean": curve(form, d, (2.0, 0.0), (1.5, 0.5)),
    }
    found = findings(form, curves, at=1.0)
    bend = 0.5 if form is BEST_OF_N else 0.0  # β·d·bend at d = 1
    assert found["mean", "truth α"] == pytest.approx(1.5)
    assert found["mean", "proxy β"] == pytest.approx(0.0, abs=1e-9)
    assert found["single", "truth at d"] == pytest.approx(1.0 - bend)
    assert found["single", "proxy − truth at d"] == pytest.approx(1.0 + bend)
    assert found["mean", "truth at d, gained"] == pytest.approx(0.5)
    assert found["single", "truth at d, gained"] == found["single", "peak, gained"] == 0
    assert found["mean", "peak, gained"] > 0


def prompts(noise: float, count: int = 60) -> Floats:
    """[P, 3, N] whose mean is a known curve in d = √KL: proxy (2, 0.2), truth (1.5, 0.5)."""
    d = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    mean = curve(BEST_OF_N, d, (2.0, 0.2), (1.5, 0.5))
    mean[0] = d**2
    rows = np.random.default_rng(1).normal(size=(count, 3, 1)) * noise * d
    return mean + rows - rows.mean(0)


def test_prompts_are_resampled_and_arms_stand_beside_each_other_on_the_same_prompts() -> None:
    rows = prompts(noise=0.5)
    better = rows + np.array([0, 0, 0.3])[:, None] * np.sqrt(rows.mean(0)[0])  # α of the truth is 0.3 more
    one = best_of_n_study({"single": rows, "mean": better}, seed=0)
    assert one.at == pytest.approx(2.0)
    alpha, gained = one.found["single", "truth α"], one.found["mean", "truth at d, gained"]
    assert alpha.value == pytest.approx(1.5)
    assert alpha.low is not None
    assert alpha.high is not None
    assert alpha.low < 1.5 < alpha.high
    assert alpha.high - alpha.low == pytest.approx(2 * 2.0 * 0.5 / math.sqrt(60), rel=0.35)  # d alone carries the noise
    assert gained.value == pytest.approx(0.6)
    assert gained.low is not None
    assert gained.high is not None
    assert gained.high - gained.low < 0.25 * (alpha.high - alpha.low)  # what a prompt does to both cancels


def test_distances_of_best_of_n_are_roots_of_the_mean_kl() -> None:
    one = best_of_n_study({"single": prompts(noise=0.0)}, seed=0)
    assert one.curves["single"][0].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2])


def test_seeds_are_resampled_in_every_way_and_the_interval_of_few_is_their_range() -> None:
    d = np.array([0.5, 1.0, 2.0])
    runs = [curve(LEARNED, d, (2.0, 0.0), (alpha, 0.5)) for alpha in (1.0, 1.2, 1.7)]
    one = learned_study({"single": runs})
    found = one.found["single", "truth α"]
    assert (found.value, found.low, found.high) == pytest.approx((1.3, 1.0, 1.7))
    assert one.curves["single"].shape == (3, 9)


def test_one_seed_has_no_interval() -> None:
    runs = [curve(LEARNED, np.array([0.5, 1.0, 2.0]), (2.0, 0.0), (1.0, 0.5))]
    found = learned_study({"single": runs}).found["single", "truth α"]
    assert (found.low, found.high) == (None, None)


def test_arms_are_compared_where_all_of_them_have_been() -> None:
    near, far = np.array([0.5, 1.0]), np.array([0.5, 3.0])
    one = learned_study(
        {"single": [curve(LEARNED, far, (2, 0), (1, 0.5))], "mean": [curve(LEARNED, near, (2, 0), (1, 0.5))]}
    )
    assert one.at == 1.0
