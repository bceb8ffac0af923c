"""What the settings of several stages have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from assay.config import Config, StageRef

POLICY = StageRef("sft", "ppo", "group", "preference", "bestof", "distill", default=("sft",), model=True)
"""The policy a stage starts from: an SFT model unless the recipe names another."""

Fraction = Annotated[float, Field(ge=0, le=1)]


def _one_of_them(part: tuple[int, int]) -> tuple[int, int]:
    if part[0] > part[1]:
        raise ValueError(f"there is no part {part[0]} of {part[1]}")
    return part


Part = Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_one_of_them)]
"""[i, n]: the i-th of n disjoint parts of the training prompts."""


class OptimConfig(Config):
    """AdamW with warmup, a schedule and gradient clipping."""

    learning_rate: PositiveFloat = Field(default=1e-4, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="decay after warmup, to zero"
    )
    warmup: Fraction = Field(default=0.05, description="share of the steps over which the rate rises from zero")
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="decoupled weight decay of matrices; vectors have none"
    )
    beta1: Fraction = Field(default=0.9, description="AdamW's first-moment decay")
    beta2: Fraction = Field(default=0.999, description="AdamW's second-moment decay")
    eps: PositiveFloat = Field(default=1e-8, description="AdamW's epsilon; PPO's references use 1e-5")
    max_grad_norm: PositiveFloat = Field(default=1.0, description="gradients are scaled down to this global norm")


class StageConfig(Config):
    """What every stage has."""

    id: str | None = Field(default=None, description="name of the stage in this recipe; its kind when left out")
    seed: int | None = Field(default=None, description="seed of this stage; derived from the run's when left out")
    seeds: PositiveInt = Field(default=1, description="times to run it, each with a seed of its own, as ID-1, ID-2 …")

    @property
    def leaves_model(self) -> bool:
        """Whether a later stage can read what it made."""
        return True


class TrainingConfig(StageConfig):
    """What every stage that trains has."""

    optim: OptimConfig = Field(default=OptimConfig(), description="optimizer")
    batch_size: PositiveInt = Field(default=32, description="rows per optimizer step")
    micro_batch_size: PositiveInt | None = Field(
        default=None,
        description="rows, or comparisons, per forward pass at most (gradient accumulation); a budget of tokens cuts "
        "batches in any case (docs/concepts.md), and no cut changes the gradient",
    )
    max_length: PositiveInt = Field(default=512, description="longest row in tokens; prompts are cut from the left")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations: less memory, for one more forward pass a step"
    )
    checkpoint_every: PositiveInt = Field(default=50, description="optimizer steps between checkpoints")


def changed(config: Config, name: str) -> bool:
    """Whether a setting is not the default: one that would do nothing here must not look as if it did."""
    return getattr(config, name) != type(config).model_fields[name].default


def fill_in(given: Any, field: str, presets: Mapping[str, Mapping[str, Any]], *, default: str) -> Any:
    """Settings as given, with those that their preset chooses where nothing is set. For a `before` validator."""
    if not isinstance(given, dict):
        return given
    preset = presets.get(given.get(field, default), {})
    return {**preset, **given}
