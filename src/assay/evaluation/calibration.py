"""Does a reward gap mean what Bradley–Terry says it means? P(chosen wins) = σ(Δ/T)."""

from __future__ import annotations

from typing import Any

import numpy as np

from assay.rng import numpy_rng
from assay.statistics import Floats, Numbers, numbers

BINS = 10
SIMULATIONS = 200
SHARPEST = 1e3
"""Bounds of the fit: a typical gap may weigh between 1/SHARPEST and SHARPEST nats."""


def sigmoid(x: Floats) -> Floats:
    """1/(1 + e^−x) that does not overflow."""
    return np.exp(-np.logaddexp(0, -x))


def fit_temperature(margins: Numbers) -> float:
    """The T that makes σ(Δ/T) the likeliest chances of the observed choices; Δ = score(chosen) − score(rejected).

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599, sec. 4.2) of Bradley–Terry, in 1/T, where the
    likelihood is concave; targets (n+1)/(n+2) instead of 1 (Platt 1999) keep it finite when every pair is right.
    Scores that order pairs worse than chance, or not at all, get the bluntest T allowed. T = 1 if all gaps are 0.
    """
    gaps = numbers("margins", margins)
    scale = float(np.sqrt(np.mean(gaps**2)))
    if scale == 0:
        return 1.0
    x = gaps / scale
    target = (x.size + 1) / (x.size + 2)
    low, high = 1 / SHARPEST, SHARPEST

    def slope(sharpness: float) -> float:
        return float(np.mean(x * (target - sigmoid(sharpness * x))))

    if slope(low) <= 0:
        return scale / low
    if slope(high) >= 0:
        return scale / high
    for _ in range(60):  # the slope only falls: bisection cannot miss
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return scale / (low * high) ** 0.5


def reliability(margins: Numbers, *, seed: int, bins: int = BINS) -> dict[str, Any]:
    """Reliability diagram and expected calibration error of Bradley–Terry scores.

    A pair's confidence is σ(|Δ|) in [½, 1], and it is right when Δ > 0 (a tie: ½). ECE = Σ_b n_b/n · |accuracy_b −
    confidence_b| over equal-width bins (Guo et al. 2017, eq. 3). Chance alone makes it positive: `ece_floor` is
    what perfectly calibrated scores with these confidences would get on average, `ece_p` how often at least `ece`.
    Keys: ece, ece_floor, ece_p, temperature (see `fit_temperature`), bins: [{low, high, confidence, accuracy, n}].
    """
    gaps = numbers("margins", margins)
    confidence = sigmoid(np.abs(gaps))
    right = np.where(gaps == 0, 0.5, gaps > 0)
    edges = np.linspace(0.5, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    calls = np.bincount(index, confidence, bins)

    def error(outcomes: Floats) -> float:
        return float(np.abs(np.bincount(index, outcomes, bins) - calls).sum() / gaps.size)

    ece = error(right)
    rng = numpy_rng(seed, "reliability")
    luck = np.array([error((rng.random(gaps.size) < confidence).astype(float)) for _ in range(SIMULATIONS)])
    hits = np.bincount(index, right, bins)
    table = [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "confidence": float(calls[b] / counts[b]),
            "accuracy": float(hits[b] / counts[b]),
            "n": int(counts[b]),
        }
        for b in np.flatnonzero(counts)
    ]
    return {
        "ece": ece,
        "ece_floor": float(luck.mean()),
        "ece_p": float((1 + (luck >= ece).sum()) / (1 + SIMULATIONS)),
        "temperature": fit_temperature(gaps),
        "bins": table,
    }
