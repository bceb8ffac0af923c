"""What a stage will take: peak memory, seconds per optimizer step, seconds in all; and what to change if it cannot fit.

    memory   process + weights of every role, and the best so far + moments of what is trained + code of products +
             the largest of what comes and goes: gradients and activations of a micro-batch, key-value cache, copies of
             weights and logits, a model or checkpoint being saved
    time     Σ over the stage's tasks of how often × seconds measured now, on this machine, at the model's own width

What is done: workload.py; bytes of a pass: footprint.py; seconds of one: rates.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from assay.data.prepared import Prepared
from assay.data.render import Renderer
from assay.models import heap
from assay.models.backbone import Backbone
from assay.models.config import LoraConfig, Template
from assay.models.precision import compute_dtype
from assay.pipeline import environment
from assay.pipeline.architecture import Architectures
from assay.pipeline.footprint import Model
from assay.pipeline.rates import Rates
from assay.pipeline.steps import Step
from assay.pipeline.workload import Decode, Pass, Role, Task, Work, Workload, tokens
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
DOCTOR = ("assay.pipeline.checkup", "sklearn.feature_extraction.text", "sklearn.linear_model")
"""What a run has imported before its first stage: the doctor, and what it fits the baselines of pairs with."""
MOMENTS = 2
"""AdamW keeps two numbers for each that it changes."""
COMPILING = 3
"""Stages that compile products; later ones find theirs."""
DRAWN = 4
"""Tensors of [rows, vocabulary] alive when a token is drawn: the product, logits, their differences, weights."""
CHOICES: tuple[tuple[str, Any], ...] = (
    ("micro_batch_size", 8),
    ("micro_batch_size", 1),
    ("decode_batch", 16),
    ("decode_batch", 1),
    ("gradient_checkpointing", True),
    ("lora", LoraConfig()),
    ("max_length", 128),
)
"""Settings that take memory away, those that change the result least first. (Evaluation decodes by its batch_size.)"""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one stage. Seconds are None where nothing was timed."""

    parameters: int
    trained: int
    memory_mb: float
    step_s: float | None = None
    wall_s: float | None = None


@dataclass(frozen=True)
class Stage:
    """Who works, who else is in memory, and what is done."""

    config: Any
    models: Mapping[Role, Model]
    resident: Sequence[Model]
    work: Work
    number: int
    """Among the stages that are still to make, from 1."""


