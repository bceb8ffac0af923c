"""Why nothing moves, what is a jump, and when a critic is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.doctor.policy_log import Column, diagnosed, log, only, wave

from assay.doctor.finding import Diagnosis
from assay.doctor.log import Log
from assay.doctor.read import read
from assay.tracking.metrics import MetricsLine


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


def test_a_clip_that_is_meant_to_cut_many_tokens_is_no_spike() -> None:
    cut: dict[str, Column] = {"policy/clipfrac_avg": 0.45}
    assert diagnosed(log(cut, ratio="sequence", clip=3e-4)) == Diagnosis()
    found = only(diagnosed(log(cut, ratio="token", clip=0.2, optim={"learning_rate": 1e-4})))
    assert (found.mode.name, found.change) == ("ratio-spikes", {"group.optim.learning_rate": 1e-5})


@pytest.mark.parametrize(
    ("jumps", "steps", "severity"),
    [(1, 24, "amber"), (2, 24, "red"), (6, 24, "red"), (1, 2000, "amber"), (2, 2000, "amber")],
)
def test_one_jump_is_told_and_only_a_repeated_one_is_held_against_a_run(jumps: int, steps: int, severity: str) -> None:
    def spiky(calm: float, jump: float) -> list[float]:
        return [jump] * jumps + [calm] * (steps - jumps)

    lines = [
        MetricsLine(step, 0.0, {"policy/clipfrac_avg": cut, "policy/approxkl_avg": drift})
        for step, (cut, drift) in enumerate(zip(spiky(0.01, 0.2), spiky(0.003, 0.6), strict=True), start=1)
    ]
    found = only(diagnosed(Log.of("ppo", "ppo", lines)))
    assert (found.mode.name, found.severity) == ("ratio-spikes", severity)
    assert f"{jumps} of {steps} steps" in found.evidence


def test_rewards_that_are_all_alike_explain_a_policy_that_jumps_and_a_still_one_does_not() -> None:
    spikes: dict[str, Column] = {"policy/clipfrac_avg": 0.5}
    flat = diagnosed(log({**spikes, "objective/reward_std": 0.0}))
    still = diagnosed(log({**spikes, "policy/update_rms": 0.0}))
    assert [one.mode.name for one in flat.causes] == ["nothing-moves"]
    assert {one.mode.name for one in still.causes} == {"nothing-moves", "ratio-spikes"}


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


def test_a_sampler_that_differs_is_told_by_the_summary_where_the_log_is_gone(tmp_path: Path) -> None:
    for kl, found in ((2e-3, [("sampler-differs", "red")]), (2e-4, [])):
        metrics = {"sampler_kl": kl, "sampler_error": 0.5}
        stages = {"aligned": {"kind": "ppo", "artifact": "ppo-1", "metrics": metrics}}
        (tmp_path / "summary.json").write_text(json.dumps({"stages": stages}))
        given = diagnosed(*read(tmp_path).logs)
        assert [(one.mode.name, one.severity) for one in given.findings] == found
        assert "sampler-differs" not in {one.mode.name for one in given.unchecked}


@pytest.mark.parametrize(
    ("error", "config", "found"),
    [
        (1.1, {}, [("sampler-differs", "amber")]),
        (0.9, {}, []),
        (1.1, {"rollout_weights": "int8"}, []),
    ],
)
def test_single_tokens_that_sampler_and_trainer_read_otherwise_are_in_the_report_alone(
    error: float, config: dict[str, Any], found: list[tuple[str, str]]
) -> None:
    given = diagnosed(log(final={"sampler_kl": 1e-12, "sampler_error": error}, **config))
    assert [(one.mode.name, one.severity) for one in given.findings] == found


def test_a_policy_that_does_not_begin_as_its_reference_is_no_sampler_that_differs() -> None:
    apart = log({"objective/kl": 2.0}, final={"sampler_kl": 1e-12, "sampler_error": 9.0})
    assert "sampler-differs" not in {one.mode.name for one in diagnosed(apart).findings}
