"""Settings of the stages that imitate text: pretraining and supervised fine-tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from assay.config import StageRef
from assay.models.config import LoraConfig
from assay.stages.config.common import Fraction, TrainingConfig


class PretrainConfig(TrainingConfig):
    """Train a small causal language model from scratch on plain text."""

    kind: Literal["pretrain"] = "pretrain"
    architecture: Literal["llama", "gpt2", "gpt_neox"] = Field(default="llama", description="transformers architecture")
    layers: PositiveInt = Field(default=4, description="transformer blocks")
    width: PositiveInt = Field(default=128, description="hidden size")
    heads: PositiveInt = Field(default=4, description="attention heads")
    vocabulary: PositiveInt = Field(
        default=2048, description="size of the byte-level BPE vocabulary trained on the text"
    )
    epochs: PositiveInt = Field(default=1, description="passes over the text")
    validation_share: Fraction = Field(
        default=0.02, description="share of the documents held out for the validation loss"
    )
    validate_every: PositiveInt = Field(default=200, description="optimizer steps between validations")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> PretrainConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class SFTConfig(TrainingConfig):
    """Supervised fine-tuning on demonstrations, loss on the response only."""

    kind: Literal["sft"] = "sft"
    base: Annotated[str | None, StageRef("pretrain", "sft", model=True)] = Field(
        default=None, description="stage or model to start from; the latest one, or the recipe's model, if left out"
    )
    epochs: PositiveInt = Field(default=2, description="passes over the demonstrations")
    lora: LoraConfig | None = Field(default=None, description="train adapters instead of all weights")
    validate_every: PositiveInt = Field(default=50, description="optimizer steps between validations")
