"""Settings of reward models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from assay.config import StageRef
from assay.models.config import LoraConfig
from assay.stages.config.common import TrainingConfig


class RewardConfig(TrainingConfig):
    """Bradley–Terry reward model on preference pairs."""

    kind: Literal["reward"] = "reward"
    base: Annotated[str | None, StageRef("sft", "pretrain", model=True)] = Field(
        default=None,
        description="stage or model to start from, the latest SFT model if left out; an encoder keeps its tokenizer",
    )
    trained: bool = Field(
        default=False, description="`base` is a finished reward model: calibrate and evaluate, do not train"
    )
    epochs: PositiveInt = Field(
        default=1, description="passes over the pairs; more than one soon overfits (2203.02155, C.2)"
    )
    margin: NonNegativeFloat = Field(
        default=0.0, description="required score gap m in softplus(-(Δ - m)), reward units"
    )
    centring: NonNegativeFloat = Field(default=0.01, description="weight of mean((r_chosen + r_rejected)²)")
    lora: LoraConfig | None = Field(default=None, description="train adapters and the head instead of all weights")
    part: tuple[PositiveInt, PositiveInt] = Field(
        default=(1, 1), description="[i, n]: train on the i-th of n disjoint parts of the prompts"
    )
    validate_every: PositiveInt = Field(default=50, description="optimizer steps between validations")

    @model_validator(mode="after")
    def _part_exists(self) -> RewardConfig:
        if self.part[0] > self.part[1]:
            raise ValueError(f"part {list(self.part)}: there is no part {self.part[0]} of {self.part[1]}")
        if self.trained and self.base is None:
            raise ValueError("trained: true needs `base`, the finished reward model")
        return self
