"""What a process reward model learns: whether each step of a response is good, read at the step's last token.

Source: Lightman et al. 2023 (arXiv 2305.20050). Tensors: B responses of at most S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.algorithms.process_loss import step_loss
from assay.data.pack import collate, to_device
from assay.data.render import Row
from assay.errors import DataError
from assay.models.reward_model import padded
from assay.models.roles import RewardModel
from assay.stages.config import RewardConfig
from assay.stages.context import RunContext, StageInputs
from assay.stages.reward_training import train
from assay.types import JudgedSteps


@dataclass(frozen=True, slots=True)
class Judged:
    """A response as one row, where its steps end, and whether each is good."""

    row: Row
    ends: list[int]
    good: list[bool]


@dataclass(frozen=True, slots=True)
class Steps:
    """Cross-entropy of every judged step; a step weighs the same wherever it stands."""

    model: RewardModel
    responses: Sequence[Judged]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each response."""
        return [len(judged.row.ids) for judged in self.responses]

    def rows(self, number: int) -> tuple[Row]:
        """The response."""
        return (self.responses[number].row,)

    def loss(self, part: Sequence[int], step: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Shares of loss and accuracy."""
        chosen = [self.responses[i] for i in part]
        ends_BS = padded([judged.ends for judged in chosen])
        good_BS = torch.zeros_like(ends_BS, dtype=torch.bool)
        mask_BS = torch.zeros_like(good_BS)
        for b, judged in enumerate(chosen):
            good_BS[b, : len(judged.good)] = torch.tensor(judged.good)
            mask_BS[b, : len(judged.good)] = True
        device = self.model.backbone.device
        batch = collate([judged.row for judged in chosen], self.model.pad_id).to(device)
        ends_BS, good_BS, mask_BS = (to_device(tensor, device) for tensor in (ends_BS, good_BS, mask_BS))
        total = sum(len(self.responses[i].good) for i in step)
        loss, metrics = step_loss(self.model.score_steps(batch, ends_BS), good_BS, mask_BS, total=total)
        return loss, metrics["accuracy"]


def learn(
    model: RewardModel, items: Sequence[JudgedSteps], config: RewardConfig, inputs: StageInputs, ctx: RunContext
) -> dict[str, Any]:
    """Train on judged steps, centre on validation responses, measure on test responses."""
    validation, test = inputs.data.steps.validation, inputs.data.steps.test
    if not (validation and test):
        raise DataError(
            "no held-out judged steps to measure the process reward model on",
            hint="raise data.validation_split and data.test_split",
        )
    responses = [judged for item in items if (judged := judged_of(model, item))]
    if not config.trained:
        if not responses:
            raise DataError("no judged step fits the context", hint=f"raise reward.max_length ({config.max_length})")
        train(model, Steps(model, responses), lambda: evaluate(model, validation, config, inputs), config, ctx)
    prompts, texts = [item.prompt for item in validation], ["\n".join(item.steps) for item in validation]
    rewards = model.score_texts(prompts, texts, batch_size=config.batch_size)
    model.readout = model.readout.calibrated(0, sum(rewards) / len(rewards))
    model.save(ctx.folder)
    return {
        **evaluate(model, test, config, inputs),
        "steps": sum(len(judged.good) for judged in responses),
        "dropped": len(items) - len(responses),
    }


def judged_of(model: RewardModel, item: JudgedSteps) -> Judged | None:
    """The steps that fit the context; None where not even the first does."""
    fitted = model.step_row(item.prompt, item.steps)
    return Judged(*fitted, list(item.good[: len(fitted[1])])) if fitted else None


def evaluate(
    model: RewardModel, items: Sequence[JudgedSteps], config: RewardConfig, inputs: StageInputs
) -> dict[str, Any]:
    """Share of held-out steps judged as people did (a tie counts ½), and what always guessing the same would reach.

    Both are of the steps within the context. The steps of all responses to one prompt are right or wrong together.
    """
    judged = model.judge([item.prompt for item in items], [item.steps for item in items], batch_size=config.batch_size)
    steps = [
        (item.prompt.id, logit, good)
        for item, logits in zip(items, judged, strict=True)
        for logit, good in zip(logits.tolist(), item.good, strict=False)  # steps beyond the context have no logit
    ]
    right = [0.5 if logit == 0 else float((logit > 0) == good) for _, logit, good in steps]
    share = sum(good for _, _, good in steps) / len(steps)
    return {
        **inputs.share("step_accuracy", right, [prompt for prompt, _, _ in steps]),
        "step_majority": max(share, 1 - share),
        "n": len(steps),
    }
