"""The preference report: accuracy with ties and groups, truth, baselines beside it, and valid JSON always."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.baselines import STRENGTHS, Baselines, bag_of_words, length_only, outcomes
from assay.errors import DataError
from assay.evaluation.preference import preference_report
from assay.statistics import wilson
from assay.types import Preference, Prompt


def pair(number: int, chosen: str, rejected: str, *, source: str = "", kind: str = "") -> Preference:
    return Preference(Prompt.ask(f"question {number}", source=source, kind=kind), chosen, rejected)


def word_pairs(count: int, seed: int, *, source: str = "", share: float = 1.0) -> list[Preference]:
    """Pairs whose chosen response says "please" in `share` of them, and else the rejected one does."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        filler = [" ".join(rng.choice(["one", "two", "three", "four"], 5)) for _ in range(2)]
        kind, rude = f"{filler[0]} please", f"{filler[1]} never"
        good = rng.random() < share
        pairs.append(pair(number, kind if good else rude, rude if good else kind, source=source))
    return pairs


def test_the_headline_by_hand():
    report = preference_report([2.0, 1.0, 0.0, 3.0], [1.0, 1.0, 2.0, -1.0], seed=0)
    interval = wilson(2.5, 4)
    assert (report["accuracy"], report["accuracy_low"], report["accuracy_high"]) == (
        0.625,
        interval.low,
        interval.high,
    )
    assert (report["n"], report["ties"]) == (4, 1)
    assert (report["chosen_mean"], report["rejected_mean"]) == (1.5, 0.75)
    assert report["reward_gap"] == 0.75
    assert report["reward_gap_median"] == 0.5
    assert report["reward_gap_low"] < 0.75 < report["reward_gap_high"]
    assert report["chance"] == 0.5


@given(rows=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=20))
@settings(max_examples=40)
def test_swapping_chosen_and_rejected_mirrors_the_report(rows):
    chosen, rejected = zip(*rows, strict=True)
    one, other = preference_report(chosen, rejected, seed=0), preference_report(rejected, chosen, seed=0)
    assert one["accuracy"] == pytest.approx(1 - other["accuracy"])
    assert one["accuracy_low"] == pytest.approx(1 - other["accuracy_high"])
    assert one["reward_gap"] == pytest.approx(-other["reward_gap"])
    assert one["ties"] == other["ties"]


