"""What a stage is given: the prepared data, the models its roles name, and evaluators bound to the data's truth."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay import rng
from assay.config import Config
from assay.data.config import FileData
from assay.data.prepared import PURPOSES
from assay.errors import DataError
from assay.models.config import Template
from assay.pipeline.artifacts import code_hash
from assay.pipeline.graph import Source
from assay.pipeline.recipe import NamedRecipe
from assay.pipeline.steps import Step
from assay.stages.config import AnyStage
from assay.worlds.config import WorldData

if TYPE_CHECKING:
    from assay.data.prepared import Prepared
    from assay.rewards import RewardFn
    from assay.stages.context import StageInputs


NEEDS = {
    "pretrain": ("text or demonstrations_train or preferences_train",),
    "sft": ("demonstrations_train",),
    "ppo": ("prompts_train", "prompts_validation", "prompts_test"),
    "group": ("prompts_train", "prompts_validation", "prompts_test"),
    "bestof": ("prompts_train", "prompts_validation", "prompts_test"),
    "evaluate": ("prompts_validation", "prompts_test"),
}
"""What a kind of stage cannot do without; where that depends on its settings, `needs` knows."""


def prepare(data: Config, seed: int, scratch: Path | None = None) -> Prepared:
    """The data a recipe names, cleaned and split, or made by a world; `scratch` is for files on the way."""
    if isinstance(data, WorldData):
        from assay.worlds.prepare import prepare_world

        return prepare_world(data, seed)
    from assay.data.prepare import prepare_files

    assert isinstance(data, FileData)
    return prepare_files(data, seed, scratch)


def make_data(data: Config, seed: int, folder: Path, steps: Sequence[Step]) -> dict[str, Any]:
    """Write the prepared data into `folder`; returns its counts, e.g. {"preferences_train": 8000}.

    Raises DataError, before anything is left there, when one of the steps would find nothing to work on.
    """
    prepared = prepare(data, seed, folder)
    made = counts(prepared)
    check_counts(made, steps)
    prepared.save(folder)
    return made


def check_counts(made: Mapping[str, Any], steps: Sequence[Step]) -> None:
    """DataError naming every stage that has nothing to work on."""
    lacking = [
        f"{step.id} needs {' or '.join(map(_in_words, need.split(' or ')))}"
        for step in steps
        if step.node is not None
        for need in needs(step.node.config)
        if not any(made.get(count) for count in need.split(" or "))
    ]
    if lacking:
        hint = "name a source that has it, e.g. data.preferences.path=…; `assay data inspect` shows what a file has"
        unpaired = [step.id for step in steps if step.node and getattr(step.node.config, "paired", False)]
        if unpaired and made["verdicts_train"] and not made["preferences_train"]:
            hint = f"single verdicts have no pairs to compare; KTO learns from them: {unpaired[0]}.method=kto"
        objectives = [m[1] for name in made if (m := re.fullmatch(r"preferences_(.+)_test", name))]
        if objectives and " about " in lacking[0]:
            hint = f"the data name {', '.join(objectives)}; data.objectives or a column `objective` says what was asked"
        there = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in made.items() if n) or "nothing"
        raise DataError(
            f"the data lack what the recipe trains on: {'; '.join(dict.fromkeys(lacking))} (there is {there})",
            hint=hint,
        )


def _in_words(need: str) -> str:
    """preferences_kindness_test → preferences about kindness for test."""
    what, split = need.rsplit("_", 1)
    purpose, _, objective = what.partition("_")
    return purpose + f" about {objective}" * bool(objective) + f" for {split}" * (split != "train")


def needs(config: AnyStage) -> Sequence[str]:
    """What a stage with these settings cannot do without."""
    if config.kind == "reward":
        compared = [f"preferences_{name}" for name in config.objectives] or ["preferences"]
        purposes = ["steps"] if config.steps else compared
        splits = ("validation", "test") if config.trained else ("train", "validation", "test")
        return [f"{purpose}_{split}" for purpose in purposes for split in splits]
    if config.kind == "distill":
        shown = config.own < config.batch_size and config.off_policy == "demonstrations"
        sampled = config.own > 0 or config.off_policy == "teacher"
        return ("demonstrations_train",) * shown + ("prompts_train",) * sampled + ("prompts_test",)
    if config.kind != "preference":
        return NEEDS.get(config.kind, ())
    if config.rounds:
        return ("prompts_train", "prompts_test")
    return ("preferences_train" if config.paired else "preferences_train or verdicts_train", "prompts_test")


def counts(prepared: Prepared) -> dict[str, Any]:
    """How many items each purpose has in each split, and how many pairs were asked about each objective."""
    purposes = {name: getattr(prepared, name).counts() for name in PURPOSES}
    numbers = {f"{name}_{split}": n for name, splits in purposes.items() for split, n in splits.items()}
    asked = Counter(
        f"preferences_{pair.objective}_{split}"
        for split, pairs in prepared.preferences.items()
        for pair in pairs
        if pair.objective
    )
    return {**numbers, **asked, "text": len(prepared.text)}


def stage_inputs(
    named: NamedRecipe, step: Step, folders: Mapping[str, Path], data: Prepared, device: str
) -> StageInputs:
    """Inputs of a stage; `folders` are the artifacts of the steps made so far, by id."""
    from assay.data.split import part_of
    from assay.pipeline.evaluators import Evaluators
    from assay.stages.context import StageInputs
    from assay.worlds.world import load_world

    assert step.node is not None
    config = step.node.config
    sources = step.node.inputs
    model, place = named.recipe.model, named.recipe.data
    single = {role: _path(found[0], folders) for role, found in sources.items() if role != "policies"}
    judge = single.pop("judge", None)
    evaluators = Evaluators(
        data,
        rng.derive(step.identity.seed, "evaluation"),
        train=part_of(data.preferences.train, getattr(config, "part", (1, 1))),
        world=load_world(place.world) if isinstance(place, WorldData) else None,
        judge=_judge(judge, model.template, device) if judge else None,
        encoder=getattr(config, "encoder", None),
        device=device,
    )
    return StageInputs(
        data=data,
        template=model.template,
        policies={source.name: _path(source, folders) for source in sources.get("policies", ())},
        truth=evaluators.truth if evaluators.world else None,
        mean=evaluators.mean,
        share=evaluators.share,
        cache=Path(named.recipe.runs_dir) / "cache" / code_hash(),
        evaluate_preferences=evaluators.preferences,
        evaluate_policy=evaluators.policy,
        evaluate_policies=evaluators.policies if evaluators.judged_by else None,
        **{"base": model.path, **single},
    )


def report_of(folder: Path) -> dict[str, Any]:
    """The report of a data artifact."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def _path(source: Source, folders: Mapping[str, Path]) -> str:
    return source.name if source.outside else str(folders[source.name])


def _judge(path: str, template: Template, device: str) -> RewardFn:
    """A reward model that is loaded when it is first asked, and kept; it reads as much as it has positions for."""
    from assay.models.roles import load_reward_model
    from assay.rewards.learned import LearnedReward

    @cache
    def reward() -> LearnedReward:
        model = load_reward_model(path, trainable=False, template=template, max_length=sys.maxsize, device=device)
        return LearnedReward(model, batch_size=64)

    return lambda prompts, responses, finishes: reward()(prompts, responses, finishes)
