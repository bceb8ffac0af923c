"""`seeds: 3` runs a stage three times, under names and seeds of its own, and only that."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.errors import ConfigError
from assay.pipeline.recipe import load_recipe
from assay.pipeline.steps import steps

RECIPE = """
model: embedded
data: {world: frontdesk}
stages:
  - sft: {}
  - reward: {}
  - ppo: {seeds: 3}
  - group: {id: fixed, seeds: 2, seed: 7}
  - evaluate: {}
"""


def recipe(folder: Path, text: str = RECIPE) -> str:
    path = folder / "several.yaml"
    path.write_text(text)
    return str(path)


def test_every_seed_is_a_stage_of_its_own(tmp_path: Path) -> None:
    named = load_recipe(recipe(tmp_path), [], {})
    assert [node.id for node in named.graph] == [
        "sft", "reward", "ppo-1", "ppo-2", "ppo-3", "fixed-1", "fixed-2", "evaluate",
    ]  # fmt: skip
    compared = [source.name for source in named.graph[-1].inputs["policies"]]
    assert compared == ["sft", "ppo-1", "ppo-2", "ppo-3", "fixed-1", "fixed-2"]
    made = {step.id: step.identity.seed for step in steps(named, {node.id for node in named.graph})}
    assert len({made["ppo-1"], made["ppo-2"], made["ppo-3"]}) == 3
    assert (made["fixed-1"], made["fixed-2"]) == (7, 8)


def test_a_setting_on_the_command_line_reaches_every_seed_and_the_resolved_recipe_is_the_same_again(
    tmp_path: Path,
) -> None:
    named = load_recipe(recipe(tmp_path), ["ppo.kl_coef=0.3"], {})
    assert [node.config.kl_coef for node in named.graph if node.kind == "ppo"] == [0.3] * 3  # type: ignore[union-attr]
    again = load_recipe(recipe(tmp_path, named.recipe.yaml()), [], {})
    assert again.graph == named.graph


def test_a_name_that_stands_for_several_stages_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='no stage "ppo" above') as error:
        load_recipe(recipe(tmp_path, RECIPE.replace("evaluate: {}", "evaluate: {policies: [sft, ppo]}")), [], {})
    assert "ppo-" in str(error.value) + str(error.value.hint)
