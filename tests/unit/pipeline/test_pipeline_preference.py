"""Data that do not fit a preference stage are refused before any stage starts, with the method that fits them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.pipeline.fakes import Fakes, workplace

from assay.data.prepared import Prepared, Splits
from assay.errors import DataError
from assay.pipeline import runner
from assay.pipeline.plan import optimizer_steps
from assay.pipeline.recipe import load_recipe
from assay.stages.config import PreferenceConfig
from assay.types import Preference, Prompt, Verdict


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Answers judged one by one, and a recipe that would learn from pairs."""
    path = workplace(tmp_path)
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}.", "label": n % 2 == 0} for n in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = path.read_text()
    path.write_text(text[: text.index("  - reward")] + "  - preference\n")
    return path


def test_single_verdicts_for_a_method_of_pairs_are_one_error_that_names_kto(recipe: Path) -> None:
    fakes = Fakes()
    with pytest.raises(DataError, match="preference needs preferences") as error:
        runner.run(load_recipe(str(recipe), (), {}), fakes.request())
    assert "preference.method=kto" in error.value.hint
    assert fakes.called == []


def test_kto_takes_single_verdicts(recipe: Path) -> None:
    fakes = Fakes()
    runner.run(load_recipe(str(recipe), ("preference.method=kto",), {}), fakes.request())
    assert fakes.called == ["sft", "preference"]
    data = fakes.inputs["preference"].data
    assert len(data.verdicts) == 30
    assert len(data.preferences) == 0


def test_a_dry_run_counts_the_optimizer_steps_of_every_form() -> None:
    prompt = Prompt.ask("a")
    pairs, verdicts = Splits([Preference(prompt, "b", "c")] * 100), Splits([Verdict(prompt, "b", True)] * 60)
    data = Prepared(preferences=pairs, verdicts=verdicts)
    steps = {
        name: optimizer_steps(PreferenceConfig.model_validate({"batch_size": 32, "epochs": 2, **changes}), data)
        for name, changes in {
            "pairs": {},
            "kto": {"method": "kto"},
            "rounds": {"rounds": 3, "round_prompts": 40, "reward": "r"},
        }.items()
    }
    assert steps == {"pairs": 2 * 4, "kto": 2 * 9, "rounds": 3 * 2 * 2}  # 100, 2·100 + 60, and 40 rows in batches of 32
