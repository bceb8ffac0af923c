"""The view model: what the page shows, already in words and pictures. The template only lays it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from markupsafe import Markup

Level = Literal["good", "warn", "bad", "info"]


@dataclass(frozen=True, slots=True)
class Consequence:
    """What was found because of something else, and may be graver than that."""

    title: str
    where: str
    severity: str
    evidence: str
    page: str


@dataclass(frozen=True, slots=True)
class Cause:
    """What went wrong in one place, why, and what to change."""

    level: Level
    severity: str
    title: str
    where: str
    evidence: str
    why: Markup
    cure: Markup
    settings: Sequence[str]
    """key=value, as `assay run` takes them."""
    sureness: str
    page: str
    guide: Markup
    """The page itself: the report may be read where the repository is not."""
    consequences: Sequence[Consequence]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the doctor says of the run."""

    level: Level
    word: str
    """The colour by its name: nobody needs to see it."""
    said: str
    causes: Sequence[Cause] = ()
    not_found: Sequence[tuple[str, Sequence[str]]] = ()
    """Where, and the titles of what was looked for there in vain."""
    unchecked: Sequence[tuple[str, Sequence[str]]] = ()
    """Where and why not, and the titles of what could not be looked for."""
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Tile:
    """A number to remember, with its interval or what to compare it with."""

    label: str
    value: str
    note: str
    level: Level = "info"


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture with its title and what to look for in it."""

    title: str
    svg: Markup
    note: str = ""
    legend: Sequence[str] = ()
    """Names of the lines, where there are several."""


@dataclass(frozen=True, slots=True)
class Charts:
    """Pictures side by side."""

    kind: ClassVar[str] = "charts"
    heading: str
    items: Sequence[Chart]
    wide: bool = False
    """One below the other."""


@dataclass(frozen=True, slots=True)
class Range:
    """A value with its interval on a common scale; positions are 0 … 1 of the scale."""

    label: str
    at: float
    low: float | None
    high: float | None
    text: str
    note: str = ""
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Ranges:
    """Intervals under one another, with marks such as chance or a ceiling: a mark is (position, name).

    `ends` are the words at both ends of the scale.
    """

    kind: ClassVar[str] = "ranges"
    heading: str
    rows: Sequence[Range]
    marks: Sequence[tuple[float, str]]
    ends: tuple[str, str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Words in the first column, numbers in the others."""

    kind: ClassVar[str] = "table"
    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    wordy: bool = False
    """All columns hold words."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt answered before and after. `scores` are (name, before, after)."""

    prompt: str
    topic: str
    before: str
    after: str
    scores: Sequence[tuple[str, str, str]]
    outcome: Literal["better", "worse", "even"]


@dataclass(frozen=True, slots=True)
class Samples:
    """Answers side by side."""

    kind: ClassVar[str] = "samples"
    heading: str
    before: str
    after: str
    items: Sequence[Sample]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of an answer and how much of the score comes from it; `strength` is 0 … 100."""

    text: str
    way: Literal["up", "down"]
    strength: int
    value: str


@dataclass(frozen=True, slots=True)
class Attributed:
    """A pair of answers, word by word; `gap` is the score of the preferred one less the other's."""

    which: str
    prompt: str
    gap: str
    chosen: Sequence[Word]
    rejected: Sequence[Word]


@dataclass(frozen=True, slots=True)
class Attributions:
    """Pairs of answers with every word coloured by its contribution to the score."""

    kind: ClassVar[str] = "attributions"
    heading: str
    items: Sequence[Attributed]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Terms and what they are."""

    kind: ClassVar[str] = "facts"
    heading: str
    items: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Code:
    """Text to copy; long text is folded away."""

    kind: ClassVar[str] = "code"
    heading: str
    text: str
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence, for instance why something is not here."""

    kind: ClassVar[str] = "note"
    text: str


Block = Charts | Ranges | Table | Samples | Attributions | Facts | Code | Note


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    anchor: str
    title: str
    lead: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """The whole report."""

    title: str
    byline: str
    headline: str
    diagnosis: Diagnosis
    tiles: Sequence[Tile]
    pipeline_wide: Markup
    pipeline_tall: Markup
    sections: Sequence[Section]
