"""What the doctor says: findings, each with evidence, cause and cure, and the diagnosis that they come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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

    @property
    def weight(self) -> tuple[int, int]:
        """Severity first, sureness second."""
        return SEVERITIES.index(self.severity), SURENESS.index(self.sureness)


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

    @property
    def verdict(self) -> Verdict:
        found = {finding.severity for finding in self.findings}
        return "red" if "red" in found else "amber" if found else "green"

    @property
    def causes(self) -> list[Finding]:
        """Findings that no other explains, the gravest first."""
        explained = consequences(self.findings)
        return [finding for finding in self.findings if finding.mode.name not in explained]

    def consequences_of(self, cause: Finding) -> list[Finding]:
        """What else was found because of it."""
        reached = reach(cause.mode, {finding.mode.name: finding.mode for finding in self.findings})
        return [finding for finding in self.findings if finding.mode.name in reached]


def diagnosis(
    findings: Iterable[Finding], unchecked: Iterable[Unchecked] = (), checked: Iterable[tuple[Mode, str]] = ()
) -> Diagnosis:
    """Findings in the order in which they should be read: each cause, gravest first, then what follows from it."""
    found = sorted(findings, key=lambda finding: (*(-w for w in finding.weight), finding.mode.number))
    given = Diagnosis(found, tuple(unchecked), tuple(checked))
    ordered: dict[int, Finding] = {}
    for cause in given.causes:
        for finding in (cause, *given.consequences_of(cause)):
            ordered.setdefault(id(finding), finding)
    return Diagnosis(tuple(ordered.values()), given.unchecked, given.checked)


def consequences(findings: Iterable[Finding]) -> set[str]:
    """Modes that others among these explain. Of two that explain each other the graver is the cause."""
    found = list(findings)
    modes = {finding.mode.name: finding.mode for finding in found}
    weight = {finding.mode.name: finding.weight for finding in reversed(found)}
    explained: set[str] = set()
    for mode in modes.values():
        for name in reach(mode, modes):
            mutual = mode.name in reach(modes[name], modes)
            if not mutual or (weight[mode.name], -mode.number) > (weight[name], -modes[name].number):
                explained.add(name)
    return explained


def reach(mode: Mode, modes: Mapping[str, Mode]) -> set[str]:
    """Names of the given modes that a mode brings about, by way of others too; never its own."""
    reached: set[str] = set()
    outcomes = () if mode.outcome else (name for name, other in modes.items() if other.outcome)
    waiting = [*mode.brings, *outcomes]
    while waiting:
        name = waiting.pop()
        if name in modes and name not in reached and name != mode.name:
            reached.add(name)
            waiting += modes[name].brings
    return reached
