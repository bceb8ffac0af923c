"""Groups without a signal are a cause, unless a group is one answer."""

from __future__ import annotations

from tests.unit.doctor.policy_log import diagnosed, log, named

from assay.doctor.finding import Diagnosis


def test_groups_without_any_signal_are_the_cause_of_a_policy_that_stands_still() -> None:
    found = diagnosed(log({"objective/groups_without_signal": 1.0, "policy/grad_norm": 0.0}))
    assert named(found) == ["groups-without-signal", "nothing-moves"]
    assert [cause.severity for cause in found.causes] == ["red"]
    assert found.findings[1].explanation.startswith("flat-reward: ")
    assert found.findings[0].change == {}, "new prompts would be drawn for ever"
    some = diagnosed(log({"objective/groups_without_signal": 0.7}))
    assert some.causes[0].change == {"group.resample": 3}


def test_a_group_of_one_has_no_signal_of_its_own_and_needs_none() -> None:
    assert diagnosed(log({"objective/groups_without_signal": 1.0}, group_size=1)) == Diagnosis()
