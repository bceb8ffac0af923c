"""Settings of the stages that sample from the policy they train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from assay.config import StageRef
from assay.models.config import LoraConfig
from assay.rollout.config import SamplingParams
from assay.stages.config.common import Fraction, OptimConfig, TrainingConfig


class PPOConfig(TrainingConfig):
    """Proximal policy optimisation against a reward model (Schulman et al. 2017; N+ details, 2403.17031)."""

    kind: Literal["ppo"] = "ppo"
    base: Annotated[str | None, StageRef("sft", model=True)] = Field(
        default=None, description="stage or model whose policy is trained; the latest SFT model if left out"
    )
    reward: Annotated[str | None, StageRef("reward")] = Field(
        default=None, description="stage or model that scores the responses; the latest reward stage if left out"
    )
    judge: Annotated[str | None, StageRef("reward", required=False, auto=False)] = Field(
        default=None, description="reward model that judges win rates where no truth is known"
    )
    optim: OptimConfig = Field(
        default=OptimConfig(learning_rate=3e-6, schedule="linear", eps=1e-5),
        description="policy optimizer",
    )
    value_learning_rate: PositiveFloat | None = Field(default=None, description="the policy's when left out")
    lora: LoraConfig | None = Field(default=None, description="adapters for policy and value on one frozen backbone")
    episodes: PositiveInt = Field(default=4096, description="responses sampled in all")
    batch_size: PositiveInt = Field(default=128, description="episodes per iteration")
    minibatches: PositiveInt = Field(default=2, description="optimizer steps per inner epoch")
    inner_epochs: PositiveInt = Field(default=4, description="passes over each batch of episodes")
    sampling: SamplingParams = Field(default=SamplingParams(), description="how episodes are sampled")
    clip: PositiveFloat = Field(default=0.2, description="ε of the clipped surrogate (1707.06347, eq. 7)")
    value_clip: PositiveFloat = Field(
        default=0.2, description="ε of the clipped value loss, in normalised reward units"
    )
    gamma: Fraction = Field(default=1.0, description="discount")
    lam: Fraction = Field(default=0.95, description="λ of generalised advantage estimation (1506.02438, eq. 16)")
    kl_coef: NonNegativeFloat = Field(
        default=0.05, description="β of the per-token KL penalty; the start of an adaptive one"
    )
    kl_target: PositiveFloat | None = Field(
        default=None, description="KL per response in nats that β adapts to; fixed β if left out"
    )
    kl_horizon: PositiveFloat = Field(default=1e4, description="episodes over which β adapts (1909.08593, sec. 2.2)")
    kl_stop: PositiveFloat | None = Field(
        default=0.1, description="inner epochs stop once KL(old ‖ new) per token exceeds this"
    )
    entropy_coef: NonNegativeFloat = Field(default=0.0, description="weight of the entropy bonus")
    missing_eos: Literal["set", "subtract", "none"] = Field(
        default="set",
        description="a response without end, or without text: its score becomes -penalty, is lowered by it, or kept",
    )
    missing_eos_penalty: NonNegativeFloat = Field(
        default=1.0, description="size of that penalty in normalised reward units"
    )
    value_warmup: NonNegativeInt = Field(default=2, description="first iterations that train only the value model")
    evaluate_every: PositiveInt = Field(default=8, description="iterations between evaluations on held-out prompts")
    evaluation_prompts: PositiveInt = Field(default=200, description="held-out prompts per evaluation during training")
    patience: PositiveInt | None = Field(default=None, description="stop after so many evaluations without a new best")

    @model_validator(mode="after")
    def _what_is_sampled_is_what_is_trained(self) -> PPOConfig:
        if not self.sampling.unrestricted:
            raise ValueError(
                "sampling: PPO trains on the distribution it samples; leave top_p, top_k, repetition_penalty and "
                "no_repeat_ngram off, and temperature above 0"
            )
        return self
