"""A policy's log as a whole: detectors on both sides of their thresholds, faults from the run to the diagnosis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.doctor_trial import faults_policy as trial
from tests.unit.doctor.policy_log import HEALTHY, OURS, Column, diagnosed, kl_from_0, late, log, named, only, ramp, wave

from assay.doctor.detector import examine
from assay.doctor.finding import Diagnosis
from assay.doctor.outcome import REWARD_FALLS


@pytest.mark.parametrize("kind", ["ppo", "group"])
def test_a_healthy_log_is_green_and_all_of_it_is_checked(kind: str) -> None:
    assert diagnosed(log(kind=kind)) == Diagnosis()


CASES: list[tuple[str, dict[str, Column], dict[str, Column]]] = [
    # KL
    ("negative-kl", {"objective/kl": kl_from_0(0.1, -0.02)}, {"objective/kl": kl_from_0(0.1, -0.01)}),
    ("negative-kl", {"objective/kl": [0.0, *[-0.02] * 6, *[0.5] * 17]}, {"objective/kl": [0.0, -0.05, *[0.5] * 22]}),
    ("kl-before-training", {"objective/kl": [0.03, *ramp(0.04, 3.4)]}, {"objective/kl": [0.01, *ramp(0.04, 3.4)]}),
    ("kl-blow-up", {"objective/kl": kl_from_0(1.0, 40.0)}, {"objective/kl": kl_from_0(1.0, 20.0)}),
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
     {"objective/entropy": late(0.5, 0.08), "lengths/response_mean": 10.0}),  # what it became sure of pays
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
]  # fmt: skip  # fmt: skip


@pytest.mark.parametrize(("mode", "ill", "well"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)])
def test_a_detector_speaks_on_one_side_of_its_threshold_and_is_silent_on_the_other(
    mode: str, ill: dict[str, Column], well: dict[str, Column]
) -> None:
    assert only(diagnosed(log(ill))).mode.name == mode
    assert diagnosed(log(well)).verdict == "green"


def test_a_blow_up_is_explained_by_the_jumps_that_led_to_it_and_explains_what_follows() -> None:
    far: dict[str, Column] = {"objective/kl": kl_from_0(1.0, 60.0), "lengths/truncated": late(0.0, 0.9)}
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


def test_every_mode_has_a_page_that_says_its_title() -> None:
    pages = Path(__file__).parents[3] / "docs" / "doctor"
    for mode in {mode for detector in OURS for mode in detector.modes}:
        page = (pages / f"{mode.name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {mode.title}\n")
        assert len(page.splitlines()) <= 40


def test_every_fault_is_of_a_mode_that_is_looked_for_and_every_mode_has_one() -> None:
    looked_for = {mode.name for one in OURS for mode in one.modes}
    assert {fault.mode for fault in trial.FAULTS} == {
        *looked_for,
        REWARD_FALLS.name,
    }


CHEAP = ("broken-groups", "kl-before-training", "groups-without-signal", "negative-kl")


@pytest.mark.parametrize("fault", [one for one in trial.FAULTS if one.mode in CHEAP], ids=lambda fault: fault.mode)
def test_the_doctor_names_an_injected_fault_first(fault: trial.Fault, tmp_path: Path) -> None:
    assert examine(fault.evidence(tmp_path)).causes[0].mode.name == fault.mode


@pytest.mark.parametrize("kind", ["ppo", "group"])
def test_a_healthy_run_of_the_toy_task_is_green(kind: str, tmp_path: Path) -> None:
    found = examine(trial.run(tmp_path, kind, iterations=20 if kind == "group" else 8))
    assert found.verdict == "green", json.dumps([finding.evidence for finding in found.findings])
