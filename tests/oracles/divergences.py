"""Divergences of two distributions as sums over plain floats. Shares no code with `src`."""

from __future__ import annotations

import math
from collections.abc import Sequence


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def forward(student: Sequence[float], teacher: Sequence[float]) -> float:
    return kl(teacher, student)


def reverse(student: Sequence[float], teacher: Sequence[float]) -> float:
    return kl(student, teacher)


def jensen_shannon(student: Sequence[float], teacher: Sequence[float], beta: float) -> float:
    mixture = [beta * t + (1 - beta) * s for s, t in zip(student, teacher, strict=True)]
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def logits(hidden: Sequence[float], weight: Sequence[Sequence[float]], bias: Sequence[float]) -> list[float]:
    """One token's logits from its hidden state."""
    return [sum(h * w for h, w in zip(hidden, row, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
