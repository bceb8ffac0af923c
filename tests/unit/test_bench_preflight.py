"""The bench of the dry run: what counts as a step of a stage, and how a ratio is shown."""

from __future__ import annotations

from bench.preflight import cells, step_seconds


def test_a_step_is_measured_between_the_one_that_warms_up_and_the_one_that_evaluates() -> None:
    log = [{"time": time} for time in (5.0, 6.0, 8.0, 30.0)]
    assert step_seconds(log, steps=4) == 1.5
    assert step_seconds(log, steps=12) == 0.5  # three updates an iteration


def test_a_ratio_is_the_predicted_over_the_measured() -> None:
    assert cells(600.0, 500.0) == ["600", "500", "1.20"]
    assert cells(0.25, 0.5) == ["0.25", "0.5", "0.50"]
