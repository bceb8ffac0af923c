"""What a stage does, counted: the passes of its micro-batches, the responses it decodes, how often each.

Batches are laid out by the code that trains on them, from a sample of the data's own rows; answers that a policy will
give are taken to be as long as those that people gave, and at most `max_new_tokens`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from assay.data.items import as_demonstration, prompt_of, replies_of
from assay.data.pack import collate
from assay.data.prepared import Prepared
from assay.data.records import Item
from assay.data.render import Renderer, Row
from assay.models.backbone import Backbone
from assay.pipeline.rehearsal import Layout
from assay.rollout.engine import COMPACT_BELOW, REFILL_BELOW
from assay.stages import loop
from assay.stages.config import (
    BestOfConfig,
    DistillConfig,
    EvaluateConfig,
    GroupConfig,
    PPOConfig,
    PreferenceConfig,
    PretrainConfig,
    RewardConfig,
    SamplingStageConfig,
)
from assay.stages.pretrain import blocks, training_dialogues

Role = Literal["policy", "value", "reward", "reference"]
SAMPLE = 512
"""Items that are rendered to see how long the data's rows are."""
BATCHES = 4
"""Batches that are laid out to see how their rows fit together; more rows than the sample has are taken twice."""

Example = tuple[Row, ...]
"""Rows that go through a model together: a pair, or a single one."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows through a model: the micro-batches of some typical batches, and how many batches there are of the kind."""

    role: Role
    batches: tuple[tuple[Layout, ...], ...]
    times: float
    learns: bool = False
    words: bool = True
    """Whether its head is the vocabulary's."""

    @property
    def largest(self) -> Layout:
        return max((layout for batch in self.batches for layout in batch), key=lambda part: (part.places, part.labels))

    @property
    def alone(self) -> bool:
        """Whether a batch is one micro-batch: no gradients of another one are there yet."""
        return all(len(batch) == 1 for batch in self.batches)


@dataclass(frozen=True, slots=True)
class Decode:
    """Responses sampled together: most rows alive at once, columns of the longest, steps, and rows of all steps."""

    role: Role
    rows: int
    columns: int
    steps: int
    row_steps: int
    prompts: tuple[Layout, ...]
    times: float = 1.0

    @property
    def prefill(self) -> Pass:
        """Reading the prompts of as many rows as there are at once."""
        return Pass(self.role, (self.prompts[:1] or (Layout(1, 1, 1),),), self.times, words=False)


Task = Pass | Decode


@dataclass(frozen=True)
class Work:
    """`cycles` times the tasks of a cycle, with `updates` optimizer steps of each trained role in each; some once."""

    cycle: Sequence[Task] = ()
    once: Sequence[Task] = ()
    cycles: int = 0
    updates: int = 1
    learners: tuple[Role, ...] = ()

    @property
    def tasks(self) -> list[Task]:
        return [*self.cycle, *self.once]


