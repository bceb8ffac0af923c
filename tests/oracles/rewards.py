"""Ensembles, process rewards and Shapley values on plain floats and strings. Shares no code with `src`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence


def smoothed_pair(better: float, worse: float, margin: float, smoothing: float) -> float:
    """Cross-entropy of one pair whose label is right with chance 1 − ε, in nats."""
    chance = 1 / (1 + math.exp(-(better - worse - margin)))
    return -(1 - smoothing) * math.log(chance) - smoothing * math.log(1 - chance)


def ensemble(scores: Sequence[float], how: str, penalty: float) -> float:
    """One response's reward from its members' scores."""
    mean = sum(scores) / len(scores)
    spread = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
    return {"mean": mean, "worst": min(scores), "uncertainty": mean - penalty * spread}[how]


def step_loss(logits: Sequence[Sequence[float]], good: Sequence[Sequence[bool]]) -> float:
    """Mean negative log-chance of every step's label."""
    steps = [(z, y) for row, labels in zip(logits, good, strict=True) for z, y in zip(row, labels, strict=True)]
    return sum(-math.log(1 / (1 + math.exp(-z if y else z))) for z, y in steps) / len(steps)


def whole_response(logits: Sequence[float], how: str) -> float:
    """A response's log-chance from those of its steps."""
    chances = [math.log(1 / (1 + math.exp(-z))) for z in logits]
    return {"sum": sum(logits), "min": min(chances), "product": sum(chances), "last": chances[-1]}[how]


def shapley(words: Sequence[str], score: Callable[[str], float]) -> list[float]:
    """The exact Shapley values: a word's gain when it joins those before it, over all orders of joining."""
    values = [0.0] * len(words)
    orders = list(itertools.permutations(range(len(words))))
    for order in orders:
        for place, word in enumerate(order):
            before = sorted(order[:place])
            after = sorted(order[: place + 1])
            gain = score(" ".join(words[i] for i in after)) - score(" ".join(words[i] for i in before))
            values[word] += gain / len(orders)
    return values
