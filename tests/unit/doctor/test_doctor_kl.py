"""When a KL is negative beyond chance, too large, or not to be judged."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.doctor.policy_log import STEPS, Column, diagnosed, kl_from_0, late, log, named, only, ramp

from assay.doctor.finding import Diagnosis
from assay.doctor.log import Log, Series
from assay.doctor.window import bounds, rose
from assay.tracking.metrics import MetricsLine


def test_a_kl_is_held_against_its_target_where_there_is_one() -> None:
    far: dict[str, Column] = {"objective/kl": kl_from_0(0.5, 6.2)}
    assert named(diagnosed(log(far, kl_target=2.0))) == ["kl-blow-up"]
    assert diagnosed(log(far, kl_target=2.1)) == Diagnosis()
    assert diagnosed(log(far)) == Diagnosis()


def test_a_kl_below_0_is_as_likely_as_markov_allows() -> None:
    """128 answers at −0.02 nats in each of 6 steps: Σ = 15.36; one of 24 stretches: p = 24·e^−15.36 = 5e-6."""
    found = only(diagnosed(log({"objective/kl": [0.0, *[0.5] * 17, *[-0.02] * 6]})))
    assert found.evidence == "KL -0.02 nats an answer from step 19 to 24 (p < 5e-06)"
    assert found.sureness == "likely"


def test_rounding_is_no_negative_kl_and_rare_answers_with_a_large_one_may_be_missed_in_a_batch() -> None:
    assert "negative-kl" not in named(diagnosed(log({"objective/kl": -1.5e-7})))
    assert diagnosed(log({"objective/kl": [0.0, *[-0.005] * 8, *[0.05] * 15]})).verdict == "green"


def test_the_size_of_a_batch_is_one_where_it_is_unknown() -> None:
    for mean, expected in ((-0.4, []), (-0.5, ["negative-kl"])):
        lines = [MetricsLine(step, 0.0, {"objective/kl": mean}) for step in range(10, 34)]
        assert named(diagnosed(Log.of("ppo", "ppo", lines, foreign=True))) == expected


def test_the_kl_of_groups_that_were_chosen_is_not_judged() -> None:
    chosen = diagnosed(log({"objective/kl": kl_from_0(0.1, -0.5)}, resample=3))
    assert not chosen.findings
    assert [one.mode.name for one in chosen.unchecked] == ["negative-kl"]


def test_a_log_that_begins_later_says_nothing_of_the_start() -> None:
    lines = [MetricsLine(step, 0.0, {"objective/kl": 2.0}) for step in range(10, 20)]
    found = diagnosed(Log.of("ppo", "ppo", lines, foreign=True))
    assert "kl-before-training" not in named(found)
    assert "the log begins at step 10" in {one.why for one in found.unchecked}


@pytest.mark.parametrize(("kl", "tokens", "sure"), [(0.004, None, None), (1.2, None, "likely"), (0.1, 50.0, "certain")])
def test_a_kl_at_the_start_is_that_of_a_thousand_tokens_where_nobody_says_how_many(
    kl: float, tokens: float | None, sure: str | None
) -> None:
    """0.004 nats an answer are 8e-5 a token of 50; no answer of bfloat16 is so long that rounding makes 1.2."""
    given = log({"objective/kl": [kl, *ramp(1.2, 3.4)], "lengths/response_mean": tokens})
    found = [one for one in diagnosed(given).findings if one.mode.name == "kl-before-training"]
    assert [one.sureness for one in found] == ([sure] if sure else [])


def test_two_equal_models_have_no_kl_in_any_batch_so_that_one_needs_no_interval() -> None:
    """Of 64 answers a KL of 0.1 nats is known to ± 0.13; but between equal models it is 0 for every single answer."""
    columns: dict[str, Column] = {"objective/kl": [-0.1, *ramp(0.1, 3.4)], "lengths/response_mean": 50.0}
    (found,) = (one for one in diagnosed(log(columns, batch_size=64)).findings if one.mode.name == "kl-before-training")
    assert found.evidence == (
        "KL -0.1 nats an answer, -0.002 per token, before the first update; between equal models it is 0 in every batch"
    )


def test_a_reward_that_is_always_the_same_has_not_risen() -> None:
    """The mean of fifteen times 0.1 is a float above the mean of five."""
    steps = np.arange(60)
    assert np.full(15, 0.1).mean() > np.full(5, 0.1).mean()
    assert not rose(Series("objective/reward", steps, np.full(60, 0.1)))
    assert rose(Series("objective/reward", steps, np.where(steps < 30, 0.1, 0.101)))


@pytest.mark.parametrize(
    ("entropy", "tokens", "severity"),
    [
        (late(2.0, 0.01), 50.0, "amber"),
        (late(2.0, 0.1), 800.0, "amber"),
        (late(2.0, 0.9), 50.0, None),
        (late(2.0, 0.01), 2.0, None),
    ],
    ids=["one answer is left", "few of each token", "two fifths, as in healthy runs", "there never were many"],
)
def test_a_policy_that_is_paid_and_left_with_few_answers_of_thousands_is_told(
    entropy: Column, tokens: float, severity: str | None
) -> None:
    given = log({"objective/entropy": entropy, "objective/reward": ramp(0.0, 2.0), "lengths/response_mean": tokens})
    assert [one.severity for one in diagnosed(given).findings] == ([severity] if severity else [])


def test_metrics_with_gaps_are_compared_where_both_are_known() -> None:
    shorter = log({"objective/kl": [0.0, *[40.0] * (STEPS - 1)]})
    entropy = shorter.series["objective/entropy"]
    gap = type(entropy)(entropy.name, entropy.steps[::2], entropy.values[::2])
    found = diagnosed(Log("group", "group", {**shorter.series, "objective/entropy": gap}))
    assert named(found) == ["kl-blow-up"]


def test_a_kl_that_leaps_about_far_above_its_target_runs_away() -> None:
    """The interval of its mean reaches below the target, and no step does."""
    leaps = [*[0.0] * 4, *[0.9, 1.1, 21.0, 7.0] * 5]
    assert bounds(np.array(leaps[-6:]))[0] < 0
    found = only(diagnosed(log({"objective/kl": leaps}, kl_target=0.25)))
    assert (found.mode.name, found.fatal) == ("kl-blow-up", True)
    assert "never below 0.9" in found.evidence
    assert "kl-blow-up" not in named(diagnosed(log({"objective/kl": leaps}, kl_target=0.35)))
