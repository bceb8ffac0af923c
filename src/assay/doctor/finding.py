"""What the doctor says: findings, each with evidence, cause and cure, and the diagnosis that they come to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Severity = Literal["amber", "red"]
"""Amber: the run may be worse than it could be. Red: what it shows cannot be trusted, or it is broken."""
Sureness = Literal["possible", "likely", "certain"]
"""Certain: nothing but this fault does that. Likely: a test at p < 0.001, or several signs. Possible: one sign."""
Family = Literal["data", "sft", "reward", "policy", "direct", "machine"]
Verdict = Literal["green", "amber", "red", "unchecked"]

VERDICTS: Mapping[Verdict, str] = {
    "green": "nothing was found that speaks against it",
    "amber": "it may be worse than it could be",
    "red": "it is broken, or cannot be trusted",
    "unchecked": "too little could be read to say whether it is well",
}
"""A verdict in words."""
PACKAGE = Path(__file__).parents[1]
SEVERITIES: tuple[Severity, ...] = ("amber", "red")
SURENESS: tuple[Sureness, ...] = ("possible", "likely", "certain")


@dataclass(frozen=True, slots=True)
class Mode:
    """One way in which RLHF goes wrong."""

    number: int
    """In the catalogue."""
    name: str
    """Its id, and the name of its page in docs/doctor/."""
    family: Family
    title: str
    """What one sees, in a few words."""
    cause: str
    """Why, in one sentence."""
    cure: str
    """What to change."""
    brings: tuple[str, ...] = ()
    """Modes that it brings about: where both are found, this is the cause and they are its consequences."""
    outcome: bool = False
    """It says that the result is bad, and not why: whatever else is found may have brought it about."""

    @property
    def page(self) -> str:
        return f"docs/doctor/{self.name}.md"

    @property
    def guide(self) -> str:
        """The text of its page, packed with the code or in the repository; empty where there is neither."""
        places = (root / self.page for root in (PACKAGE, PACKAGE.parents[1]))
        return next((place.read_text(encoding="utf-8") for place in places if place.is_file()), "")


@dataclass(frozen=True, slots=True)
class Finding:
    """One mode, seen in one place."""

    mode: Mode
    where: str
    """A stage, or a part of the data."""
    evidence: str
    """What was seen, in numbers, with their uncertainty where they have one."""
    severity: Severity = "red"
    sureness: Sureness = "likely"
    cause: str = ""
    """In place of the mode's, where the evidence says more than the mode."""
    cure: str = ""
    change: Mapping[str, Any] = field(default_factory=dict)
    """The cure as settings: key → value. Detectors give the stage's own keys, of which `examine` makes full ones."""
    fatal: bool = False
    """Beyond use: a run that shows it again has nothing to win by going on (monitor.py)."""
    brings: tuple[str, ...] = ()
    """What it brings about besides what its mode does."""

    @property
    def explanation(self) -> str:
        return self.cause or self.mode.cause

    @property
    def advice(self) -> str:
        return self.cure or self.mode.cure

    def facts(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "mode": self.mode.name,
            "title": self.mode.title,
            "where": self.where,
            "severity": self.severity,
            "sureness": self.sureness,
            "evidence": self.evidence,
            "cause": self.explanation,
            "cure": self.advice,
            "change": dict(self.change),
            "page": self.mode.page,
            "guide": self.mode.guide,
        }

    def explains(self, other: Finding, places: Places) -> bool:
        """Whether its mode brings the other's about, in the same place or before it."""
        brought = other.mode.name in (*self.mode.brings, *self.brings)
        brought = brought or (other.mode.outcome and not self.mode.outcome)
        return brought and (self.where == other.where or self.where in upstream(other.where, places))

    @property
    def weight(self) -> tuple[int, int]:
        """Severity first, sureness second."""
        return SEVERITIES.index(self.severity), SURENESS.index(self.sureness)


Places = Mapping[str, Collection[str]]
"""A stage → the places whose results it was made from: the graph of a run."""


def upstream(place: str, places: Places) -> set[str]:
    """Every place that a place was made from, by way of others too."""
    found: set[str] = set()
    waiting = [place]
    while waiting:
        new = set(places.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A mode that could not be looked for, and why."""

    mode: Mode
    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was found, causes before their consequences, and what could not be checked."""

    findings: Sequence[Finding] = ()
    unchecked: Sequence[Unchecked] = ()
    checked: Sequence[tuple[Mode, str]] = field(default=(), compare=False)
    """Every mode that was looked for, and where."""
    places: Places = field(default_factory=dict, compare=False)
    """A cause explains what is found in its own place, and in those that were made from it."""

    @property
    def verdict(self) -> Verdict:
        found = {finding.severity for finding in self.findings}
        return "red" if "red" in found else "amber" if found else "green"

    @property
    def causes(self) -> list[Finding]:
        """Findings that no other explains, the gravest first; of those that explain each other the first in `rank`."""
        follow = {id(finding): {id(one) for one in self.consequences_of(finding)} for finding in self.findings}

        def both(one: Finding, other: Finding) -> bool:
            return id(one) in follow[id(other)] and id(other) in follow[id(one)]

        def rank(finding: Finding) -> tuple[int, int, int, int]:
            """The graver; the one that brings about most of the others itself; the surer; the earlier mode."""
            severity, sureness = finding.weight
            brought = sum(both(finding, other) and finding.explains(other, self.places) for other in self.findings)
            return severity, brought, sureness, -finding.mode.number

        def explained(finding: Finding) -> bool:
            return any(
                id(finding) in follow[id(other)] and not (both(finding, other) and rank(finding) > rank(other))
                for other in self.findings
            )

        return [finding for finding in self.findings if not explained(finding)]

    def consequences_of(self, cause: Finding) -> list[Finding]:
        """What else was found because of it, by way of others too; never another of its own mode."""
        reached: set[int] = set()
        waiting = [cause]
        while waiting:
            one = waiting.pop()
            for other in self.findings:
                new = id(other) not in reached and other.mode.name != cause.mode.name
                if new and one.explains(other, self.places):
                    reached.add(id(other))
                    waiting.append(other)
        return [finding for finding in self.findings if id(finding) in reached]


def diagnosis(
    findings: Iterable[Finding],
    unchecked: Iterable[Unchecked] = (),
    checked: Iterable[tuple[Mode, str]] = (),
    places: Places | None = None,
) -> Diagnosis:
    """Findings in the order in which they should be read: each cause, gravest first, then what follows from it.

    What one detector could not look for in a place, and another has, is not unchecked there.
    """
    found = sorted(findings, key=lambda finding: (*(-w for w in finding.weight), finding.mode.number))
    looked_for = tuple(checked)
    known = {*looked_for, *((finding.mode, finding.where) for finding in found)}
    unknown = tuple(one for one in unchecked if (one.mode, one.where) not in known)
    given = Diagnosis(found, unknown, looked_for, places or {})
    ordered: dict[int, Finding] = {}
    for cause in given.causes:
        for finding in (cause, *given.consequences_of(cause)):
            ordered.setdefault(id(finding), finding)
    for finding in found:  # one that follows from another of its own mode alone, elsewhere, stands under no cause
        ordered.setdefault(id(finding), finding)
    return replace(given, findings=tuple(ordered.values()))