def test_ties_from_low_precision_count_half_and_are_shown():
    """The riddle of an accuracy of 26 % with a positive mean gap: scores near 65 rounded to bf16 mostly tie."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0.06, 0.2, 4000)
    chosen, rejected = 65 + margins / 2, 65 - margins / 2
    exact = preference_report(chosen, rejected, seed=0)
    low = [torch.tensor(side).bfloat16().tolist() for side in (chosen, rejected)]
    rounded = preference_report(low[0], low[1], seed=0)
    strict = np.mean(np.array(low[0]) > np.array(low[1]))
    assert exact["accuracy"] == pytest.approx(0.618, abs=0.02)
    assert rounded["ties"] / rounded["n"] > 0.5
    assert strict < 0.35
    assert 0.5 < rounded["accuracy"] < exact["accuracy"]


def test_pairs_that_share_a_prompt_widen_the_interval():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(60) < 0.7, 6)
    chosen = np.where(right, 1.0, -1.0)
    same = [pair(number // 6, f"a{number}", "b") for number in range(360)]
    report = preference_report(chosen, np.zeros(360), pairs=same, seed=0)
    apart = preference_report(chosen, np.zeros(360), seed=0)
    assert report["prompts"] == 60
    assert report["design_effect"] == pytest.approx(6, rel=0.1)
    assert apart["design_effect"] == 1
    widths = [r["accuracy_high"] - r["accuracy_low"] for r in (report, apart)]
    assert widths[0] / widths[1] == pytest.approx(6**0.5, rel=0.1)


def test_truth_is_judged_on_all_pairs_and_on_clear_ones():
    """Labels 1, 2 and 4 are right, 3 is a mislabelled clear pair, and the truth of 5 ties."""
    margins = np.array([1.0, -1.0, -1.0, 1.0, 1.0])
    truth = [0.5, 0.2, -2.0, 3.0, 0.0]
    report = preference_report(margins, np.zeros(5), truth_margins=truth, truth_unit=1.0, seed=0)
    assert report["truth_accuracy"] == pytest.approx(3 / 4)
    assert report["truth_n"] == 4
    assert report["truth_ties"] == 1
    assert report["truth_accuracy_clear"] == 1.0
    assert report["truth_accuracy_clear_low"] == wilson(2, 2).low
    assert report["truth_n_clear"] == 2
    assert report["labels_truth_accuracy"] == pytest.approx(3 / 4)
    assert report["accuracy"] == pytest.approx(3 / 5)


def test_a_model_that_is_the_truth_is_fully_right_about_it_and_only_as_right_as_the_labels_about_them():
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 1, 2000)
    label = np.where(rng.random(2000) < 1 / (1 + np.exp(-gap)), 1, -1)
    margins = gap * label
    chance = 1 / (1 + np.exp(-np.abs(gap)))
    agreement = float(np.mean(chance**2 + (1 - chance) ** 2))
    report = preference_report(margins, np.zeros(2000), truth_margins=margins, agreement=agreement, seed=0)
    assert report["truth_accuracy"] == report["truth_accuracy_clear"] == 1
    assert report["accuracy"] == report["labels_truth_accuracy"]
    assert report["accuracy"] < report["ceiling"] < 0.8
    assert report["reliability"]["temperature"] == pytest.approx(1, abs=0.15)


def test_baselines_stand_beside_the_model_on_the_same_pairs():
    train, held_out = word_pairs(300, 0), word_pairs(200, 1)
    rng = np.random.default_rng(2)
    report = preference_report(
        rng.normal(0.5, 1, 200), np.zeros(200), pairs=held_out, baselines=Baselines.fit(train), seed=0
    )
    words = report["baselines"]["bag_of_words"]
    assert words["accuracy"] > 0.98
    assert words["gain"] == pytest.approx(report["accuracy"] - words["accuracy"])
    assert words["gain_high"] < 0
    assert report["baseline_pairs"] == 300
    assert 0.4 < report["baselines"]["length_only"]["accuracy"] < 0.75


def test_a_bag_of_words_learns_which_word_wins_and_nothing_from_the_order():
    train = word_pairs(300, 0, share=0.9)
    margins = bag_of_words(train)([pair(0, "please one two", "two never one"), pair(1, "two one", "one two")])
    assert margins[0] > 0
    assert margins[1] == 0
    assert len(STRENGTHS) > 1


def test_a_bag_of_words_cannot_learn_from_labels_that_are_noise():
    held_out = word_pairs(400, 1)
    accuracy = outcomes(bag_of_words(word_pairs(400, 0, share=0.5))(held_out)).mean()
    assert 0.0 <= accuracy <= 1.0
    mixed = outcomes(bag_of_words(word_pairs(400, 0, share=0.5))(word_pairs(400, 1, share=0.5))).mean()
    assert 0.4 < mixed < 0.6


def test_without_a_frequent_word_the_bag_is_empty_and_everything_ties():
    train = [pair(number, f"chosen{number}", f"rejected{number}") for number in range(12)]
    assert not bag_of_words(train)(train).any()


def test_length_only_learns_which_way_people_lean():
    longer, shorter = pair(0, "a long response", "short"), pair(1, "short", "a long response")
    same = pair(2, "equal", "value")
    assert list(np.sign(length_only([longer])([longer, shorter, same]))) == [1, -1, 0]
    assert list(np.sign(length_only([shorter])([longer, shorter, same]))) == [-1, 1, 0]
    assert list(np.sign(length_only([])([longer]))) == [1]
    assert set(Baselines.fit([longer] * 9).margins([longer])) == {"length_only"}


def test_slices_are_the_report_of_their_own_pairs():
    pairs = [pair(number, "yes", "no no", source="ab"[number % 2], kind="k" * (number % 3)) for number in range(12)]
    chosen = [float(number % 2) for number in range(12)]
    report = preference_report(chosen, [0.5] * 12, pairs=pairs, seed=0)
    slices = report["slices"]
    assert {name: part["accuracy"] for name, part in slices["source"].items()} == {"a": 0.0, "b": 1.0}
    assert set(slices["kind"]) == {"k", "kk"}
    assert sum(part["n"] for part in slices["source"].values()) == 12
    assert slices["source"]["b"]["baselines"]["length_only"]["accuracy"] == 0.0


def test_the_taste_for_length_of_model_and_people():
    pairs = [pair(0, "longer text", "short"), pair(1, "short", "longer text"), pair(2, "longer text", "short")]
    whole = preference_report([1.0, 0.0, 1.0], [0.0, 1.0, 0.0], pairs=pairs, seed=0)
    report = whole["length"]
    assert report["n"] == 3
    assert report["labels_prefer_longer"] == pytest.approx(2 / 3)
    assert report["model_prefers_longer"] == 1.0
    # Gaps 1, −1, 1 and Platt's target 4/5: 2(4/5 − p) = 4/5 − (1 − p), so p = σ(1/T) = 3/5, and longer always gains 1.
    assert whole["length_expected"] == pytest.approx(0.6)
    assert whole["length_excess"] == pytest.approx(0.6 - 2 / 3)
    assert whole["length_excess_low"] < whole["length_excess"] < whole["length_excess_high"]
    assert whole["score_std"] == pytest.approx(0.5)
    assert whole["reward_gap_std"] == pytest.approx((8 / 9) ** 0.5)  # gaps 1, −1, 1


@pytest.mark.parametrize(
    ("chosen", "rejected", "accuracy", "ties"),
    [([1.0], [0.0], 1.0, 0), ([1.0], [1.0], 0.5, 1), ([3.0] * 5, [3.0] * 5, 0.5, 5), ([2.0] * 4, [1.0] * 4, 1.0, 0)],
    ids=["one pair", "one tie", "all ties", "constant scores"],
)
@pytest.mark.parametrize("with_pairs", [False, True])
def test_odd_sets_give_valid_json_and_say_what_is_missing(chosen, rejected, accuracy, ties, with_pairs):
    pairs = [pair(number, "same", "same") for number in range(len(chosen))] if with_pairs else None
    report = preference_report(chosen, rejected, pairs=pairs, agreement=0.3, seed=0)
    json.dumps(report, allow_nan=False)
    assert (report["accuracy"], report["ties"]) == (accuracy, ties)
    assert report["accuracy_low"] < report["accuracy_high"]
    assert report["ceiling"] is None
    assert any("less often than chance" in note for note in report["notes"])


def test_nothing_to_compare_and_columns_that_do_not_fit_are_errors():
    with pytest.raises(DataError, match="nothing to evaluate"):
        preference_report([], [], seed=0)
    with pytest.raises(DataError, match="pairs has 1"):
        preference_report([1.0, 2.0], [0.0, 0.0], pairs=[pair(0, "a", "b")], seed=0)
    with pytest.raises(DataError, match="chosen: 1 of 2 values are not finite"):
        preference_report([1.0, float("nan")], [0.0, 0.0], seed=0)
