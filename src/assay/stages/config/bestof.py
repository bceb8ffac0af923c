"""Settings of best-of-n, as a policy and as a teacher of itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from assay.config import StageRef
from assay.models.config import LoraConfig
from assay.rollout.config import SamplingParams
from assay.stages.config.common import POLICY, OptimConfig, TrainingConfig


class BestOfConfig(TrainingConfig):
    """Sample several answers to each prompt, keep the one the reward model likes best; with `rounds`, imitate it."""

    kind: Literal["bestof"] = "bestof"
    base: Annotated[str | None, POLICY] = Field(
        default=None, description="stage or model that answers; the latest SFT model if left out"
    )
    reward: Annotated[str | None, StageRef("reward")] = Field(
        default=None, description="stage or model that scores the answers; the latest reward stage if left out"
    )
    judge: Annotated[str | None, StageRef("reward", required=False, auto=False)] = Field(
        default=None, description="reward model that judges win rates where no truth is known"
    )
    answers: Annotated[int, Field(ge=2)] = Field(
        default=16, description="answers per prompt; without rounds, the largest n (1, 2, 4 … are measured too)"
    )
    rounds: NonNegativeInt = Field(
        default=0, description="rounds of fine-tuning on one's own best answers (RAFT); 0 trains nothing"
    )
    prompts: PositiveInt = Field(default=512, description="training prompts per round")
    epochs: PositiveInt = Field(default=1, description="passes over the best answers of a round")
    optim: OptimConfig = Field(default=OptimConfig(learning_rate=1e-5, schedule="linear"), description="optimizer")
    lora: LoraConfig | None = Field(default=None, description="adapters on one frozen backbone for all roles")
    sampling: SamplingParams = Field(default=SamplingParams(), description="how answers are sampled")
    decode_batch: PositiveInt = Field(default=128, description="answers decoded at once")
    evaluation_prompts: PositiveInt = Field(default=200, description="held-out prompts after each round")
    checkpoint_every: PositiveInt = Field(default=1, description="rounds between checkpoints")

    @property
    def leaves_model(self) -> bool:
        """Without rounds nothing was trained that a later stage could read."""
        return self.rounds > 0

    @model_validator(mode="after")
    def _what_is_sampled_is_what_is_measured(self) -> BestOfConfig:
        if not self.sampling.unrestricted:
            raise ValueError(
                "sampling: the KL is that of the policy itself; leave top_p, top_k, repetition_penalty and "
                "no_repeat_ngram off, and temperature above 0"
            )
        return self
