"""Train a reward model on comparisons (Bradley–Terry), or on judged steps (a process reward model).

    comparisons + SFT model (or an encoder)  →  reward model + held-out accuracy with its interval

Sources: InstructGPT (arXiv 2203.02155), sec. 3.5; ensembles, Coste et al. 2023 (arXiv 2310.02743).
Formulas: algorithms/{preference_loss,ensemble,process_loss}.py. What is learned: comparisons.py, judged_steps.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from assay.data.split import part_of
from assay.errors import DataError
from assay.models.readout import Readout
from assay.models.roles import RewardModel, load_reward_model
from assay.stages import judged_steps, reward_report
from assay.stages.comparisons import Comparisons, about, bootstrap, comparisons_of, to_learn
from assay.stages.config import RewardConfig
from assay.stages.context import RunContext, StageInputs
from assay.stages.reward_training import train
from assay.types import JudgedSteps, Preference, Ranking

Item = TypeVar("Item", Preference, JudgedSteps, Preference | Ranking)


def run(config: RewardConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    check_objectives(config, inputs)
    model = load_reward_model(
        inputs.base,
        lora=config.lora,
        head_seed=None if config.trained else ctx.seed,
        readout=None if config.trained else readout_of(config),
        template=inputs.template,
        max_length=config.max_length,
        device=ctx.device,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    if config.trained:
        model.readout = read_anew(model.readout, config)
    if model.readout.steps:
        report = judged_steps.learn(model, part_of(inputs.data.steps.train, config.part), config, inputs, ctx)
    else:
        report = learn(model, config, inputs, ctx)
    (ctx.folder / "accuracy.json").write_text(json.dumps(report, indent=2))
    return {key: value for key, value in report.items() if isinstance(value, int | float)}


def learn(model: RewardModel, config: RewardConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    """Train on the comparisons, calibrate on the validation pairs, measure on the test pairs."""
    objectives = model.readout.objectives
    items = part_of(to_learn(inputs.data, objectives), config.part)
    held_out = inputs.data.preferences
    validation, test = about(held_out.validation, objectives), about(held_out.test, objectives)
    if not (validation and test):
        raise DataError(
            "no held-out pairs to calibrate and measure the reward model on",
            hint="raise data.validation_split and data.test_split",
        )
    comparisons = comparisons_of(model, items, inputs.cache)
    if not config.trained:
        if not comparisons:
            raise DataError("no comparison fits the context", hint=f"raise reward.max_length ({config.max_length})")

        def validate() -> dict[str, Any]:
            scores = reward_report.score_pairs(model, validation, config.batch_size)
            return reward_report.of_pairs(model.readout, validation, scores, inputs)

        draws = bootstrap(model.readout.members, len(comparisons), ctx.seed)
        train(model, Comparisons(model, comparisons, config, draws), validate, config, ctx)

    gains_MO = calibrate(model, validation, config.batch_size)
    model.save(ctx.folder)
    report = reward_report.write(model, test, gains_MO, config, inputs, ctx.folder)
    pairs = sum(len(c.rows) * (len(c.rows) - 1) // 2 for c in comparisons)
    return {**report, "pairs": pairs, "dropped": len(items) - len(comparisons)}


def calibrate(model: RewardModel, pairs: Sequence[Preference], batch_size: int) -> Tensor:
    """Make every member's gap under every objective log-odds of preference; returns the gains [M, O]."""
    chosen_NMO, rejected_NMO = reward_report.score_pairs(model, pairs, batch_size)
    gains_MO = torch.ones(chosen_NMO.shape[1:])
    for o, rows in enumerate(reward_report.rows_about(pairs, model.readout.objectives)):
        for m in range(model.readout.members):
            chosen, rejected = chosen_NMO[rows, m, o].tolist(), rejected_NMO[rows, m, o].tolist()
            gains_MO[m, o] = model.calibrate(chosen, rejected, column=m * len(model.readout.objectives) + o)
    return gains_MO


def readout_of(config: RewardConfig) -> Readout:
    """How many scores the new model has, and how they become one."""
    readout = Readout(steps=config.steps)
    if config.objectives:
        readout = replace(readout, objectives=tuple(config.objectives), weights=tuple(config.objectives.values()))
    if config.ensemble:
        readout = replace(readout, **config.ensemble.model_dump())
    return readout


def read_anew(readout: Readout, config: RewardConfig) -> Readout:
    """What the settings change in how a finished model is read: weights, and how its members become one."""
    if config.objectives:
        readout = readout.reweighed(config.objectives)
    if config.ensemble:
        readout = readout.aggregated(**config.ensemble.model_dump())
    return readout


def check_objectives(config: RewardConfig, inputs: StageInputs) -> None:
    """DataError, before a model is loaded, for an objective that no pair of some split was asked about."""
    for split, pairs in inputs.data.preferences.items() if config.objectives else ():
        there = {pair.objective for pair in pairs}
        lacking = [name for name in config.objectives if name not in there]
        if lacking and not (config.trained and split == "train"):
            known = ", ".join(sorted(filter(None, there))) or "none"
            raise DataError(
                f'reward.objectives: no {split} pair was asked about "{lacking[0]}" (the data name: {known})',
                hint="name objectives that the data have; data.objectives or a column `objective` says what was asked",
            )
