"""Settings of reward models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from assay.config import Config, StageRef
from assay.models.config import LoraConfig
from assay.stages.config.common import Part, TrainingConfig, changed


class EnsembleConfig(Config):
    """Several reward models in one, on one backbone; their disagreement says where none of them should be trusted."""

    members: Annotated[int, Field(ge=2)] = Field(
        default=4, description="how many; each has a head of its own and its own bootstrap sample of the comparisons"
    )
    of: Literal["heads", "adapters"] = Field(
        default="heads", description="what the members have of their own besides: nothing, or a LoRA adapter (dearer)"
    )
    aggregate: Literal["mean", "worst", "uncertainty"] = Field(
        default="mean", description="the reward: the members' mean, the lowest, or mean - penalty · standard deviation"
    )
    penalty: NonNegativeFloat = Field(
        default=1.0, description="weight of the standard deviation under `uncertainty` (2310.02743)"
    )


class RewardConfig(TrainingConfig):
    """Bradley–Terry reward model on comparisons, or a process reward model on judged steps."""

    kind: Literal["reward"] = "reward"
    base: Annotated[str | None, StageRef("sft", "pretrain", "reward", default=("sft", "pretrain"), model=True)] = Field(
        default=None,
        description="stage or model to start from, the latest SFT model if left out; an encoder keeps its tokenizer",
    )
    trained: bool = Field(
        default=False,
        description="`base` is a finished reward model: not trained, but read with these `objectives` and `ensemble`",
    )
    epochs: PositiveInt = Field(
        default=1, description="passes over the comparisons; more than one soon overfits (2203.02155, C.2)"
    )
    margin: NonNegativeFloat = Field(
        default=0.0, description="required score gap m in softplus(-(Δ - m)), reward units; a pair's own is added"
    )
    centring: NonNegativeFloat = Field(default=0.01, description="weight of mean((r_chosen + r_rejected)²)")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="ε, probability that a label is wrong"
    )
    objectives: dict[str, NonNegativeFloat] = Field(
        default={},
        description="weight of each objective in the reward; each is trained on the comparisons that asked about it",
    )
    ensemble: EnsembleConfig | None = Field(default=None, description="several members instead of one")
    steps: Literal["sum", "min", "product", "last"] | None = Field(
        default=None,
        description="train on judged steps instead; a response's reward is the sum of what its steps add (log-odds), "
        "or the log-chance that its worst step is good, that all are, or that the last is",
    )
    lora: LoraConfig | None = Field(default=None, description="train adapters and the head instead of all weights")
    part: Part = Field(default=(1, 1), description="[i, n]: train on the i-th of n disjoint parts of the prompts")
    validate_every: PositiveInt = Field(default=50, description="optimizer steps between validations")

    @model_validator(mode="after")
    def _can_be_built(self) -> RewardConfig:
        if self.trained and self.base is None:
            raise ValueError("trained: true needs `base`, the finished reward model")
        if self.objectives and not any(self.objectives.values()):
            raise ValueError("objectives: all weights are 0, so every response would have the same reward")
        if self.steps and any(changed(self, name) for name in ("margin", "centring", "label_smoothing")):
            raise ValueError("steps: judged steps are no pairs, so leave out margin, centring and label_smoothing")
        if self.steps and (self.objectives or self.ensemble):
            raise ValueError("steps: a process reward model has one score, so leave out objectives and ensemble")
        if self.ensemble and self.ensemble.of == "adapters" and self.lora is None and not self.trained:
            raise ValueError("ensemble: members of adapters need `lora`, e.g. lora: {r: 8}")
        return self
