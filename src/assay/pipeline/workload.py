"""What a stage does, counted: the passes of its micro-batches, the responses it decodes, how often each.

Batches are made up by the code that trains on them, from a sample of the data's own rows; answers that a policy will
give are taken to be as long as those that people gave, and at most `max_new_tokens`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from assay.data.items import as_demonstration, prompt_of, replies_of
from assay.data.pack import parts
from assay.data.prepared import Prepared
from assay.data.records import Item
from assay.data.render import Renderer, Row
from assay.rollout.config import Weights
from assay.rollout.engine import REFILL_BELOW, prompts_at_once
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
    SFTConfig,
)
from assay.stages.pretrain import blocks, training_dialogues

Role = Literal["policy", "value", "reward", "reference"]
Rows = tuple[Row, ...]
"""Rows that go through a model together: a pair, a single one, a micro-batch."""
SAMPLE = 512
"""Items that are rendered to see how long the data's rows are."""
BUCKET = 8
"""Batches among which rows of like length go together (data/pack.py): the longest rows of so many make one."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Rows through a model: a large micro-batch of them, and the tokens of all."""

    role: Role
    rows: Rows
    tokens: float
    learns: bool = False
    words: bool = True
    """Whether its head is the vocabulary's."""
    again: bool = False
    """Whether it finds the gradients of another micro-batch."""
    alike: bool = False
    """Whether its loss is a sum over all tokens (`algorithms/logprobs.py`)."""

    @property
    def ends(self) -> bool:
        """Whether its states are read at the rows' ends alone: for a score, or for a first token."""
        return not self.words and self.role != "value"


@dataclass(frozen=True, slots=True)
class Decode:
    """Responses sampled together: most rows alive at once, columns of the longest, tokens of so many rows, the longest;
    steps, and rows of all steps."""

    role: Role
    rows: int
    columns: int
    tokens: int
    steps: float
    row_steps: float
    prompts: Pass
    weights: Weights = "trained"


Task = Pass | Decode


@dataclass(frozen=True)
class Work:
    """Tasks of an average optimizer step, and of the stage besides; roles that learn."""

    each: Sequence[Task] = ()
    once: Sequence[Task] = ()
    learners: tuple[Role, ...] = ()


