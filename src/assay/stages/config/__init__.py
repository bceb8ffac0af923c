"""Settings of every stage. Importable without torch, so that a recipe is checked before anything is loaded."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from assay.stages.config.bestof import BestOfConfig
from assay.stages.config.common import OptimConfig, StageConfig, TrainingConfig
from assay.stages.config.distill import DistillConfig
from assay.stages.config.evaluate import EvaluateConfig
from assay.stages.config.policy import GroupConfig, PPOConfig, SamplingStageConfig
from assay.stages.config.preference import PreferenceConfig
from assay.stages.config.reward import RewardConfig
from assay.stages.config.supervised import PretrainConfig, SFTConfig

__all__ = [
    "AnyStage",
    "BestOfConfig",
    "DistillConfig",
    "EvaluateConfig",
    "GroupConfig",
    "OptimConfig",
    "PPOConfig",
    "PreferenceConfig",
    "PretrainConfig",
    "RewardConfig",
    "SFTConfig",
    "SamplingStageConfig",
    "StageConfig",
    "TrainingConfig",
]

AnyStage = Annotated[
    PretrainConfig
    | SFTConfig
    | RewardConfig
    | PPOConfig
    | GroupConfig
    | PreferenceConfig
    | BestOfConfig
    | DistillConfig
    | EvaluateConfig,
    Field(discriminator="kind"),
]
"""One stage of a recipe, told apart by `kind`."""
