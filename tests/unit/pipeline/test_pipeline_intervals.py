"""The intervals that stages are given: of means, and of shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.data.prepared import Prepared
from assay.pipeline.evaluators import Evaluators
from assay.pipeline.recipe import load_recipe
from assay.pipeline.runner import run

from .fakes import Fakes, workplace

EVALUATORS = Evaluators(Prepared(), 0)


def test_a_share_has_wilsons_interval_even_where_all_outcomes_are_alike():
    assert EVALUATORS.share("right", [1.0] * 30 + [0.0] * 10) == {
        "right": 0.75,
        "right_low": pytest.approx(0.5981, abs=1e-4),  # 40 outcomes, z = 1.96
        "right_high": pytest.approx(0.8581, abs=1e-4),
    }
    assert EVALUATORS.share("right", [1.0] * 10)["right_low"] == pytest.approx(0.7225, abs=1e-4)  # 10/(10 + z²)


def test_outcomes_that_come_in_groups_say_less():
    alone = EVALUATORS.share("right", [1.0, 0.0] * 20)
    together = EVALUATORS.share("right", [1.0] * 20 + [0.0] * 20, [n // 5 for n in range(40)])
    widths = [report["right_high"] - report["right_low"] for report in (together, alone)]  # pyright: ignore
    assert widths[0] > 1.5 * widths[1]


def test_every_stage_is_given_intervals(tmp_path: Path):
    stages = Fakes()
    run(load_recipe(str(workplace(tmp_path)), (), {}), stages.request())
    for inputs in stages.inputs.values():
        assert set(inputs.mean("kl", [1.0, 2.0, 4.0])) == {"kl", "kl_low", "kl_high"}
        assert inputs.share("right", [1.0, 0.0])["right_low"] is not None
