"""What is wrong with labels, told by a reward model: its margins on held-out pairs, and the report of its stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.data.baselines import against, outcomes
from assay.data.stored import pick
from assay.doctor.data import (
    FEWEST,
    SAMPLE,
    SHORTCUT,
    SWAPPED_LABELS,
    WORDS,
    accuracy,
    at_least,
    below,
    enough,
    evenly,
    percent,
    rivals,
    shortcuts,
)
from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.log import Log
from assay.doctor.reward import told_apart
from assay.statistics import Floats
from assay.types import Preference, Prompt

ADDS = 0.03
"""What a reward model should know beyond length or words, as accuracy (the catalogue's 3 points)."""
SUREST = 5
"""One pair in so many is among those that a model is surest about."""
NO_TRICK = "the model is no better than chance, so whatever it has learnt is not the trick"
AGAINST = 0.1
"""Share of the surest pairs that are labelled the other way. Healthy models: 1–4 %; a quarter of flips shows 25 %."""

LABEL_NOISE = Mode(
    13,
    "label-noise",
    "data",
    "Many labels are wrong",
    "Labels were flipped at random, by annotators in a hurry or by a mistake in making the data.",
    "Tell the loss how many labels are wrong, or have the pairs that the model is surest against labelled again.",
    ("reward-at-chance", "fluctuating-accuracy"),
)
TOO_GOOD = Mode(
    12,
    "too-good-to-be-true",
    "data",
    "More accurate than people agree",
    "Nobody can predict one person's choices better than people agree with each other: the test data were seen in "
    "training, or a trick gives the label away.",
    "Look for copies of the test pairs in training (split-leak) and for a trick (shortcut); report neither number "
    "before one is found.",
    ("saturated-early",),
)


@dataclass(frozen=True)
class Scored:
    """Held-out pairs and by how much a model scores the chosen answer higher; what it was trained on, for rivals."""

    where: str
    pairs: Sequence[Preference]
    margins: Floats
    train: Sequence[Preference] = ()
    kind: str = "scores"

    @classmethod
    def of(
        cls,
        where: str,
        score: Callable[[Sequence[Prompt], Sequence[str]], Sequence[float]],
        pairs: Sequence[Preference],
        train: Sequence[Preference] = (),
    ) -> Scored:
        """Ask a judge, such as a reward model's `score_texts`, about at most `SAMPLE` pairs."""
        asked = evenly(pairs, SAMPLE)
        prompts = [pair.prompt for pair in asked]
        chosen, rejected = (score(prompts, [getattr(pair, side) for pair in asked]) for side in ("chosen", "rejected"))
        return cls(where, asked, np.asarray(chosen) - np.asarray(rejected), train)

    @property
    def right(self) -> Floats:
        """1 where the model agrees with the label, ½ for a tie; `Missing` where it has too few pairs, or no scores."""
        if odd := int((~np.isfinite(self.margins)).sum()):
            raise Missing(f"{odd:,} of {len(self.margins):,} pairs have scores that are not finite")
        return outcomes(self.margins[: len(enough(self.pairs, "scored pairs"))])


@detects(SWAPPED_LABELS)
def against_people(scored: Scored) -> Iterator[Finding]:
    """Sources whose labels the model contradicts more often than chance."""
    right, sources = scored.right, np.array([pair.prompt.source for pair in scored.pairs])
    for source in sorted(set(sources.tolist())):
        rows = np.flatnonzero(sources == source)
        seen = accuracy(right[rows], pick(scored.pairs, rows.tolist()), confidence=0.999)
        if len(rows) >= FEWEST and below(seen, 0.5):
            of = f"of {len(rows):,} pairs" + f" of {source}" * bool(source)
            said = f"it agrees with the labels {of} in {percent(seen)}: less than by chance"
            yield Finding(SWAPPED_LABELS, scored.where, said)


@detects(SWAPPED_LABELS, kinds=("reward",))
def below_chance(log: Log) -> Iterator[Finding]:
    """Accuracy and gap both on the wrong side: were only one of them, it would be a matter of outliers or ties.

    A model that has learnt nothing has a side by chance.
    """
    high, gap_high = log.number("accuracy_high"), log.number("reward_gap_high")
    if high < 0.5 and gap_high < 0 and told_apart(log):
        said = (
            f"accuracy {log.number('accuracy'):.1%} (at most {high:.1%}), and the gap is {log.number('reward_gap'):.2f}"
        )
        yield Finding(SWAPPED_LABELS, log.where, f"{said} (at most {gap_high:.2f}): both below chance")


@detects(SHORTCUT)
def no_better_than_a_trick(scored: Scored) -> Iterator[Finding]:
    """A model that knows no more than its length-only or bag-of-words rival."""
    right, groups = scored.right, [pair.prompt.id for pair in scored.pairs]
    if len(scored.train) < FEWEST:
        raise Missing("the pairs that the model was trained on are not given, so it has no rivals")
    if not at_least(accuracy(right, scored.pairs), 0.5):
        raise Missing(NO_TRICK)
    for name, margins in rivals(scored.train, scored.pairs).items():
        rival = against(scored.margins, margins, groups=groups, seed=0)
        yield from adds_little(name, rival, float(right.mean()), scored.where)


@detects(SHORTCUT, kinds=("reward",))
def reported_rivals(log: Log) -> Iterator[Finding]:
    """The same, where the stage has measured its rivals."""
    if log.number("accuracy_low") <= 0.5:
        raise Missing(NO_TRICK)
    for name, rival in shortcuts(log.report("accuracy", "baselines"), log.number("chosen_words")).items():
        yield from adds_little(name, rival, log.number("accuracy"), log.where)


def adds_little(name: str, rival: Mapping[str, Any], accuracy: float, where: str) -> Iterator[Finding]:
    """A finding where a rival (`data.baselines.against`) is better than chance and hardly worse than the model."""
    if rival["accuracy_low"] > 0.5 and rival["gain_high"] is not None and rival["gain_high"] < ADDS:
        gain = f"{rival['gain']:+.1%} ({rival['gain_low']:+.1%} to {rival['gain_high']:+.1%})"
        said = f"{WORDS[name]} is right in {rival['accuracy']:.1%}; the model ({accuracy:.1%}) adds {gain}"
        yield Finding(SHORTCUT, where, said, severity="red" if name == "length_only" else "amber")


@detects(LABEL_NOISE)
def surest_contradicted(scored: Scored) -> Iterator[Finding]:
    """Labels against what the model is surest of: people disagree over close pairs, mistakes fall anywhere."""
    right = scored.right
    if not at_least(accuracy(right, scored.pairs), 0.5):
        raise Missing("the model is no better than chance, so its certainty says nothing about the labels")
    surest = np.argsort(-np.abs(scored.margins), kind="stable")[: max(FEWEST, len(right) // SUREST)]
    seen = accuracy(1 - right[surest], pick(scored.pairs, surest.tolist()))
    if at_least(seen, AGAINST):
        said = f"of the {len(surest):,} pairs it is surest about, {percent(seen)} are labelled the other way"
        smoothing = round(min(seen.value, 0.45), 2)
        yield Finding(
            LABEL_NOISE, scored.where, said, severity="amber", change={f"{scored.where}.label_smoothing": smoothing}
        )


@detects(TOO_GOOD, kinds=("reward",))
def above_the_ceiling(log: Log) -> Iterator[Finding]:
    """Accuracy beyond what the annotators' agreement allows (data/agreement.py)."""
    low, ceiling = log.number("accuracy_low"), log.number("ceiling")
    if low > ceiling:
        said = f"accuracy {log.number('accuracy'):.1%} (at least {low:.1%}) on {log.number('n'):.0f} pairs"
        yield Finding(TOO_GOOD, log.where, f"{said}; annotators who agree as these do allow {ceiling:.1%}")
