"""Words to make texts of that mean nothing."""

from __future__ import annotations

import random

WORDS = tuple(
    """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother
    area money story fact month lot right study book eye job word business issue side kind head house service friend
    father power hour game line end member law car city community name president team minute idea kid body
    """.split()  # noqa: SIM905 (four lines, not a hundred)
)


def spoken(rng: random.Random, count: int) -> str:
    """So many words that mean nothing."""
    return " ".join(rng.choices(WORDS, k=count))
