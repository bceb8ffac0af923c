"""The reward of a reward model: any one, with its own tokenizer, because it reads text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from assay.models.reward_model import RewardModel
from assay.types import FinishReason, Prompt


class LearnedReward:
    """Centred scores: 0 is the mean response of the held-out pairs.

    `weights` are the objectives' from here on, where they shall be others than the model was trained with; ConfigError
    for an objective that it does not have.
    """

    def __init__(self, model: RewardModel, *, batch_size: int, weights: Mapping[str, float] | None = None) -> None:
        self.model = model
        self.batch_size = batch_size
        if weights is not None:
            model.readout = model.readout.reweighed(weights)

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], finishes: Sequence[FinishReason]
    ) -> list[float]:
        scores = self.model.score_texts(prompts, responses, finishes, batch_size=self.batch_size)
        return [score - self.model.mean for score in scores]
