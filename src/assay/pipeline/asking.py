"""How the models of a stage are asked: what is known of the stage, what a question is, and what may be spent on one.

A question loads its models when it is asked and not before, so that no more than one stage's are in memory; what a
large model is asked is as much as it can read in seconds. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.data.prepared import Prepared
from assay.data.records import Item
from assay.data.render import Renderer
from assay.data.tokens import kept
from assay.doctor.detector import Evidence, Missing
from assay.doctor.tokens import Tokens
from assay.models.config import Template
from assay.models.load import load_tokenizer
from assay.stages.config import AnyStage, PreferenceConfig, RewardConfig, SFTConfig

LARGEST = 200_000_000
"""Parameters of a model that is asked something: two cores read a few short rows with it in seconds."""
ASKED, SHORT = 4, 48
"""Rows that a model is asked about, and their tokens."""
SPEED, PATIENCE = 2e10, 20.0
"""Operations a second of two cores, and seconds that one question may take of them."""


@dataclass(frozen=True)
class Stage:
    """A stage whose models are asked: its settings, the folders of its roles, and what it reads."""

    where: str
    config: AnyStage
    folders: Mapping[str, Path]
    """By role: base, reward, teacher …; `made` is the stage's own model."""
    data: Prepared
    template: Template
    device: str
    seed: int = 0
    absent: Mapping[str, str] = field(default_factory=dict)
    """Why a role has no folder."""
    cache: Path | None = None
    """Where a run keeps token rows."""
    report: Mapping[str, Any] = field(default_factory=dict)
    """The numbers that the stage has reported."""

    @property
    def roles(self) -> set[str]:
        """Those that are filled, whether or not the model is here."""
        return {*self.folders, *self.absent}

    def folder(self, role: str) -> Path:
        """Where the model of a role is; `Missing` where it is not here."""
        if role not in self.folders:
            raise Missing(self.absent.get(role, f"it has no {role} model"))
        return self.folders[role]


@dataclass(frozen=True)
class Question:
    """Something that is asked of the models of some roles, and the kinds of evidence that it gives."""

    where: str
    what: str
    """In a few words."""
    roles: tuple[str, ...]
    kinds: tuple[type, ...]
    ask: Callable[[], Sequence[Evidence]]
    """Raises `Missing`, with the reason, where it cannot be asked."""


def affordable(folder: Path, tokens: int, *, most: int, least: int = 1) -> int:
    """How many rows of so many tokens a model reads in `PATIENCE` seconds; `Missing` where that is too few."""
    parameters = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 4
    seconds = 2 * max(1, parameters) * tokens / SPEED
    if seconds * least > PATIENCE or parameters > LARGEST:
        size, cost = f"{parameters / 1e6:,.0f} M parameters", max(1, seconds * least)
        bounds = f"a question may take {PATIENCE:.0f}, of {LARGEST / 1e6:.0f} M at most"
        raise Missing(f"with {size} that would take about {cost:,.0f} s: {bounds}")
    return int(min(most, PATIENCE / seconds))


def learned_from(config: AnyStage, data: Prepared) -> Sequence[Item]:
    """What a stage makes rows of; nothing for those that learn from what they sample."""
    if isinstance(config, SFTConfig):
        return data.demonstrations.train
    if isinstance(config, RewardConfig) and not config.trained:
        return data.steps.train if config.steps else data.preferences.train
    if isinstance(config, PreferenceConfig) and not config.rounds:
        return data.preferences.train if config.paired else data.preferences.train or data.verdicts.train
    return ()


def rows(stage: Stage) -> list[Evidence]:
    """The rows that a stage has learnt from: as the run keeps them, or made anew where it has not kept them."""
    folder, items = stage.folder("base"), learned_from(stage.config, stage.data)
    length = getattr(stage.config, "max_length", SHORT)
    renderer = Renderer(load_tokenizer(folder), template=stage.template, max_length=length)
    return [Tokens(stage.where, renderer, items, kept=kept(renderer, items, stage.cache))]
