"""Strengths of items from who beat whom, by Zermelo's iteration. Shares no code with `src`."""

from __future__ import annotations

import math
from collections.abc import Sequence


def strengths(wins: Sequence[Sequence[int]], rounds: int = 5000) -> list[float]:
    """log p_i, mean 0, of p_i ← W_i / Σ_j n_ij/(p_i + p_j); `wins[i][j]` counts how often i beat j (Zermelo 1929)."""
    items = range(len(wins))
    p = [1.0] * len(wins)
    for _ in range(rounds):
        fresh = []
        for i in items:
            met = sum((wins[i][j] + wins[j][i]) / (p[i] + p[j]) for j in items if j != i)
            fresh.append(sum(wins[i]) / met)
        root = math.exp(sum(math.log(x) for x in fresh) / len(fresh))
        p = [x / root for x in fresh]
    return [math.log(x) for x in p]
