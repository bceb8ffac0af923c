"""What the models of a stage are asked, in this order.

before(stage)   of the models that it begins with
after(stage)    of the model that it has made, and of those that it began with
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from assay.doctor.finding import Mode
from assay.doctor.kl import KL_BEFORE_TRAINING
from assay.doctor.labels import Scored
from assay.doctor.probe_batch import PromptBatch, StepProbe
from assay.doctor.probe_policy import FROZEN_BLOCKS, WRONG_REFERENCE, PolicyProbe
from assay.doctor.probe_reward import LabelProbe, Measured, RewardProbe
from assay.doctor.recipe import RewardFolder, Weights
from assay.doctor.tokens import Endings, Tokens
from assay.pipeline.ask_policy import endings, padded, start, step, trained
from assay.pipeline.ask_reward import lots, reward_model, scored
from assay.pipeline.asking import Question, Stage, learned_from, rows
from assay.stages.config import (
    AnyStage,
    EvaluateConfig,
    GroupConfig,
    PPOConfig,
    PreferenceConfig,
    RewardConfig,
    SFTConfig,
)

POLICY, REWARD = (Weights, PolicyProbe), (RewardFolder, RewardProbe)
KINDS = (*POLICY, *REWARD, Tokens, Endings, PromptBatch, StepProbe, LabelProbe, Scored, Measured)
"""All that questions give."""


def before(stage: Stage) -> Iterator[Question]:
    """Of the models that a stage begins with."""
    config, where = stage.config, stage.where
    if isinstance(config, RewardConfig) and not (config.trained or config.steps):
        yield Question(where, "labels drawn by lot", ("base",), (LabelProbe,), partial(lots, stage))
    if getattr(config, "trained", False):
        yield Question(where, "the model it begins with", ("base",), REWARD, partial(reward_model, stage, "base"))
    elif "base" in stage.roles:
        yield Question(where, "the model it begins with", ("base",), POLICY, partial(start, stage))
    if isinstance(config, SFTConfig):
        yield Question(where, "the gradient of a step", ("base",), (StepProbe,), partial(step, stage))
    if "teacher" in stage.roles:
        yield Question(where, "its teacher", ("teacher",), POLICY, partial(start, stage, "teacher"))
    for role in ("reward", "judge"):
        if role in stage.roles:
            yield Question(where, f"its {role}", (role,), REWARD, partial(reward_model, stage, role))


def after(stage: Stage) -> Iterator[Question]:
    """Of the model that a stage has made, and of what it began with."""
    config, where = stage.config, stage.where
    if learned_from(config, stage.data):
        yield Question(where, "the rows it learnt from", ("base",), (Tokens,), partial(rows, stage))
    if isinstance(config, RewardConfig):
        yield Question(where, "the reward model", ("made",), REWARD, partial(reward_model, stage, "made"))
        if not config.steps:
            yield Question(where, "its scores of held-out pairs", ("made",), (Scored, Measured), partial(scored, stage))
    elif config.leaves_model and not isinstance(config, EvaluateConfig):
        yield Question(where, "the model it made", ("made",), POLICY, partial(trained, stage))
        yield Question(where, "prompts side by side", ("made",), (PromptBatch,), partial(padded, stage))
    if isinstance(config, SFTConfig):
        yield Question(where, "where its answers end", ("made",), (Endings,), partial(endings, stage))
    for question in before(stage):
        if question.kinds in ((LabelProbe,), (StepProbe,)) or (question.kinds == POLICY and compares(config)):
            yield question


def inapplicable(stage: Stage) -> Iterator[tuple[Mode, str]]:
    """What cannot be wrong in a stage, with its id: the gradient of adapters that it has not, or such a reference."""
    modes = [] if getattr(stage.config, "lora", None) else [FROZEN_BLOCKS]
    modes += [] if compares(stage.config) else [KL_BEFORE_TRAINING, WRONG_REFERENCE]
    return ((mode, stage.where) for mode in modes)


def compares(config: AnyStage) -> bool:
    """Whether a stage holds its policy against a reference."""
    return isinstance(config, PPOConfig | GroupConfig | PreferenceConfig)
