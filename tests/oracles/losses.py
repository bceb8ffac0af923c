"""Every loss for one token, one pair or one ranking, on plain floats. Shares no code with `src`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def clipped_surrogate(log_ratio: float, advantage: float, low: float, high: float) -> float:
    """PPO's policy loss of one token."""
    ratio = math.exp(log_ratio)
    return max(-advantage * ratio, -advantage * min(max(ratio, 1 - low), 1 + high))


def policy(
    rows: Sequence[Sequence[tuple[float, ...]]],
    kind: str,
    level: str,
    how: str,
    low: float,
    high: float,
    bound: float,
    drift: float,
    longest: int,
) -> float:
    """Any policy loss of rows of (new, old, advantage), with the dual clip, one token after the other."""
    total = 0.0
    for row in rows:
        gaps = [new - old for new, old, _ in row]
        for (new, _, advantage), gap in zip(row, gaps, strict=True):
            x = {"token": gap, "sequence": sum(gaps) / len(gaps), "trajectory": sum(gaps)}[level]
            ratio = math.exp(x)
            loss = {
                "clip": max(-advantage * ratio, -advantage * min(max(ratio, 1 - low), 1 + high)),
                "plain": -advantage * ratio,
                "cispo": -min(max(ratio, 1 - low), 1 + high) * advantage * new,
                "penalty": -advantage * ratio + drift * (ratio - 1 - x),
            }[kind]
            if advantage < 0:
                loss = min(loss, -bound * advantage)
            tokens = sum(len(other) for other in rows)
            total += (
                loss
                / {"token_mean": tokens, "sequence_mean": len(rows) * len(row), "constant": len(rows) * longest}[how]
            )
    return total


def clipped_value_loss(value: float, old_value: float, target: float, clip: float) -> float:
    """PPO's value loss of one token."""
    clipped = min(max(value, old_value - clip), old_value + clip)
    return max((value - target) ** 2, (clipped - target) ** 2) / 2


def softplus(x: float) -> float:
    """log(1 + e^x) for any x."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def pair(better: float, worse: float, margin: float, centring: float) -> float:
    """Bradley–Terry loss of one pair of scores."""
    return softplus(-(better - worse - margin)) + centring * (better + worse) ** 2


def ranking(scores: Sequence[float], margin: float, centring: float) -> float:
    """Mean pair loss over all C(K, 2) pairs of scores, best first."""
    losses = [pair(better, worse, margin, centring) for better, worse in itertools.combinations(scores, 2)]
    return sum(losses) / len(losses)


def wins(better: float, worse: float) -> float:
    """1 for the right order, ½ for a tie, 0 for the wrong one."""
    return 0.5 if better == worse else float(better > worse)
