"""Which words a score comes from: Shapley values over reading orders, which add up to the score exactly."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

PIECES = 40
"""A longer response is attributed to that many phrases of equally many words, so that its cost is bounded."""


def attribute(response: str, score: Callable[[Sequence[str]], Sequence[float]]) -> list[tuple[str, float]]:
    """(word, contribution) in reading order; contributions add up to score(response) − score of the empty response.

    A word's contribution is what the score gains when it joins the words before it, averaged with what it gains when it
    joins the words after it: the Shapley value (Shapley 1953) estimated from one order and its reverse (antithetic
    permutation sampling, Mitchell et al. 2022, arXiv 2104.12199, sec. 4.1). Within each order the sum telescopes, so
    it is complete without any limit. Costs 2n texts for n words.
    """
    words = re.findall(r"\S+\s*", response)
    size = -(-len(words) // PIECES) or 1
    pieces = ["".join(words[start : start + size]) for start in range(0, len(words), size)]
    count = len(pieces)
    beginnings = ["".join(pieces[:n]) for n in range(count + 1)]
    endings = ["".join(pieces[n:]) for n in range(1, count)]  # the whole and the empty one are among the beginnings
    scores = list(score([*beginnings, *endings]))
    forward, backward = scores[: count + 1], [scores[count], *scores[count + 1 :], scores[0]]
    gains = ((forward[i + 1] - forward[i] + backward[i] - backward[i + 1]) / 2 for i in range(count))
    return [(piece.strip(), gain) for piece, gain in zip(pieces, gains, strict=True)]
