"""Win rates by hand, by simulation, and in the cases where a bootstrap would be too sure."""

from __future__ import annotations

import json

import numpy as np
import pytest

from assay.errors import DataError
from assay.evaluation.winrate import win_rate
from assay.statistics import wilson


def test_the_report_by_hand():
    report = win_rate([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 9.0], seed=0)
    assert (report["wins"], report["ties"], report["losses"], report["n"]) == (2, 1, 1, 4)
    assert report["win_rate"] == 0.625
    assert (report["mean_before"], report["mean_after"], report["gain"]) == (2.5, 3.5, 1.0)
    assert report["p_value"] == 1.0


def test_noise_below_the_tie_margin_is_no_win():
    report = win_rate([1.0, 1.0], [1.0 + 1e-9, 1.1], seed=0)
    assert (report["wins"], report["ties"]) == (1, 1)
    assert win_rate([1.0], [1.1], seed=0, tie_margin=0.2)["ties"] == 1


def test_swapping_the_policies_mirrors_the_report():
    rng = np.random.default_rng(0)
    before, after = rng.normal(0, 1, 300), rng.normal(0.3, 1, 300)
    one, other = win_rate(before, after, seed=0), win_rate(after, before, seed=0)
    assert one["win_rate"] == pytest.approx(1 - other["win_rate"])
    assert one["win_rate_low"] == pytest.approx(1 - other["win_rate_high"])
    assert one["gain_low"] == pytest.approx(-other["gain_high"])


def test_twenty_wins_of_twenty_are_not_certainty():
    report = win_rate([0.0] * 20, [1.0] * 20, seed=0)
    assert report["win_rate"] == 1
    assert report["win_rate_low"] == wilson(20, 20).low
    assert report["p_value"] == pytest.approx(2**-19)


def test_all_ties_are_one_half_and_no_evidence():
    report = win_rate([1.0] * 6, [1.0] * 6, seed=0)
    assert (report["win_rate"], report["ties"], report["p_value"]) == (0.5, 6, None)
    assert report["win_rate_low"] < 0.5 < report["win_rate_high"]
    json.dumps(report, allow_nan=False)


def test_one_prompt_has_no_interval_of_its_gain_and_says_so():
    report = win_rate([1.0], [2.0], seed=0)
    assert (report["gain"], report["gain_low"], report["gain_high"]) == (1.0, None, None)
    assert report["notes"] == ["gain: one prompt alone has no interval"]


@pytest.mark.parametrize(("win", "tie"), [(0.6, 0.3), (0.95, 0.02), (0.3, 0.0), (0.05, 0.9)])
@pytest.mark.parametrize("prompts", [30, 120])
def test_intervals_cover_the_win_rate_whatever_the_share_of_ties(win, tie, prompts):
    rng = np.random.default_rng(prompts)
    truth, covered, trials = win + tie / 2, 0, 150
    for trial in range(trials):
        after = rng.choice([1.0, 0.0, -1.0], prompts, p=[win, tie, 1 - win - tie])
        report = win_rate(np.zeros(prompts), after, seed=trial)
        covered += report["win_rate_low"] <= truth <= report["win_rate_high"]
    assert covered / trials > 0.91


def test_several_responses_to_one_prompt_are_not_independent_evidence():
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(50), 8)
    after = np.repeat(rng.normal(0.3, 1, 50), 8)
    alone = win_rate(np.zeros(400), after, seed=0)
    grouped = win_rate(np.zeros(400), after, seed=0, groups=list(prompts))
    assert alone["win_rate"] == grouped["win_rate"]
    for name in ("win_rate", "gain"):
        widths = [report[f"{name}_high"] - report[f"{name}_low"] for report in (grouped, alone)]
        assert widths[0] > 2 * widths[1]
    sliced = win_rate(np.zeros(400), after, seed=0, groups=list(prompts), kinds=["all"] * 400)
    assert sliced["kinds"]["all"]["win_rate_low"] == grouped["win_rate_low"]


def test_slices_are_the_report_of_their_own_prompts():
    report = win_rate([0.0, 0.0, 0.0], [1.0, -1.0, 1.0], seed=0, kinds=["a", "b", "a"], groups=["p", "q", "r"])
    assert report["kinds"]["a"]["win_rate"] == 1
    assert report["kinds"]["b"]["win_rate"] == 0
    assert report["kinds"]["a"]["mean_after"] == 1


def test_columns_that_do_not_fit_are_errors():
    with pytest.raises(DataError, match="before has 2, after has 1"):
        win_rate([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(DataError, match="kinds has 1"):
        win_rate([1.0, 2.0], [1.0, 2.0], seed=0, kinds=["a"])
    with pytest.raises(DataError, match="nothing to evaluate"):
        win_rate([], [], seed=0)
