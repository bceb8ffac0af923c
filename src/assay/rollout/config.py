"""How responses are sampled. Importable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from assay.config import Config

Weights = Literal["trained", "int8"]
"""What is sampled from: the policy's own weights, or copies of them in eight bits (models/int8.py)."""

SAFE = "I have no answer."
"""Four words: too few for an echo, a loop or a wrong language, so that it is whole whatever the prompt is."""


class SamplingParams(Config):
    """The sampled distribution is softmax(logits / temperature), then restricted by what is set below."""

    temperature: NonNegativeFloat = Field(default=1.0, description="divides the logits; 0 takes the most likely token")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="keep the likeliest tokens that sum to this"
    )
    top_k: PositiveInt | None = Field(default=None, description="keep only so many tokens")
    repetition_penalty: PositiveFloat = Field(
        default=1.0, description="divides positive, multiplies negative logits of seen tokens"
    )
    no_repeat_ngram: NonNegativeInt = Field(
        default=0, description="no n-gram of this many tokens occurs twice; 0 is off"
    )
    max_new_tokens: PositiveInt = Field(default=64, description="longest response in tokens, its end token included")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="the response ends before the first of these strings"
    )

    @property
    def greedy(self) -> bool:
        """True when sampling is deterministic."""
        return self.temperature == 0

    @property
    def unrestricted(self) -> bool:
        """True when the sampled distribution is softmax(logits / temperature) itself, as training needs it."""
        plain = self.top_p == 1 and self.top_k is None and self.repetition_penalty == 1 and self.no_repeat_ngram == 0
        return plain and not self.greedy


class GuardConfig(Config):
    """What happens to a broken response: one that loops, breaks off, is empty, gibberish, an echo … (docs/guard.md)."""

    on_broken: Literal["flag", "resample", "fallback"] = Field(
        default="flag",
        description="count it and leave it; draw it again; or draw it again and, where that fails, answer with "
        "`fallback`",
    )
    attempts: PositiveInt = Field(default=2, description="times that a broken response is drawn again at most")
    retry: SamplingParams | None = Field(
        default=None,
        description="how it is drawn again; the same with temperature 0.7 at least, repetition_penalty 1.1 and no "
        "6-gram twice if left out",
    )
    fallback: str = Field(default=SAFE, description="what is answered instead, where this is not broken itself")

    @property
    def changes_answers(self) -> bool:
        """Whether what is answered is not what was sampled first."""
        return self.on_broken != "flag"

    def again(self, params: SamplingParams) -> SamplingParams:
        """How a broken response is drawn again."""
        if self.retry is not None:
            return self.retry
        temperature = max(params.temperature, 0.7)
        return params.model_copy(update={"temperature": temperature, "repetition_penalty": 1.1, "no_repeat_ngram": 6})
