"""What a stage will take: peak memory, seconds per optimizer step, seconds in all; and what to change if it cannot fit.

    memory   process + weights of every role + moments of what is trained + the largest of what comes and goes:
             gradients and activations of a micro-batch, key-value cache and logits, a checkpoint in the making
    time     Σ over the stage's tasks of counts × rates measured now, on this machine, at the model's own width

Counts are of the data's own rows (workload.py); bytes and rates are of the code that will run (rehearsal.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from assay.data.prepared import Prepared
from assay.data.render import Renderer
from assay.models.config import LoraConfig, Template
from assay.pipeline.architecture import Architectures
from assay.pipeline.graph import Node
from assay.pipeline.rehearsal import MAPPED, Model, Rates, held, taken
from assay.pipeline.steps import Step
from assay.pipeline.workload import Decode, Pass, Role, Task, Work, Workload
from assay.stages.config import (
    BestOfConfig,
    DistillConfig,
    EvaluateConfig,
    PPOConfig,
    PreferenceConfig,
    SamplingStageConfig,
    TrainingConfig,
)

MB = 2**20
REPORT_MB = 85
"""scikit-learn and what it imports, which the baselines in a reward model's report are made with; measured."""
MOMENTS = 2
"""AdamW keeps two numbers for each that it changes."""
CACHES = 2
"""The engine holds the old key-value cache beside the new one while rows come and go."""
DRAWN = 4
"""Tensors of [rows, vocabulary] alive when a token is drawn: the product, logits, their differences, weights."""
CHOICES: tuple[tuple[str, Any], ...] = (
    ("micro_batch_size", 8),
    ("micro_batch_size", 1),
    ("decode_batch", 16),
    ("gradient_checkpointing", True),
    ("lora", LoraConfig()),
    ("max_length", 128),
)
"""Settings that take memory away, those that change the result least first."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one stage. Seconds are None where nothing was timed."""

    parameters: int
    trained: int
    memory_mb: float
    step_s: float | None = None
    wall_s: float | None = None


