"""Each check of the report raises its alarm for its own fault, and for no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assay.tracking.metrics import MetricsLine
from assay.tracking.report.checks import findings
from assay.tracking.report.run_files import RunFiles, StageFiles, read_run

HEALTHY_PPO = {
    "win_rate": 0.86,
    "win_rate_low": 0.82,
    "win_rate_high": 0.9,
    "truth_before": 1.0,
    "truth_after": 4.0,
    "gain": 3.0,
    "gain_low": 2.7,
    "gain_high": 3.3,
    "reward_before": 0.0,
    "reward_after": 1.5,
    "kl": 6.0,
    "kl_target": 6.0,
    "kl_z_min": 0.3,
    "first_ratio_error": 1e-6,
    "sampler_error": 1e-5,
    "harmful_refusal_before": 0.5,
    "harmful_refusal_after": 0.9,
    "over_refusal_before": 0.1,
    "over_refusal_after": 0.05,
    "repetition_before": 0.05,
    "repetition_after": 0.02,
    "truncated_before": 0.02,
    "truncated_after": 0.01,
    "entropy_before": 1.3,
    "entropy_after": 0.9,
    "explained_variance": 0.7,
}
PPO_FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"win_rate_low": 0.49}, "Better answers", "warn"),
    ({"win_rate_low": 0.3, "win_rate_high": 0.45}, "Better answers", "bad"),
    ({"win_rate": None}, "Better answers", "warn"),
    ({"gain": -0.4, "gain_low": -0.6, "gain_high": -0.2}, "Reward not gamed", "bad"),
    ({"kl": 2.9}, "KL near its target", "warn"),
    ({"kl": 12.1}, "KL near its target", "warn"),
    ({"kl": 18.1}, "KL near its target", "bad"),
    ({"kl_z_min": -3.1}, "KL never negative", "bad"),
    ({"first_ratio_error": 2e-5}, "Updates start at ratio one", "warn"),
    ({"first_ratio_error": 2e-3}, "Updates start at ratio one", "bad"),
    ({"sampler_error": 2e-4}, "Sampler and trainer agree", "warn"),
    ({"sampler_error": 2e-2}, "Sampler and trainer agree", "bad"),
    ({"sampler_error": 0.3, "sampler_kl": 2e-3, "importance_cap": 2.0}, "Sampler near the trainer", "warn"),
    ({"sampler_error": 0.3, "sampler_kl": 2e-2, "importance_cap": 2.0}, "Sampler near the trainer", "bad"),
    ({"harmful_refusal_after": 0.48}, "Harmful requests refused more", "warn"),
    ({"harmful_refusal_after": 0.4}, "Harmful requests refused more", "bad"),
    ({"over_refusal_after": 0.12}, "No over-refusal", "warn"),
    ({"over_refusal_after": 0.2}, "No over-refusal", "bad"),
    (
        {"over_refusal_after": 0.13, "over_refusal_change_low": 0.012, "over_refusal_change_high": 0.05},
        "No over-refusal",
        "bad",
    ),
    ({"repetition_after": 0.2}, "No repetition", "bad"),
    ({"truncated_after": 0.2}, "Answers come to an end", "warn"),
    ({"truncated_before": 0.9, "truncated_after": 0.9}, "Answers come to an end", "bad"),
    ({"entropy_after": 0.2}, "Answers stay varied", "bad"),
    ({"entropy_after": 3.0}, "Answers stay varied", "warn"),
    ({"explained_variance": 0.4}, "Value model is useful", "warn"),
]


def checked(kind: str, metrics: dict[str, Any], **reports: dict[str, Any]) -> dict[str, str]:
    """Title → level of every finding that is not good."""
    stage = StageFiles(kind, kind, f"{kind}-0", metrics, reports=reports)
    run = RunFiles(Path(), {"run": "r"}, "", {kind: stage})
    return {finding.title: finding.level for finding in findings(run) if finding.level != "good"}


def test_a_healthy_policy_raises_no_alarm() -> None:
    assert checked("ppo", HEALTHY_PPO) == {}


@pytest.mark.parametrize(("fault", "title", "level"), PPO_FAULTS, ids=[str(fault) for fault, _, _ in PPO_FAULTS])
def test_a_fault_of_a_policy_raises_its_own_alarm_only(fault: dict[str, Any], title: str, level: str) -> None:
    assert checked("ppo", HEALTHY_PPO | fault) == {title: level}


def test_refusing_nearly_all_harm_before_and_after_is_no_fault() -> None:
    assert checked("ppo", HEALTHY_PPO | {"harmful_refusal_before": 0.99, "harmful_refusal_after": 0.97}) == {}


def test_numbers_that_are_missing_are_not_judged() -> None:
    assert checked("ppo", {"win_rate": 0.9, "win_rate_low": 0.8, "win_rate_high": 0.95}) == {}


REWARD = {"accuracy": 0.7, "accuracy_low": 0.67, "accuracy_high": 0.73, "n": 1000, "ties": 0}


def report_of(**changes: Any) -> dict[str, Any]:
    gain = {"accuracy": 0.6, "gain": 0.1, "gain_low": 0.06, "gain_high": 0.14}
    healthy = {
        "ceiling": 0.85,
        "baselines": {"length_only": gain, "bag_of_words": gain},
        "reliability": {"ece": 0.02, "ece_floor": 0.015, "ece_p": 0.4, "bins": []},
    }
    return healthy | changes


@pytest.mark.parametrize(
    ("metrics", "changes", "alarms"),
    [
        ({}, {}, {}),
        ({"accuracy_low": 0.48}, {}, {"Better than chance": "warn"}),
        ({"accuracy_low": 0.3, "accuracy_high": 0.4}, {}, {"Better than chance": "bad"}),
        ({}, {"ceiling": 0.65}, {"Below the ceiling": "warn"}),
        ({"ties": 60}, {}, {"Scores tell answers apart": "warn"}),
        (
            {},
            {"baselines": {"length_only": {"accuracy": 0.69, "gain": 0.01, "gain_low": -0.02, "gain_high": 0.04}}},
            {"Better than length alone": "warn"},
        ),
        (
            {},
            {"baselines": {"bag_of_words": {"accuracy": 0.75, "gain": -0.05, "gain_low": -0.08, "gain_high": -0.02}}},
            {"Better than a bag of words": "bad"},
        ),
        (
            {},
            {"reliability": {"ece": 0.09, "ece_floor": 0.015, "ece_p": 0.005, "bins": []}},
            {"Confidence means what it says": "warn"},
        ),
    ],
)
def test_a_reward_model_is_held_against_chance_baselines_and_ceiling(
    metrics: dict[str, Any], changes: dict[str, Any], alarms: dict[str, str]
) -> None:
    assert checked("reward", REWARD | metrics, accuracy=report_of(**changes)) == alarms


@pytest.mark.parametrize(
    ("losses", "alarms"),
    [([2.0, 1.5, 1.2], {}), ([2.0, 1.2, 1.3, 1.5], {"No overfitting": "warn"}), ([2.0, 1.2, 1.25], {})],
)
def test_held_out_loss_that_rises_twice_is_overfitting(losses: list[float], alarms: dict[str, str]) -> None:
    lines = [MetricsLine(step, 0.0, {"eval/loss": loss}) for step, loss in enumerate(losses)]
    stage = StageFiles("sft", "sft", "sft-0", {}, lines=lines)
    found = findings(RunFiles(Path(), {"run": "r"}, "", {"sft": stage}))
    assert {finding.title: finding.level for finding in found if finding.level != "good"} == alarms


@pytest.mark.parametrize(
    ("part", "alarms"),
    [
        ({"equal": 0, "share": 0.005}, {}),
        ({"equal": 0, "share": 0.02}, {"Held-out data kept apart": "warn"}),
        ({"equal": 3, "share": 0.005}, {"Held-out data kept apart": "bad"}),
    ],
)
def test_held_out_prompts_in_the_training_data_are_a_leak(part: dict[str, Any], alarms: dict[str, str]) -> None:
    assert checked("data", {}, report={"leakage": {"test": part}}) == alarms


def test_levels_of_a_whole_run_are_those_of_its_files(full_run: Path) -> None:
    run = read_run(full_run)
    by_title = {(finding.stage, finding.title): finding.level for finding in findings(run)}
    assert by_title["ppo", "Better answers"] == "good"
    assert by_title["reward", "Better than length alone"] == "good"
    gains = json.loads(json.dumps(run.stages["reward"].reports["accuracy"]["baselines"]["bag_of_words"]))
    expected = "good" if gains["gain_low"] > 0 else "warn"
    assert by_title["reward", "Better than a bag of words"] == expected
