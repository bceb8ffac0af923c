"""What a recipe may say about a simulated world. Free of torch, so that a recipe is checked before anything loads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from assay.config import Config

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class AnnotatorConfig(Config):
    """How the simulated people who compare two answers err."""

    noise: float = Field(default=1.7, gt=0, description="logistic scale of a judgement; points of truth")
    length_bias: float = Field(
        default=0.57, ge=0.5, lt=1, description="P(the longer answer wins) where the truth is equal"
    )
    disagreement: float = Field(
        default=0.2,
        ge=0,
        le=2,
        description="how differently people weigh the objectives; standard deviation of the log weight",
    )
    people: int = Field(default=8, ge=2, le=1000, description="annotators in the pool")


class WorldData(Config):
    """Data made by a simulated world."""

    world: Literal["frontdesk"] = Field(default="frontdesk", description="name of the world")
    demonstrations: int = Field(default=5000, ge=1, description="demonstrations for training")
    preferences: int = Field(default=13000, ge=1, description="labelled pairs for training")
    objectives: tuple[str, ...] = Field(
        default=(),
        description="each pair is compared under one of these alone, drawn at random, e.g. [helpfulness, courtesy]; "
        "all things considered if left out",
    )
    rankings: int = Field(default=0, ge=0, description="rankings of several answers each, for training")
    ranking_size: int = Field(default=4, ge=2, le=16, description="answers in a ranking")
    steps: int = Field(
        default=0, ge=0, description="answers for training of which every sentence is judged good or bad, in turn"
    )
    verdicts: int = Field(default=0, ge=0, description="answers for training that are judged good or bad on their own")
    held_out: Share = Field(default=0.12, description="validation and test rows, each as a share of the training rows")
    quality: tuple[Share, Share] = Field(
        default=(0.3, 0.65), description="skill of those who demonstrate, lowest and highest; 0–1"
    )
    pair_quality: tuple[Share, Share] = Field(default=(0.1, 1.0), description="skill behind the compared answers; 0–1")
    documents: int = Field(default=0, ge=0, description="documents of pretraining text")
    annotator: AnnotatorConfig = Field(default_factory=AnnotatorConfig, description="those who compare")

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> WorldData:
        for name in ("quality", "pair_quality"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be [lowest, highest], not [{low}, {high}]")
        return self
