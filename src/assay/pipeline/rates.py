"""What this machine takes for a model's work: seconds of a pass, of an update, of a token drawn.

    t(all blocks) = t(one block) + (blocks − 1) · (t(two blocks) − t(one block))

Stand-ins with one and two blocks do what the stages do, by the same code (`Backbone.states`, `token_logprobs`), so what
is faster there is faster here: prompts read once, the last block's MLP where it is read alone, one library or the other
for a product. The first of two blocks is like all before the last one; embeddings and head are in both.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from assay.algorithms.product import product
from assay.data.pack import collate
from assay.models.backbone import Backbone
from assay.models.tree_attention import stretches_of
from assay.pipeline.footprint import Model, adapter_of, finish, head_weight, read_at
from assay.pipeline.workload import Pass, tokens
from assay.rollout.cache import SlotCache
from assay.rollout.config import SamplingParams
from assay.rollout.sampler import draw
from assay.stages.config import OptimConfig
from assay.stages.loop import Optimizer

MOST_OPERATIONS = 1e11
"""Multiplications and additions of one timed pass through a block, at most: a second or two on a laptop."""


class Rates:
    """Measured seconds of one model's work; every measurement is made once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._known: dict[tuple[Any, ...], float] = {}

    @functools.cached_property
    def _built(self) -> list[tuple[Backbone, dict[str, Tensor]]]:
        return [self.model.stand_in(blocks, self.model.vocabulary).build() for blocks in (1, 2)]

    def passing(self, task: Pass) -> float:
        """Seconds of its micro-batch; of a large one, in proportion to those of its first rows."""
        one, two = (sum(p.numel() for p in backbone.model.parameters()) for backbone, _ in self._built)
        most = MOST_OPERATIONS / ((two - one) * (6 if task.learns else 2))
        fits = next((n for n in range(1, len(task.rows)) if tokens(task.rows[: n + 1]) > most), len(task.rows))
        part = replace(task, rows=task.rows[:fits])
        batch = collate(part.rows, 0).to(self.model.device)
        read_N = read_at(batch, ends=task.ends)

        def work(backbone: Backbone) -> None:
            with torch.set_grad_enabled(task.learns):
                finish(backbone.states(batch, read_N, adapter_of(backbone)), backbone, task)

        shape = tuple((row.prompt_length, len(row.ids)) for row in part.rows)
        key = ("pass", shape, task.learns, task.words, task.ends)
        share = tokens(task.rows) / tokens(part.rows)
        return share * self._in_all(key, lambda backbone, _: functools.partial(work, backbone))

    def update(self) -> float:
        """Seconds of one optimizer step of all that is trained."""

        def prepared(_: Backbone, trained: dict[str, Tensor]) -> Callable[[], None]:
            optimizer = Optimizer(trained, OptimConfig(), 1)  # pyright: ignore[reportArgumentType]

            def work() -> None:
                for parameter in trained.values():
                    parameter.grad = torch.full_like(parameter, 1e-6)
                optimizer.update(0)

            return work

        return self._in_all(("update",), prepared)

    def token(self, rows: int, columns: int) -> float:
        """Seconds to draw one more token of each of `rows` responses that have `columns` tokens behind them."""
        columns, device = -(-columns // 32) * 32, self.model.device
        ids = torch.zeros(rows, columns, dtype=torch.long, device=device)
        mask = torch.ones(rows, columns + 1, dtype=torch.bool, device=device)
        uniform = torch.full((rows,), 0.5, dtype=torch.float64, device=device)

        @torch.inference_mode()
        def prepared(backbone: Backbone, _: dict[str, Tensor]) -> Callable[[], None]:
            cache = SlotCache(backbone.model.config.num_hidden_layers, rows, columns + 1)
            more: dict[str, Any] = {"adapter": adapter_of(backbone), "past_key_values": cache, "use_cache": True}
            backbone.forward(ids, position_ids=ids, attention_mask=mask[:, :columns], **more)
            more["attention_mask"], weight = mask, head_weight(backbone).float()
            if backbone.attends_by_blocks:
                more["attention_mask"] = mask[:, None, None]
                more["stretches"] = stretches_of([columns + 1] * rows, columns + 1)

            @torch.inference_mode()
            def work() -> None:
                for layer in cache.layers:
                    layer.length = columns
                hidden = backbone.forward(ids[:, :1], position_ids=ids[:, :1], **more)
                draw(product(hidden[:, -1].float(), weight), SamplingParams(), uniform)

            return work

        return self._in_all(("token", rows, columns), prepared)

    def _in_all(
        self, key: tuple[Any, ...], prepared: Callable[[Backbone, dict[str, Tensor]], Callable[[], None]]
    ) -> float:
        """From one and two blocks to all of them."""
        if key not in self._known:
            times = list[float]()
            for backbone, trained in self._built:
                times.append(seconds(prepared(backbone, trained), self.model.device))
                for parameter in trained.values():
                    parameter.grad = None
            self._known[key] = times[0] + (self.model.blocks - 1) * max(0.0, times[1] - times[0])
        return self._known[key]


def seconds(work: Callable[[], None], device: str, *, repeats: int = 2) -> float:
    """Median time of a few runs after one that is not counted."""
    synchronise = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    work()
    times = []
    for _ in range(repeats):
        synchronise()
        began = time.perf_counter()
        work()
        synchronise()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
