"""Settings of every stage. Importable without torch, so that a recipe is checked before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from assay.config import Config, StageRef
from assay.models.config import LoraConfig
from assay.rollout.config import SamplingParams

Fraction = Annotated[float, Field(ge=0, le=1)]


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


class TrainingConfig(StageConfig):
    """What every stage that trains has."""

    optim: OptimConfig = Field(default=OptimConfig(), description="optimizer")
    batch_size: PositiveInt = Field(default=32, description="rows per optimizer step")
    micro_batch_size: PositiveInt | None = Field(
        default=None, description="rows per forward pass (gradient accumulation); the whole batch when left out"
    )
    max_length: PositiveInt = Field(default=512, description="longest row in tokens; prompts are cut from the left")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations: less memory, a third more time"
    )
    checkpoint_every: PositiveInt = Field(default=50, description="optimizer steps between checkpoints")


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


class EvaluateConfig(StageConfig):
    """Compare the policies of a recipe on held-out prompts."""

    kind: Literal["evaluate"] = "evaluate"
    policies: Annotated[tuple[str, ...], StageRef("sft", "ppo", many=True)] = Field(
        default=(),
        description="stages or models to compare, the baseline first; every policy of the recipe if left out",
    )
    judge: Annotated[str | None, StageRef("reward", required=False, auto=False)] = Field(
        default=None, description="reward model that judges where no truth is known"
    )
    encoder: str | None = Field(
        default=None, description="encoder for BERTScore against reference answers: local path, hub id or package:NAME"
    )
    prompts: PositiveInt = Field(default=500, description="held-out prompts")
    sampling: SamplingParams = Field(default=SamplingParams(), description="how responses are sampled")
    max_length: PositiveInt = Field(default=512, description="longest prompt plus response in tokens")
    batch_size: PositiveInt = Field(default=128, description="responses decoded at once")


AnyStage = Annotated[
    PretrainConfig | SFTConfig | RewardConfig | PPOConfig | EvaluateConfig, Field(discriminator="kind")
]
"""One stage of a recipe, told apart by `kind`."""
