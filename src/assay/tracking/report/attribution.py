"""Which words a reward model's scores come from: a few held-out pairs with every word coloured by its contribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from assay.tracking.report.blocks import Attributed, Attributions, Word
from assay.tracking.report.run_files import StageFiles
from assay.tracking.report.words import clipped, score, signed

LONGEST_PROMPT = 600
WHICH = {
    "surest": "The pair it is surest about",
    "middling": "A middling pair",
    "worst": "The pair it gets most wrong",
}


def attribution_blocks(stage: StageFiles) -> list[Attributions]:
    """One block, where the stage wrote attribution.json."""
    pairs: Sequence[Mapping[str, Any]] = stage.reports.get("attribution", {}).get("pairs", [])
    if not pairs:
        return []
    gains = [abs(gain) for pair in pairs for side in ("chosen", "rejected") for _, gain in pair[side]]
    strongest = max(gains, default=0.0)
    items = [
        Attributed(
            which=WHICH[pair["which"]],
            prompt=clipped(pair["prompt"], LONGEST_PROMPT),
            gap=signed(score(pair["gap"])),
            chosen=_words(pair["chosen"], strongest),
            rejected=_words(pair["rejected"], strongest),
        )
        for pair in pairs
    ]
    note = (
        "A word’s contribution is what the score gains when the word joins those before it, averaged with what it "
        "gains when it joins those after it; together they are the score less that of an empty answer. Long answers "
        "are cut into phrases. Point at a word to see its number."
    )
    return [Attributions("Which words the reward comes from", items, note)]


def _words(found: Sequence[tuple[str, float]], strongest: float) -> list[Word]:
    """Words with the strength of their colour, in per cent of the strongest anywhere."""
    unit = strongest or 1.0
    return [
        Word(text, "up" if gain > 0 else "down", round(100 * abs(gain) / unit), signed(score(gain)))
        for text, gain in found
    ]
