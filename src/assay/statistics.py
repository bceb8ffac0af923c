"""How sure are we: intervals and tests. NumPy only.

Sources are named at each function. Every random number comes from a seed that the caller gives.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from assay.errors import DataError
from assay.rng import numpy_rng

Floats = NDArray[np.float64]
Numbers = Sequence[float] | NDArray[Any]
"""What a caller may hand in: one number per row."""

CONFIDENCE = 0.95
RESAMPLES = 2000
CHUNK = 1 << 22
"""Resampling weights held in memory at once: 32 MB of float64."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its bounds, which are `None` where the sample is too small to give any."""

    value: float
    low: float | None
    high: float | None

    def named(self, name: str) -> dict[str, float | None]:
        """As flat JSON keys: `name`, `name_low`, `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def numbers(name: str, values: Numbers) -> Floats:
    """`values` as float64, or a `DataError` that says which of them is missing, infinite or not a number."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise DataError(f"{name}: there is nothing to evaluate", hint="give at least one value, as a flat list")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        rows = ", ".join(map(str, bad[:3]))
        raise DataError(
            f"{name}: {bad.size} of {array.size} values are not finite (rows {rows})",
            hint="look for overflow in half precision, or for responses that could not be scored",
        )
    return array


def same_length(**columns: Sequence[Any] | NDArray[Any]) -> None:
    """Refuse columns that cannot belong to the same rows."""
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise DataError(f"columns of different length: {listed}", hint="give one entry per row in each")


def wilson(successes: float, n: float, *, confidence: float = CONFIDENCE) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927; Brown, Cai & DasGupta 2001, eq. 4).

    `successes` may hold halves: a tie counts ½. An outcome of 0, ½ or 1 with mean p varies by
    p(1 − p) − ties/(4n), never more than the p(1 − p) assumed here, so ties only make the interval cautious.
    `n` may be an effective sample size.
    """
    if not (n > 0 and 0 <= successes <= n):
        raise DataError(f"{successes} successes of {n}", hint="successes lie between 0 and n, and n is positive")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)))


def proportion(
    outcomes: Numbers, *, groups: Sequence[Hashable] | None = None, confidence: float = CONFIDENCE
) -> Interval:
    """Wilson interval of the mean of outcomes in [0, 1], honest about outcomes that come in groups.

    Pairs of one prompt succeed and fail together, so with `groups` (one label per outcome) the interval is
    that of n / design effect independent outcomes (Kish 1965; Dean & Pagano 2015 recommend it with Wilson).
    """
    x = numbers("outcomes", outcomes)
    n = x.size / design_effect(x, groups)
    return wilson(float(x.mean()) * n, n, confidence=confidence)


def design_effect(values: Floats, groups: Sequence[Hashable] | None) -> float:
    """Variance of the mean under grouping over that of as many independent values; at least 1.

    Linearised variance of a ratio, G/(G−1)·Σ_g (Σ_i∈g (x_i − x̄))² / n², over s²/n (Kish 1965, sec. 8.2).
    1 where every value is its own group; and where nothing varies or one group holds all: nothing to measure.
    """
    if groups is None:
        return 1.0
    sums, counts = _totals(values, groups)
    variance = float(values.var(ddof=1)) / values.size if values.size > 1 else 0.0
    if len(counts) in (1, values.size) or variance == 0:
        return 1.0
    residuals = sums - counts * values.mean()
    clustered = len(counts) / (len(counts) - 1) * float(residuals @ residuals) / values.size**2
    return max(1.0, clustered / variance)


def _totals(values: Floats, groups: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Sum and count per group, in order of first appearance; without groups each value is its own."""
    if groups is None:
        return values, np.ones(values.size)
    same_length(values=values, groups=groups)
    number: dict[Hashable, int] = {}
    index = np.array([number.setdefault(group, len(number)) for group in groups])
    sums = np.bincount(index, weights=values).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def resampled_means(sums: Floats, counts: Floats, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Means of `resamples` bootstrap samples of G groups, for C columns at once.

    `sums` [G, C] and `counts` [G] describe each group; → [resamples, C]. A mean is Σ sums / Σ counts of what
    was drawn, so groups of different size weigh as they do in the data.
    """
    size = len(counts)
    rng = numpy_rng(seed, "bootstrap")
    means = np.empty((resamples, sums.shape[1]))
    step = max(1, CHUNK // size)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
        means[start : start + rows] = (weights @ sums) / (weights @ counts)[:, None]
    return means


def percentile_interval(value: float, samples: Floats, *, groups: int, confidence: float = CONFIDENCE) -> Interval:
    """`value` with the bounds that its bootstrap `samples` over so many groups give.

    Expanded percentiles: the quantiles are those that make the interval of a normal sample as wide as Student's,
    which removes the narrowness of the plain ones in small samples (Hesterberg 2015, arXiv 1411.5279, sec. 4).
    One group alone has no bounds.
    """
    if groups < 2:
        return Interval(value, None, None)
    from scipy.special import ndtr, stdtrit

    t = float(stdtrit(groups - 1, (1 + confidence) / 2))
    tail = float(ndtr(-math.sqrt(groups / (groups - 1)) * t))
    low, high = np.quantile(samples, (tail, 1 - tail))
    return Interval(value, float(low), float(high))


def bootstrap_means(
    columns: Floats,
    *,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> list[Interval]:
    """Mean and bootstrap interval of each column of [n, C]; all columns are resampled by the same rows.

    `groups` (one label per row) are resampled whole.
    """
    totals = [_totals(column, groups) for column in columns.T]
    sums, counts = np.stack([total for total, _ in totals], axis=1), totals[0][1]
    samples = resampled_means(sums, counts, seed=seed, resamples=resamples)
    return [
        percentile_interval(float(column.mean()), sample, groups=len(counts), confidence=confidence)
        for column, sample in zip(columns.T, samples.T, strict=True)
    ]


def bootstrap_mean(
    values: Numbers,
    *,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean with its bootstrap interval (see `percentile_interval`); `groups` are resampled whole."""
    column = numbers("values", values)[:, None]
    return bootstrap_means(column, seed=seed, groups=groups, confidence=confidence, resamples=resamples)[0]


def paired_bootstrap(
    before: Numbers,
    after: Numbers,
    *,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """mean(after − before) with its interval. Both columns are resampled by the same rows, so what a hard prompt
    does to both cancels (Koehn 2004)."""
    same_length(before=before, after=after)
    gains = numbers("after", after) - numbers("before", before)
    return bootstrap_mean(gains, seed=seed, groups=groups, confidence=confidence, resamples=resamples)


def binomial_test(
    successes: int, n: int, p: float = 0.5, *, alternative: Literal["two-sided", "less", "greater"] = "two-sided"
) -> float:
    """Exact p-value of `successes` of `n` where the chance of each is `p`. 3 of 10, "less": 0.17."""
    from scipy.stats import binomtest

    return float(binomtest(successes, n, p, alternative=alternative).pvalue)


def sign_test(wins: int, losses: int) -> float | None:
    """Exact two-sided p-value that wins and losses are equally likely; ties say nothing and are left out.

    `None` without a win or a loss."""
    return binomial_test(wins, wins + losses) if wins + losses else None
