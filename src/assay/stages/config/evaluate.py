"""Settings of the evaluation of policies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from assay.config import StageRef
from assay.rollout.config import GuardConfig, SamplingParams
from assay.stages.config.common import StageConfig


class EvaluateConfig(StageConfig):
    """Compare the policies of a recipe on held-out prompts."""

    kind: Literal["evaluate"] = "evaluate"
    policies: Annotated[
        tuple[str, ...], StageRef("sft", "ppo", "group", "preference", "bestof", "distill", many=True)
    ] = Field(
        default=(),
        description="stages or models to compare, the baseline first; every policy of the recipe if left out",
    )
    judge: Annotated[str | None, StageRef("reward", required=False, auto=False)] = Field(
        default=None, description="reward model that judges where no truth is known"
    )
    encoder: str | None = Field(
        default=None, description="encoder for BERTScore against reference answers: local path, hub id or package:NAME"
    )
    prompts: PositiveInt = Field(default=500, description="test prompts at most, and validation prompts to select by")
    sampling: SamplingParams = Field(default=SamplingParams(), description="how responses are sampled")
    guard: GuardConfig = Field(
        default=GuardConfig(), description="what happens to broken responses; the report counts them before and after"
    )
    max_length: PositiveInt = Field(default=512, description="longest prompt plus response in tokens")
    batch_size: PositiveInt = Field(default=128, description="responses decoded at once")
