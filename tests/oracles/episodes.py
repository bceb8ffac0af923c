"""Rewards, advantages and whitening of one episode at a time, from the definitions. Shares no code with `src`.

An episode here is the list of its counted tokens: what was padding, or not the policy's, is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def shaped_rewards(score: float, kl: Sequence[float], coef: float) -> list[float]:
    """−coef·kl for every token; the last one is paid the score too."""
    rewards = [-coef * k for k in kl]
    rewards[-1] += score
    return rewards


def advantages(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Σ_l (γλ)^l·δ_{t+l}, each one summed from the start, without a recursion."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, after, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def lambda_returns(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """(1 − λ)·Σ_n λ^{n−1}·R^{(n)} + λ^{N−1}·R^{(N)}: the mixture of all n-step returns that GAE is said to equal."""
    following = [*values[1:], 0.0]

    def n_step(t: int, n: int) -> float:
        return sum(gamma**k * rewards[t + k] for k in range(n)) + gamma**n * following[t + n - 1]

    mixed = []
    for t in range(len(rewards)):
        last = len(rewards) - t
        short = sum((1 - lam) * lam ** (n - 1) * n_step(t, n) for n in range(1, last))
        mixed.append(short + lam ** (last - 1) * n_step(t, last))
    return mixed


def whitened(numbers: Sequence[float], shift_mean: bool, eps: float) -> list[float]:
    """(x − mean)/√(var + eps), population variance; the mean is put back unless it is to be shifted away."""
    mean = math.fsum(numbers) / len(numbers)
    variance = math.fsum((x - mean) ** 2 for x in numbers) / len(numbers)
    back = 0.0 if shift_mean else mean
    return [(x - mean) / math.sqrt(variance + eps) + back for x in numbers]


def explained_variance(values: Sequence[float], returns: Sequence[float]) -> float:
    """1 − Var(R − V)/Var(R) from the textbook definition of the variance, E[x²] − E[x]²."""

    def variance(numbers: list[float]) -> float:
        return sum(x * x for x in numbers) / len(numbers) - (sum(numbers) / len(numbers)) ** 2

    return 1 - variance([r - v for r, v in zip(returns, values, strict=True)]) / variance(list(returns))


def minus_mean(scores: Sequence[float]) -> list[float]:
    """Each score less the mean of its group."""
    return [r - sum(scores) / len(scores) for r in scores]


def minus_mean_of_the_others(scores: Sequence[float]) -> list[float]:
    """Each score less the mean of all but itself."""
    others = [[r for j, r in enumerate(scores) if j != i] for i in range(len(scores))]
    return [r - sum(rest) / len(rest) for r, rest in zip(scores, others, strict=True)]


def standard_scores(scores: Sequence[float], eps: float) -> list[float]:
    """Each score in standard deviations (population) from the mean of its group; 0 where all are equal."""
    mean = sum(scores) / len(scores)
    std = math.sqrt(sum((r - mean) ** 2 for r in scores) / len(scores))
    return [(r - mean) / (std + eps) if std > eps else 0.0 for r in scores]
