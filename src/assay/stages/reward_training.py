"""The training loop of reward models, whatever they learn from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from assay.data.render import Row
from assay.models.roles import RewardModel
from assay.stages import loop
from assay.stages.config import RewardConfig
from assay.stages.context import RunContext


class Lesson(Protocol):
    """Examples, by number, and what can be learned from some of them."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each example."""
        ...

    def rows(self, number: int) -> Sequence[Row]:
        """What the model reads of an example."""
        ...

    def loss(self, part: Sequence[int], step: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The share of a micro-batch (`part`) in loss and accuracy of its whole optimizer step (`step`)."""
        ...


def train(
    model: RewardModel, lesson: Lesson, validate: Callable[[], dict[str, Any]], config: RewardConfig, ctx: RunContext
) -> None:
    """Minimise the lesson's loss, one optimizer step per batch of examples."""
    plan = loop.plan(lesson.lengths, config.batch_size, config.epochs, ctx.seed)
    optimizer = loop.Optimizer(model.parameters_trained(), config.optim, len(plan))
    start, _ = loop.resume(ctx, optimizer)

    with ctx.progress(len(plan), "reward") as progress:
        for step in range(start, len(plan)):
            began = time.perf_counter()
            batch = plan[step]
            loss, accuracy = torch.zeros((), device=ctx.device), torch.zeros((), device=ctx.device)
            examples = [lesson.rows(number) for number in batch]
            for part in model.backbone.parts(examples, config.micro_batch_size):
                share, right = lesson.loss([batch[i] for i in part], batch)
                share.backward()
                loss += share.detach()
                accuracy += right
            measured = loop.read(step, {"loss": loss, "accuracy": accuracy, **optimizer.update(step)})

            done = step + 1
            metrics = {
                "train/loss": measured["loss"],
                "train/accuracy": measured["accuracy"],
                "train/grad_norm": measured["grad_norm"],
                "train/learning_rate": measured["learning_rate"],
                "train/pairs_per_s": len(batch) / (time.perf_counter() - began),
                **loop.cursor(batch, done, plan, config.epochs),
            }
            if done % config.validate_every == 0 and done < len(plan):
                metrics |= loop.numbers(validate(), prefix="eval/")
            ctx.log(done, metrics)
            progress.update(done, f"loss {metrics['train/loss']:.3f}, accuracy {metrics['train/accuracy']:.2f}")
            loop.finish_step(ctx, optimizer, done, len(plan), config.checkpoint_every, {})
