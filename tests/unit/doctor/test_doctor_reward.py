"""SFT and reward models by their logs: each finding on both sides of its threshold; what is missing is unchecked."""

from __future__ import annotations

import math
from typing import Any

import pytest

from assay.doctor import reward, sft
from assay.doctor.detector import DETECTORS, examine
from assay.doctor.finding import Finding
from assay.doctor.log import Log
from assay.tracking.metrics import MetricsLine

MINE = [d for d in DETECTORS if d.find.__module__ in (reward.__name__, sft.__name__)]

HEALTHY = {
    "n": 1000,
    "accuracy": 0.8,
    "accuracy_low": 0.77,
    "accuracy_high": 0.83,
    "ties": 0,
    "reward_gap": 1.4,
    "reward_gap_median": 1.3,
    "chosen_mean": 0.7,
    "rejected_mean": -0.7,
    "score_std": 1.5,
    "reward_gap_std": 1.6,
    "temperature": 0.8,
    "length_expected": 0.56,
    "length_excess": 0.03,
    "length_excess_low": 0.0,
    "length_excess_high": 0.06,
}


def log(series: Any, final: dict[str, Any] | None = None, kind: str = "reward", **config: Any) -> Log:
    """Values from step 1 on; validation every tenth step."""
    lines = [
        MetricsLine((step + 1) * (10 if name.startswith("eval/") else 1), 0.0, {name: value})
        for name, values in series.items()
        for step, value in enumerate(values)
    ]
    return Log.of(kind, "here", lines, final=final or {}, config={"batch_size": 16, "epochs": 2, **config})


def reward_log(final: dict[str, Any] | None = None, accuracy: float = 0.8, **series: Any) -> Log:
    trained = {"train/loss": [0.69] * 5 + [0.5] * 35, "train/accuracy": [accuracy] * 40}
    evaluated = {"eval/accuracy": [0.78, 0.79, 0.80, 0.79, 0.80, 0.80], "eval/n": [1000.0] * 6}
    named = {name.replace("__", "/"): values for name, values in series.items()}
    return log({**trained, **evaluated, **named}, {**HEALTHY, **(final or {})})


def found(given: Log) -> dict[str, Finding]:
    return {finding.mode.name: finding for finding in examine([given], MINE).findings}


def test_a_healthy_reward_model_and_a_healthy_sft_have_no_finding() -> None:
    tuned = log({"train/loss": [2.0, 1.0, 0.8, 0.7] * 10, "eval/loss": [1.0, 0.9, 0.85, 0.852]}, kind="sft")
    assert examine([reward_log(), tuned], MINE).findings == ()


def test_an_accuracy_whose_interval_has_a_half_inside_is_a_guess() -> None:
    guess = {"accuracy": 0.51, "accuracy_low": 0.48, "accuracy_high": 0.54}
    finding = found(reward_log(guess, accuracy=0.5))["reward-at-chance"]
    assert (finding.severity, finding.sureness, finding.cause) == ("red", "likely", "")
    assert "reward-at-chance" not in found(reward_log(guess | {"accuracy_low": 0.501}, accuracy=0.5))


def test_no_gradient_says_more_than_a_guess() -> None:
    guess = {"accuracy": 0.51, "accuracy_low": 0.48, "accuracy_high": 0.54}
    finding = found(reward_log(guess, accuracy=0.5, train__grad_norm=[0.0] * 40))["reward-at-chance"]
    assert finding.sureness == "certain"
    assert finding.cause.startswith("No gradient")


@pytest.mark.parametrize(("half", "expected"), [(0.09, "amber"), (0.11, None)])
def test_pairs_learnt_and_not_carried_over_are_told_where_the_held_out_pairs_can_tell(
    half: float, expected: str | None
) -> None:
    guess = {"accuracy": 0.5, "accuracy_low": 0.5 - half, "accuracy_high": 0.5 + half}
    finding = found(reward_log(guess, accuracy=0.9)).get("reward-at-chance")
    assert (finding.severity if finding else None) == expected


def test_a_share_that_training_has_as_well_was_carried_over() -> None:
    """58 % of 100 held-out pairs, and 57.5 % of the training pairs: few pairs, and no contradiction."""
    near = {"accuracy": 0.58, "accuracy_low": 0.482, "accuracy_high": 0.672}
    given = reward_log(near, accuracy=0.575, train__loss=[0.68] * 400, train__accuracy=[0.575] * 400)
    assert "reward-at-chance" not in found(given)
    better = reward_log(near, accuracy=0.575, train__loss=[0.6] * 400, train__accuracy=[0.7] * 400)
    assert found(better)["reward-at-chance"].severity == "amber"


