"""Whether a curve goes one way: rank correlation with an exact permutation test, and every step with its interval.

Rows are the S repetitions (seeds) of one curve over W settings, in the order in which it should rise.
"""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from assay.statistics import Floats, Interval, bootstrap_means


class Trend(NamedTuple):
    """Mean over the seeds of Spearman's ρ with the order of the settings, and how often chance gives as much."""

    rho: float
    p: float


def trend(values_SW: Floats) -> Trend:
    """Spearman's ρ and the one-sided p-value of "no order", exactly.

    Under it every order of a seed's values is as likely, seed by seed: all W!^S of them are counted, by convolution.
    A curve without any differences has ρ = 0. Source: Spearman 1904; permutation test, Fisher 1935.
    """
    size = values_SW.shape[1]
    orders = np.array(list(permutations(range(size))))
    place = np.arange(size) - (size - 1) / 2
    total, chance = 0.0, {0.0: 1.0}
    for row in values_SW:
        ranks = rankdata(row) - (size + 1) / 2
        norm = np.sqrt(place @ place * (ranks @ ranks))
        total += float(place @ ranks / norm) if norm else 0.0
        rhos, counts = np.unique((ranks[orders] @ place / norm).round(9) if norm else np.zeros(1), return_counts=True)
        chance = _summed(chance, dict(zip(rhos.tolist(), (counts / counts.sum()).tolist(), strict=True)))
    p = sum(share for value, share in chance.items() if value >= total - 1e-6)
    return Trend(total / len(values_SW), min(1.0, p))


def _summed(one: dict[float, float], other: dict[float, float]) -> dict[float, float]:
    """Distribution of the sum of two independent numbers."""
    found: dict[float, float] = {}
    for a, p in one.items():
        for b, q in other.items():
            key = round(a + b, 9)
            found[key] = found.get(key, 0.0) + p * q
    return found


def steps(values_PW: Floats, *, seed: int) -> list[Interval]:
    """Rise from each setting to the next, with its paired bootstrap interval over the P prompts."""
    return bootstrap_means(np.diff(values_PW, axis=1), seed=seed)


def verdict(rises: list[Interval]) -> str:
    """What the steps say: monotone as measured, not contradicted, or broken by more than chance."""
    if all(rise.value >= 0 for rise in rises):
        return "monotone"
    against = [rise for rise in rises if rise.high is not None and rise.high < 0]
    return f"not monotone, steps that go the other way: {len(against)}" if against else "monotone within its intervals"
