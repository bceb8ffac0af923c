"""What this machine takes for a model's work: seconds of a pass, of an update, of a token drawn.

    t(all blocks) = t(one block) + (blocks − 1) · (t(n blocks) − t(one block)) / (n − 1)

Stand-ins with one and n = 3 blocks do what the stages do, by the same code (`Backbone.states`, `token_logprobs`), so
what is faster there is faster here: prompts read once, the last block's MLP where it is read alone, one library or the
other for a product. Blocks before the last one are taken to be like the first ones; embeddings and head are in both.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from assay.data.pack import collate
from assay.models.backbone import Backbone
from assay.pipeline.footprint import Model, adapter_of, finish, head_of, read_at
from assay.pipeline.workload import Pass, tokens
from assay.rollout.cache import SlotCache
from assay.rollout.config import SamplingParams, Weights
from assay.rollout.engine import Sample, Slots, sampled_from, states_after
from assay.rollout.sampler import draw
from assay.stages.config import OptimConfig
from assay.stages.loop import Optimizer

MOST_OPERATIONS = 1e11
"""Multiplications and additions of one timed pass through a block, at most: a second or two on a laptop."""


BLOCKS = 3
"""Of the larger stand-in: beside a head of 50,000 words one block more is hardly seen."""
Preparation = Callable[[Backbone, dict[str, Tensor]], AbstractContextManager[Callable[[], None]]]
"""From a stand-in, and what is trained of it, to the work that is timed."""


class Rates:
    """Measured seconds of one model's work; every measurement is made once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._known: dict[tuple[Any, ...], float] = {}

    @functools.cached_property
    def _built(self) -> list[tuple[Backbone, dict[str, Tensor]]]:
        return [self.model.stand_in(blocks, self.model.vocabulary).build() for blocks in (1, self._larger)]

    @property
    def _larger(self) -> int:
        return min(BLOCKS, self.model.blocks)

    def passing(self, task: Pass) -> float:
        """Seconds of its micro-batch; of a large one, in proportion to those of its first rows."""
        one, more = (sum(p.numel() for p in backbone.model.parameters()) for backbone, _ in self._built)
        most = MOST_OPERATIONS * max(1, self._larger - 1) / (max(1, more - one) * (6 if task.learns else 2))
        fits = next((n for n in range(1, len(task.rows)) if tokens(task.rows[: n + 1]) > most), len(task.rows))
        part = replace(task, rows=task.rows[:fits])
        batch = collate(part.rows, 0).to(self.model.device)
        read_N = read_at(batch, ends=task.ends)

        def work(backbone: Backbone) -> None:
            backbone.model.train(self.model.gradient_checkpointing)
            with torch.set_grad_enabled(task.learns):
                finish(backbone.states(batch, read_N, adapter_of(backbone)), backbone, task)

        shape = tuple((row.prompt_length, len(row.ids)) for row in part.rows)
        key = ("pass", shape, task.learns, task.words, task.ends, task.alike)
        share = tokens(task.rows) / tokens(part.rows)
        return share * self._in_all(key, lambda backbone, _: nullcontext(functools.partial(work, backbone)))

    def update(self) -> float:
        """Seconds of one optimizer step of all that is trained."""

        def prepared(_: Backbone, trained: dict[str, Tensor]) -> AbstractContextManager[Callable[[], None]]:
            optimizer = Optimizer(trained, OptimConfig(), 1)  # pyright: ignore[reportArgumentType]

            def work() -> None:
                for parameter in trained.values():
                    parameter.grad = torch.full_like(parameter, 1e-6)
                optimizer.update(0)

            return nullcontext(work)

        return self._in_all(("update",), prepared)

    def token(self, rows: int, columns: int, weights: Weights) -> float:
        """Seconds to draw one more token of each of `rows` responses that have `columns` tokens behind them."""
        columns = -(-columns // 32) * 32
        uniform = torch.full((rows,), 0.5, dtype=torch.float64, device=self.model.device)

        @contextmanager
        def prepared(backbone: Backbone, _: dict[str, Tensor]) -> Iterator[Callable[[], None]]:
            backbone.model.eval()  # with checkpoints it would keep no cache
            adapter, slots = adapter_of(backbone), full_slots(backbone, rows, columns)
            with torch.inference_mode(), sampled_from(backbone, adapter, *head_of(backbone), weights) as head:

                def work() -> None:
                    for layer in slots.cache.layers:
                        layer.length = columns
                    draw(head(states_after(backbone, adapter, slots).float()), SamplingParams(), uniform)

                yield work

        return self._in_all(("token", rows, columns, weights), prepared)

    def _in_all(self, key: tuple[Any, ...], prepared: Preparation) -> float:
        """From one block and a few to all of them."""
        if key not in self._known:
            with ExitStack() as stack:
                works = [stack.enter_context(prepared(backbone, trained)) for backbone, trained in self._built]
                one, more = quickest(works, self.model.device)
            for _, trained in self._built:
                for parameter in trained.values():
                    parameter.grad = None
            self._known[key] = one + (self.model.blocks - 1) * max(0.0, more - one) / max(1, self._larger - 1)
        return self._known[key]


def full_slots(backbone: Backbone, rows: int, columns: int) -> Slots:
    """Rows that have filled so many columns of their cache; one more is left."""
    config, device = backbone.model.config.get_text_config(), backbone.device
    cache = SlotCache(config.num_hidden_layers, rows, columns + 1)
    cache.align(0, columns)
    zeros = torch.zeros(rows, 1, dtype=torch.long, device=device)
    samples = [Sample([0] * columns, cut=False, seed=0, ids=[0]) for _ in range(rows)]
    mask = torch.ones(rows, columns + 1, dtype=torch.bool, device=device)
    return Slots(samples, cache, mask, zeros, zeros, zeros, uniform=zeros.double(), seen=None)


def quickest(works: Sequence[Callable[[], None]], device: str, *, repeats: int = 3) -> list[float]:
    """Seconds of each, by turns, after a run that is not counted: what else the machine does makes others slower."""
    synchronise = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    for work in works:
        work()
    times = [list[float]() for _ in works]
    for _ in range(repeats):
        for work, took in zip(works, times, strict=True):
            synchronise()
            began = time.perf_counter()
            work()
            synchronise()
            took.append(time.perf_counter() - began)
    return [min(took) for took in times]