def test_so_few_pairs_that_nobody_can_tell_are_no_guess() -> None:
    """24 of 40 held-out pairs, and 60 % of 160 of training, z = 2.5."""
    few = {"accuracy": 0.6, "accuracy_low": 0.446, "accuracy_high": 0.737}
    given = examine([reward_log(few, train__accuracy=[0.6] * 20)], MINE)
    assert "reward-at-chance" not in {finding.mode.name for finding in given.findings}
    (why,) = (one.why for one in given.unchecked if one.mode.name == "reward-at-chance")
    assert "held-out accuracy 60.0% [44.6%, 73.7%]" in why
    assert "so few cannot tell" in why


def test_a_guess_that_costs_more_than_a_guess_wants_a_lower_rate() -> None:
    guess = {"accuracy": 0.51, "accuracy_low": 0.48, "accuracy_high": 0.54}
    finding = found(reward_log(guess, accuracy=0.5, train__loss=[4.0] * 40))["reward-at-chance"]
    assert finding.advice.startswith("Lower `optim.learning_rate` tenfold")


@pytest.mark.parametrize(
    ("worst", "alarm"),
    [
        (
            [65.6, 0.9, 1.1, 2.1, 0.8, 0.3, 8.4, 91.3, 140.0, 268.0],
            True,
        ),  # as in a real run; no mean of these has a bound
        ([3.0] + [0.7] * 9, False),  # one batch
        ([1.0] * 10, False),  # 1.44 times a guess
        ([1.1] * 10, True),
    ],
)
def test_a_loss_that_was_thrown_up_and_came_back_is_told_and_is_not_fatal(worst: list[float], alarm: bool) -> None:
    finding = found(reward_log(train__loss=[0.69, *worst, *[0.6] * 29])).get("loss-blow-up")
    assert (finding is not None) == alarm
    if finding:
        assert (finding.severity, finding.fatal) == ("red", False)
    at_the_end = found(reward_log(train__loss=[0.69, *[0.6] * 29, *[3.0] * 10]))["loss-blow-up"]
    assert at_the_end.fatal


@pytest.mark.parametrize(("ties", "alarm"), [(70, False), (90, True)])
def test_ties_are_rounding(ties: int, alarm: bool) -> None:
    """Of 1,000 pairs: 70 is 7 %, with a 99.9 % interval from 4.6 %; 90 is 9 %, from 6.3 %."""
    finding = found(reward_log({"ties": ties, "chosen_mean": 3.5, "rejected_mean": 3.5})).get("accuracy-against-margin")
    assert (finding is not None) == alarm
    if finding:
        assert "rounded" in finding.cause


@pytest.mark.parametrize(
    ("n", "accuracy", "gap", "median", "cause"),
    [
        (1000, 0.3, 0.4, -0.5, "huge margins"),
        (1000, 0.3, 0.4, 0.1, "wrong way round"),
        (10, 0.3, 0.4, -0.5, None),  # 3 of 10: p = 0.17
        (1000, 0.3, -0.4, -0.5, None),  # both say the same
    ],
)
def test_an_accuracy_below_a_half_with_a_positive_mean_margin(
    n: int, accuracy: float, gap: float, median: float, cause: str | None
) -> None:
    final = {"n": n, "accuracy": accuracy, "accuracy_low": 0.1, "accuracy_high": 0.45}
    finding = found(reward_log(final | {"reward_gap": gap, "reward_gap_median": median})).get("accuracy-against-margin")
    assert (finding is not None) == (cause is not None)
    if finding and cause:
        assert cause in finding.cause


def test_accuracies_that_jump_are_sampling_noise_where_so_few_pairs_jump_anyway() -> None:
    """Fifty pairs at 77 % have a standard error of 6 points, at 93 % one of 3.6, which healthy runs have, too."""
    jumps = [0.80, 0.72, 0.82, 0.74, 0.84, 0.76, 0.80, 0.70, 0.80, 0.74, 0.82, 0.72]
    high = reward_log(eval__accuracy=[x + 0.16 for x in jumps], eval__n=[50.0] * len(jumps))
    assert "fluctuating-accuracy" not in found(high)
    few, many = (reward_log(eval__accuracy=jumps, eval__n=[n] * len(jumps)) for n in (50.0, 2000.0))
    assert "sampling noise" in found(few)["fluctuating-accuracy"].cause
    assert "learning rate" in found(many)["fluctuating-accuracy"].cause
    rising = reward_log(eval__accuracy=[0.5 + 0.03 * i for i in range(12)], eval__n=[50.0] * 12)
    assert "fluctuating-accuracy" not in found(rising)


@pytest.mark.parametrize(("spread", "within", "alarm"), [(9e-4, 1.0, True), (1.0, 9e-4, True), (2e-3, 2e-3, False)])
def test_scores_without_any_spread_are_constant(spread: float, within: float, alarm: bool) -> None:
    report = {"score_std": spread, "reward_gap_std": within, "temperature": 1.0}
    centred = {"chosen_mean": 0.0, "rejected_mean": 0.0}
    assert ("constant-scores" in found(reward_log(report | centred))) == alarm
    # calibration multiplied what was constant by a thousand
    assert "constant-scores" in found(reward_log({"score_std": 0.5, "temperature": 1e-3} | centred))


