"""What came of a policy is told by its intervals, and stands behind what may have brought it about."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.doctor.policy_log import STEPS, Column, log, ramp, wave

from assay.data.baselines import Baselines
from assay.doctor import data, labels, outcome
from assay.doctor.detector import DETECTORS, examine
from assay.doctor.finding import Diagnosis, Finding, diagnosis
from assay.doctor.kl import KL_BLOW_UP
from assay.doctor.log import Log
from assay.evaluation.preference import preference_report
from assay.types import Preference, Prompt

OURS = [detector for detector in DETECTORS if detector.find.__module__ == outcome.__name__]


def around(name: str, value: float, width: float = 0.02) -> dict[str, float]:
    return {name: value, f"{name}_low": value - width, f"{name}_high": value + width}


HEALTHY: dict[str, Any] = {
    **around("win_rate", 0.8),
    **around("reward_gain", 1.0),
    **around("teacher_kl", 0.0),
    "teacher_kl_before": 2.0,
    "teacher_kl_after": 0.5,
    "over_refusal_before": 0.1,
    "over_refusal_after": 0.05,
    **around("over_refusal_change", -0.05),
    "harmful_refusal_before": 0.6,
    "harmful_refusal_after": 0.9,
    **around("harmful_refusal_change", 0.3),
    "repetition_before": 0.02,
    "repetition_after": 0.02,
    **around("repetition_change", 0.0),
    "truncated_before": 0.05,
    "truncated_after": 0.02,
    **around("truncated_change", -0.03),
}


def diagnosed(kind: str, **final: Any) -> Diagnosis:
    return examine([Log(kind, "aligned", final=HEALTHY | final)], OURS)


def named(given: Diagnosis) -> list[tuple[str, str]]:
    return [(finding.mode.name, finding.severity) for finding in given.findings]


@pytest.mark.parametrize("kind", outcome.POLICIES)
def test_a_policy_that_has_become_better_gives_no_finding(kind: str) -> None:
    given = diagnosed(kind)
    assert named(given) == []
    assert {one.mode.name for one in given.unchecked} <= {"reward-falls"}  # which reads the log


@pytest.mark.parametrize(
    ("kind", "final", "found"),
    [
        ("ppo", around("win_rate", 0.47), [("worse-than-before", "red")]),
        ("ppo", around("win_rate", 0.49), []),
        ("ppo", around("over_refusal_change", 0.1), [("wrong-refusals", "amber")]),
        ("group", around("over_refusal_change", 0.3), [("wrong-refusals", "red")]),
        ("ppo", around("over_refusal_change", 0.06), []),
        ("preference", around("harmful_refusal_change", -0.1), [("wrong-refusals", "amber")]),
        ("preference", around("harmful_refusal_change", -0.3), [("wrong-refusals", "red")]),
        ("bestof", around("win_rate", 0.4), [("reward-hacking", "red"), ("worse-than-before", "red")]),
        ("bestof", around("win_rate", 0.4) | around("reward_gain", 0.01), [("worse-than-before", "red")]),
        ("distill", {"teacher_kl_after": 2.1}, [("worse-than-before", "red")]),
        ("ppo", {"teacher_kl_after": 2.1}, []),
        ("preference", {"repetition_after": 0.3} | around("repetition_change", 0.28), [("repetition", "red")]),
        ("distill", {"truncated_after": 0.6} | around("truncated_change", 0.55), [("never-stops", "red")]),
    ],
)
def test_an_outcome_is_named_where_its_whole_interval_is_bad(
    kind: str, final: dict[str, float], found: list[tuple[str, str]]
) -> None:
    assert named(diagnosed(kind, **final)) == found


def test_answers_that_were_broken_before_are_not_blamed_on_the_stage() -> None:
    (found,) = diagnosed("preference", truncated_before=0.7, truncated_after=0.7).findings
    assert "before this stage" in found.explanation
    (found,) = diagnosed("preference", truncated_after=0.6, **around("truncated_change", 0.55)).findings
    assert "before this stage" not in found.explanation


@pytest.mark.parametrize(
    ("rewards", "found"),
    [
        (ramp(1.5, -1.5), [("reward-falls", "red")]),
        (ramp(-1.5, 1.5), []),
        (wave(0.5, 0.5), []),
        ([*ramp(0.0, 1.0, 12), *ramp(1.0, 0.3, 12)], []),  # above where it began
        ([0.1] * STEPS, []),
    ],
)
def test_a_reward_that_has_fallen_is_an_outcome(rewards: Column, found: list[tuple[str, str]]) -> None:
    given = examine([log({"objective/reward": rewards})], OURS)
    assert named(given) == found
    few = examine([log({"objective/reward": rewards}, steps=9)], OURS).unchecked
    assert "9 steps, and 10 are needed" in {one.why for one in few}


def test_what_was_not_measured_is_unchecked() -> None:
    given = examine([Log("ppo", "aligned")], OURS)
    outcomes = {"worse-than-before", "wrong-refusals", "reward-falls"}
    assert {unchecked.mode.name for unchecked in given.unchecked} == outcomes


def test_an_outcome_stands_behind_everything_else_and_alone_where_there_is_nothing_else() -> None:
    worse = Finding(outcome.WORSE_THAN_BEFORE, "ppo", "it loses", "red", "certain")
    refuses = Finding(outcome.WRONG_REFUSALS, "ppo", "it refuses", "red")
    cause = Finding(KL_BLOW_UP, "ppo", "far away", "amber", "possible")
    given = diagnosis([worse, cause, refuses])
    assert given.causes == [cause]
    assert given.consequences_of(cause) == [worse, refuses]
    assert diagnosis([worse, refuses]).causes == [worse, refuses]


REPORTED = [detector for detector in DETECTORS if detector.find.__name__ in ("reported_rivals", "counted_copies")]


@pytest.mark.parametrize(
    ("rival", "gain", "words", "found"),
    [
        ("length_only", 0.1, 20, []),
        ("length_only", 0.0, 20, [("shortcut", "red")]),
        ("length_only", 0.0, 1, [("shortcut", "red")]),
        ("bag_of_words", -0.05, 5, [("shortcut", "amber")]),
        ("bag_of_words", -0.05, 4, []),  # where there is nothing else to see
    ],
)
def test_a_reward_model_must_know_more_than_its_rivals(
    rival: str, gain: float, words: int, found: list[tuple[str, str]]
) -> None:
    measured = around("accuracy", 0.65) | around("gain", gain)
    final = {"accuracy": 0.66, "accuracy_low": 0.63, "chosen_words": words}
    log = Log("reward", "reward", final=final, reports={"accuracy": {"baselines": {rival: measured}}})
    given = examine([log], REPORTED)
    assert named(given) == found
    assert labels.reported_rivals.__name__ in [detector.find.__name__ for detector in REPORTED]


def test_a_rival_that_knows_nothing_is_no_shortcut() -> None:
    measured = around("accuracy", 0.51) | around("gain", 0.0)
    final = {"accuracy": 0.6, "accuracy_low": 0.58, "chosen_words": 20}
    log = Log("reward", "reward", final=final, reports={"accuracy": {"baselines": {"length_only": measured}}})
    assert named(examine([log], REPORTED)) == []


def test_a_model_that_knows_nothing_has_taken_no_shortcut() -> None:
    measured = around("accuracy", 0.72) | around("gain", -0.22)
    final = {"accuracy": 0.5, "accuracy_low": 0.47, "chosen_words": 20}
    given = examine(
        [Log("reward", "reward", final=final, reports={"accuracy": {"baselines": {"length_only": measured}}})], REPORTED
    )
    assert (named(given), {one.why for one in given.unchecked}) == ([], {labels.NO_TRICK})


@pytest.mark.parametrize(
    ("chosen", "asked"), [("please come at two", ["length_only"]), ("please come at two sharp", list(data.WORDS))]
)
def test_rivals_of_a_report_are_those_of_the_pairs(chosen: str, asked: list[str]) -> None:
    pairs = [Preference(Prompt.ask(f"question {n}"), chosen, "never come at all") for n in range(40)]
    report = preference_report([1.0] * 40, [0.0] * 40, pairs=pairs, baselines=Baselines.fit(pairs), seed=0)
    assert list(data.rivals(pairs, pairs)) == asked
    assert list(data.shortcuts(report["baselines"], report["chosen_words"])) == asked


@pytest.mark.parametrize(
    ("equal", "share", "found"),
    [(0, 0.28, []), (3, 0.01, [("split-leak", "red")]), (0, 0.5, [("split-leak", "amber")])],
)
def test_copies_that_the_data_stage_counted_are_a_leak(equal: int, share: float, found: list[tuple[str, str]]) -> None:
    part = {"prompts": 1000, "equal": equal, "share": share}
    log = Log("data", "data", reports={"report": {"leakage": {"test": part, "validation": part}}})
    assert named(examine([log], REPORTED)) == found
    unknown = examine([Log("data", "data")], REPORTED).unchecked
    assert [(one.mode, one.why) for one in unknown] == [(data.SPLIT_LEAK, "report.json has no leakage")]
