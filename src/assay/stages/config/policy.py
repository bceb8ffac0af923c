"""Settings of the stages that sample from the policy they train: PPO, with a critic, and the group methods, without.

A method is a choice on each axis: advantage × level of the ratio × surrogate × aggregation × place of the KL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from assay.config import StageRef
from assay.models.config import LoraConfig
from assay.rollout.config import GuardConfig, SamplingParams, Weights
from assay.stages.config.common import POLICY, Fraction, OptimConfig, TrainingConfig, changed, fill_in

FOREIGN: Mapping[str, Mapping[str, Any]] = {"int8": {"importance_cap": 2.0}}
"""What weights that are not those which are trained choose: a sampler that differs is owed importance weights."""


class SamplingStageConfig(TrainingConfig):
    """What PPO and the group methods have in common."""

    base: Annotated[str | None, POLICY] = Field(
        default=None, description="stage or model whose policy is trained; the latest SFT model if left out"
    )
    reward: Annotated[str | None, StageRef("reward")] = Field(
        default=None, description="stage or model that scores the responses; the latest reward stage if left out"
    )
    judge: Annotated[str | None, StageRef("reward", required=False, auto=False)] = Field(
        default=None, description="reward model that judges win rates where no truth is known"
    )
    optim: OptimConfig = Field(
        default=OptimConfig(learning_rate=3e-6, schedule="linear", eps=1e-5), description="policy optimizer"
    )
    lora: LoraConfig | None = Field(default=None, description="adapters on one frozen backbone for all roles")
    episodes: PositiveInt = Field(default=4096, description="responses sampled in all")
    batch_size: PositiveInt = Field(default=128, description="episodes per iteration")
    minibatches: PositiveInt = Field(default=2, description="optimizer steps per inner epoch")
    inner_epochs: PositiveInt = Field(default=4, description="passes over each batch of episodes")
    sampling: SamplingParams = Field(default=SamplingParams(), description="how episodes are sampled")
    decode_batch: PositiveInt | None = Field(
        default=None, description="episodes decoded at once; batch_size if left out"
    )
    rollout_weights: Weights = Field(
        default="trained",
        description="what episodes are sampled from: the policy's own weights, or int8 copies made anew for every "
        "batch, kept honest by importance_cap (2 if left out); evaluations use the policy's own",
    )
    guard: GuardConfig | None = Field(
        default=None, description="counts broken episodes as guard/…; only on_broken: flag, for the others change them"
    )
    ratio: Literal["token", "sequence", "trajectory"] = Field(
        default="token", description="log-ratio of each token, its mean over the response (GSPO), or its sum"
    )
    surrogate: Literal["clip", "plain", "cispo", "penalty"] = Field(
        default="clip",
        description="clipped ratio (1707.06347, eq. 7), the ratio itself, a clipped weight on log π (2506.13585), "
        "or the ratio with KL(old ‖ new) (1707.06347, eq. 8)",
    )
    clip: PositiveFloat = Field(default=0.2, description="ε of the clip; 1 or more is no lower bound")
    clip_high: PositiveFloat | None = Field(
        default=None, description="upper ε (DAPO's clip-higher); `clip` if left out"
    )
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(
        default=None, description="c: a loss never exceeds −c·A where A < 0 (1912.09729, eq. 5)"
    )
    penalty_coef: PositiveFloat = Field(default=1.0, description="weight of KL(old ‖ new) with surrogate: penalty")
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        default="token_mean",
        description="every token alike (DAPO), every response alike (GRPO), or a constant denominator (Dr.GRPO)",
    )
    importance_cap: PositiveFloat | None = Field(
        default=None, description="weights min(π_old / π_sampler, cap), for a sampler that differs from the trainer"
    )
    checkpoint_every: PositiveInt = Field(default=4, description="iterations between checkpoints")
    kl_coef: NonNegativeFloat = Field(
        default=0.05, description="β of the KL penalty, in normalised reward units per nat; the start of a moving one"
    )
    kl_target: PositiveFloat | None = Field(default=None, description="KL per response in nats that β adapts to")
    kl_horizon: PositiveFloat = Field(default=1e4, description="episodes over which β adapts (1909.08593, sec. 2.2)")
    kl_final: NonNegativeFloat | None = Field(default=None, description="β goes in a line from kl_coef to this")
    kl_loss: Literal["k2", "k3"] | None = Field(
        default=None,
        description="KL as a term of the loss, not of the reward: k2 of the whole response, all responses alike, has "
        "the right gradient (in the first step of a batch exactly); k3 per token, as GRPO was published, has not "
        "(2506.09477)",
    )
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
    evaluate_every: PositiveInt = Field(default=8, description="iterations between evaluations on held-out prompts")
    evaluation_prompts: PositiveInt = Field(default=200, description="held-out prompts per evaluation during training")
    patience: PositiveInt | None = Field(default=None, description="stop after so many evaluations without a new best")

    @property
    def updates(self) -> int:
        """Optimizer steps of one iteration."""
        return self.inner_epochs * self.minibatches

    @property
    def iterations(self) -> int:
        """Batches of episodes."""
        return max(1, self.episodes // self.batch_size)

    @model_validator(mode="before")
    @classmethod
    def _weights_fill_in(cls, given: Any) -> Any:
        return fill_in(given, "rollout_weights", FOREIGN, default="trained")

    @model_validator(mode="after")
    def _choices_fit_together(self) -> SamplingStageConfig:
        if not self.sampling.unrestricted:
            raise ValueError(
                "sampling: the policy is trained on the distribution it samples; leave top_p, top_k, "
                "repetition_penalty and no_repeat_ngram off, and temperature above 0"
            )
        if self.guard is not None and self.guard.changes_answers:
            raise ValueError(
                f"guard.on_broken: {self.guard.on_broken} changes which answers are learnt from, and with it the "
                "gradient; training takes on_broken: flag alone, which counts them"
            )
        foreign = self.rollout_weights in FOREIGN
        cap = f"rollout_weights: {self.rollout_weights} needs importance_cap, which" if foreign else "importance_cap"
        faults = {
            f"{cap} is off": foreign and self.importance_cap is None,
            f"ratio: {self.ratio} is one number a response; it needs aggregation: sequence_mean": self.ratio != "token"
            and self.aggregation != "sequence_mean",
            "surrogate: cispo weighs tokens; it needs ratio: token": self.ratio != "token"
            and self.surrogate == "cispo",
            f"{cap} weighs tokens; ratio: {self.ratio} is one number a response": self.ratio != "token"
            and self.importance_cap is not None,
            f"{cap} weighs advantages, and surrogate: penalty has a term without one": self.surrogate == "penalty"
            and self.importance_cap is not None,
            f"dual_clip bounds the clipped surrogate; surrogate: {self.surrogate} has none": self.surrogate != "clip"
            and self.dual_clip is not None,
            f"surrogate: {self.surrogate} clips nothing, so leave out clip_high": self.surrogate in ("plain", "penalty")
            and self.clip_high is not None,
            f"penalty_coef is for surrogate: penalty, not {self.surrogate}": self.surrogate != "penalty"
            and changed(self, "penalty_coef"),
            "kl_target adapts β and kl_final schedules it; keep one of them": self.kl_target is not None
            and self.kl_final is not None,
            "kl_target multiplies β, and kl_coef: 0 stays 0; give kl_coef a start": self.kl_target is not None
            and self.kl_coef == 0,
            "kl_horizon is for kl_target": self.kl_target is None and changed(self, "kl_horizon"),
            f"minibatches: {self.minibatches} out of batch_size: {self.batch_size} episodes": self.minibatches
            > self.batch_size,
            f"episodes: {self.episodes} are less than one batch; lower batch_size ({self.batch_size})": self.episodes
            < self.batch_size,
        }
        if found := [what for what, wrong in faults.items() if wrong]:
            raise ValueError("; ".join(found))
        return self


class PPOConfig(SamplingStageConfig):
    """Proximal policy optimisation against a reward model (Schulman et al. 2017; N+ details, 2403.17031)."""

    kind: Literal["ppo"] = "ppo"
    value_learning_rate: PositiveFloat | None = Field(default=None, description="the policy's when left out")
    value_clip: PositiveFloat = Field(
        default=0.2, description="ε of the clipped value loss, in normalised reward units"
    )
    gamma: Fraction = Field(default=1.0, description="discount")
    lam: Fraction = Field(default=0.95, description="λ of generalised advantage estimation (1506.02438, eq. 16)")
    value_warmup: NonNegativeInt = Field(default=2, description="first iterations that train only the value model")


METHODS: Mapping[str, Mapping[str, Any]] = {
    "reinforce": {
        "baseline": "none", "scale": "none", "surrogate": "plain", "aggregation": "constant",
        "group_size": 1, "inner_epochs": 1, "minibatches": 1,
    },
    "rloo": {
        "baseline": "leave_one_out", "scale": "none", "ratio": "trajectory", "surrogate": "clip",
        "aggregation": "sequence_mean",
    },
    "grpo": {"baseline": "mean", "scale": "group", "aggregation": "sequence_mean", "kl_loss": "k2"},
    "dr_grpo": {"baseline": "mean", "scale": "none", "aggregation": "constant", "kl_coef": 0.0},
    "dapo": {
        "baseline": "mean", "scale": "group", "aggregation": "token_mean", "clip_high": 0.28, "resample": 3,
        "overlong": 0.2, "missing_eos": "none", "kl_coef": 0.0,
    },
    "gspo": {
        "baseline": "mean", "scale": "group", "ratio": "sequence", "aggregation": "sequence_mean", "kl_loss": "k2",
        "clip": 3e-4, "clip_high": 4e-4,
    },
    "cispo": {
        "baseline": "mean", "scale": "group", "surrogate": "cispo", "aggregation": "token_mean", "clip": 1.0,
        "clip_high": 0.28, "kl_coef": 0.0,
    },
    "reinforce_pp": {
        "baseline": "none", "scale": "batch", "credit": "token", "aggregation": "token_mean", "group_size": 1,
    },
    "reinforce_pp_baseline": {"baseline": "mean", "scale": "batch", "aggregation": "token_mean", "kl_loss": "k2"},
    "remax": {
        "baseline": "greedy", "scale": "none", "surrogate": "plain", "aggregation": "constant", "group_size": 1,
        "inner_epochs": 1, "minibatches": 1,
    },
}  # fmt: skip
"""What each name chooses; any of it may be set otherwise. Sources: REINFORCE, Williams 1992; RLOO, 2402.14740; GRPO,
2402.03300; Dr.GRPO, 2503.20783; DAPO, 2503.14476; GSPO, 2507.18071; CISPO, 2506.13585; REINFORCE++, 2501.03262; ReMax,
2310.10505. Where a KL is part of the loss, it is the k2 of the response, whose gradient is right; published GRPO has
`kl_loss: k3`. Published RLOO takes one step a batch and clips nothing: `surrogate: plain, minibatches: 1`; here it has
PPO's clip, on the ratio of the whole response, so that a batch serves for more. CISPO names no bound: 0.28 is
DAPO's."""


