"""What reward models are asked: how they score and learn a few pairs, and what a new one can know of labels by lot.

Each question gives its evidence, or raises `Missing` with the reason why it cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from assay import rng
from assay.doctor.data import FEWEST, evenly
from assay.doctor.detector import Evidence, Missing
from assay.doctor.labels import Scored
from assay.doctor.probe_reward import LOTS, LabelProbe, Measured, RewardProbe
from assay.doctor.recipe import RewardFolder
from assay.models.load_reward import load_reward_model
from assay.models.reward_folder import missing_head
from assay.models.reward_model import RewardModel
from assay.pipeline.asking import ASKED, SHORT, Stage, affordable
from assay.stages.comparisons import about
from assay.stages.config import RewardConfig
from assay.types import Preference, Prompt

MOST = 1000
"""Held-out pairs that are scored."""
TAUGHT = 24
"""Pairs whose lots are learnt, and as many whose lots nobody can know."""
STEPS = 5
"""Of learning, at least: the embedded model has them by heart after two or three."""


def reward_model(stage: Stage, role: str) -> list[Evidence]:
    """A finished reward model: its head, and how it scores and learns a few pairs."""
    folder = stage.folder(role)
    missing = missing_head(folder)
    if missing:
        return [RewardFolder(stage.where, str(folder), missing)]
    affordable(folder, 12 * ASKED * SHORT, most=1)
    model = load_reward_model(folder, template=stage.template, max_length=2 * SHORT, device=stage.device)
    pairs = [pair for pair in evenly(stage.data.preferences.train, 8 * ASKED) if unlike(model, pair)][: 2 * ASKED]
    if not pairs:
        raise Missing("there is no short pair to ask it about")
    return [RewardFolder(stage.where, str(folder), ()), RewardProbe(model, pairs, folder, where=stage.where)]


def unlike(model: RewardModel, pair: Preference) -> bool:
    """Whether a pair's answers still differ as the model reads them, cut to a few tokens."""
    chosen, rejected = (model.row(pair.prompt, text) for text in (pair.chosen, pair.rejected))
    return bool(chosen and rejected and chosen.ids != rejected.ids)


def scored(stage: Stage) -> list[Evidence]:
    """Held-out pairs as the finished reward model orders them."""
    folder, config = stage.folder("made"), stage.config
    assert isinstance(config, RewardConfig)
    count = affordable(folder, 2 * config.max_length, most=MOST, least=FEWEST)
    model = _reward(stage, folder, config.max_length, trainable=False)
    objectives = model.readout.objectives
    if len(objectives) > 1:
        raise Missing("it has several objectives, and each pair was asked about one of them")
    every, train = about(stage.data.preferences.test, objectives), about(stage.data.preferences.train, objectives)
    given: list[float] = []

    def score(prompts: Sequence[Prompt], answers: Sequence[str]) -> list[float]:
        given.extend(found := model.score_texts(prompts, answers))
        return found

    asked = Scored.of(stage.where, score, evenly(every, count), train)
    return [asked, Measured(stage.where, np.asarray(given), stage.report, whole=len(asked.pairs) == len(every))]


def lots(stage: Stage) -> list[Evidence]:
    """A new reward model, to learn labels that mean nothing; its pairs are those likeliest to have a copy held out."""
    folder, held_out = stage.folder("base"), evenly(stage.data.preferences.test, TAUGHT)
    if len(held_out) < FEWEST:
        raise Missing(f"{len(held_out)} held-out pairs are too few to tell")
    affordable(folder, TAUGHT * SHORT, most=1)
    there = {answer for pair in held_out for answer in (pair.chosen, pair.rejected)}
    alike: list[Preference] = [p for p in stage.data.preferences.train if {p.chosen, p.rejected} <= there]
    learnt = [*alike, *evenly(stage.data.preferences.train, TAUGHT)][:TAUGHT]
    length = min(getattr(stage.config, "max_length", SHORT), 2 * SHORT)
    model = _reward(stage, folder, length, head_seed=rng.derive(stage.seed, "lots") % 2**31)
    tokens = sum(len(row.ids) for row in RewardProbe(model, learnt).rows)
    steps = affordable(folder, 3 * tokens, most=LOTS, least=STEPS)  # there, and back at twice the cost
    return [LabelProbe(model, learnt, held_out, steps, where=stage.where)]


def _reward(
    stage: Stage, folder: Path, length: int, *, trainable: bool = True, head_seed: int | None = None
) -> RewardModel:
    return load_reward_model(
        folder,
        trainable=trainable,
        head_seed=head_seed,
        template=stage.template,
        max_length=length,
        device=stage.device,
    )
