"""Runs of tokens, whatever a token is: a word, an id. How much of a text says the same again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def ngrams(tokens: Sequence[T], n: int) -> list[tuple[T, ...]]:
    """All runs of `n` tokens, in order."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def repetition(tokens: Sequence[Hashable], n: int = 4) -> float:
    """Share of n-grams that occurred before in the same text, 1 − distinct/all: rep-4 (Welleck et al. 2020,
    arXiv 1908.04319, eq. 10, seq-rep-n). A text too short to hold an n-gram repeats nothing: 0."""
    runs = ngrams(tokens, n)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
