"""The losses of direct preference optimisation for one pair or one verdict, on plain floats. No code of `src`."""

from __future__ import annotations

import math
from collections.abc import Sequence


def sigmoid(x: float) -> float:
    """1 / (1 + e^−x)."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def minus_log_sigmoid(x: float) -> float:
    """−log σ(x) for any x."""
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


def log_ratio(logprobs: Sequence[float], reference: float, *, per_token: bool) -> float:
    """Of one response: the sum over its tokens against the reference's sum."""
    total = 0.0
    for logprob in logprobs:
        total += logprob
    return (total - reference) / (len(logprobs) if per_token else 1)


def reward(x: float, link: str, alpha: float) -> float:
    """f′(u) − f′(1) of the divergence's generator f, u = π/π_ref; the log odds of p = e^x."""
    u = math.exp(x)
    derivative = {
        "reverse_kl": lambda v: math.log(v) + 1,
        "forward_kl": lambda v: -1 / v,
        "jensen_shannon": lambda v: math.log(2 * v / (1 + v)),
        "alpha": lambda v: (1 - v**-alpha) / alpha,
        "log_odds": lambda v: math.log(v / (1 - v)),
    }[link]
    return derivative(u) - (0.0 if link == "log_odds" else derivative(1.0))


def pair(loss: str, h: float, *, beta: float, margin: float = 0.0, smoothing: float = 0.0) -> float:
    """Loss of one pair whose rewards differ by h."""
    if loss == "logistic":
        z = beta * h - margin
        return (1 - smoothing) * minus_log_sigmoid(z) + smoothing * minus_log_sigmoid(-z)
    if loss == "robust":
        right, flipped = minus_log_sigmoid(beta * h), minus_log_sigmoid(-beta * h)
        return ((1 - smoothing) * right - smoothing * flipped) / (1 - 2 * smoothing)
    if loss == "squared":
        return (h - 0.5 / beta) ** 2
    assert loss == "hinge"
    return max(0.0, 1 + margin - beta * h)


def verdict(x: float, good: bool, *, baseline: float, beta: float, desirable: float) -> float:
    """KTO's loss of one answer."""
    if good:
        return desirable * (1 - sigmoid(beta * (x - baseline)))
    return 1 - sigmoid(beta * (baseline - x))


def baseline(mismatched: Sequence[float]) -> float:
    """KTO's z₀."""
    return max(0.0, sum(mismatched) / len(mismatched))


def nll(responses: Sequence[Sequence[float]]) -> float:
    """Mean over responses of the mean over tokens."""
    return sum(-sum(tokens) / len(tokens) for tokens in responses) / len(responses)
