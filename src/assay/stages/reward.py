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

from assay import rng
from assay.errors import DataError
from assay.models.readout import Readout
from assay.models.roles import RewardModel, load_reward_model
from assay.stages import judged_steps
from assay.stages.comparisons import Comparisons, asked, bootstrap, comparisons_of, objective_of, to_learn
from assay.stages.config import RewardConfig
from assay.stages.context import RunContext, StageInputs
from assay.stages.reward_training import train
from assay.types import JudgedSteps, Preference, Ranking

Item = TypeVar("Item", Preference, JudgedSteps, Preference | Ranking)
Scores = tuple[Tensor, Tensor]
"""Of chosen and rejected responses, [N, M, O] each: M members, O objectives."""


def run(config: RewardConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    if not config.steps:
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
    if config.trained and config.objectives:
        model.readout = model.readout.reweighed(config.objectives)
    if config.steps:
        report = judged_steps.learn(model, part_of(inputs.data.steps.train, config.part), config, inputs, ctx)
    else:
        report = learn(model, config, inputs, ctx)
    model.save(ctx.folder)
    (ctx.folder / "accuracy.json").write_text(json.dumps(report, indent=2))
    return {key: value for key, value in report.items() if isinstance(value, int | float)}


def learn(model: RewardModel, config: RewardConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    """Train on the comparisons, calibrate on the validation pairs, measure on the test pairs."""
    objectives = model.readout.objectives
    items = part_of(to_learn(inputs.data, objectives), config.part)
    validation = asked(inputs.data.preferences.validation, objectives)
    test = asked(inputs.data.preferences.test, objectives)
    if not (validation and test):
        raise DataError(
            "no held-out pairs to calibrate and measure the reward model on",
            hint="raise data.validation_split and data.test_split",
        )
    comparisons = comparisons_of(model, items)
    if not config.trained:
        if not comparisons:
            raise DataError("no comparison fits the context", hint=f"raise reward.max_length ({config.max_length})")
        draws = bootstrap(model.readout.members, len(comparisons), ctx.seed, ctx.device)
        lesson = Comparisons(model, comparisons, config, draws)
        train(model, lesson, lambda: evaluate(model, validation, config, inputs)[0], config, ctx)

    gains = calibrate(model, validation, config)
    report, scores = evaluate(model, test, config, inputs)
    report |= before_calibration(model, test, scores, gains, inputs)
    report |= by_objective(model, test, scores, inputs) | by_member(model, test, scores)
    reliability = {"bins": report.get("reliability", {}).get("bins", []), "ece": report.get("ece")}
    (ctx.folder / "reliability.json").write_text(json.dumps(reliability, indent=2))
    attributed = attributions(model, test, own_scores(model, test, scores))
    (ctx.folder / "attribution.json").write_text(json.dumps(attributed, indent=2, ensure_ascii=False))
    pairs = sum(len(c.rows) * (len(c.rows) - 1) // 2 for c in comparisons)
    return {**report, "pairs": pairs, "dropped": len(items) - len(comparisons)}


def part_of(items: Sequence[Item], part: tuple[int, int]) -> list[Item]:
    """The i-th of n disjoint parts; what belongs to one prompt stays together."""
    index, count = part
    return [item for item in items if rng.derive(0, "part", item.prompt.id) % count == index - 1]


def readout_of(config: RewardConfig) -> Readout:
    """How many scores the new model has, and how they become one."""
    readout = Readout(steps=config.steps)
    if config.objectives:
        readout = replace(readout, objectives=tuple(config.objectives), weights=tuple(config.objectives.values()))
    if config.ensemble:
        ensemble = config.ensemble
        readout = replace(readout, members=ensemble.members, of=ensemble.of, aggregate=ensemble.aggregate)
        readout = replace(readout, penalty=ensemble.penalty)
    return readout


def check_objectives(config: RewardConfig, inputs: StageInputs) -> None:
    """DataError, before a model is loaded, for an objective that no comparison of some split asks about."""
    pairs = inputs.data.preferences
    needed = {"validation": pairs.validation, "test": pairs.test, **({} if config.trained else {"train": pairs.train})}
    lacking = {
        name: split
        for split, items in needed.items()
        for name in config.objectives
        if not any(pair.objective == name for pair in items)
    }
    if lacking:
        there = ", ".join(sorted({pair.objective for pair in pairs.train if pair.objective})) or "none"
        name, split = next(iter(lacking.items()))
        raise DataError(
            f'reward.objectives: no {split} pair was asked about "{name}" (the data name: {there})',
            hint="name objectives that the data have; data.objectives or a column `objective` says what was asked",
        )


@torch.no_grad()
def score_pairs(model: RewardModel, preferences: Sequence[Preference], batch_size: int) -> Scores:
    """Scores of chosen and rejected texts, by the path that serves every other caller."""
    prompts = [p.prompt for p in preferences]
    chosen = model.member_scores(prompts, [p.chosen for p in preferences], batch_size=2 * batch_size)
    rejected = model.member_scores(prompts, [p.rejected for p in preferences], batch_size=2 * batch_size)
    return chosen, rejected


def own_scores(model: RewardModel, pairs: Sequence[Preference], scores: Scores) -> tuple[list[float], list[float]]:
    """One score a response: its pair's own objective where there are several, as it was asked about nothing else."""
    columns = objective_rows(model, pairs)
    chosen, rejected = torch.empty(len(pairs)), torch.empty(len(pairs))
    for name, rows in columns.items():
        readout = model.readout.only(name) if name else model.readout
        chosen[rows], rejected[rows] = readout.read(scores[0][rows]), readout.read(scores[1][rows])
    return chosen.tolist(), rejected.tolist()


def objective_rows(model: RewardModel, pairs: Sequence[Preference]) -> dict[str, list[int]]:
    """Numbers of the pairs that asked about each objective."""
    rows: dict[str, list[int]] = {name: [] for name in model.readout.objectives}
    for number, pair in enumerate(pairs):
        rows[model.readout.objectives[objective_of(pair, model.readout.objectives)]].append(number)
    return rows


def calibrate(model: RewardModel, pairs: Sequence[Preference], config: RewardConfig) -> Tensor:
    """Make every member's gap under every objective log-odds of preference; returns the gains [M, O]."""
    chosen_NMO, rejected_NMO = score_pairs(model, pairs, config.batch_size)
    gains_MO = torch.ones(chosen_NMO.shape[1:])
    for o, rows in enumerate(objective_rows(model, pairs).values()):
        for m in range(model.readout.members):
            up, down = chosen_NMO[rows, m, o].tolist(), rejected_NMO[rows, m, o].tolist()
            gains_MO[m, o] = model.calibrate(up, down, column=m * len(model.readout.objectives) + o)
    return gains_MO


def evaluate(
    model: RewardModel, pairs: Sequence[Preference], config: RewardConfig, inputs: StageInputs
) -> tuple[dict[str, Any], Scores]:
    """Report of held-out pairs, empty where the pipeline gave no evaluator; and their scores."""
    scores = score_pairs(model, pairs, config.batch_size)
    return report_of(pairs, *own_scores(model, pairs, scores), inputs), scores


def report_of(
    pairs: Sequence[Preference], chosen: Sequence[float], rejected: Sequence[float], inputs: StageInputs
) -> dict[str, Any]:
    """What the pipeline's evaluator says; empty where there is none."""
    return inputs.evaluate_preferences(pairs, chosen, rejected) if inputs.evaluate_preferences else {}


def before_calibration(
    model: RewardModel, pairs: Sequence[Preference], scores: Scores, gains_MO: Tensor, inputs: StageInputs
) -> dict[str, Any]:
    """What calibration was good for: its temperature (of several scores, their geometric mean) and the error before."""
    raw = Readout(model.readout.objectives, model.readout.weights, model.readout.members)
    calibrated, model.readout = model.readout, raw
    chosen, rejected = own_scores(model, pairs, (scores[0] / gains_MO, scores[1] / gains_MO))
    model.readout = calibrated
    report = report_of(pairs, chosen, rejected, inputs)
    return {"temperature": gains_MO.log().mean().neg().exp().item(), "ece_uncalibrated": report.get("ece")}


def by_objective(
    model: RewardModel, pairs: Sequence[Preference], scores: Scores, inputs: StageInputs
) -> dict[str, Any]:
    """Accuracy of each objective on the pairs that asked about it; nothing where there is one only."""
    if len(model.readout.objectives) == 1:
        return {}
    found: dict[str, Any] = {}
    for name, rows in objective_rows(model, pairs).items():
        some = [pairs[row] for row in rows]
        report = report_of(some, *own_scores(model, some, (scores[0][rows], scores[1][rows])), inputs)
        found |= {
            f"{key}_{name}": report[key] for key in ("accuracy", "accuracy_low", "accuracy_high") if key in report
        }
    return found


def by_member(model: RewardModel, pairs: Sequence[Preference], scores: Scores) -> dict[str, Any]:
    """How far an ensemble's members disagree about the responses of a pair, where they order it rightly and wrongly."""
    if model.readout.members == 1:
        return {}
    chosen, rejected = own_scores(model, pairs, scores)
    wrong = torch.tensor(chosen) < torch.tensor(rejected)
    spread = (model.readout.spread(scores[0]) + model.readout.spread(scores[1])) / 2
    parts = {"disagreement": spread, "disagreement_right": spread[~wrong], "disagreement_wrong": spread[wrong]}
    return {name: part.mean().item() for name, part in parts.items() if len(part)}


def attributions(
    model: RewardModel, pairs: Sequence[Preference], scores: tuple[Sequence[float], Sequence[float]]
) -> dict[str, Any]:
    """Which words the scores come from: of the pair it is surest about, of a middling one, of its worst mistake."""
    gaps = [up - down for up, down in zip(*scores, strict=True)]
    order = sorted(range(len(pairs)), key=gaps.__getitem__)
    shown = {"its surest": order[-1], "a middling one": order[len(order) // 2], "its worst": order[0]}
    return {
        "pairs": [
            {
                "which": which,
                "prompt": pairs[row].prompt.text,
                "gap": gaps[row],
                "chosen": model.attribute(pairs[row].prompt, pairs[row].chosen),
                "rejected": model.attribute(pairs[row].prompt, pairs[row].rejected),
            }
            for which, row in {row: (which, row) for which, row in shown.items()}.values()
        ]
    }