class Estimator:
    """Estimates for the stages of one run; what they have in common is looked at once."""

    def __init__(
        self, steps: Mapping[str, Step], data: Prepared, template: Template, *, device: str, process_mb: float
    ) -> None:
        self.steps, self.data = steps, data
        self.template: Template = template
        self.device, self.process_mb = device, process_mb
        self.architectures = Architectures(steps, data)
        self._models: dict[Any, Model] = {}
        self._works: dict[Any, Work] = {}
        self._held: dict[Any, int] = {}
        self._rates: dict[Any, Rates] = {}

    def of(self, step: Step, count: int, *, config: Any = None, timed: bool = False) -> Estimate | None:
        """With `count` optimizer steps, under other settings if given; None where the model is not here."""
        assert step.node is not None
        config = config or step.node.config
        policy = self._model(step, "policy", config)
        if policy is None:
            return None
        sizes = policy.sizes
        work = self._work(step, config, policy, count)
        memory_mb = self._memory(step, config, work) / MB + self.process_mb
        if self.device == "cpu" and any(earlier.kind == "reward" for earlier in self._until(step)):
            memory_mb += REPORT_MB
        if not timed:
            return Estimate(policy.parameters, sizes.trained, memory_mb)
        cycle = self._seconds(step, config, work.cycle) + work.updates * self._updates(step, config, work)
        wall = self._seconds(step, config, work.once) + work.cycles * cycle
        return Estimate(policy.parameters, sizes.trained, memory_mb, cycle / work.updates if count else None, wall)

    def that_fit(self, step: Step, count: int, limit_mb: float) -> Iterator[dict[str, str]]:
        """Settings of the stage, each tried by this estimate, with which it would fit; all of them if none will."""
        assert step.node is not None
        config, together = step.node.config, {}
        for name, value in CHOICES:
            now = getattr(config, name, value)
            if now == value or (isinstance(value, int) and isinstance(now, int) and value is not True and now <= value):
                continue
            together[name] = value
            for changes in ({name: value}, dict(together)):
                estimate = self.of(step, count, config=config.model_copy(update=changes))
                if estimate and estimate.memory_mb <= limit_mb:
                    yield {f"{step.id}.{key}": _written(new) for key, new in changes.items()}
                    break

    # Who takes part

    def _until(self, step: Step) -> Iterator[Node]:
        """The stages that this process has been through before."""
        for earlier in self.steps.values():
            if earlier.id == step.id:
                return
            if earlier.node is not None:
                yield earlier.node

    def _model(self, step: Step, role: Role, config: Any) -> Model | None:
        """The model of a role, and what is trained of it; a reward model that is not here looks like the policy."""
        shape = self.architectures.shape(
            step, "reward" if role == "reward" else "teacher" if role == "reference" else ""
        )
        if shape is None:
            return None
        assert step.node is not None
        own_kind = step.node.kind
        own = "reward" if own_kind == "reward" else "policy"
        learns = role in (own, "policy", "value") and _trains(config)
        checkpointed = isinstance(config, TrainingConfig) and config.gradient_checkpointing and own_kind != "pretrain"
        classifier = role in ("reward", "value") or own == "reward"
        model = Model(shape, self.device, classifier, learns, getattr(config, "lora", None), checkpointed)
        return self._models.setdefault(model.key, model)  # which remembers its sizes

    def _resident(self, step: Step, config: Any) -> Iterator[Model]:
        """Every model in memory at once, as stages load them (models/roles.py)."""
        policy = self._model(step, "policy", config)
        assert policy is not None
        frozen = replace(policy, trained=False)
        yield policy
        apart = policy.trained and config.lora is None if hasattr(config, "lora") else False
        if isinstance(config, EvaluateConfig):
            yield frozen  # the last one is there until the next one is
        if apart and isinstance(config, SamplingStageConfig | BestOfConfig | PreferenceConfig):
            yield frozen
        if apart and isinstance(config, PPOConfig):
            yield replace(policy, classifier=True)
        if isinstance(config, DistillConfig):
            yield replace(self._model(step, "reference", config) or frozen, trained=False)
        scores = isinstance(config, SamplingStageConfig | BestOfConfig) or getattr(config, "reward", None)
        if scores and not self.architectures.stands_on(step):
            yield replace(self._model(step, "reward", config) or frozen, trained=False, classifier=True)

    def _work(self, step: Step, config: Any, policy: Model, count: int) -> Work:
        key = (step.id, config.model_dump_json(), count)
        if key in self._works:
            return self._works[key]
        tokenizer = self.architectures.tokenizer(step)
        length = min(config.max_length, policy.context)
        renderer = Renderer(tokenizer, template=self.template, max_length=length)
        self._works[key] = Workload(config, self.data, renderer, self._rates_of(policy).backbone).work(count)
        return self._works[key]

    # Memory, in bytes

    def _memory(self, step: Step, config: Any, work: Work) -> float:
        """What stays, and the most of what comes and goes."""
        weights = sum(model.sizes.weights for model in self._resident(step, config))
        changed = 0
        for role in work.learners:
            model = self._model(step, role, config)
            changed += model.sizes.trained_bytes if model else 0
        best = changed if isinstance(config, SamplingStageConfig | PreferenceConfig) else 0
        kept = weights + MOMENTS * changed + best
        checkpoint = (1 + MOMENTS) * changed + best  # a copy of all that, on its way to the disk
        passing = [self._passing(step, config, task) for task in self._largest(step, config, work.tasks)]
        decoding, left = (
            max((of(step, config, task) for task in work.tasks if isinstance(task, Decode)), default=0)
            for of in (self._decoding, self._left_over)
        )
        return kept + max(checkpoint, decoding, max(passing, default=0) + left)

    def _largest(self, step: Step, config: Any, tasks: Sequence[Task]) -> Iterator[Pass]:
        """The passes that may hold most: of those alike the largest; a reading one only beyond all learning."""
        passes = [task.prefill if isinstance(task, Decode) else task for task in tasks]
        learned = max((task.largest.places for task in passes if task.learns), default=0)
        found: dict[Any, Pass] = {}
        for task in sorted(passes, key=lambda task: task.largest.places):
            if task.learns or task.largest.places > learned:
                model = self._model(step, task.role, config)
                assert model is not None
                found[model.key if task.learns else model.config.to_json_string(), task.learns, task.words] = task
        return iter(found.values())

    def _passing(self, step: Step, config: Any, task: Pass) -> int:
        model = self._model(step, task.role, config)
        assert model is not None
        again = task.learns and not task.alone
        key = (model.key, task.largest, task.learns, task.words, again)
        if key not in self._held:
            self._held[key] = held(model, task.largest, learns=task.learns, words=task.words, again=again)
        return self._held[key]

    def _decoding(self, step: Step, config: Any, task: Decode) -> int:
        """Key-value caches, and the logits of a token."""
        model = self._model(step, task.role, config)
        assert model is not None
        tensor = task.rows * task.columns * model.cache_bytes // (2 * model.blocks)
        drawn = DRAWN * task.rows * model.vocabulary * 4
        return drawn + CACHES * 2 * model.blocks * taken(tensor, model.heap)

    def _left_over(self, step: Step, config: Any, task: Decode) -> int:
        """What decoding leaves in the heap: pieces into which the larger tensors of a micro-batch do not fit."""
        model = self._model(step, task.role, config)
        assert model is not None
        tensor = task.rows * task.columns * model.cache_bytes // (2 * model.blocks)
        return self._decoding(step, config, task) if tensor < MAPPED and self.device == "cpu" else 0

    # Time, in seconds

    def _rates_of(self, model: Model) -> Rates:
        if type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING:  # the trunk is what takes time, whatever head it has
            model = replace(model, classifier=False)
        if model.key not in self._rates:
            self._rates[model.key] = Rates(model)
        return self._rates[model.key]

    def _seconds(self, step: Step, config: Any, tasks: Sequence[Task]) -> float:
        return sum(task.times * self._once(step, config, task) for task in tasks)

    def _once(self, step: Step, config: Any, task: Task) -> float:
        model = self._model(step, task.role, config)
        assert model is not None
        rates = self._rates_of(model)
        if isinstance(task, Decode):
            one, many = (rates.decode(rows, task.columns) for rows in (1, max(2, task.rows)))
            a_row = (many - one) / (max(2, task.rows) - 1)
            reading = sum(rates.trunk(prompts, learns=False) for prompts in task.prompts)
            return reading + task.steps * (one - a_row) + task.row_steps * a_row
        each = rates.trunk(task.largest, learns=task.learns) / task.largest.places
        return statistics.fmean(
            sum(
                each * part.places + (rates.head(part.labels, learns=task.learns) if task.words else 0)
                for part in batch
            )
            for batch in task.batches
        )

    def _updates(self, step: Step, config: Any, work: Work) -> float:
        """Of the optimizers, for one step."""
        models = [self._model(step, role, config) for role in work.learners]
        return sum(self._rates_of(model).optimizer() * model.sizes.trained for model in models if model)


def _trains(config: Any) -> bool:
    return not isinstance(config, EvaluateConfig) and config.leaves_model and not getattr(config, "trained", False)


def _written(value: Any) -> str:
    """A setting as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else "{r: 8}" if isinstance(value, LoraConfig) else str(value)