def test_constant_scores_are_the_cause_of_ties_and_of_a_guess() -> None:
    report = {"reward_gap_std": 0.0, "ties": 1000, "accuracy": 0.5, "accuracy_low": 0.47, "accuracy_high": 0.53}
    given = examine([reward_log(report, accuracy=0.5)], MINE)
    assert [cause.mode.name for cause in given.causes] == ["constant-scores"]
    assert len(given.findings) == 3


@pytest.mark.parametrize(("mean", "alarm"), [(7.4, False), (7.6, True), (-7.6, True)])
def test_a_mean_of_five_standard_deviations_is_drift(mean: float, alarm: bool) -> None:
    finding = found(reward_log({"chosen_mean": mean + 0.7, "rejected_mean": mean - 0.7})).get("score-drift")
    assert (finding is not None) == alarm
    if finding:
        assert finding.change == {"here.centring": 0.01}


@pytest.mark.parametrize(
    ("expected", "low", "high", "severity"),
    [
        (0.7, 0.09, 0.3, None),
        (0.7, 0.11, 0.3, "amber"),
        (0.7, 0.21, 0.3, "red"),
        (0.3, -0.3, -0.21, "red"),
        (0.3, -0.3, -0.09, None),
        (0.4, 0.21, 0.3, None),  # people prefer the shorter more than it knows
    ],
)
def test_a_taste_for_length_beyond_the_peoples_own(
    expected: float, low: float, high: float, severity: str | None
) -> None:
    interval = {"length_excess": (low + high) / 2, "length_excess_low": low, "length_excess_high": high}
    report = {"length_expected": expected, **interval}
    finding = found(reward_log(report)).get("length-bias")
    assert (finding.severity if finding else None) == severity


def test_what_is_not_finite_is_named_with_its_first_step_in_any_log() -> None:
    values = [0.7, math.nan, 0.6, math.inf]
    finding = found(log({"train/loss": values, "train/grad_norm": [1.0, 1.0, math.nan, 1.0]}, kind="ppo"))["not-finite"]
    assert "train/loss at step 2" in finding.evidence
    assert "50%" in finding.evidence
    assert finding.change == {}
    known = found(log({"train/loss": values}, kind="ppo", optim={"learning_rate": 3e-4}))["not-finite"]
    assert known.change == {"here.optim.learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("held", "train", "severity"),
    [
        ([1.0, 0.9, 0.95, 1.0], 0.3, "amber"),
        ([1.0, 0.9, 1.0, 1.2], 0.3, "red"),
        ([1.0, 0.9, 0.905, 0.91], 0.3, None),  # within noise
        ([1.0, 0.95, 0.9, 1.0], 0.3, None),  # one evaluation alone
        ([1.0, 0.9, 0.95, 1.0], 0.95, None),  # the training loss does not fall either
        ([1.0, 0.9, 0.88, 0.95, 0.89, 0.94, 0.90], 0.3, None),  # up and down by more than it has risen
    ],
)
def test_overfitting_is_a_validation_loss_that_rises_twice_above_a_low_training_loss(
    held: list[float], train: float, severity: str | None
) -> None:
    given = log({"train/loss": [2.0] * 20 + [train] * 20, "eval/loss": held}, kind="sft", epochs=4)
    finding = found(given).get("overfitting")
    assert (finding.severity if finding else None) == severity
    if finding:
        assert finding.change == {"here.epochs": 2}  # lowest at step 20 of 40
        assert "`epochs: 2`" in finding.advice


def test_overfitting_speaks_of_what_the_stage_reads_and_of_the_passes_it_makes() -> None:
    curves = {"train/loss": [2.0] * 20 + [0.3] * 20, "eval/loss": [1.0, 0.9, 0.95, 1.0]}
    pairs = found(log(curves, kind="reward", epochs=4))["overfitting"]
    assert "seen the pairs so often" in pairs.explanation
    once = found(log(curves, kind="sft", epochs=1, optim={"learning_rate": 3e-4}))["overfitting"]
    assert "epochs" not in once.advice
    assert once.change == {"here.optim.learning_rate": 1e-4}


def test_what_a_log_does_not_have_is_unchecked() -> None:
    given = examine([log({"train/loss": [0.7] * 10})], MINE)
    assert given.findings == ()
    missing = {unchecked.mode.name for unchecked in given.unchecked}
    everything = {"reward-at-chance", "accuracy-against-margin", "fluctuating-accuracy", "constant-scores"}
    assert missing >= everything | {"score-drift", "length-bias", "overfitting"}
    few = examine([reward_log(eval__accuracy=[0.8] * 4)], MINE)
    assert [u.why for u in few.unchecked if u.mode.name == "fluctuating-accuracy"] == [
        "4 evaluations, and a variance needs 5"
    ]
