"""Random masked batches: what counts is drawn, what does not is garbage, NaN and infinity included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

GARBAGE = (float("nan"), float("inf"), float("-inf"), 1e30, -7.0)

quick = settings(max_examples=50, deadline=None, derandomize=True)
"""Reproducible, and not timed: the machine may be busy."""


@dataclass(frozen=True)
class Batch:
    """Counted tokens by row, each a tuple with one number per field, and where they stand."""

    tokens: list[list[tuple[float, ...]]]
    mask_BT: Tensor
    garbage: float

    def field(self, index: int, garbage: float | None = None) -> Tensor:
        """[B, T] in float64: one field of the tokens, garbage where nothing counts."""
        filled = torch.full(self.mask_BT.shape, self.garbage if garbage is None else garbage, dtype=torch.float64)
        filled[self.mask_BT] = torch.tensor([token[index] for row in self.tokens for token in row], dtype=torch.float64)
        return filled

    def rows(self, index: int) -> list[list[float]]:
        """One field of the tokens as plain lists, row by row."""
        return [[token[index] for token in row] for row in self.tokens]

    @property
    def count(self) -> int:
        return sum(len(row) for row in self.tokens)


@st.composite
def batches(draw: Callable, fields: int, bound: float = 3.0) -> Batch:
    """1–4 rows of width 1–6 with at least one counted token each, anywhere: left, right or between."""
    width = draw(st.integers(1, 6))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width).filter(any), min_size=1, max_size=4))
    number = st.floats(-bound, bound, allow_subnormal=False)
    tokens = [[tuple(draw(number) for _ in range(fields)) for counts in row if counts] for row in mask]
    return Batch(tokens, torch.tensor(mask), draw(st.sampled_from(GARBAGE)))


def scattered(rows: list[list[float]], mask_BT: Tensor) -> Tensor:
    """Plain lists put back where the mask counts; 0 elsewhere."""
    filled = torch.zeros(mask_BT.shape, dtype=torch.float64)
    filled[mask_BT] = torch.tensor([x for row in rows for x in row], dtype=torch.float64)
    return filled


def assert_same(actual: Tensor, expected: Tensor | float | Sequence, tolerance: float = 1e-9) -> None:
    """Equal up to float64 rounding, and nowhere NaN."""
    torch.testing.assert_close(
        actual.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance
    )
