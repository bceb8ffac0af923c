"""What a reward model is worth on held-out pairs: accuracy, calibration, objectives, members, and the words it goes by.

Tensors: N responses, M members of an ensemble, O objectives.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.models.readout import Readout
from assay.models.roles import RewardModel
from assay.stages.comparisons import objective_of
from assay.stages.config import RewardConfig
from assay.stages.context import StageInputs
from assay.types import Preference

Scores = tuple[Tensor, Tensor]
"""Of chosen and rejected responses, [N, M, O] each."""


def write(
    model: RewardModel,
    pairs: Sequence[Preference],
    gains_MO: Tensor,
    config: RewardConfig,
    inputs: StageInputs,
    folder: Path,
) -> dict[str, Any]:
    """Everything about the test pairs; reliability.json and attribution.json for the pictures."""
    readout = model.readout
    scores = score_pairs(model, pairs, config.batch_size)
    report = of_pairs(readout, pairs, scores, inputs)
    reliability = {"bins": report.get("reliability", {}).get("bins", []), "ece": report.get("ece")}
    (folder / "reliability.json").write_text(json.dumps(reliability, indent=2))
    attributed = {"pairs": attributions(model, pairs, scores)}
    (folder / "attribution.json").write_text(json.dumps(attributed, indent=2, ensure_ascii=False))
    report |= before_calibration(readout, pairs, scores, gains_MO, inputs)
    return report | by_objective(readout, pairs, scores, inputs) | by_member(readout, pairs, scores)


def score_pairs(model: RewardModel, pairs: Sequence[Preference], batch_size: int) -> Scores:
    """Scores of chosen and rejected texts, by the path that serves every other caller."""
    prompts = [pair.prompt for pair in pairs]
    chosen = model.member_scores(prompts, [pair.chosen for pair in pairs], batch_size=2 * batch_size)
    rejected = model.member_scores(prompts, [pair.rejected for pair in pairs], batch_size=2 * batch_size)
    return chosen, rejected


def of_pairs(readout: Readout, pairs: Sequence[Preference], scores: Scores, inputs: StageInputs) -> dict[str, Any]:
    """What the pipeline's evaluator says; empty where there is none."""
    if inputs.evaluate_preferences is None:
        return {}
    return inputs.evaluate_preferences(pairs, *own_scores(readout, pairs, scores))


def own_scores(readout: Readout, pairs: Sequence[Preference], scores: Scores) -> tuple[list[float], list[float]]:
    """One score a response: under its pair's own objective where there are several, as nothing else was asked."""
    chosen, rejected = torch.empty(len(pairs)), torch.empty(len(pairs))
    for name, rows in zip(readout.objectives, rows_about(pairs, readout.objectives), strict=True):
        asked = readout.only(name) if name else readout
        chosen[rows], rejected[rows] = asked.read(scores[0][rows]), asked.read(scores[1][rows])
    return chosen.tolist(), rejected.tolist()


def rows_about(pairs: Sequence[Preference], objectives: Sequence[str]) -> list[list[int]]:
    """For each objective, the numbers of the pairs that were asked about it."""
    rows: list[list[int]] = [[] for _ in objectives]
    for number, pair in enumerate(pairs):
        rows[objective_of(pair, objectives)].append(number)
    return rows


def before_calibration(
    readout: Readout, pairs: Sequence[Preference], scores: Scores, gains_MO: Tensor, inputs: StageInputs
) -> dict[str, Any]:
    """What calibration was good for: its temperature (of several scores, their geometric mean) and the error before."""
    origins_MO = torch.tensor(readout.origins).view_as(gains_MO) / gains_MO
    raw = replace(readout, origins=tuple(origins_MO.flatten().tolist()))
    report = of_pairs(raw, pairs, (scores[0] / gains_MO, scores[1] / gains_MO), inputs)
    return {"temperature": gains_MO.log().mean().neg().exp().item(), "ece_uncalibrated": report.get("ece")}


def by_objective(readout: Readout, pairs: Sequence[Preference], scores: Scores, inputs: StageInputs) -> dict[str, Any]:
    """Accuracy of each objective on the pairs that were asked about it; nothing where there is one only."""
    found: dict[str, Any] = {}
    for name, rows in zip(readout.objectives, rows_about(pairs, readout.objectives), strict=True):
        if name:
            report = of_pairs(readout, [pairs[row] for row in rows], (scores[0][rows], scores[1][rows]), inputs)
            found |= {f"{key}_{name}": report.get(key) for key in ("accuracy", "accuracy_low", "accuracy_high")}
    return found


def by_member(readout: Readout, pairs: Sequence[Preference], scores: Scores) -> dict[str, Any]:
    """How far an ensemble's members disagree about the responses of a pair, where they order it rightly and wrongly."""
    if readout.members == 1:
        return {}
    chosen, rejected = own_scores(readout, pairs, scores)
    wrong = torch.tensor(chosen) < torch.tensor(rejected)
    spread = (readout.spread(scores[0]) + readout.spread(scores[1])) / 2
    parts = {"disagreement": spread, "disagreement_right": spread[~wrong], "disagreement_wrong": spread[wrong]}
    return {name: part.mean().item() for name, part in parts.items() if len(part)}


def attributions(model: RewardModel, pairs: Sequence[Preference], scores: Scores) -> list[dict[str, Any]]:
    """Which words the scores come from: of the pair it is surest about, of a middling one, of its worst mistake."""
    gaps = [chosen - rejected for chosen, rejected in zip(*own_scores(model.readout, pairs, scores), strict=True)]
    order = sorted(range(len(pairs)), key=gaps.__getitem__)
    shown = {order[-1]: "surest", order[len(order) // 2]: "middling", order[0]: "worst"}
    return [
        {
            "which": which,
            "prompt": pairs[row].prompt.text,
            "gap": gaps[row],
            "chosen": model.attribute(pairs[row].prompt, pairs[row].chosen),
            "rejected": model.attribute(pairs[row].prompt, pairs[row].rejected),
        }
        for row, which in shown.items()
    ]
