"""Which architecture and which tokenizer a stage's model has, known before any of it is loaded or even made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig

from assay.data.prepared import Prepared
from assay.errors import AssayError
from assay.models.backbone import load_tokenizer
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
            try:
                self._shapes[origin] = AutoConfig.from_pretrained(locate(origin, fetch=False))
            except (AssayError, OSError):
                self._shapes[origin] = None
        return self._shapes[origin]

    def tokenizer(self, step: Step) -> Any:
        """Its own; where there is none yet, one trained on the data's text."""
        origin = self.origin(step)
        made = isinstance(origin, PretrainConfig)
        key = f"{origin.vocabulary} words" if made else origin
        if key not in self._tokenizers:
            try:
                self._tokenizers[key] = None if made else load_tokenizer(locate(origin, fetch=False))
            except AssayError:
                self._tokenizers[key] = None
            if self._tokenizers[key] is None:
                texts = list((self.data.text or training_dialogues(self.data))[:TEXTS])
                self._tokenizers[key] = train_tokenizer(texts, origin.vocabulary if made else WORDS)
        return self._tokenizers[key]

    def origin(self, step: Step, role: str = "") -> PretrainConfig | str:
        """Where the weights of a stage's model, or of one of its roles, begin."""
        return self._origin(self._source(step, role), step)

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

    def _source(self, step: Step, role: str) -> Source | None:
        """What fills a role; its base if that role is empty, None for a stage that begins with nothing."""
        assert step.node is not None
        inputs = step.node.inputs
        found = inputs.get(role) or inputs.get("base") or inputs.get("policies")
        return found[0] if found else None

    def _origin(self, source: Source | None, step: Step) -> PretrainConfig | str:
        """Where weights begin: the settings of a pretrain stage, or a model from outside."""
        if source is None:
            assert step.node is not None
            assert isinstance(step.node.config, PretrainConfig)
            return step.node.config
        if source.outside:
            return source.name
        made = self.steps[source.name]
        return self._origin(self._source(made, ""), made)
