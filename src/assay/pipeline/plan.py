"""What a run would do: data counts, parameters, steps and an estimate of memory. Nothing is trained, nothing written.

Parameters are exact: the models are built without storage. Memory is an estimate, good to a factor of about two:

    process + 4 B × (weights held + gradients + 2 AdamW moments of what is trained) + activations of one forward pass
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.data.prepared import Prepared
from assay.pipeline.artifacts import Store, resumable
from assay.pipeline.inputs import check_counts, counts, prepare
from assay.pipeline.recipe import NamedRecipe
from assay.pipeline.runner import Request, selected
from assay.pipeline.steps import DATA, Step, is_hub_id
from assay.stages.config import (
    BestOfConfig,
    DistillConfig,
    EvaluateConfig,
    PPOConfig,
    PreferenceConfig,
    PretrainConfig,
    RewardConfig,
    SamplingStageConfig,
    SFTConfig,
    TrainingConfig,
)

PROCESS_MB = 450
"""Resident size of Python with torch and transformers loaded."""
FLOATS_PER_ACTIVATION = 16
"""Floats that a transformer block keeps for the backward pass, per token and unit of width."""
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Size:
    """A model: its parameters, those an optimizer would change, and what activations depend on."""

    parameters: int
    trained: int
    layers: int
    width: int


def plan(named: NamedRecipe, request: Request) -> dict[str, Any]:
    """What `assay run --dry-run` prints: {"run", "dir", "data": counts, "stages": [...], "memory_mb"}."""
    steps = selected(named, request, fetch=False)
    store = Store(Path(named.recipe.runs_dir))
    found = store.get(steps[0].identity.id)
    data = Prepared.load(found.folder) if found else prepare(named.recipe.data, steps[0].identity.seed)
    check_counts(counts(data), steps)
    nodes = {step.id: step for step in steps}
    stages = [_stage(step, nodes, store, data) for step in steps if step.id != DATA]
    known = [stage["memory_mb"] for stage in stages if stage["memory_mb"]]
    return {
        "run": named.run_dir.name,
        "dir": str(named.run_dir),
        "data": {"artifact": steps[0].identity.id, "state": _state(steps[0], store), **counts(data)},
        "stages": stages,
        "memory_mb": max(known, default=None),
    }


def _stage(step: Step, steps: Mapping[str, Step], store: Store, data: Prepared) -> dict[str, Any]:
    assert step.node is not None
    config = step.node.config
    size = model_size(step, steps)
    return {
        "id": step.id,
        "kind": step.node.kind,
        "artifact": step.identity.id,
        "state": _state(step, store),
        "steps": optimizer_steps(config, data),
        "parameters": size.parameters if size else None,
        "trained": size.trained if size else None,
        "memory_mb": round(memory_mb(config, size)) if size else None,
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


def memory_mb(config: Any, size: Size) -> float:
    """The estimate of this file's head, in MB."""
    copies = 1
    if isinstance(config, SamplingStageConfig) and config.lora is None:
        copies = 4 if isinstance(config, PPOConfig) else 3
    if isinstance(config, PreferenceConfig) and config.lora is None:
        copies = 2
    if isinstance(config, BestOfConfig):
        copies = 3 if config.rounds and config.lora is None else 2
    if isinstance(config, DistillConfig):
        copies = 2
    roles = 2 if isinstance(config, PPOConfig) else 1
    tokens = config.max_length * (getattr(config, "micro_batch_size", None) or config.batch_size)
    per_token = 0 if size.trained == 0 else FLOATS_PER_ACTIVATION * size.width * size.layers
    if isinstance(config, TrainingConfig) and config.gradient_checkpointing:
        per_token = size.width * (size.layers + FLOATS_PER_ACTIVATION)
    floats = copies * size.parameters + 3 * roles * size.trained + tokens * per_token
    return PROCESS_MB + 4 * floats / 1e6


def model_size(step: Step, steps: Mapping[str, Step]) -> Size | None:
    """Size of the model a stage trains or reads, built on torch's meta device; None if the hub cannot be asked."""
    import torch

    assert step.node is not None
    config = step.node.config
    with torch.device("meta"):
        model = _skeleton(step, steps, classifier=isinstance(config, RewardConfig))
        if model is None:
            return None
        parameters = trained = model.num_parameters()
        lora = getattr(config, "lora", None)
        if lora is not None:
            trained = _adapter_parameters(model, lora)
        elif isinstance(config, EvaluateConfig) or not config.leaves_model or getattr(config, "trained", False):
            trained = 0
    shape = model.config.get_text_config()
    return Size(parameters, trained, shape.num_hidden_layers, shape.hidden_size)


def _skeleton(step: Step, steps: Mapping[str, Step], *, classifier: bool) -> Any:
    """The model without storage: from scratch, like its base, or from the config of a model outside."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    from assay.models.locate import locate
    from assay.models.scratch import new_model

    assert step.node is not None
    config = step.node.config
    if isinstance(config, PretrainConfig):
        shape = {name: getattr(config, name) for name in ("layers", "width", "heads", "max_length")}
        return new_model(config.architecture, **shape, tokenizer=_Vocabulary(config.vocabulary), seed=0)
    source = (step.node.inputs.get("base") or step.node.inputs["policies"])[0]
    if not source.outside:
        return _skeleton(steps[source.name], steps, classifier=classifier)
    try:
        found = AutoConfig.from_pretrained(source.name if is_hub_id(source.name) else locate(source.name))
    except OSError:
        return None
    if classifier:
        found.num_labels = 1
    return (AutoModelForSequenceClassification if classifier else AutoModelForCausalLM).from_config(found)


def _adapter_parameters(model: Any, lora: Any) -> int:
    from assay.models.adapters import Adapters

    adapters = Adapters(model)
    adapters.add("plan", lora, seed=0, dropout=False)
    return sum(parameter.numel() for parameter in adapters.parameters("plan").values())


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """As much of a tokenizer as a model's shape depends on."""

    size: int
    pad_token_id: int = 0
    eos_token_id: int = 1

    def __len__(self) -> int:
        return self.size
