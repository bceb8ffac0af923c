"""Data that do not fit a distillation are refused before any stage starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.pipeline.fakes import Fakes, workplace

from assay.errors import DataError
from assay.pipeline.inputs import needs
from assay.pipeline.recipe import load_recipe
from assay.pipeline.runner import run
from assay.stages.config import DistillConfig

SHOWN, ASKED = "demonstrations_train", "prompts_train"


@pytest.mark.parametrize(
    ("settings", "learned_from"),
    [
        ({}, {SHOWN, ASKED}),
        ({"on_policy": 0.0}, {SHOWN}),
        ({"on_policy": 0.01, "batch_size": 8}, {SHOWN}),  # no sequence of 8 is its own
        ({"on_policy": 1.0}, {ASKED}),
        ({"on_policy": 0.0, "off_policy": "teacher"}, {ASKED}),
        ({"on_policy": 0.5, "off_policy": "teacher"}, {ASKED}),
    ],
)
def test_a_distillation_needs_what_its_settings_learn_from(settings: dict[str, object], learned_from: set[str]) -> None:
    assert set(needs(DistillConfig.model_validate(settings))) == {*learned_from, "prompts_test"}


def test_a_distillation_without_demonstrations_is_one_error_before_any_model(tmp_path: Path) -> None:
    recipe = workplace(tmp_path)
    text, model = recipe.read_text(), tmp_path / "model"
    recipe.write_text(text[: text.index("  - sft")] + f"  - distill: {{teacher: {model}, base: {model}}}\n")
    rows = [{"prompt": f"Question {n} about thing {n}?"} for n in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stages = Fakes()
    with pytest.raises(DataError, match="distill needs demonstrations"):
        run(load_recipe(str(recipe), (), {}), stages.request())
    assert stages.called == []
    run(load_recipe(str(recipe), ("distill.on_policy=1",), {}), stages.request())
    assert stages.called == ["distill"]
