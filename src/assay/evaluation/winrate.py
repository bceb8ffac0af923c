"""Does the new policy win? Two responses to each prompt, scored by the truth of a world or by a judge."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from assay.statistics import Floats, Numbers, bootstrap_means, numbers, proportion, same_length, sign_test

FEWEST = 10
"""A bootstrap cannot draw what it has hardly seen: with fewer wins or losses than this, Wilson's interval."""


def win_rate(
    before: Numbers,
    after: Numbers,
    *,
    seed: int,
    kinds: Sequence[str] | None = None,
    groups: Sequence[Hashable] | None = None,
    tie_margin: float = 1e-6,
) -> dict[str, Any]:
    """How often `after` scores higher than `before` on the same prompt, and by how much.

    A tie counts ½ and is shown; scores within `tie_margin` tie, because a judge's padding alone can move a score
    that far. Intervals resample prompts with both their scores (paired bootstrap); where wins or losses are fewer
    than ten the win rate's is Wilson's, so 20 wins of 20 is 84–100 % and not 100–100 %.
    `groups`: one label per row, where several rows share a prompt. `kinds`: one per row, for the slices.
    Keys: win_rate, win_rate_low, win_rate_high, wins, ties, losses, n, p_value (sign test; None if all tie),
    mean_before, mean_after, gain, gain_low, gain_high (mean score difference), notes, and
    kinds: {kind: the same keys} if kinds were given.
    """
    first, second = numbers("before", before), numbers("after", after)
    same_length(before=first, after=second, **{"kinds": kinds} if kinds is not None else {})
    report = _compare(first, second, seed=seed, groups=groups, tie_margin=tie_margin)
    if kinds is not None:
        report["kinds"] = {}
        for kind in sorted(set(kinds)):
            rows = [row for row, name in enumerate(kinds) if name == kind]
            inner = None if groups is None else [groups[row] for row in rows]
            report["kinds"][kind] = _compare(first[rows], second[rows], seed=seed, groups=inner, tie_margin=tie_margin)
    return report


def _compare(
    before: Floats, after: Floats, *, seed: int, groups: Sequence[Hashable] | None, tie_margin: float
) -> dict[str, Any]:
    gains = after - before
    outcomes = np.where(np.abs(gains) <= tie_margin, 0.5, gains > 0)
    wins, losses = int((outcomes == 1).sum()), int((outcomes == 0).sum())
    rate, gain = bootstrap_means(np.stack([outcomes, gains], axis=1), seed=seed, groups=groups)
    if min(wins, losses) < FEWEST:
        rate = proportion(outcomes, groups=groups)
    return {
        **rate.named("win_rate"),
        "wins": wins,
        "ties": len(gains) - wins - losses,
        "losses": losses,
        "n": len(gains),
        "p_value": sign_test(wins, losses),
        "mean_before": float(before.mean()),
        "mean_after": float(after.mean()),
        **gain.named("gain"),
        "notes": ["gain: one prompt alone has no interval"] if gain.low is None else [],
    }
