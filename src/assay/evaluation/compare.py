"""Which of several checkpoints is best, given that their scores are noisy?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from assay.errors import DataError
from assay.statistics import Numbers, numbers, percentile_interval, resampled_means, same_length


def compare(scores: Mapping[str, Numbers], *, seed: int) -> dict[str, Any]:
    """Compare candidates on the same prompts and select one. List them from the least trained to the most.

    One-standard-error rule (Breiman et al. 1984, sec. 3.4.3), on paired differences: selected is the first
    candidate whose mean is within one standard error of the best mean, the error being that of the difference
    between the two on the same prompts. So noise never buys more training: an earlier checkpoint has drifted
    less from where it started, and a later one must show that it is better.
    The best of several means is too high by luck: `optimism` estimates by how much (bootstrap, Efron &
    Tibshirani 1993, ch. 17). Judge the winner on fresh prompts.
    Keys: selected, best (highest mean), rule, optimism, n, and candidates: {name: {mean, mean_low, mean_high,
    behind, behind_low, behind_high (best mean less this one, paired), standard_error (of `behind`; None for one
    prompt), within_one_error, probability_best}}, notes.
    """
    if not scores:
        raise DataError("there is no candidate to select from", hint="give at least one list of scores")
    columns = {name: numbers(f"scores of {name!r}", column) for name, column in scores.items()}
    same_length(**columns)
    names, table = list(columns), np.stack(list(columns.values()), axis=1)
    means = table.mean(axis=0)
    best = int(np.argmax(means))
    resampled = resampled_means(table, np.ones(len(table)), seed=seed)
    winners = resampled.argmax(axis=1)
    rows = {}
    for number, name in enumerate(names):
        behind = table[:, best] - table[:, number]
        samples = resampled[:, best] - resampled[:, number]
        error = float(behind.std(ddof=1) / np.sqrt(len(behind))) if len(behind) > 1 else None
        rows[name] = {
            **percentile_interval(float(means[number]), resampled[:, number], groups=len(table)).named("mean"),
            **percentile_interval(float(behind.mean()), samples, groups=len(table)).named("behind"),
            "standard_error": error,
            "within_one_error": bool(behind.mean() <= (error or 0.0)),
            "probability_best": float((winners == number).mean()),
        }
    return {
        "selected": next(name for name in names if rows[name]["within_one_error"]),
        "best": names[best],
        "rule": "first within one standard error of the best mean, paired",
        "optimism": float(np.mean(resampled.max(axis=1) - means[winners])),
        "n": len(table),
        "candidates": rows,
        "notes": ["intervals: one prompt alone has none"] if len(table) < 2 else [],
    }