class Estimator:
    """Estimates for the stages of one run; what they have in common is looked at once."""

    def __init__(self, steps: Mapping[str, Step], data: Prepared, template: Template, *, device: str) -> None:
        self.steps, self.data = steps, data
        self.template: Template = template
        self.device = device
        self.process_mb = 0.0
        self.to_make: Sequence[str] = [step.id for step in steps.values() if step.node]
        """Stages that this process will run, one after the other."""
        self.architectures = Architectures(steps, data)
        self._models: dict[Any, Model] = {}
        self._like: dict[Any, Backbone] = {}
        self._stages: dict[Any, Stage] = {}
        self._renderers: dict[Any, Renderer] = {}
        self._held: dict[Any, int] = {}
        self._rates: dict[Any, Rates] = {}

    def of(self, step: Step, count: int, *, config: Any = None, timed: bool = False) -> Estimate | None:
        """With `count` optimizer steps, under other settings if given; None where the model is not here."""
        assert step.node is not None
        stage = self._stage(step, config or step.node.config, count)
        if stage is None:
            return None
        policy = stage.models["policy"]
        memory_mb = self._memory(stage) / MB + self.process_mb
        if not timed:
            return Estimate(policy.parameters, policy.trained_parameters, memory_mb)
        update_s = sum(self._rates_of(stage.models[role]).update() for role in stage.work.learners)
        step_s = sum(self._seconds(stage, task) for task in stage.work.each) + update_s
        wall_s = sum(self._seconds(stage, task) for task in stage.work.once) + count * step_s
        return Estimate(policy.parameters, policy.trained_parameters, memory_mb, step_s if count else None, wall_s)

    def count_process(self) -> None:
        """Count what this process holds from now on: what a run imports too, and no stand-ins."""
        for name in DOCTOR if self.data.preferences.train else DOCTOR[:1]:
            importlib.import_module(name)
        self._like.clear()
        self._rates.clear()
        heap.give_back()
        self.process_mb = environment.resident_mb()

    def that_fits(self, step: Step, count: int, limit_mb: float) -> dict[str, str]:
        """Settings, as the command line takes them, with which the stage is within the limit; {} where none are."""
        assert step.node is not None
        config, changes = step.node.config, dict[str, Any]()

        def fits(changed: Mapping[str, Any]) -> bool:
            estimate = self.of(step, count, config=config.model_copy(update=dict(changed)))
            return estimate is not None and estimate.memory_mb <= limit_mb

        for name, value in _choices(config):
            changes[name] = value
            if fits(changes):
                for least in list(changes):
                    fewer = {name: new for name, new in changes.items() if name != least}
                    changes = fewer if fewer and fits(fewer) else changes
                return {f"{step.id}.{name}": written(value) for name, value in changes.items()}
        return {}

    # Who takes part

    def _stage(self, step: Step, config: Any, count: int) -> Stage | None:
        key = (step.id, config.model_dump_json(), count)
        models = self._roles(step, config)
        if key in self._stages or models is None:
            return self._stages.get(key)
        policy = models["policy"]
        tokenizer, length = self.architectures.tokenizer(step), min(config.max_length, policy.context)
        renderer = Renderer(tokenizer, template=self.template, max_length=length)
        renderer = self._renderers.setdefault((id(tokenizer), length), renderer)  # which remembers what it has rendered
        exact = compute_dtype(self.device, policy.parameters).itemsize == 4
        exact = exact and getattr(config, "rollout_weights", "trained") == "trained"
        work = Workload(config, self.data, renderer, self._reader(policy).budget, exact).work(count)
        number = self.to_make.index(step.id) + 1 if step.id in self.to_make else 1
        self._stages[key] = Stage(config, models, list(self._resident(step, config, models)), work, number)
        return self._stages[key]

    def _roles(self, step: Step, config: Any) -> dict[Role, Model] | None:
        """The model of each role, and what is trained of it; one that is not here is taken to look like the policy."""
        assert step.node is not None
        base, reward, teacher = (self.architectures.shape(step, role) for role in ("", "reward", "teacher"))
        if base is None:
            return None
        trains = not isinstance(config, EvaluateConfig) and config.leaves_model
        trains = trains and not getattr(config, "trained", False)
        again = isinstance(config, TrainingConfig) and config.gradient_checkpointing and step.node.kind != "pretrain"

        def model(shape: Any, *, classifier: bool, learns: bool) -> Model:
            made = Model(shape, self.device, classifier, learns and trains, getattr(config, "lora", None), again)
            return self._models.setdefault(made.key, made)  # which remembers its sizes

        judge = step.node.kind == "reward"
        return {
            "policy": model(base, classifier=judge, learns=True),
            "value": model(base, classifier=True, learns=True),
            "reward": model(reward or base, classifier=True, learns=judge),
            "reference": model(teacher or base, classifier=False, learns=False),
        }

    def _resident(self, step: Step, config: Any, models: Mapping[Role, Model]) -> Iterator[Model]:
        """Every model in memory at once, as stages load them (models/roles.py)."""
        policy = models["policy"]
        yield policy
        apart = policy.trained and config.lora is None if hasattr(config, "lora") else False
        samples = isinstance(config, SamplingStageConfig | BestOfConfig)
        if isinstance(config, EvaluateConfig | DistillConfig):  # the last policy is there until the next one is
            yield models["reference"]
        if apart and (samples or (isinstance(config, PreferenceConfig) and config.rounds)):
            yield models["reference"]
        if apart and isinstance(config, PPOConfig):
            yield models["value"]
        if (samples or getattr(config, "reward", None)) and not self.architectures.stands_on(step):
            yield models["reward"]

    def _reader(self, model: Model) -> Backbone:
        """One block that reads: it lays out rows as the whole model would."""
        bare = replace(model.as_causal, trained=False, gradient_checkpointing=False, stands_for=model.parameters)
        if bare.key not in self._like:
            self._like[bare.key], _ = bare.stand_in(1, words=64).build()
        return self._like[bare.key]

    # Memory, in bytes

    def _memory(self, stage: Stage) -> float:
        """What stays, and the most of what comes and goes."""
        policy, work = stage.models["policy"], stage.work
        changed = sum(stage.models[role].trained_weights for role in work.learners)
        best = policy.trained_weights if isinstance(stage.config, SamplingStageConfig | PreferenceConfig) else 0
        kept = sum(model.weights for model in stage.resident) + MOMENTS * changed + best
        checkpoint = (1 + MOMENTS) * changed + best if changed else 0  # a copy of all that, on its way to the disk
        tasks = [*work.each, *work.once]
        passes = [task for task in tasks if isinstance(task, Pass)]
        passing = max((self._passing(stage, task) for task in self._largest(stage, passes)), default=0)
        decoding = max((self._decoding(stage, task) for task in tasks if isinstance(task, Decode)), default=0)
        code = max(model.code for model in stage.models.values()) * min(stage.number, COMPILING)
        return kept + code + max(checkpoint, policy.merged, decoding, passing)

    def _largest(self, stage: Stage, passes: Sequence[Pass]) -> list[Pass]:
        """The passes that may hold most: all that learn, and of the reading ones alike the one with the most tokens."""
        learned = max((tokens(task.rows) for task in passes if task.learns), default=0)
        reading = sorted((task for task in passes if not task.learns), key=lambda task: tokens(task.rows))
        alike = {(stage.models[task.role].config.to_json_string(), task.words): task for task in reading}
        return [*(task for task in passes if task.learns), *(t for t in alike.values() if tokens(t.rows) > learned)]

    def _passing(self, stage: Stage, task: Pass) -> int:
        model, shape = stage.models[task.role], tuple((row.prompt_length, len(row.ids)) for row in task.rows)
        key = (model.key, shape, task.learns, task.words, task.ends, task.again, task.alike)
        if key not in self._held:
            self._held[key] = model.held(task, self._reader(model))
        return self._held[key]

    def _decoding(self, stage: Stage, task: Decode) -> int:
        """The key-value cache and copies of weights; beside them the prompts on their way in, or a token's logits."""
        model = stage.models[task.role]
        token = 2 * model.blocks * model.cached
        entering = self._passing(stage, task.prompts) + token * tokens(task.prompts.rows)
        drawn = DRAWN * task.rows * model.vocabulary * 4
        # On a CPU a cache takes memory where it is written to (rollout/cache.py).
        cells = task.tokens if self.device == "cpu" else task.rows * task.columns
        return token * cells + model.copied(task.weights) + max(entering, drawn)

    # Time

    def _rates_of(self, model: Model) -> Rates:
        return self._rates.setdefault(model.key, Rates(model.as_causal))

    def _seconds(self, stage: Stage, task: Task) -> float:
        rates = self._rates_of(stage.models[task.role])
        if isinstance(task, Pass):
            return task.tokens / tokens(task.rows) * rates.passing(task)
        one, many = (rates.token(rows, task.columns, task.weights) for rows in (1, max(2, task.rows)))
        a_row = (many - one) / (max(2, task.rows) - 1)
        return self._seconds(stage, task.prompts) + task.steps * (one - a_row) + task.row_steps * a_row


def _choices(config: Any) -> Iterator[tuple[str, Any]]:
    """Those of the choices that would change the settings to less, and make valid ones."""
    for name, value in CHOICES:
        name = "batch_size" if name == "decode_batch" and isinstance(config, EvaluateConfig) else name
        if name not in type(config).model_fields or (name == "gradient_checkpointing" and config.kind == "pretrain"):
            continue
        now = getattr(config, name)
        less = now is None or (now > value if type(value) is int else not now)
        if name == "max_length" and hasattr(config, "sampling"):  # a prompt needs room beside its answer
            less = less and value > 2 * config.sampling.max_new_tokens
        with suppress(ValidationError):
            type(config).model_validate({**config.model_dump(exclude_unset=True), name: value})
            if less:
                yield name, value


def written(value: Any) -> str:
    """A setting as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else "{r: 8}" if isinstance(value, LoraConfig) else str(value)