@dataclass(frozen=True)
class Workload:
    """A stage's settings, its data and how its model reads them: `work` counts what it will do."""

    config: Any
    data: Prepared
    renderer: Renderer
    budget: int
    """Tokens that go through its model together."""
    exact: bool
    """Whether the sampler's log-probabilities are the trainer's own, so that it reads no sample again."""

    def work(self, steps: int) -> Work:
        """Tasks of the stage; `steps` optimizer steps in all."""
        config = self.config
        if isinstance(config, EvaluateConfig):
            prompts = config.prompts
            asked = self._asked("validation", prompts) + self._asked("test", prompts)
            return Work(once=[self._decode(asked, config.batch_size, max(2, len(config.policies)))])
        if isinstance(config, SamplingStageConfig):
            return self._sampling(config)
        if isinstance(config, BestOfConfig):
            return self._bestof(config)
        if isinstance(config, DistillConfig):
            return self._distill(config)
        if isinstance(config, PreferenceConfig):
            return self._preference(config, steps)
        if isinstance(config, RewardConfig):
            return self._reward(config, steps)
        if isinstance(config, PretrainConfig):
            return Work([self._learn(self._documents(), "policy", config.batch_size)], learners=("policy",))
        held = self.data.demonstrations.validation
        checks = (steps // config.validate_every + 2) * len(held)
        learn = self._learn(self._examples(self._demonstrations), "policy", config.batch_size)
        return Work([learn], self._read(self._examples(held), "policy", checks), ("policy",))

    def _sampling(self, config: SamplingStageConfig) -> Work:
        group = config.group_size if isinstance(config, GroupConfig) else 1
        batch = self._answered(self._prompts[: max(1, config.batch_size // group)], group)
        batch = (batch * config.batch_size)[: config.batch_size]
        size, at_once, often = len(batch), config.decode_batch or config.batch_size, 1 / config.updates
        minibatch = max(1, size // config.minibatches)
        critic = isinstance(config, PPOConfig)
        warmup = config.value_warmup if isinstance(config, PPOConfig) else 0  # when the critic alone learns
        compared = often / (config.evaluate_every if self.exact else 1)
        each = [
            *self._collected(batch, at_once, often, weights=config.rollout_weights),
            *self._read(batch, "policy", compared * size),
            self._learn(batch, "policy", minibatch, max(0, config.iterations - warmup) / config.iterations),
        ]
        if critic:
            each += self._read(batch, "value", often * size, words=False)
            each += [self._learn(batch, "value", minibatch, words=False)]
        evaluations = 1 + math.ceil(config.iterations / config.evaluate_every)
        held_out = self._asked("validation", config.evaluation_prompts)
        once = self._collected(held_out, at_once, evaluations) + self._collected(self._asked("test"), at_once, 2)
        return Work(each, once, ("policy", "value") if critic else ("policy",))

    def _bestof(self, config: BestOfConfig) -> Work:
        at_once = config.decode_batch
        if not config.rounds:
            return Work(once=self._collected(self._asked("test", copies=config.answers + 1), at_once, reference=False))
        often = 1 / (config.epochs * math.ceil(config.prompts / config.batch_size))
        asked = self._answered(self._prompts[: config.prompts], config.answers)
        held_out = self._asked("validation", config.evaluation_prompts)
        each = [
            *self._collected(asked, at_once, often, reference=False),
            self._learn(asked[:: config.answers], "policy", config.batch_size),
            *self._collected(held_out, at_once, often),
        ]
        once = self._collected(held_out, at_once) + self._collected(self._asked("test"), at_once, 2)
        return Work(each, once, ("policy",))

    def _distill(self, config: DistillConfig) -> Work:
        own, size, at_once = config.own, config.batch_size, config.decode_batch or config.batch_size
        answered = (self._answered(self._prompts[:size]) * size)[:size]
        demonstrations = config.off_policy == "demonstrations"
        shown = self._examples(self._demonstrations) if demonstrations else answered
        mixed = [*answered[:own], *(shown * size)[: size - own]]
        each: list[Task] = [self._learn(mixed, "policy", size), *self._read(mixed, "reference", size)]
        each += [self._decode(answered[:own], at_once)] if own else []
        each += [] if demonstrations or own == size else [self._decode(answered[own:], at_once, role="reference")]
        test = self._asked("test")
        read = self._read(test, "policy", 2 * len(test)) + self._read(test, "reference", 2 * len(test))
        return Work(each, [self._decode(test, at_once, 2), *read], ("policy",))

    def _preference(self, config: PreferenceConfig, steps: int) -> Work:
        at_once, size = config.decode_batch or config.batch_size, config.batch_size
        test = self._collected(self._asked("test"), at_once, 2, reward=config.reward is not None)
        if config.rounds:
            answered = self._answered(self._prompts[: config.round_prompts], config.answers)
            pairs = [one + other for one, other in zip(answered[::2], answered[1::2], strict=False)]
            read = self._read(pairs, "reference", config.round_prompts * config.rounds / steps)
            each = [*self._collected(answered, at_once, config.rounds / steps, reference=False), *read]
            return Work([*each, self._learn(pairs, "policy", size)], test, ("policy",))
        pairs, held = self._compared(), len(self.data.preferences.validation)
        examples = pairs if config.paired else [(row,) for pair in pairs for row in pair]
        each = [self._learn(examples, "policy", size)]
        each += [] if config.paired else self._read(examples, "policy", size)  # KTO's baseline
        count = steps * size / config.epochs + held * (2 + steps // config.validate_every)
        return Work(each, [*self._read(examples, "policy", count), *test], ("policy",))

    def _reward(self, config: RewardConfig, steps: int) -> Work:
        held_out = self.data.steps if config.steps else self.data.preferences
        members = config.ensemble.members if config.ensemble and config.ensemble.of == "adapters" else 1
        count = len(held_out.validation) * (1 + steps // config.validate_every) + len(held_out.test)
        held = self._examples([*held_out.validation, *held_out.test])
        once = self._read(held, "reward", members * count, words=False)
        learn = self._learn(self._compared(), "reward", config.batch_size, members, words=False)
        return Work([learn], once, ("reward",)) if steps else Work(once=once)

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
        pairs = _some(self.data.preferences.train)
        items = self._demonstrations or [shown for pair in pairs if (shown := as_demonstration(pair))]
        return [min(longest, len(row.ids) - row.prompt_length) for (row,) in self._examples(items)] or [longest]

    def _examples(self, items: Sequence[Item]) -> list[Rows]:
        """The rows of each item that fit, at least one."""
        items = _some(items)
        asked = [(prompt, reply) for item in items if (prompt := prompt_of(item)) for reply in replies_of(item)]
        rows = iter(self.renderer.rows(asked))
        found = [tuple(row for _ in replies_of(item) if (row := next(rows))) for item in items]
        return [example for example in found if example]

    def _compared(self) -> list[Rows]:
        data = self.data
        if getattr(self.config, "steps", None):
            return self._examples(data.steps.train)
        return self._examples(data.rankings.train or data.preferences.train or data.verdicts.train)

    def _documents(self) -> list[Rows]:
        texts = _some(self.data.text or list(training_dialogues(self.data)))
        return [(row,) for text in texts for row in blocks(self.renderer, text, self.config.max_length)]

    def _answered(self, prompts: Sequence[list[int]], copies: int = 1) -> list[Rows]:
        lengths = self._lengths
        asked = [ids for ids in prompts for _ in range(copies)]
        return [(Row([*ids, *[0] * lengths[i % len(lengths)]], len(ids)),) for i, ids in enumerate(asked)]

    def _asked(self, split: str, most: int | None = None, copies: int = 1) -> list[Rows]:
        reserve = self.config.sampling.max_new_tokens
        prompts = getattr(self.data.prompts, split)[:most]
        return self._answered([self.renderer.prompt(prompt, reserve=reserve) for prompt in prompts], copies)

    # Tasks

    def _learn(self, examples: Sequence[Rows], role: Role, size: int, times: float = 1, *, words: bool = True) -> Pass:
        """Batches of `size` examples, and their gradient; where rows of like length go together, one of long rows."""
        mixed = isinstance(self.config, SamplingStageConfig | DistillConfig)
        some = examples if mixed else sorted(examples, key=tokens, reverse=True)[: max(size, len(examples) // BUCKET)]
        batch = [some[i * len(some) // size] for i in range(size)]
        rows, count = self._largest(batch, getattr(self.config, "micro_batch_size", None))
        alike = isinstance(self.config, SFTConfig | PretrainConfig | BestOfConfig)
        told = times * size * _mean(examples)
        return Pass(role, rows, told, learns=True, words=words, again=count > 1, alike=alike)

    def _read(self, examples: Sequence[Rows], role: Role, count: float, *, words: bool = True) -> list[Task]:
        """`count` examples like these, without a gradient."""
        if not (examples and count):
            return []
        by_row = role == "reward" or isinstance(self.config, SFTConfig)  # whose limit is the batch
        rows, _ = self._largest(examples, None if by_row else getattr(self.config, "micro_batch_size", None))
        return [Pass(role, rows, count * _mean(examples), words=words)]

    def _largest(self, examples: Sequence[Rows], most: int | None) -> tuple[Rows, int]:
        """Of the micro-batches that examples go through in, the largest, and how many there are."""
        cut = parts(examples, tokens=self.budget, most=most)
        return max((tuple(row for i in part for row in examples[i]) for part in cut), key=tokens), len(cut)

    def _collected(
        self,
        examples: Sequence[Rows],
        at_once: int,
        times: float = 1,
        *,
        reward: bool = True,
        reference: bool = True,
        weights: Weights = "trained",
    ) -> list[Task]:
        """Sampled, scored, and read by the reference."""
        count = times * len(examples)
        found: list[Task] = [self._decode(examples, at_once, times, weights=weights)] if examples else []
        found += self._read(examples, "reward", count, words=False) if reward else []
        return found + (self._read(examples, "reference", count) if reference else [])

    def _decode(
        self,
        examples: Sequence[Rows],
        at_once: int,
        times: float = 1,
        *,
        role: Role = "policy",
        weights: Weights = "trained",
    ) -> Decode:
        """What the engine does for prompts and answers like these (rollout/engine.py)."""
        asked = sorted((row for (row,) in examples), key=lambda row: (row.prompt_length, row.ids), reverse=True)
        prompts = [Row(row.ids[: row.prompt_length], row.prompt_length) for row in asked]
        first = next(prompts_at_once(prompts[:at_once], self.budget))
        reading = Pass(role, tuple(prompts[i] for i in first), times * tokens(prompts), words=False)
        steps, row_steps = decoded([len(row.ids) - row.prompt_length for row in asked], at_once)
        columns = asked[0].prompt_length + self.config.sampling.max_new_tokens
        filled = sum(len(row.ids) for row in asked[:at_once])
        return Decode(
            role, min(at_once, len(asked)), columns, filled, times * steps, times * row_steps, reading, weights
        )


def tokens(rows: Sequence[Row]) -> int:
    """Tokens of some rows, those of a shared prompt as often as it occurs."""
    return sum(len(row.ids) for row in rows)


def _mean(examples: Sequence[Rows]) -> float:
    """Tokens of an example."""
    return sum(map(tokens, examples)) / len(examples)


def _some(items: Sequence[Any]) -> list[Any]:
    """At most `SAMPLE` of them, evenly spread."""
    return [items[i] for i in range(0, len(items), -(-len(items) // SAMPLE) or 1)]


def decoded(lengths: Sequence[int], most: int) -> tuple[int, int]:
    """Steps that the engine takes for answers of these lengths, in order, and the rows of all of them together."""
    waiting, left, steps, row_steps = list(lengths)[::-1], list[int](), 0, 0
    while waiting or left:
        if waiting and len(left) < REFILL_BELOW * most:
            admitted = [waiting.pop() - 1 for _ in range(min(len(waiting), most - len(left)))]
            left = [length for length in [*left, *admitted] if length > 0]
        else:
            steps, row_steps = steps + 1, row_steps + len(left)
            left = [length - 1 for length in left if length > 1]
    return steps, row_steps
