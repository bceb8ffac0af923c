"""Direct preference optimisation by its log: each finding on both sides of its threshold."""

from __future__ import annotations

from typing import Any

import pytest

from assay.doctor import direct
from assay.doctor.detector import DETECTORS, examine
from assay.doctor.finding import Finding
from assay.doctor.log import Log
from assay.tracking.metrics import MetricsLine

MINE = [d for d in DETECTORS if d.find.__module__ == direct.__name__]
GROWING = [0.0, *(0.01 * i for i in range(1, 60))]
SAMPLES = {
    "repetition_before": 0.01,
    "repetition_after": 0.02,
    "repetition_change": 0.01,
    "repetition_change_low": 0.0,
    "truncated_before": 0.02,
    "truncated_after": 0.02,
    "truncated_change": 0.0,
    "truncated_change_low": -0.01,
    "length_tokens_before": 20.0,
    "length_tokens_after": 22.0,
    "length_tokens_change_low": 1.0,
    "length_tokens_change_high": 3.0,
}


def log(final: dict[str, Any] | None = None, foreign: bool = False, **series: Any) -> Log:
    healthy = {
        "train/loss": [0.69 - 0.002 * i for i in range(60)],
        "train/reward_margin": GROWING,
        "train/accuracy": [0.5 + 0.005 * i for i in range(60)],
        "train/chosen_logprob": [-20.0] * 60,
        "train/grad_norm": [1.0] * 60,
        "train/learning_rate": [1e-4] * 60,
    }
    values = {**healthy, **{name.replace("__", "/"): v for name, v in series.items()}}
    lines = [MetricsLine(i + 1, 0.0, {name: v}) for name, column in values.items() for i, v in enumerate(column)]
    config = {"batch_size": 16, "epochs": 1}
    return Log.of("preference", "here", lines, final={**SAMPLES, **(final or {})}, config=config, foreign=foreign)


def found(given: Log) -> dict[str, Finding]:
    return {finding.mode.name: finding for finding in examine([given], MINE).findings}


def test_a_healthy_run_has_no_finding() -> None:
    assert found(log()) == {}


@pytest.mark.parametrize(
    ("series", "cause"),
    [
        ({}, "share their weights"),
        ({"train__grad_norm": [0.0] * 60}, "No weight changes"),
        ({"train__learning_rate": [0.0] * 60}, "No weight changes"),
    ],
)
def test_a_margin_of_nothing_is_an_alias_or_an_optimizer_that_does_nothing(series: dict[str, Any], cause: str) -> None:
    finding = found(log(train__reward_margin=[0.0] * 60, **series))["stuck-at-ln2"]
    assert finding.sureness == "certain"
    assert cause in finding.cause


def test_a_margin_that_does_not_grow_out_of_its_noise_is_told_as_possible() -> None:
    noise = [0.0, *(0.01 * (-1) ** i for i in range(59))]
    assert found(log(train__reward_margin=noise))["stuck-at-ln2"].severity == "amber"
    assert "stuck-at-ln2" not in found(log(train__reward_margin=[x + 0.005 * (i > 0) for i, x in enumerate(noise)]))


def test_a_margin_that_falls_below_0_is_a_loss_that_learns_the_opposite() -> None:
    down: dict[str, Any] = {
        "train__reward_margin": [-0.02 * i for i in range(60)],
        "train__loss": [0.69 + 0.01 * i for i in range(60)],
    }
    finding = found(log(**down, train__accuracy=[0.5 - 0.005 * i for i in range(60)]))
    assert set(finding) == {"swapped-labels"}
    assert "wrong sign" in finding["swapped-labels"].cause
    assert "rate" in finding["swapped-labels"].cure
    assert "swapped-labels" not in found(log(**down))  # most pairs are right: a few outliers


FALLING: dict[str, Any] = {"train__chosen_logprob": [-20.0 - 0.5 * i for i in range(60)]}


@pytest.mark.parametrize(
    ("after", "low", "alarm"),
    [(0.2, 0.1, True), (0.2, -0.01, False), (0.04, 0.01, False)],
    ids=["harm", "luck", "little"],
)
@pytest.mark.parametrize("what", ["repetition", "truncated"])
def test_chosen_answers_may_fall_unless_samples_fall_with_them(
    what: str, after: float, low: float, alarm: bool
) -> None:
    samples = {f"{what}_after": after, f"{what}_change": after - 0.01, f"{what}_change_low": low}
    assert ("chosen-falls" in found(log(samples, **FALLING))) == alarm
    assert "chosen-falls" not in found(log(samples))
    assert "chosen-falls" not in found(log(**FALLING))


@pytest.mark.parametrize(("early", "alarm"), [(1.0, True), (0.97, False)])
def test_an_accuracy_of_99_percent_after_a_tenth_of_the_data_is_too_early(early: float, alarm: bool) -> None:
    """60 steps of 16 pairs: a tenth is 6 steps, and the next 8 hold 128 pairs."""
    course = [0.5] * 6 + [early] * 8 + [1.0] * 46
    assert ("saturated-early" in found(log(train__accuracy=course))) == alarm


@pytest.mark.parametrize(("low", "severity"), [(9.0, None), (11.0, "amber"), (21.0, "red")])
def test_answers_that_grow_by_half_are_told_and_twice_as_long_ones_are_red(low: float, severity: str | None) -> None:
    samples = {"length_tokens_after": 45.0, "length_tokens_change_low": low, "length_tokens_change_high": 30.0}
    finding = found(log(samples)).get("length-growth")
    assert (finding.severity if finding else None) == severity
    if finding:
        assert finding.change == {"here.method": "ldpo"}
        assert found(log(samples, foreign=True))["length-growth"].change == {}


def test_what_a_log_does_not_have_is_unchecked() -> None:
    given = examine([Log("preference", "here")], MINE)
    names = {"stuck-at-ln2", "chosen-falls", "saturated-early", "length-growth"}
    assert {unchecked.mode.name for unchecked in given.unchecked} >= names
    why = {
        steps: [
            u.why for u in examine([log(train__accuracy=[1.0] * steps)], MINE).unchecked if u.mode == direct.SATURATED
        ]
        for steps in (36, 40)
    }
    assert why == {36: ["36 steps of 16 pairs are too few to say what the first tenth taught"], 40: []}  # 4 + 8 steps
