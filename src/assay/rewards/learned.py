"""The reward of a reward model: any one, with its own tokenizer, because it reads text."""

from __future__ import annotations

from collections.abc import Sequence

from assay.models.reward_model import RewardModel
from assay.types import FinishReason, Prompt


class LearnedReward:
    """Centred scores: 0 is the mean response of the held-out pairs."""

    def __init__(self, model: RewardModel, *, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size

    def __call__(
        self, prompts: Sequence[Prompt], responses: Sequence[str], finishes: Sequence[FinishReason]
    ) -> list[float]:
        scores = self.model.score_texts(prompts, responses, finishes, batch_size=self.batch_size)
        return [score - self.model.mean for score in scores]
