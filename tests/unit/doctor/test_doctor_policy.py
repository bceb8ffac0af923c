"""Each detector on both sides of its thresholds, and a few injected faults from the run to the diagnosis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.doctor_trial import faults_policy as trial

from assay.doctor import policy
from assay.doctor.detector import DETECTORS, Detector, examine
from assay.doctor.finding import Diagnosis, Finding
from assay.doctor.log import Log
from assay.tracking.metrics import MetricsLine

STEPS = 24
OURS: list[Detector] = [detector for detector in DETECTORS if detector.find.__module__ == policy.__name__]

Column = Sequence[float] | float | None


def wave(mean: float, size: float, steps: int = STEPS) -> list[float]:
    """A mean, and something around it that is the same in every test."""
    return [mean + size * float(np.sin(2.4 * step)) for step in range(steps)]


def ramp(first: float, last: float, steps: int = STEPS) -> list[float]:
    return [first + (last - first) * step / (steps - 1) for step in range(steps)]


HEALTHY: Mapping[str, Column] = {
    "objective/reward": ramp(0.0, 1.3),
    "objective/reward_std": wave(0.9, 0.1),
    "objective/kl": [0.0, *ramp(0.04, 3.4, STEPS - 1)],
    "objective/entropy": ramp(0.52, 0.22),
    "objective/truth": ramp(12.0, 16.0),
    "lengths/response_mean": wave(18.0, 2.0),
    "lengths/truncated": wave(0.02, 0.02),
    "lengths/empty": 0.0,
    "text/repetition": wave(0.015, 0.01),
    "val/explained_variance": ramp(-2.0, 0.7),
    "policy/clipfrac_avg": wave(0.015, 0.01),
    "policy/approxkl_avg": wave(0.003, 0.002),
    "policy/grad_norm": wave(0.3, 0.1),
    "policy/learning_rate": ramp(6e-4, 1e-5),
    "policy/update_rms": wave(2e-4, 1e-4),
    "policy/ratio_first_error": wave(5e-6, 1e-6),
    "objective/groups_without_signal": wave(0.1, 0.05),
    "objective/prompts_per_group": 1.0,
    "val/sampler_kl": 1e-12,
}
"""Shaped like a healthy run of the embedded recipe."""


def log(
    changes: Mapping[str, Column] | None = None,
    *,
    kind: str = "group",
    steps: int = STEPS,
    final: Mapping[str, Any] | None = None,
    **config: Any,
) -> Log:
    """A healthy log with other columns; a number stands in every step, None takes the column away."""
    columns = {
        name: [float(column)] * steps if isinstance(column, int | float) else list(column)[:steps]
        for name, column in {**HEALTHY, **(changes or {})}.items()
        if column is not None
    }
    lines = [
        MetricsLine(step + 1, 0.0, {name: column[step] for name, column in columns.items()}) for step in range(steps)
    ]
    return Log.of(kind, kind, lines, final=final or {}, config={"batch_size": 128, **config})


def diagnosed(*evidence: Any) -> Diagnosis:
    return examine(evidence, OURS)


def named(diagnosis: Diagnosis) -> list[str]:
    return [finding.mode.name for finding in diagnosis.findings]


def only(diagnosis: Diagnosis) -> Finding:
    (found,) = diagnosis.findings
    return found


@pytest.mark.parametrize("kind", ["ppo", "group"])
def test_a_healthy_log_is_green_and_all_of_it_is_checked(kind: str) -> None:
    assert diagnosed(log(kind=kind)) == Diagnosis()


END = 6
"""The last quarter of the steps, which most detectors judge."""


def late(before: float, after: float) -> list[float]:
    return [before] * (STEPS - END) + wave(after, 0.01 * abs(after), END)


def kl(before: float, after: float) -> list[float]:
    """A KL, which is 0 before the first update."""
    return [0.0, *late(before, after)[1:]]


CASES: list[tuple[str, dict[str, Column], dict[str, Column]]] = [
    # KL
    ("negative-kl", {"objective/kl": kl(0.1, -0.02)}, {"objective/kl": kl(0.1, -0.01)}),
    ("negative-kl", {"objective/kl": [0.0, *[-0.02] * 6, *[0.5] * 17]}, {"objective/kl": [0.0, -0.05, *[0.5] * 22]}),
    ("kl-before-training", {"objective/kl": [0.03, *ramp(0.04, 3.4)]}, {"objective/kl": [0.01, *ramp(0.04, 3.4)]}),
    ("kl-blow-up", {"objective/kl": kl(1.0, 40.0)}, {"objective/kl": kl(1.0, 20.0)}),
    # ratios
    ("sampler-differs", {"val/sampler_kl": [*[1e-12] * 9, 2e-3, *[1e-12] * 14]}, {"val/sampler_kl": 2e-4}),
    ("ratio-not-one", {"policy/ratio_first_error": 0.06}, {"policy/ratio_first_error": 0.04}),
    ("ratio-spikes", {"policy/approxkl_avg": late(0.01, 0.6), "policy/clipfrac_avg": late(0.01, 0.15)},
     {"policy/approxkl_avg": late(0.01, 0.6), "policy/clipfrac_avg": late(0.01, 0.05)}),
    ("ratio-spikes", {"policy/clipfrac_avg": [0.4] * 3 + [0.01] * 21},
     {"policy/clipfrac_avg": [0.4] * 2 + [0.01] * 22}),
    # text
    ("repetition", {"text/repetition": late(0.02, 0.25)}, {"text/repetition": late(0.02, 0.18)}),
    ("never-stops", {"lengths/truncated": late(0.02, 0.55)}, {"lengths/truncated": late(0.02, 0.45)}),
    ("empty-answers", {"lengths/response_mean": late(20.0, 3.0)}, {"lengths/response_mean": late(20.0, 5.0)}),
    ("empty-answers", {"lengths/empty": late(0.0, 0.25)}, {"lengths/empty": late(0.0, 0.15)}),
    # entropy
    ("entropy-out-of-bounds", {"objective/entropy": late(0.5, 0.85)}, {"objective/entropy": late(0.5, 0.7)}),
    ("entropy-out-of-bounds", {"objective/entropy": late(0.5, 0.08), "objective/reward": wave(0, 0.1)},
     {"objective/entropy": late(0.5, 0.12), "objective/reward": wave(0, 0.1)}),
    ("entropy-out-of-bounds", {"objective/entropy": late(0.5, 0.08), "objective/reward": ramp(0, -1)},
     {"objective/entropy": late(0.5, 0.08)}),  # what it became sure of pays
    # reward
    ("reward-hacking", {"objective/truth": ramp(12.0, 10.0)},
     {"objective/truth": ramp(12.0, 10.0), "objective/reward": 0.5}),
    ("reward-hacking", {"objective/truth": [*ramp(12, 14, 12), *ramp(14, 12.5, 12)]}, {"objective/truth": wave(12, 1)}),
    ("groups-without-signal", {"objective/groups_without_signal": wave(0.6, 0.1)},
     {"objective/groups_without_signal": ramp(0.0, 1.0)}),
    ("broken-groups", {"objective/prompts_per_group": 1.25}, {"objective/prompts_per_group": 1.0}),
    # nothing moves
    ("nothing-moves", {"objective/reward_std": 0.0}, {"objective/reward_std": 1e-3}),
    ("nothing-moves", {"policy/grad_norm": 0.0}, {"policy/grad_norm": late(0.1, 0.0)}),
    ("nothing-moves", {"policy/update_rms": 0.0}, {"policy/update_rms": late(1e-8, 0.0)}),
    ("nothing-moves", {"objective/kl": 1e-7}, {"objective/kl": 1e-7, "policy/approxkl_avg": 1e-9}),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "ill", "well"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)])
def test_a_detector_speaks_on_one_side_of_its_threshold_and_is_silent_on_the_other(
    mode: str, ill: dict[str, Column], well: dict[str, Column]
) -> None:
    assert only(diagnosed(log(ill))).mode.name == mode
    assert diagnosed(log(well)).verdict == "green"


def test_a_critic_is_judged_after_twenty_steps_and_by_all_of_them() -> None:
    bad: dict[str, Column] = {"val/explained_variance": wave(-3.0, 1.0)}
    assert only(diagnosed(log(bad, kind="ppo"))).severity == "red"
    worse: dict[str, Column] = {"val/explained_variance": wave(-0.5, 0.1)}
    assert only(diagnosed(log(worse, kind="ppo"))).severity == "amber"
    assert diagnosed(log({"val/explained_variance": wave(-0.1, 1.0)}, kind="ppo")) == Diagnosis()
    young = diagnosed(log(bad, kind="ppo", value_warmup=5))
    assert not young.findings
    assert [(one.mode.name, one.why) for one in young.unchecked] == [
        ("bad-critic", "the policy was trained for 19 steps; a critic is judged after 20")
    ]


def test_a_kl_is_held_against_its_target_where_there_is_one() -> None:
    far: dict[str, Column] = {"objective/kl": kl(0.5, 6.2)}
    assert named(diagnosed(log(far, kl_target=2.0))) == ["kl-blow-up"]
    assert diagnosed(log(far, kl_target=2.1)) == Diagnosis()
    assert diagnosed(log(far)) == Diagnosis()


@pytest.mark.parametrize(
    ("changes", "branch"),
    [
        ({"objective/reward_std": 0.0, "policy/grad_norm": 0.0}, "flat-reward"),
        ({"policy/grad_norm": 0.0, "policy/update_rms": 0.0}, "cut-graph"),
        ({"policy/update_rms": 0.0, "objective/kl": 0.0}, "frozen-optimizer"),
        ({"policy/update_rms": None, "objective/kl": 0.0, "policy/approxkl_avg": 1e-14}, "frozen-optimizer"),
        ({"objective/kl": 0.0}, "aliased-reference"),
    ],
)
def test_the_four_reasons_why_nothing_moves_are_told_apart(changes: dict[str, Column], branch: str) -> None:
    assert only(diagnosed(log(changes))).explanation.startswith(f"{branch}: ")


def test_no_gradient_without_the_spread_of_the_scores_may_be_either() -> None:
    found = only(diagnosed(log({"objective/reward_std": None, "policy/grad_norm": 0.0})))
    assert (found.mode.name, found.sureness) == ("nothing-moves", "possible")


def test_groups_without_any_signal_are_the_cause_of_a_policy_that_stands_still() -> None:
    found = diagnosed(log({"objective/groups_without_signal": 1.0, "policy/grad_norm": 0.0}))
    assert named(found) == ["groups-without-signal", "nothing-moves"]
    assert [cause.severity for cause in found.causes] == ["red"]
    assert found.findings[1].explanation.startswith("flat-reward: ")


def test_a_group_of_one_has_no_signal_of_its_own_and_needs_none() -> None:
    assert diagnosed(log({"objective/groups_without_signal": 1.0}, group_size=1)) == Diagnosis()


def test_a_clip_that_is_meant_to_cut_many_tokens_is_no_spike() -> None:
    cut: dict[str, Column] = {"policy/clipfrac_avg": 0.45}
    assert diagnosed(log(cut, ratio="sequence", clip=3e-4)) == Diagnosis()
    found = only(diagnosed(log(cut, ratio="token", clip=0.2, optim={"learning_rate": 1e-4})))
    assert (found.mode.name, found.change) == ("ratio-spikes", {"optim.learning_rate": pytest.approx(1e-5)})


def test_a_judge_that_prefers_the_start_shows_a_hacked_reward() -> None:
    without = log({"objective/truth": None}, final={"reward_gain_low": 0.5, "win_rate_high": 0.45})
    assert only(diagnosed(without)).mode.name == "reward-hacking"
    assert (
        diagnosed(log({"objective/truth": None}, final={"reward_gain_low": 0.5, "win_rate_high": 0.55})) == Diagnosis()
    )


@pytest.mark.parametrize(("name", "mode"), [("text/repetition", "repetition"), ("lengths/truncated", "never-stops")])
def test_what_was_so_from_the_start_is_blamed_on_what_came_before(name: str, mode: str) -> None:
    early, grown = (only(diagnosed(log({name: column}))) for column in (wave(0.7, 0.05), late(0.02, 0.7)))
    assert early.mode.name == grown.mode.name == mode
    assert "before this stage began" in early.explanation
    assert "before this stage began" not in grown.explanation


def test_a_blow_up_is_explained_by_the_jumps_that_led_to_it_and_explains_what_follows() -> None:
    far: dict[str, Column] = {"objective/kl": kl(1.0, 60.0), "lengths/truncated": late(0.0, 0.9)}
    jumps: dict[str, Column] = {"policy/clipfrac_avg": 0.5}
    assert named(diagnosed(log(far, kl_target=3.0))) == ["kl-blow-up", "never-stops"]
    assert [cause.mode.name for cause in diagnosed(log(far, kl_target=3.0)).causes] == ["kl-blow-up"]
    assert [cause.mode.name for cause in diagnosed(log({**far, **jumps}, kl_target=3.0)).causes] == ["ratio-spikes"]


def test_what_is_not_logged_is_unchecked_and_the_rest_is_checked() -> None:
    kept = {"objective/kl": HEALTHY["objective/kl"], "lengths/truncated": late(0.0, 0.9)}
    found = diagnosed(log({**dict.fromkeys(HEALTHY), **kept}, kind="ppo"))
    assert named(found) == ["never-stops"]
    why = {one.mode.name: one.why for one in found.unchecked}
    assert why["repetition"] == "the log has no text/repetition"
    assert why["reward-hacking"] == "nothing but the reward judges the answers: no truth, and no judge"
    assert why.keys() == {
        "kl-blow-up", "ratio-not-one", "nothing-moves", "ratio-spikes", "bad-critic", "reward-hacking", "repetition",
        "empty-answers", "entropy-out-of-bounds", "sampler-differs",
    }  # fmt: skip


def test_a_log_too_short_for_an_interval_is_said_to_be() -> None:
    found = diagnosed(log(steps=4))
    assert not found.findings
    assert {one.mode.name for one in found.unchecked} == {
        "nothing-moves", "kl-blow-up", "repetition", "never-stops", "empty-answers", "entropy-out-of-bounds",
        "groups-without-signal",
    }  # fmt: skip


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
    chosen = diagnosed(log({"objective/kl": kl(0.1, -0.5)}, resample=3))
    assert not chosen.findings
    assert [one.mode.name for one in chosen.unchecked] == ["negative-kl"]


def test_a_log_that_begins_later_says_nothing_of_the_start() -> None:
    lines = [MetricsLine(step, 0.0, {"objective/kl": 2.0}) for step in range(10, 20)]
    found = diagnosed(Log.of("ppo", "ppo", lines, foreign=True))
    assert "kl-before-training" not in named(found)
    assert "the log begins at step 10" in {one.why for one in found.unchecked}


def test_metrics_with_gaps_are_compared_where_both_are_known() -> None:
    shorter = log({"objective/kl": [0.0, *[40.0] * (STEPS - 1)]})
    entropy = shorter.series["objective/entropy"]
    gap = type(entropy)(entropy.name, entropy.steps[::2], entropy.values[::2])
    found = diagnosed(Log("group", "group", {**shorter.series, "objective/entropy": gap}))
    assert named(found) == ["kl-blow-up"]


def test_every_mode_has_a_page_that_says_its_title() -> None:
    pages = Path(__file__).parents[3] / "docs" / "doctor"
    for mode in {mode for detector in OURS for mode in detector.modes}:
        page = (pages / f"{mode.name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {mode.title}\n")
        assert len(page.splitlines()) <= 40


def test_every_fault_is_of_a_mode_that_is_looked_for_and_every_mode_has_one() -> None:
    assert {fault.mode for fault in trial.FAULTS} == {mode.name for one in OURS for mode in one.modes}


CHEAP = ("broken-groups", "kl-before-training", "groups-without-signal", "negative-kl")


@pytest.mark.parametrize("fault", [one for one in trial.FAULTS if one.mode in CHEAP], ids=lambda fault: fault.mode)
def test_the_doctor_names_an_injected_fault_first(fault: trial.Fault, tmp_path: Path) -> None:
    assert examine(fault.evidence(tmp_path)).causes[0].mode.name == fault.mode


@pytest.mark.parametrize("kind", ["ppo", "group"])
def test_a_healthy_run_of_the_toy_task_is_green(kind: str, tmp_path: Path) -> None:
    found = examine(trial.run(tmp_path, kind, iterations=20 if kind == "group" else 8))
    assert found.verdict == "green", json.dumps([finding.evidence for finding in found.findings])
