"""How much a difference of scores says about which response people prefer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from assay.errors import DataError


def preference_gain(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """The g > 0 that minimises Σ softplus(−g·(chosen − rejected)) + ½·(log g)².

    One-parameter logistic regression; the prior keeps it finite when every pair is in the right order, or most are not.
    """
    if not chosen:
        raise DataError("no held-out pairs to calibrate the reward model on", hint="raise data.validation_split")
    gaps = np.subtract(chosen, rejected)

    def cost(log_gain: float) -> float:
        return float(np.logaddexp(0, -math.exp(log_gain) * gaps).sum() + 0.5 * log_gain**2)

    return math.exp(minimize_scalar(cost, bounds=(-7, 7), method="bounded", options={"xatol": 1e-6}).x)
