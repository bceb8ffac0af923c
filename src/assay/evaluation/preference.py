"""How good is a reward model? Its scores of held-out pairs against the people's choices, and against the truth."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from assay.data.agreement import accuracy_ceiling
from assay.data.baselines import CHANCE, Baselines, against, answer_words, length_margins, outcomes
from assay.evaluation.calibration import fit_temperature, reliability, sigmoid
from assay.statistics import (
    Floats,
    Numbers,
    bootstrap_mean,
    design_effect,
    numbers,
    paired_bootstrap,
    proportion,
    same_length,
    sign_test,
)
from assay.types import Preference


def preference_report(
    chosen: Numbers,
    rejected: Numbers,
    *,
    seed: int,
    pairs: Sequence[Preference] | None = None,
    baselines: Baselines | None = None,
    truth_margins: Numbers | None = None,
    truth_unit: float = 1.0,
    agreement: float | None = None,
) -> dict[str, Any]:
    """Everything that can be said about scores of held-out pairs; docs/evaluation.md lists the keys.

    `chosen`, `rejected`: the model's scores, one per pair. `pairs`: those pairs, for slices, baselines and
    intervals that know which pairs share a prompt. `baselines`: fitted to the pairs that the model learned from.
    `truth_margins`: truth(chosen) − truth(rejected), where a world knows it; `truth_unit` is one unit of
    annotator noise, and a pair whose truth differs by at least that much is clear.
    `agreement`: how often two annotators of a pair agree, for the ceiling.

    A tie counts ½ in every accuracy and is shown. Intervals are Wilson's on those half-counts (see `wilson`),
    widened by the design effect of pairs that share a prompt (see `proportion`).
    """
    up, down = numbers("chosen", chosen), numbers("rejected", rejected)
    same_length(chosen=up, rejected=down, **{"pairs": pairs} if pairs is not None else {})
    margins = up - down
    groups: list[Hashable] = list(range(len(margins))) if pairs is None else [pair.prompt.id for pair in pairs]
    notes: list[str] = []
    calibration = reliability(margins, seed=seed)
    report = {
        **_accuracy(margins, groups, seed),
        "chosen_mean": float(up.mean()),
        "rejected_mean": float(down.mean()),
        "score_std": float(np.concatenate([up, down]).std()),
        "reward_gap_std": float(margins.std()),
        "prompts": len(set(groups)),
        "design_effect": design_effect(outcomes(margins), groups),
        "ece": calibration["ece"],
        **_truth(margins, truth_margins, truth_unit, groups, notes),
        "chance": CHANCE,
        "agreement": agreement,
        "ceiling": None if agreement is None else accuracy_ceiling(agreement),
        "reliability": calibration,
        "baselines": {},
        "slices": {},
        "length": None,
        "length_expected": None,
        "length_excess": None,
    }
    if pairs is None:
        notes.append("baselines, slices, length: the pairs themselves were not given")
    else:
        report |= _text_side(margins, pairs, baselines or Baselines.fit(()), groups, seed, notes)
    if agreement is None:
        notes.append("ceiling: how often annotators agree is not known")
    elif report["ceiling"] is None:
        notes.append("ceiling: annotators agree less often than chance")
    return {**report, "notes": notes}


def _accuracy(margins: Floats, groups: Sequence[Hashable], seed: int) -> dict[str, Any]:
    right = outcomes(margins)
    wins, losses = int((right == 1).sum()), int((right == 0).sum())
    return {
        **proportion(right, groups=groups).named("accuracy"),
        "n": len(margins),
        "ties": len(margins) - wins - losses,
        "p_value": sign_test(wins, losses),
        **bootstrap_mean(margins, seed=seed, groups=groups).named("reward_gap"),
        "reward_gap_median": float(np.median(margins)),
    }


def _truth(
    margins: Floats,
    truth_margins: Numbers | None,
    unit: float,
    groups: Sequence[Hashable],
    notes: list[str],
) -> dict[str, Any]:
    """Accuracy against the truth: of all pairs whose truth differs, and of those where it differs clearly."""
    names = ("truth_accuracy", "truth_accuracy_clear", "labels_truth_accuracy")
    empty = {f"{name}{suffix}": None for name in names for suffix in ("", "_low", "_high")}
    if truth_margins is None:
        notes.append("truth: no world knows it here")
        return {**empty, "truth_n": 0, "truth_n_clear": 0, "truth_ties": 0, "truth_unit": None}
    truth = numbers("truth_margins", truth_margins)
    same_length(chosen=margins, truth_margins=truth)

    def accuracy(name: str, judged: Floats, rows: np.ndarray) -> dict[str, Any]:
        if not rows.any():
            notes.append(f"{name}: no pair's truth differs enough")
            return {f"{name}{suffix}": None for suffix in ("", "_low", "_high")}
        return proportion(outcomes(judged[rows]), groups=_at(groups, rows)).named(name)

    differs, clear = truth != 0, np.abs(truth) >= unit
    agrees = margins * np.sign(truth)
    return {
        **accuracy("truth_accuracy", agrees, differs),
        "truth_n": int(differs.sum()),
        **accuracy("truth_accuracy_clear", agrees, differs & clear),
        "truth_n_clear": int((differs & clear).sum()),
        "truth_ties": int((~differs).sum()),
        "truth_unit": unit,
        **accuracy("labels_truth_accuracy", truth, differs),
    }


def _text_side(
    margins: Floats,
    pairs: Sequence[Preference],
    baselines: Baselines,
    groups: Sequence[Hashable],
    seed: int,
    notes: list[str],
) -> dict[str, Any]:
    """What needs the texts: baselines, slices with the baselines beside them, and the taste for length."""
    others = baselines.margins(pairs)
    if not baselines.pairs:
        notes.append("length_only: no training pairs, so longer is taken to be better")
    if "bag_of_words" not in others:
        notes.append("bag_of_words: too few training pairs")

    def part(rows: np.ndarray) -> dict[str, Any]:
        inner = _at(groups, rows)
        compared = {
            name: against(margins[rows], other[rows], groups=inner, seed=seed) for name, other in others.items()
        }
        return {**_accuracy(margins[rows], inner, seed), "baselines": compared}

    everything = np.ones(len(pairs), dtype=bool)
    return {
        "baselines": part(everything)["baselines"],
        "baseline_pairs": baselines.pairs,
        "chosen_words": answer_words(pairs),
        "slices": {
            "source": _slices([pair.prompt.source for pair in pairs], part),
            "kind": _slices([pair.prompt.kind for pair in pairs], part),
        },
        **_length_taste(margins, length_margins(pairs), groups, seed),
    }


def _slices(names: Sequence[str], part: Callable[[np.ndarray], dict[str, Any]]) -> dict[str, Any]:
    """One part per name; none where nothing is named."""
    return {name: part(np.array([other == name for other in names])) for name in sorted(set(names)) if name}


def _length_taste(margins: Floats, lengths: Floats, groups: Sequence[Hashable], seed: int) -> dict[str, Any]:
    """How often model and people prefer the longer response of a pair, over pairs of unequal length.

    Keys: length, with n, labels_prefer_longer, model_prefers_longer, each with _low and _high, None if all lengths are
    equal; length_expected, how often the model expects people to, and length_excess, by how much more than they do,
    with its paired interval. Expected is the mean of σ(gap/T) with the best T: a model has no doubts about pairs that
    people are divided over, so its own choices lean further than theirs though it has learnt nothing else.
    """
    unequal = lengths != 0
    if not unequal.any():
        none = {"n": 0, **dict.fromkeys(("labels_prefer_longer", "model_prefers_longer"))}
        return {"length": none, "length_expected": None, "length_excess": None}
    longer = margins * np.sign(lengths)
    labels, expected = outcomes(lengths[unequal]), sigmoid(longer / fit_temperature(margins))[unequal]
    taste = {
        "n": int(unequal.sum()),
        **proportion(labels).named("labels_prefer_longer"),
        **proportion(outcomes(longer[unequal])).named("model_prefers_longer"),
    }
    excess = paired_bootstrap(labels, expected, groups=_at(groups, unequal), seed=seed)
    return {"length": taste, "length_expected": float(expected.mean()), **excess.named("length_excess")}


def _at(values: Sequence[Hashable], rows: np.ndarray) -> list[Hashable]:
    return [values[int(row)] for row in np.flatnonzero(rows)]