@dataclass(frozen=True)
class Workload:
    """A stage's settings, its data and how its model reads them: `work` counts what it will do."""

    config: Any
    data: Prepared
    renderer: Renderer
    backbone: Backbone
    """Of the stage's architecture, with few blocks: it decides how rows are laid out."""

    def work(self, steps: int) -> Work:
        """Tasks of the stage; `steps` optimizer steps in all."""
        config = self.config
        if isinstance(config, EvaluateConfig):
            policies = max(2, len(config.policies))
            sampled = self._split("validation", config.prompts) + self._split("test", config.prompts)
            return Work(once=[self._decode(sampled, config.batch_size, times=policies)])
        if isinstance(config, SamplingStageConfig):
            return self._sampling(config)
        if isinstance(config, BestOfConfig):
            return self._bestof(config)
        if isinstance(config, DistillConfig):
            return self._distill(config, steps)
        if isinstance(config, PreferenceConfig):
            return self._preference(config, steps)
        if isinstance(config, RewardConfig):
            held_out = self.data.steps if config.steps else self.data.preferences
            read = self._examples([*held_out.validation, *held_out.test])
            checks = (len(held_out.validation) * (1 + steps // config.validate_every) + len(held_out.test)) / max(
                1, len(read)
            )
            members = config.ensemble.members if config.ensemble and config.ensemble.of == "adapters" else 1
            learned = self._batches(self._compared(), "reward", config.batch_size, members, learns=True, words=False)
            once = [self._batches(read, "reward", len(read), checks * members, words=False)] if read else []
            return Work([learned] if steps else [], once, steps, learners=("reward",) if steps else ())
        shown = self._documents() if isinstance(config, PretrainConfig) else self._examples(self._demonstrations)
        held = self.data.demonstrations.validation
        checks = 0 if isinstance(config, PretrainConfig) else steps // config.validate_every + 2
        once = [self._batches(self._examples(held), "policy", len(held), checks)] if held and checks else []
        learned = self._batches(shown, "policy", config.batch_size, learns=True)
        return Work([learned], once, steps, learners=("policy",))

    def _sampling(self, config: SamplingStageConfig) -> Work:
        group = config.group_size if isinstance(config, GroupConfig) else 1
        answered = self._answered(self._prompts[: max(1, config.batch_size // group)], copies=group)
        answered = (answered * config.batch_size)[: config.batch_size]
        per_update = max(1, config.batch_size // config.minibatches)
        critics = isinstance(config, PPOConfig)
        learns = config.value_warmup if isinstance(config, PPOConfig) else 0
        share = max(0, config.iterations - learns) / config.iterations  # the first ones train the critic alone
        examples = [(row,) for row in answered]
        cycle: list[Task] = [
            *self._collected(examples, config.batch_size),
            self._batches(examples, "policy", len(examples)),
            self._batches(examples, "policy", per_update, share * config.updates, learns=True),
        ]
        if critics:
            cycle += [
                self._batches(examples, "value", len(examples), words=False),
                self._batches(examples, "value", per_update, config.updates, learns=True, words=False),
            ]
        evaluations = 1 + -(-config.iterations // config.evaluate_every)
        held_out = self._split("validation", config.evaluation_prompts)
        once = [*self._collected(held_out, config.batch_size, evaluations)]
        once += self._collected(self._split("test"), config.batch_size, 2)
        return Work(cycle, once, config.iterations, config.updates, ("policy", "value") if critics else ("policy",))

    def _bestof(self, config: BestOfConfig) -> Work:
        if not config.rounds:
            asked = self._split("test", copies=config.answers + 1)
            return Work(once=self._collected(asked, config.decode_batch, reference=False))
        asked = [(row,) for row in self._answered(self._prompts[: config.prompts], copies=config.answers)]
        updates = config.epochs * math.ceil(config.prompts / config.batch_size)
        held_out = self._split("validation", config.evaluation_prompts)
        cycle: list[Task] = [
            *self._collected(asked, config.decode_batch, reference=False),
            self._batches(asked, "policy", config.batch_size, updates, learns=True),
            *self._collected(held_out, config.decode_batch),
        ]
        once = [
            *self._collected(held_out, config.decode_batch),
            *self._collected(self._split("test"), config.decode_batch, 2),
        ]
        return Work(cycle, once, config.rounds, updates, ("policy",))

    def _distill(self, config: DistillConfig, steps: int) -> Work:
        own, size = config.own, config.batch_size
        answered = [(row,) for row in self._answered((self._prompts * size)[:size])]
        shown = self._examples(self._demonstrations) if config.off_policy == "demonstrations" else answered
        mixed = [*answered[:own], *(shown * size)[: size - own]] if own < size else answered
        cycle: list[Task] = [
            self._batches(mixed, "policy", size, learns=True),
            self._batches(mixed, "reference", size),
        ]
        if own:
            cycle.append(self._decode(answered[:own], size))
        if own < size and config.off_policy == "teacher":
            cycle.append(self._decode(answered[own:], size, role="reference"))
        test = self._split("test")
        once: list[Task] = [self._decode(test, size, times=2), self._batches(test, "policy", len(test), 2)]
        return Work(cycle, [*once, self._batches(test, "reference", len(test), 2)], steps, learners=("policy",))

    def _preference(self, config: PreferenceConfig, steps: int) -> Work:
        test = self._collected(self._split("test"), config.batch_size, 2, reward=config.reward is not None)
        if config.rounds:
            answered = self._answered(self._prompts[: config.round_prompts], copies=config.answers)
            pairs = list(zip(answered[::2], answered[1::2], strict=False))
            cycle: list[Task] = [
                *self._collected([(row,) for row in answered], config.batch_size),
                self._batches(pairs, "policy", config.batch_size, steps / config.rounds, learns=True),
            ]
            return Work(cycle, test, config.rounds, steps // config.rounds, ("policy",))
        pairs = self._compared()
        examples = pairs if config.paired else [(row,) for pair in pairs for row in pair]
        each = self._batches(examples, "policy", config.batch_size, learns=True)
        count = (steps * config.batch_size / config.epochs + len(self.data.preferences.validation)) / config.batch_size
        again = len(self.data.preferences.validation) / config.batch_size * (1 + steps // config.validate_every)
        read = self._batches(examples, "policy", config.batch_size, count + again)
        return Work(
            [each] if config.paired else [each, self._batches(examples, "policy", config.batch_size)],
            [read, *test],
            steps,
            learners=("policy",),
        )

    # Rows

    @cached_property
    def _demonstrations(self) -> Sequence[Item]:
        return _some(self.data.demonstrations.train)

    @cached_property
    def _prompts(self) -> list[list[int]]:
        reserve = self.config.sampling.max_new_tokens
        return [self.renderer.prompt(prompt, reserve=reserve) for prompt in _some(self.data.prompts.train)]

    @cached_property
    def _lengths(self) -> list[int]:
        """Tokens of answers, as people gave them; where nobody did, as long as they may be."""
        longest = self.config.sampling.max_new_tokens
        items = [*self._demonstrations] or [
            d for pair in _some(self.data.preferences.train) if (d := as_demonstration(pair))
        ]
        return [min(longest, len(row.ids) - row.prompt_length) for (row,) in self._examples(items)] or [longest]

    def _examples(self, items: Sequence[Item]) -> list[Example]:
        """The rows of each item that fit, at least one."""
        items = _some(items)
        asked = [(prompt, reply) for item in items if (prompt := prompt_of(item)) for reply in replies_of(item)]
        rows = iter(self.renderer.rows(asked))
        found = [tuple(row for _ in replies_of(item) if (row := next(rows))) for item in items]
        return [example for example in found if example]

    def _compared(self) -> list[Example]:
        data = self.data
        if getattr(self.config, "steps", None):
            return self._examples(data.steps.train)
        return self._examples(data.rankings.train or data.preferences.train or data.verdicts.train)

    def _documents(self) -> list[Example]:
        texts = _some(self.data.text or training_dialogues(self.data))
        return [(row,) for text in texts for row in blocks(self.renderer, text, self.config.max_length)]

    def _answered(self, prompts: Sequence[list[int]], copies: int = 1) -> list[Row]:
        lengths = self._lengths
        asked = [prompt for prompt in prompts for _ in range(copies)]
        return [Row([*ids, *[0] * lengths[i % len(lengths)]], len(ids)) for i, ids in enumerate(asked)]

    def _split(self, name: str, most: int | None = None, copies: int = 1) -> list[Example]:
        prompts = getattr(self.data.prompts, name)[:most]
        reserve = self.config.sampling.max_new_tokens
        ids = [self.renderer.prompt(prompt, reserve=reserve) for prompt in prompts]
        return [(row,) for row in self._answered(ids, copies)]

    # Tasks

    def _batches(
        self,
        examples: Sequence[Example],
        role: Role,
        size: int,
        times: float = 1,
        *,
        learns: bool = False,
        words: bool = True,
    ) -> Pass:
        """Some batches of `size` examples, as they will be laid out: rows of like length together."""
        wanted = min(max(size, 1) * BATCHES, max(len(examples), size))
        rows = [examples[i % len(examples)] for i in range(wanted)] if examples else []
        plan = loop.plan([sum(len(row.ids) for row in example) for example in rows], max(size, 1), 1, 0)
        return Pass(role, tuple(tuple(self._layouts([rows[i] for i in batch])) for batch in plan), times, learns, words)

    def _layouts(self, examples: Sequence[Example]) -> Iterable[Layout]:
        """The micro-batches of a batch."""
        for part in self.backbone.parts(examples, getattr(self.config, "micro_batch_size", None)):
            batch = collate([row for i in part for row in examples[i]], 0)
            forest = self.backbone.forest(batch)
            lines, width = batch.input_ids.shape if forest is None else forest.sources_LW.shape
            yield Layout(lines, width, int(batch.loss_mask.sum()))

    def _collected(
        self, examples: Sequence[Example], rows: int, times: float = 1, *, reward: bool = True, reference: bool = True
    ) -> list[Task]:
        """Sampled, scored, and read by the reference."""
        tasks: list[Task] = [self._decode(examples, rows, times=times)]
        if reward:
            tasks.append(self._batches(examples, "reward", len(examples), times, words=False))
        if reference:
            tasks.append(self._batches(examples, "reference", len(examples), times))
        return tasks

    def _decode(self, examples: Sequence[Example], rows: int, *, role: Role = "policy", times: float = 1) -> Decode:
        """What the engine does for prompts and answers like these (rollout/engine.py)."""
        asked = sorted((row for (row,) in examples), key=lambda row: row.prompt_length, reverse=True)
        alone = [Row(row.ids[: row.prompt_length], row.prompt_length) for row in asked[:rows]]
        lengths = [len(row.ids) - row.prompt_length for row in asked]
        steps, row_steps = decoded(lengths, rows)
        columns = max((row.prompt_length for row in asked), default=1) + self.config.sampling.max_new_tokens
        batch = collate(alone, 0) if alone else None
        forest = self.backbone.forest(batch) if batch else None
        lines, width = (1, 1) if batch is None else (forest.sources_LW if forest else batch.input_ids).shape
        prompts = (Layout(lines, width, len(alone)),) * math.ceil(len(asked) / rows)
        return Decode(role, min(rows, len(asked)), columns, steps, row_steps, prompts, times)


def decoded(lengths: Sequence[int], most: int) -> tuple[int, int]:
    """Steps that the engine takes for answers of these lengths, in order, and the rows of all of them together."""
    waiting, left, held, steps, row_steps = list(lengths)[::-1], list[int](), 0, 0, 0
    while True:
        alive = len(left)
        if not alive or (waiting and alive < REFILL_BELOW * most):
            admitted = [waiting.pop() - 1 for _ in range(min(len(waiting), most - alive))]
            if not admitted and not alive:
                return steps, row_steps
            left = [length for length in [*left, *admitted] if length > 0]
            held = alive + len(admitted)
        elif alive < COMPACT_BELOW * held:
            held = alive
        else:
            steps, row_steps = steps + 1, row_steps + held
            left = [length - 1 for length in left if length > 1]


def _some(items: Sequence[Any]) -> list[Any]:
    """At most `SAMPLE` of them, evenly spread."""
    return [items[i] for i in range(0, len(items), -(-len(items) // SAMPLE) or 1)]
