"""Which architecture and which tokenizer a stage's model has, known before any of it is loaded or even made."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from transformers import AutoConfig

from assay.data.prepared import Prepared
from assay.errors import AssayError
from assay.models.load import load_tokenizer
from assay.models.locate import locate
from assay.models.scratch import new_shape, train_tokenizer
from assay.pipeline.graph import Source
from assay.pipeline.steps import Step
from assay.stages.config import PretrainConfig, RewardConfig
from assay.stages.pretrain import training_dialogues

TEXTS = 2000
"""Documents that a tokenizer is trained on where the stage's own does not exist yet."""
WORDS = 32_000
"""Entries of the vocabulary of a model whose tokenizer is not here."""


@dataclass(frozen=True)
class Architectures:
    """Of the stages of one run: a pretrain stage says what it makes; every other stage has what its base has."""

    steps: Mapping[str, Step]
    data: Prepared
    _shapes: dict[str, Any] = field(default_factory=dict)
    _tokenizers: dict[str, Any] = field(default_factory=dict)

    def shape(self, step: Step, role: str = "") -> Any:
        """transformers' configuration of the stage's model, or of one of its roles; None where it is not here."""
        origin = self.origin(step, role)
        if isinstance(origin, PretrainConfig):
            settings = {name: getattr(origin, name) for name in ("layers", "width", "heads", "max_length")}
            return new_shape(origin.architecture, **settings, vocabulary=origin.vocabulary)
        if origin not in self._shapes:
            self._shapes[origin] = None
            with suppress(AssayError, OSError):
                self._shapes[origin] = AutoConfig.from_pretrained(locate(origin, fetch=False))
        return self._shapes[origin]

    def tokenizer(self, step: Step) -> Any:
        """Its own; where there is none yet, one trained on the data's text."""
        origin = self.origin(step)
        words = origin.vocabulary if isinstance(origin, PretrainConfig) else WORDS
        key = origin if isinstance(origin, str) else f"{words} words"
        if key not in self._tokenizers and isinstance(origin, str):
            with suppress(AssayError):
                self._tokenizers[key] = load_tokenizer(locate(origin, fetch=False))
        if key not in self._tokenizers:
            texts = list(islice(self.data.text or training_dialogues(self.data), TEXTS))
            self._tokenizers[key] = train_tokenizer(texts, words)
        return self._tokenizers[key]

    def stands_on(self, step: Step) -> bool:
        """Whether the stage's reward model will be an adapter on the very model that the stage starts from."""
        assert step.node is not None
        (reward,), (base,) = (step.node.inputs.get(role, (Source(""),))[:1] for role in ("reward", "base"))
        if reward.outside or reward.name not in self.steps:
            return False
        made = self.steps[reward.name].node
        assert made is not None
        lora = isinstance(made.config, RewardConfig) and made.config.lora is not None
        return lora and made.inputs["base"][0] == base

    def origin(self, step: Step, role: str = "") -> PretrainConfig | str:
        """Where the weights of a role, or of its base, begin: the settings of a pretrain stage, or a model's name."""
        assert step.node is not None
        inputs = step.node.inputs
        found = inputs.get(role) or inputs.get("base") or inputs.get("policies")
        if not found:
            assert isinstance(step.node.config, PretrainConfig)  # which begins with nothing
            return step.node.config
        return found[0].name if found[0].outside else self.origin(self.steps[found[0].name])