class GroupConfig(SamplingStageConfig):
    """Policy optimisation without a critic: several responses to a prompt are compared with each other."""

    kind: Literal["group"] = "group"
    method: Literal[
        "reinforce",
        "rloo",
        "grpo",
        "dr_grpo",
        "dapo",
        "gspo",
        "cispo",
        "reinforce_pp",
        "reinforce_pp_baseline",
        "remax",
    ] = Field(default="grpo", description="preset of the choices below (docs/concepts.md has the table)")
    group_size: PositiveInt = Field(default=8, description="responses per prompt")
    inner_epochs: PositiveInt = Field(default=1, description="passes over each batch of episodes")
    baseline: Literal["none", "mean", "leave_one_out", "greedy"] = Field(
        default="mean",
        description="subtracted from a score: nothing, its group's mean, the mean of the others, or the score of the "
        "greedy response",
    )
    scale: Literal["none", "group", "batch"] = Field(
        default="group", description="advantages over their group's standard deviation, or whitened over the batch"
    )
    credit: Literal["response", "token"] = Field(
        default="response",
        description="a KL penalty in the reward lowers the whole response's advantage, or of the tokens up to it only",
    )
    resample: NonNegativeInt = Field(
        default=0, description="rounds of new prompts for groups whose scores are all equal (DAPO's dynamic sampling)"
    )
    overlong: Fraction = Field(
        default=0.0, description="last share of max_new_tokens, over which a penalty grows to 1 (2503.14476, eq. 13)"
    )

    @model_validator(mode="before")
    @classmethod
    def _method_fills_in(cls, given: Any) -> Any:
        return fill_in(given, "method", METHODS, default="grpo")

    @model_validator(mode="after")
    def _groups_fit(self) -> GroupConfig:
        compares = self.baseline in ("mean", "leave_one_out") or self.scale == "group" or self.resample
        if self.group_size == 1 and compares:
            raise ValueError("group_size: 1 leaves nothing to compare with; set 2 or more, or method: remax")
        if self.batch_size % self.group_size:
            raise ValueError(f"batch_size: {self.batch_size} is not a multiple of group_size: {self.group_size}")
        if self.baseline == "leave_one_out" and self.scale == "group":
            raise ValueError("baseline: leave_one_out is unbiased; scale: group would bias it (use baseline: mean)")
        if self.credit == "token" and self.kl_loss is not None:
            raise ValueError("credit: token shares out a KL in the reward; kl_loss puts it into the loss")
        if self.credit == "token" and self.scale == "group":
            raise ValueError("credit: token gives tokens advantages of their own; scale them by batch, or not at all")
        return self
