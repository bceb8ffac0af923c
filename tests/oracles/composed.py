"""The loss of a whole optimizer step of a policy method, token by token on plain floats. Shares no code with `src`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tests.oracles import losses

Row = Sequence[Sequence[float]]
"""Tokens of one response: log-probability now, before, and under the reference; advantage; entropy."""


def step(rows: Sequence[Row], chosen: dict[str, Any], longest: int) -> float:
    """Σ w·(surrogate + β·KL − c·entropy); `chosen` holds the settings of the method."""
    low, high = chosen["clip"], chosen["clip_high"] or chosen["clip"]
    bound, how, level = chosen["dual_clip"] or math.inf, chosen["aggregation"], chosen["ratio"]
    tokens = [[(new, old, advantage) for new, old, _, advantage, _ in row] for row in rows]
    total = losses.policy(tokens, chosen["surrogate"], level, how, low, high, bound, chosen["penalty_coef"], longest)
    sizes = [len(row) for row in rows]
    mass = sum(len(row) * weight(rows, row, how, longest) for row in rows)
    response = mass / (len(rows) if level == "trajectory" else sum(sizes))  # all responses alike
    for row in rows:
        one = weight(rows, row, how, longest)
        strength = len(row) if level == "trajectory" else 1  # what one unit of its advantage moves a token's logit
        gaps = [new - ref for new, _, ref, _, _ in row]
        if chosen["kl_loss"] == "k2":
            total += chosen["kl_coef"] * response * sum(gaps) ** 2 / 2
        if chosen["kl_loss"] == "k3":
            total += chosen["kl_coef"] * strength * one * sum(math.exp(-gap) - 1 + gap for gap in gaps)
        total -= chosen["entropy_coef"] * one * sum(entropy for *_, entropy in row)
    return total


def weight(rows: Sequence[Row], row: Row, how: str, longest: int) -> float:
    """What a token of this response weighs."""
    if how == "token_mean":
        return 1 / sum(len(other) for other in rows)
    return 1 / (len(rows) * (len(row) if how == "sequence_mean" else longest))
