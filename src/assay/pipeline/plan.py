"""What a run would do: data counts, parameters, steps, memory and time. Nothing is trained, nothing written.

Parameters are exact: the models are built without storage. Memory and time are estimates: cost.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.data.prepared import Prepared
from assay.errors import UsageError
from assay.pipeline import environment
from assay.pipeline.artifacts import Store, resumable
from assay.pipeline.inputs import check_counts, counts, prepare
from assay.pipeline.recipe import NamedRecipe
from assay.pipeline.runner import Request, selected
from assay.pipeline.steps import Step
from assay.stages.config import (
    BestOfConfig,
    DistillConfig,
    PreferenceConfig,
    PretrainConfig,
    RewardConfig,
    SamplingStageConfig,
    SFTConfig,
)

if TYPE_CHECKING:
    from assay.pipeline.cost import Estimate, Estimator

CHARACTERS_PER_TOKEN = 4
ALLOWED = 1.1
"""An estimate may be this much above what there is before a run is refused: it may be too high by as much."""


def plan(named: NamedRecipe, request: Request) -> dict[str, Any]:
    """What `assay run --dry-run` prints: {"run", "dir", "data": counts, "stages": [...], "memory_mb", "wall_s"}.

    UsageError where a stage would not fit into the memory there is.
    """
    steps = selected(named, request, fetch=False)
    store = Store(Path(named.recipe.runs_dir))
    found = store.get(steps[0].identity.id)
    data = Prepared.load(found.folder) if found else prepare(named.recipe.data, steps[0].identity.seed)
    check_counts(counts(data), steps)
    estimator = check_memory(named, steps, store, data)
    stages = [_stage(step, store, data, estimator) for step in steps if step.node is not None]
    return {
        "run": named.run_dir.name,
        "dir": str(named.run_dir),
        "data": {"artifact": steps[0].identity.id, "state": _state(steps[0], store), **counts(data)},
        "stages": stages,
        "memory_mb": max((stage["memory_mb"] for stage in stages if stage["memory_mb"]), default=None),
        "wall_s": round(sum(stage["wall_s"] or 0 for stage in stages if stage["state"] != "exists"), 1),
    }


@dataclass(frozen=True, slots=True)
class Need:
    """What a stage still to make would take, and where that is too much, settings with which it would fit."""

    step: Step
    estimate: Estimate
    there_mb: float
    change: Mapping[str, str] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.estimate.memory_mb <= self.there_mb * ALLOWED


def estimator_of(named: NamedRecipe, steps: Sequence[Step], data: Prepared) -> Estimator:
    """The estimator of these steps on the recipe's device."""
    from assay.pipeline.cost import Estimator

    device = environment.device(named.recipe.device)
    return Estimator(
        {step.id: step for step in steps},
        data,
        named.recipe.model.template,
        device=device,
    )


def memory_needs(estimator: Estimator, store: Store) -> Iterator[Need]:
    """Of every stage still to make whose model is here."""
    there = environment.memory_mb(estimator.device)
    to_make = [
        (step, optimizer_steps(step.node.config, estimator.data))
        for step in estimator.steps.values()
        if step.node is not None and not store.get(step.identity.id)
    ]
    estimator.to_make = [step.id for step, _ in to_make]
    for step, count in to_make:
        estimator.of(step, count)
    if not estimator.device.startswith("cuda"):
        estimator.count_process()
    for step, count in to_make:
        if estimate := estimator.of(step, count):
            need = Need(step, estimate, there)
            yield need if need.fits else replace(need, change=estimator.that_fits(step, count, there))


def check_memory(named: NamedRecipe, steps: Sequence[Step], store: Store, data: Prepared) -> Estimator:
    """UsageError, before any model is loaded, for the stages still to make that would not fit, with what would."""
    estimator = estimator_of(named, steps, data)
    short = [need for need in memory_needs(estimator, store) if not need.fits]
    if short:
        needs = (f"{need.step.id} would need about {need.estimate.memory_mb:,.0f} MB of memory" for need in short)
        changes = " ".join(f"{key}={value}" for need in short for key, value in need.change.items())
        hopeless = " and ".join(need.step.id for need in short if not need.change)
        hints = [f"this would fit: {changes}"] if changes else []
        hints += [f"{hopeless} would fit a larger machine, or a smaller model"] if hopeless else []
        raise UsageError(f"{', '.join(needs)}, and there are {short[0].there_mb:,.0f} MB", hint="; ".join(hints))
    return estimator


def _stage(step: Step, store: Store, data: Prepared, estimator: Estimator) -> dict[str, Any]:
    assert step.node is not None
    count = optimizer_steps(step.node.config, data)
    estimate = estimator.of(step, count, timed=True)
    return {
        "id": step.id,
        "kind": step.node.kind,
        "artifact": step.identity.id,
        "state": _state(step, store),
        "steps": count,
        "parameters": estimate.parameters if estimate else None,
        "trained": estimate.trained if estimate else None,
        "memory_mb": round(estimate.memory_mb) if estimate else None,
        "step_s": estimate.step_s if estimate else None,
        "wall_s": estimate.wall_s if estimate else None,
    }


def _state(step: Step, store: Store) -> str:
    if store.get(step.identity.id):
        return "exists"
    return "resumes" if resumable(store.partial(step.identity.id)) else "new"


def optimizer_steps(config: Any, data: Prepared) -> int:
    """Optimizer steps of a stage, rows that will not fit the context still counted; 0 where nothing is trained."""
    if isinstance(config, SamplingStageConfig):
        return config.iterations * config.updates
    if isinstance(config, BestOfConfig):
        return config.rounds * config.epochs * math.ceil(config.prompts / config.batch_size)
    if isinstance(config, DistillConfig):
        return max(1, config.sequences // config.batch_size)
    if isinstance(config, RewardConfig):
        from assay.stages.comparisons import to_learn

        items = data.steps.train if config.steps else to_learn(data, tuple(config.objectives))
        rows = 0 if config.trained else len(items) // config.part[1]
    elif isinstance(config, SFTConfig):
        rows = len(data.demonstrations.train)
    elif isinstance(config, PreferenceConfig):
        answers = 1 if config.paired else 2
        if config.rounds:
            return config.rounds * config.epochs * math.ceil(config.round_prompts * answers / config.batch_size)
        rows = len(data.preferences.train) * answers + (0 if config.paired else len(data.verdicts.train))
        rows //= config.part[1]
    elif isinstance(config, PretrainConfig):
        from assay.stages.pretrain import training_dialogues

        tokens = [len(text) / CHARACTERS_PER_TOKEN for text in data.text or training_dialogues(data)]
        rows = round((1 - config.validation_share) * sum(math.ceil(n / config.max_length) for n in tokens))
    else:
        return 0
    return config.epochs * math.ceil(rows / config.batch_size)
