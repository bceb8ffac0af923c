"""What the agreement of annotators says about their labels."""

from __future__ import annotations

import math

from assay.errors import DataError


def accuracy_ceiling(agreement: float) -> float | None:
    """The best expected accuracy against one annotator when two agree at rate a: (1 + √(2a − 1))/2.

    If item i is labelled one way with chance p_i, then 2a − 1 = E[(2p − 1)²], and the best guess is right with
    chance E[max(p, 1−p)] = ½ + ½E|2p − 1| ≤ ½ + ½√(2a − 1) (Jensen); equality where all items are as hard.
    `None` below ½: independent annotators of two options cannot disagree that much.
    """
    if not 0 <= agreement <= 1:
        raise DataError(f"agreement {agreement} is not a share", hint="give a number between 0 and 1")
    return (1 + math.sqrt(2 * agreement - 1)) / 2 if agreement >= 0.5 else None
