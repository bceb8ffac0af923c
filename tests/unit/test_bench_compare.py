"""The page of methods beside each other: who wins is said by the interval over seeds, never by the mean alone."""

from __future__ import annotations

from bench.compare import picture, verdicts

from assay.tracking.report.frontier import Method


def test_only_an_interval_on_one_side_of_a_half_decides() -> None:
    methods = [
        Method("sure", kl=[1.0, 1.1, 1.2], win_rate=[0.80, 0.82, 0.81]),
        Method("torn", kl=[1.0, 1.1, 1.2], win_rate=[0.45, 0.70, 0.60]),
        Method("worse", kl=[1.0, 1.1, 1.2], win_rate=[0.30, 0.32, 0.31]),
        Method("once", kl=[1.0], win_rate=[0.99]),
        Method("once, many prompts", kl=[1.0], win_rate=[0.60], over_prompts=(0.55, 0.65)),
    ]
    assert verdicts(methods) == [
        "sure (81.0 %), once, many prompts (60.0 %) win against the SFT model.",
        "torn (58.3 %), once (99.0 %) cannot be told from it.",
        "worse (31.0 %) lose against it.",
    ]


def test_what_was_not_measured_has_no_panel() -> None:
    judged = picture([Method("ppo", kl=[1.0], win_rate=[0.6])])
    known = picture([Method("ppo", kl=[1.0], win_rate=[0.6], truth=[3.0])])
    assert known.count('<g id="axes_') == 2 * judged.count('<g id="axes_') == 2
