"""Settings of direct preference optimisation: a method is a documented choice of link, loss and terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from assay.config import StageRef
from assay.models.config import LoraConfig
from assay.rollout.config import SamplingParams
from assay.stages.config.common import POLICY, OptimConfig, Part, TrainingConfig, changed, fill_in

Method = Literal[
    "dpo", "cdpo", "robust", "ipo", "hinge", "slic", "simpo", "orpo", "kto", "cpo", "rpo", "ldpo"
]  # fmt: skip

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "dpo": {},  # 2305.18290, eq. 7
    "cdpo": {"label_smoothing": 0.1},  # Mitchell 2023, "A note on DPO with noisy preferences"
    "robust": {"loss": "robust", "label_smoothing": 0.1},  # 2403.00409, sec. 3
    "ipo": {"loss": "squared"},  # 2310.12036, eq. 17
    "hinge": {"loss": "hinge"},  # 2309.06657, hinge-norm
    "slic": {"loss": "hinge", "reference": False, "beta": 1.0, "nll_weight": 1.0},  # 2305.10425, sec. 2
    "simpo": {"reference": False, "length_normalised": True, "beta": 2.0, "margin": 1.0},  # 2405.14734, eq. 6
    # 2403.07691, eq. 6: nll_weight is 1/λ, for here the other term has weight 1.
    "orpo": {"link": "log_odds", "reference": False, "length_normalised": True, "beta": 1.0, "nll_weight": 10.0},
    "kto": {"loss": "kto"},  # 2402.01306, sec. 4.1
    "cpo": {"reference": False, "nll_weight": 1.0},  # 2401.08417, sec. 3
    "rpo": {"nll_weight": 1.0},  # 2404.19733, eq. 1
    "ldpo": {"length_normalised": True, "beta": 5.0},  # 2411.15124, sec. 5.1
}
"""What each method sets where the recipe does not; everything else is DPO's."""


class PreferenceConfig(TrainingConfig):
    """Direct preference optimisation: the policy learns from comparisons (DPO, 2305.18290, and its family)."""

    kind: Literal["preference"] = "preference"
    base: Annotated[str | None, POLICY] = Field(
        default=None, description="stage or model that is trained and that is the reference; the latest SFT model"
    )
    reward: Annotated[str | None, StageRef("reward", required=False, auto=False)] = Field(
        default=None, description="reward model that labels the answers of `rounds`, and scores those of the report"
    )
    judge: Annotated[str | None, StageRef("reward", required=False, auto=False)] = Field(
        default=None, description="reward model that judges win rates where no truth is known"
    )
    optim: OptimConfig = Field(default=OptimConfig(learning_rate=1e-6, schedule="linear"), description="optimizer")
    lora: LoraConfig | None = Field(default=None, description="train adapters; the backbone is then the reference")
    part: Part = Field(default=(1, 1), description="[i, n]: learn from the i-th of n disjoint parts of the prompts")
    epochs: PositiveInt = Field(default=1, description="passes over the data, or over each round's answers")
    method: Method = Field(default="dpo", description="fills the settings below that the recipe leaves open")
    loss: Literal["logistic", "robust", "squared", "hinge", "kto"] = Field(
        default="logistic", description="of the difference of rewards h; kto judges every answer on its own"
    )
    link: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha", "log_odds"] = Field(
        default="reverse_kl", description="from log-ratio to reward: an f-divergence (2309.16240), or ORPO's odds"
    )
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="of the link `alpha`: towards 0 the reverse KL, towards 1 the forward KL"
    )
    reference: bool = Field(default=True, description="log-ratios to the base's own probabilities; false: to 1")
    length_normalised: bool = Field(default=False, description="log-ratios per token instead of summed")
    beta: PositiveFloat = Field(default=0.1, description="β, reward units per nat; large keeps the policy near")
    margin: NonNegativeFloat = Field(default=0.0, description="γ, required difference of rewards, in units of β·h")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="ε, probability that a label is wrong"
    )
    nll_weight: NonNegativeFloat = Field(
        default=0.0, description="weight of the negative log-likelihood per token of the chosen answer"
    )
    desirable_weight: PositiveFloat = Field(default=1.0, description="kto: weight of a good answer; a bad one has 1")
    rounds: NonNegativeInt = Field(
        default=0, description="times that the policy answers, `reward` labels and the policy learns; 0: the data's"
    )
    round_prompts: PositiveInt = Field(default=256, description="prompts a round; one batch of them is online DPO")
    answers: Annotated[int, Field(ge=2)] = Field(default=2, description="answers to each; the best beats the worst")
    sampling: SamplingParams = Field(default=SamplingParams(), description="how answers are sampled")
    decode_batch: PositiveInt | None = Field(
        default=None, description="answers decoded at once; batch_size if left out"
    )
    validate_every: PositiveInt = Field(default=50, description="optimizer steps between validations")

    @property
    def paired(self) -> bool:
        """Whether it learns from pairs; KTO learns from single verdicts."""
        return self.loss != "kto"

    @model_validator(mode="before")
    @classmethod
    def _fill_from_method(cls, data: Any) -> Any:
        return fill_in(data, "method", PRESETS, default="dpo")

    @model_validator(mode="after")
    def _choices_fit_together(self) -> PreferenceConfig:
        faults = {
            f"loss {self.loss} needs the reference": self.loss in ("squared", "kto") and not self.reference,
            f"link {self.link} needs the reference": self.link not in ("reverse_kl", "log_odds") and not self.reference,
            "link log_odds needs reference: false": self.link == "log_odds" and self.reference,
            f"loss {self.loss} has no label_smoothing": self.label_smoothing > 0
            and self.loss not in ("logistic", "robust"),
            f"loss {self.loss} has no margin": self.margin > 0 and self.loss not in ("logistic", "hinge"),
            "loss kto compares log-ratios themselves: link reverse_kl": not self.paired and self.link != "reverse_kl",
            "loss kto has no chosen answers for nll_weight": not self.paired and self.nll_weight > 0,
            "desirable_weight is for loss kto": self.paired and self.desirable_weight != 1,
            "sampling: the KL is that of the policy itself; leave top_p, top_k, repetition_penalty and no_repeat_ngram "
            "off, and temperature above 0": not self.sampling.unrestricted,
            "alpha is for link: alpha": self.link != "alpha" and changed(self, "alpha"),
            "robust corrects for wrong labels: give label_smoothing, their share": self.loss == "robust"
            and self.label_smoothing == 0,
            "answers and round_prompts are for rounds": self.rounds == 0
            and (changed(self, "answers") or changed(self, "round_prompts")),
            "link log_odds is of the mean token: length_normalised: true": self.link == "log_odds"
            and not self.length_normalised,
            "rounds need `reward`, the reward model that labels their answers": self.rounds > 0 and not self.reward,
        }
        if found := [what for what, wrong in faults.items() if wrong]:
            raise ValueError("; ".join(found))
        return self
