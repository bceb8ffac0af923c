"""A linear layer in eight bits, one number at a time. Shares no code with the package."""

from __future__ import annotations


def steps(numbers: list[float]) -> tuple[list[int], float]:
    """The nearest whole steps of a 127th of the largest, and the step."""
    largest = 0.0
    for number in numbers:
        largest = max(largest, abs(number))
    if largest == 0:
        return [0] * len(numbers), 0.0
    return [round(127 * number / largest) for number in numbers], largest / 127


def linear(x: list[float], weight: list[list[float]], bias: list[float]) -> list[float]:
    """What one token becomes."""
    whole, step = steps(x)
    out = []
    for row, shift in zip(weight, bias, strict=True):
        count, size = steps(row)
        out.append(sum(a * b for a, b in zip(whole, count, strict=True)) * step * size + shift)
    return out
