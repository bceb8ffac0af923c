"""Data that do not fit a reward stage are refused before any stage starts."""

from __future__ import annotations

import pytest

from assay.data.prepared import Prepared, Splits
from assay.pipeline.inputs import counts, needs
from assay.pipeline.plan import optimizer_steps
from assay.stages.config import RewardConfig
from assay.types import JudgedSteps, Preference, Prompt, Ranking

ASK = Prompt.ask("a")


def missing(data: Prepared, **settings: object) -> list[str]:
    """What the stage would lack."""
    made = counts(data)
    return [need for need in needs(RewardConfig.model_validate(settings)) if not made.get(need)]


def asked(*objectives: str) -> Prepared:
    pairs = [Preference(ASK, "b", "c", objective=name) for name in objectives]
    return Prepared(preferences=Splits(pairs, pairs, pairs))


@pytest.mark.parametrize(
    ("data", "settings", "lacking"),
    [
        (asked(""), {}, []),
        (asked("helpful"), {}, []),
        (asked("helpful"), {"objectives": {"helpful": 1.0}}, []),
        (asked("helpful"), {"steps": "min"}, ["steps_train", "steps_validation", "steps_test"]),
        (Prepared(), {"trained": True, "base": "./m"}, ["preferences_validation", "preferences_test"]),
        (
            asked("helpful"),
            {"objectives": {"helpful": 1.0, "harmless": 1.0}},
            ["preferences_harmless_train", "preferences_harmless_validation", "preferences_harmless_test"],
        ),
    ],
)
def test_a_reward_stage_needs_what_its_settings_learn_from(
    data: Prepared, settings: dict[str, object], lacking: list[str]
) -> None:
    assert missing(data, **settings) == lacking


def test_a_dry_run_counts_rankings_whole_and_pairs_of_the_objectives_alone() -> None:
    ranking = Ranking(ASK, ("b", "c", "d"))
    pairs = [Preference(ASK, "b", "c"), Preference(ASK, "b", "d"), Preference(ASK, "c", "d"), Preference(ASK, "x", "y")]
    data = Prepared(
        preferences=Splits(pairs), rankings=Splits([ranking]), steps=Splits([JudgedSteps(ASK, ("b",), (True,))] * 5)
    )
    assert optimizer_steps(RewardConfig(batch_size=1), data) == 2
    assert optimizer_steps(RewardConfig(batch_size=1, steps="min"), data) == 5
    assert optimizer_steps(RewardConfig(batch_size=1, objectives={"helpful": 1.0}), asked("helpful", "harmless")) == 1
