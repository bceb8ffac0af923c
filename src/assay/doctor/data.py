"""What is wrong with data: as it was read, and as it was prepared.

Two kinds of evidence: `Reading` (what the loader had to leave out) and `Data` (what is left, apart in splits). What a
reward model says about labels is in labels.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from assay.data.baselines import Baselines, answer_words, outcomes
from assay.data.clean import TURN_MARKER, clean
from assay.data.config import CleanConfig, FileSource
from assay.data.inspection import lost_context
from assay.data.items import replies_of
from assay.data.load import Drops, Entry, Loaded, scan
from assay.data.near import near_duplicates
from assay.data.prepared import Prepared, Splits
from assay.data.records import Item
from assay.data.split import leakage
from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode, Severity
from assay.doctor.log import Log
from assay.errors import DataError
from assay.statistics import Floats, Interval, design_effect, wilson
from assay.types import Preference, Prompt

T = TypeVar("T")

SURE = 0.99
"""Confidence of the intervals that decide: of a hundred healthy sets one may lie beyond."""
RARE = 0.005
"""Share of odd rows that every real set has: in HH-RLHF 0.2 % (the catalogue's limit for identical pairs)."""
MANY = 0.1
"""With more odd rows than this the file is not what it is taken for."""
SAMPLE = 4000
"""Items that are looked at: enough to tell 0.5 % from 1 %, read in seconds."""
HELD_OUT = 1000
ALIKE = 0.8
"""Jaccard similarity of two prompts (runs of three words) that say the same in slightly other words."""
COPIES = 0.05
"""Share of held-out prompts with such a twin in training. Ten real sets: at most 5.1 % (Dolly, 10 of 195)."""
SHARING = 0.4
"""Share with eight words in a row of a training prompt. Ten real sets: 2 to 28 %; people begin alike."""
LENGTH_WINS = 0.75
"""Accuracy of length alone. Ten real sets: at most 66 %, none above 68 % beyond doubt."""
WORDS_WIN = 0.9
"""Accuracy of a bag of words. Ten real sets: at most 88 %, none above 84 % beyond doubt."""
FEW_WORDS = 5
"""In answers shorter than this the words are all there is, so that a bag of them is no shortcut."""
FEWEST = 20
"""Fewer pairs than this show nothing."""

SWAPPED_LABELS = Mode(
    5,
    "swapped-labels",
    "data",
    "Chosen and rejected are the wrong way round",
    "The worse answer stands in the column of the better one, so the model learns the opposite of what people want.",
    "Swap the columns chosen and rejected of that source, and train again.",
    (
        "accuracy-against-margin",
        "reward-at-chance",
        "label-noise",
        "fluctuating-accuracy",
        "reward-hacking",
        "length-bias",
        "loss-blow-up",
    ),
)
SPLIT_LEAK = Mode(
    10,
    "split-leak",
    "data",
    "Held-out prompts are also trained on",
    "The same questions, or nearly the same, stand in training and in held-out data: what is measured is memory.",
    "Split by prompt, and drop training rows that look like held-out ones: data.decontaminate: true.",
    ("too-good-to-be-true",),
)
SHORTCUT = Mode(
    11,
    "shortcut",
    "data",
    "A trick tells chosen from rejected",
    "Something that has nothing to do with being right, such as length or a fixed phrase, gives the label away.",
    "Take the trait out of the data, or pair answers that are alike in it, and measure on pairs of equal length.",
    ("too-good-to-be-true", "length-bias", "saturated-early", "reward-hacking", "length-growth"),
)
MIS_SPLIT = Mode(
    3,
    "mis-split-dialogue",
    "data",
    "Dialogues are cut in the wrong place",
    "Prompt and answer were not parted where the last answer begins, so answers hold other turns, or none.",
    "Give the two whole dialogues (format: hh): the prompt is then all that they have in common, turn by turn.",
    ("identical-pairs", "text-that-is-no-text", "response-cut-away", "never-stops", "shortcut", "reward-at-chance"),
)
IDENTICAL_PAIRS = Mode(
    4,
    "identical-pairs",
    "data",
    "Chosen and rejected are the same",
    "Pairs whose two answers are equal have nothing to teach, and hold accuracy near a half.",
    "Drop them (data.clean.identical: true), and find out which step of making the data copied them.",
    ("stuck-at-ln2", "reward-at-chance", "accuracy-against-margin"),
)
NO_TEXT = Mode(
    2,
    "text-that-is-no-text",
    "data",
    "Fields hold None or NaN where text should be",
    "Empty cells became None, NaN or the words “None” and “nan” on the way from a table.",
    "Drop those rows (data.clean.drop_invalid: true does) and mend the step that wrote them.",
)

REASONS: tuple[tuple[Mode, re.Pattern[str]], ...] = (
    (NO_TEXT, re.compile(r'^".*" is (null|not text|empty)$|^a turn without text$')),
    (
        MIS_SPLIT,
        re.compile(
            r"part before the last reply|goes on into the next turn|last reply is empty|empty turn in the prompt|"
            r"before the first turn marker|does not end with|no prompt before the reply|more than one assistant turn"
        ),
    ),
    (IDENTICAL_PAIRS, re.compile(r"^chosen and rejected are the same")),
)
"""The modes that the loader prevents, and the reasons under which it counts what it leaves out (data/)."""
MENDED = {
    NO_TEXT.name: "Mend the step that wrote them, which may have lost other text as well.",
    MIS_SPLIT.name: MIS_SPLIT.cure,
    IDENTICAL_PAIRS.name: "Find out which step of making the data copied one answer over the other.",
}
"""What is still to be done where the loader has left the rows out."""
EMPTY_CELL = re.compile(r"None|NaN|nan|null|NULL|<NA>|undefined|\[object Object\]")
"""What programs write where there is nothing."""


@dataclass(frozen=True)
class Reading:
    """How many rows there were, and how many of them were left out for which reason."""

    where: str
    rows: int
    dropped: Mapping[str, int]
    places: Mapping[str, Sequence[str]] = field(default_factory=dict)
    kind: str = "reading"

    @classmethod
    def of(cls, report: Mapping[str, Any], where: str = "data") -> Reading:
        """From the report of prepared files; `Missing` for data that were not read."""
        if "rows" not in report:
            raise Missing("the data were made, not read")
        dropped = {entry["reason"]: entry["count"] for entry in report["dropped"]}
        places = {entry["reason"]: [e["place"] for e in entry["examples"]] for entry in report["dropped"]}
        return cls(where, report["rows"], dropped, places)

    @classmethod
    def files(cls, source: FileSource, rules: CleanConfig, seed: int = 0) -> Reading:
        """From files, even those of which nothing is left, which the loader refuses."""
        loaded, drops = Loaded(), Drops()
        try:
            drops.merge(_cleaned(scan(source, loaded, seed=seed, strict=False), rules))
        except DataError:
            if not loaded.drops.total:
                raise
        drops.merge(loaded.drops)
        return cls.of({"rows": loaded.rows, "dropped": drops.report()}, ", ".join(loaded.files))


@dataclass(frozen=True)
class Data:
    """Prepared data, of which a sample is looked at."""

    where: str
    prepared: Prepared
    config: Mapping[str, Any] = field(default_factory=dict)
    """How they were prepared."""
    kind: str = "data"

    @property
    def pairs(self) -> Sequence[Preference]:
        """Training pairs."""
        return evenly(self.prepared.preferences.train, SAMPLE)

    @property
    def held_out(self) -> Sequence[Preference]:
        """Pairs of validation and test; `Missing` where they are too few to show anything."""
        parts = self.prepared.preferences
        pairs = [*evenly(parts.validation, HELD_OUT), *evenly(parts.test, HELD_OUT)]
        return enough(pairs, "held-out pairs")


@detects(NO_TEXT, MIS_SPLIT, IDENTICAL_PAIRS)
def left_out(reading: Reading) -> Iterator[Finding]:
    """What the loader prevents, told with its name: it has dropped and counted these rows."""
    for mode, pattern in REASONS:
        reasons = [reason for reason in reading.dropped if pattern.search(reason)]
        odd = sum(reading.dropped[reason] for reason in reasons)
        seen = wilson(min(odd, reading.rows), reading.rows, confidence=SURE)
        if at_least(seen, RARE):
            places = list(itertools.chain(*(reading.places.get(reason, ()) for reason in reasons)))[:3]
            said = f"{odd:,} of {reading.rows:,} rows ({percent(seen)}) were dropped: {'; '.join(reasons)}"
            yield Finding(
                mode,
                reading.where,
                f"{said} ({', '.join(places)})" if places else said,
                severity=severity(seen),
                sureness="certain",
                cure=f"They are not learnt from. {MENDED[mode.name]}",
            )


@detects(NO_TEXT)
def empty_cells(data: Data) -> Iterator[Finding]:
    """The words that programs write into empty cells, as answers of people."""
    answers = [reply for item in _answered(data.prepared) for reply in replies_of(item)]
    if not answers:
        raise Missing("there are no answers in the data")
    odd = [answer for answer in answers if EMPTY_CELL.fullmatch(answer)]
    seen = wilson(len(odd), len(answers), confidence=SURE)
    if at_least(seen, RARE):
        words = ", ".join(sorted(set(odd)))
        said = f"{len(odd):,} of {len(answers):,} answers ({percent(seen)}) say nothing but {words}"
        cure = "Take those rows out of the file, or write null in their place, which the loader leaves out."
        yield Finding(NO_TEXT, data.where, said, severity=severity(seen), cure=cure)


@detects(MIS_SPLIT)
def turns_in_answers(data: Data) -> Iterator[Finding]:
    """Answers in which the dialogue goes on, and answers to turns that are not there."""
    pairs = data.pairs or evenly(data.prepared.preferences.test, SAMPLE)
    if not pairs:
        raise Missing("there are no pairs")
    odd = sum(any(TURN_MARKER.search(reply) for reply in replies_of(pair)) for pair in pairs)
    seen = wilson(odd, len(pairs), confidence=SURE)
    if at_least(seen, RARE):
        said = f"in {odd:,} of {len(pairs):,} pairs ({percent(seen)}) an answer goes on into the next turn"
        yield Finding(MIS_SPLIT, data.where, said, sureness="certain", change={"clean.artefacts": True})
    if lost := lost_context([Entry(pair, pair.prompt.source) for pair in pairs]):
        cause = "The middle turns of the dialogues are gone, so these answers belong to other questions."
        yield Finding(MIS_SPLIT, data.where, lost["what"], cause=cause, cure=lost["hint"].capitalize() + ".")


@detects(SWAPPED_LABELS)
def negative_margins(data: Data) -> Iterator[Finding]:
    """Annotators who said by how much the chosen answer is better, and mostly said less than nothing."""
    margins = np.array([pair.margin for pair in data.pairs if pair.margin], dtype=np.float64)
    if len(margins) < FEWEST:
        raise Missing("the pairs have no margins: only a model or a person can tell whether labels are swapped")
    seen = wilson(int((margins > 0).sum()), len(margins), confidence=SURE)
    if below(seen, 0.5):
        yield Finding(SWAPPED_LABELS, data.where, f"the margin is positive in only {percent(seen)} of pairs")


@detects(SPLIT_LEAK)
def copies(data: Data) -> Iterator[Finding]:
    """Held-out prompts that are training prompts, word for word or nearly so."""
    prompts = data.prepared.prompts
    held_out = [*evenly(prompts.validation, HELD_OUT // 2), *evenly(prompts.test, HELD_OUT // 2)]
    if not (held_out and prompts.train):
        raise Missing("no prompts are held out")
    parts = data.prepared.report.get("leakage") or leakage(Splits(prompts.train, held_out))
    if equal := sum(part["equal"] for part in parts.values()):
        said = f"{equal:,} held-out prompts are training prompts, word for word"
        yield Finding(SPLIT_LEAK, data.where, said, sureness="certain", change={"split_by": "prompt"})
    if "world" in data.prepared.report:  # whose sentences come from a grammar: all of them resemble each other
        return
    twins = near_copies(evenly(prompts.train, SAMPLE), held_out)
    seen = wilson(twins, len(held_out), confidence=SURE)
    if at_least(seen, COPIES):
        said = f"{twins:,} of {len(held_out):,} held-out prompts ({percent(seen)}) are nearly a training prompt"
        yield Finding(SPLIT_LEAK, data.where, said, change={"decontaminate": True})


@detects(SPLIT_LEAK, kinds=("data",))
def counted_copies(log: Log) -> Iterator[Finding]:
    """The same by the report of a finished data stage, which has compared all prompts."""
    parts = log.report("report", "leakage").values()
    equal, held_out = sum(part["equal"] for part in parts), sum(part["prompts"] for part in parts)
    if equal:
        said = f"{equal:,} of {held_out:,} held-out prompts are training prompts, word for word"
        yield Finding(SPLIT_LEAK, log.where, said, sureness="certain", change={"split_by": "prompt"})
    alike = sum(part["share"] * part["prompts"] for part in parts)
    if held_out and at_least(seen := wilson(alike, held_out, confidence=SURE), SHARING):
        said = f"{percent(seen)} of {held_out:,} held-out prompts share eight words in a row with a training prompt"
        change = {"decontaminate": True}
        yield Finding(SPLIT_LEAK, log.where, said, severity="amber", sureness="possible", change=change)


@detects(SHORTCUT)
def trick(data: Data) -> Iterator[Finding]:
    """Labels that length alone, or a bag of words, predicts on held-out pairs as no honest label can be predicted."""
    held_out = data.held_out
    for name, margins in rivals(data.pairs, held_out).items():
        seen = accuracy(outcomes(margins), held_out)
        if at_least(seen, LENGTH_WINS if name == "length_only" else WORDS_WIN):
            said = f"{WORDS[name]} predicts {percent(seen)} of {len(held_out):,} held-out labels"
            yield Finding(SHORTCUT, data.where, said, severity="amber")


WORDS = {"length_only": "length alone", "bag_of_words": "a bag of words"}


def evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of the items, spread over all of them."""
    return items[:: 1 + (len(items) - 1) // most] if len(items) > most else items


def enough(pairs: Sequence[T], what: str) -> Sequence[T]:
    """The pairs; `Missing` where they show nothing."""
    if len(pairs) < FEWEST:
        raise Missing(f"{len(pairs)} {what} are too few to tell")
    return pairs


def near_copies(train: Sequence[Prompt], held_out: Sequence[Prompt]) -> int:
    """How many held-out prompts say nearly what a training prompt says."""
    texts = [" ".join(turn.content for turn in p.messages if turn.role == "user") for p in (*train, *held_out)]
    twins = near_duplicates(texts, ALIKE)
    # A held-out prompt may stand beside an earlier held-out one that is itself a copy: follow it to its origin.
    return sum(_origin(number, twins) < len(train) for number in twins if number >= len(train))


def at_least(seen: Interval, limit: float) -> bool:
    """Whether a share is above a limit beyond doubt."""
    return seen.low is not None and seen.low > limit


def below(seen: Interval, limit: float) -> bool:
    """Whether a share is below a limit beyond doubt."""
    return seen.high is not None and seen.high < limit


def severity(seen: Interval) -> Severity:
    """Some odd rows are a pity; with many of them the data are not what they are taken for."""
    return "red" if at_least(seen, MANY) else "amber"


def percent(seen: Interval) -> str:
    """A share with its interval, for people."""
    return f"{seen.value:.1%}, {seen.low:.1%} to {seen.high:.1%}"


def accuracy(right: Floats, pairs: Sequence[Preference], confidence: float = SURE) -> Interval:
    """The share of outcomes with its interval; pairs of one prompt stand and fall together."""
    n = len(right) / design_effect(right, [pair.prompt.id for pair in pairs])
    return wilson(float(right.mean()) * n, n, confidence=confidence)


def rivals(train: Sequence[Preference], held_out: Sequence[Preference]) -> dict[str, Floats]:
    """Margins of those who see length or words only, where that is a shortcut."""
    return shortcuts(Baselines.fit(evenly(train, SAMPLE // 2)).margins(held_out), answer_words(held_out))


def shortcuts(rivals: Mapping[str, T], words: float) -> dict[str, T]:
    """Of the rivals those who know too little: words alone are no shortcut where answers are a few words (median)."""
    return {name: rival for name, rival in rivals.items() if name != "bag_of_words" or words >= FEW_WORDS}


def _origin(number: int, twins: Mapping[int, int]) -> int:
    while number in twins:
        number = twins[number]
    return number


def _answered(prepared: Prepared) -> Iterator[Item]:
    for purpose in (prepared.preferences, prepared.demonstrations, prepared.verdicts):
        yield from evenly(purpose.train, SAMPLE)


def _cleaned(entries: Iterator[Entry], rules: CleanConfig) -> Drops:
    drops = Drops()
    clean(entries, rules, drops)
    return drops
