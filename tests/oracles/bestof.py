"""Best-of-n by listing every n-tuple of samples, on plain floats. Shares no code with `src`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence


def tuples(probs: Sequence[float], n: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every ordered n-tuple of outcomes, and how likely independent draws give it."""
    for outcomes in itertools.product(range(len(probs)), repeat=n):
        yield outcomes, math.prod(probs[y] for y in outcomes)


def best_of_n(probs: Sequence[float], scores: Sequence[float], n: int) -> list[float]:
    """Distribution of the best of n draws; a tie is kept by the draw that came first."""
    kept = [0.0] * len(probs)
    for outcomes, likely in tuples(probs, n):
        kept[max(outcomes, key=lambda y: scores[y])] += likely
    return kept


def kl(p: Sequence[float], q: Sequence[float]) -> float:
    """Σ p·log(p/q), where a term of p = 0 is 0."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mean_best(values: Sequence[float], scores: Sequence[float], n: int) -> float:
    """Mean value of the best of n, over all subsets of n of the samples at hand."""
    subsets = list(itertools.combinations(range(len(scores)), n))
    return sum(values[max(subset, key=lambda i: scores[i])] for subset in subsets) / len(subsets)


def expectation(probs: Sequence[float], samples: int, estimate: Callable[[list[int]], float]) -> float:
    """Exact mean of an estimator over all samples that it can be given."""
    return sum(likely * estimate(list(outcomes)) for outcomes, likely in tuples(probs, samples))
