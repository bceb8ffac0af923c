"""Settings of distillation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from assay.config import StageRef
from assay.models.config import LoraConfig
from assay.rollout.config import SamplingParams
from assay.stages.config.common import Fraction, OptimConfig, TrainingConfig


class DistillConfig(TrainingConfig):
    """Teach a student the next-token distributions of a teacher (GKD, 2306.13649; MiniLLM, 2306.08543)."""

    kind: Literal["distill"] = "distill"
    teacher: Annotated[str | None, StageRef("sft", "ppo", "group", "preference", "bestof")] = Field(
        default=None, description="stage or model that is imitated; the latest policy if left out"
    )
    base: Annotated[str | None, StageRef("pretrain", "sft", model=True)] = Field(
        default=None, description="stage or model that learns, with the teacher's vocabulary; the latest if left out"
    )
    judge: Annotated[str | None, StageRef("reward", required=False, auto=False)] = Field(
        default=None, description="reward model that judges win rates where no truth is known"
    )
    on_policy: Fraction = Field(
        default=0.5, description="share of the sequences that the student samples itself (λ of GKD)"
    )
    off_policy: Literal["demonstrations", "teacher"] = Field(
        default="demonstrations", description="where the other sequences come from: people, or the teacher's samples"
    )
    divergence: Literal["forward", "reverse", "jsd"] = Field(
        default="forward", description="KL(teacher ‖ student), KL(student ‖ teacher), or Jensen–Shannon between them"
    )
    beta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="of jsd: the teacher's share of the mixture; near 0 forward KL, near 1 reverse"
    )
    temperature: PositiveFloat = Field(default=1.0, description="divides the logits of both in the loss")
    sequences: PositiveInt = Field(default=4096, description="sequences learned from, in all")
    optim: OptimConfig = Field(default=OptimConfig(learning_rate=1e-4), description="optimizer")
    lora: LoraConfig | None = Field(default=None, description="train adapters instead of all weights")
    sampling: SamplingParams = Field(default=SamplingParams(), description="how student and teacher sample")
    decode_batch: PositiveInt | None = Field(
        default=None, description="answers decoded at once; batch_size if left out"
    )

    @property
    def own(self) -> int:
        """Sequences of a batch that the student samples itself."""
        return round(self.on_policy * self.batch_size)
