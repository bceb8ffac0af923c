"""What the doctor says of a run, ready to be shown. It comes as plain data, for the doctor stands above this room.

{"verdict", "in_words", "findings", "not_found", "unchecked", "unread", "notes"} or {"failed"}  →  Diagnosis (blocks.py)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from assay.tracking.report import guide
from assay.tracking.report.blocks import Cause, Consequence, Diagnosis, Level
from assay.tracking.report.words import count, listing

LEVELS: Mapping[str, Level] = {"green": "good", "amber": "warn", "red": "bad", "unchecked": "info"}
SURENESS = {
    "certain": "Certain: nothing else does that.",
    "likely": "Likely: several signs say so, or one that chance makes in fewer than 1 of 1,000 runs.",
    "possible": "Possible: one sign says so.",
}
Facts = Mapping[str, Any]


def diagnosis(examined: Facts) -> Diagnosis:
    """Verdict, causes with their consequences, and what was and was not looked for."""
    if failed := examined.get("failed"):
        said = f"The doctor could not examine this run ({failed}). What follows are its numbers, unexamined."
        return Diagnosis("info", "No verdict", said)
    verdict, findings = examined["verdict"], examined["findings"]
    looked_for = len(_modes(examined["not_found"]) | _modes(_all(findings)))
    return Diagnosis(
        level=LEVELS[verdict],
        word="No verdict" if verdict == "unchecked" else verdict.capitalize(),
        said=_said(examined, looked_for),
        causes=_causes(findings),
        not_found=_by_place(examined["not_found"]),
        unchecked=_by_reason(examined["unchecked"]),
        notes=[*examined["unread"], *examined["notes"]],
    )


def _said(examined: Facts, looked_for: int) -> str:
    """The verdict in a sentence, what it rests on, and what it says nothing about."""
    unread = f": {'; '.join(examined['unread'])}" if examined["verdict"] == "unchecked" else ""
    verdict = _sentence(f"{examined['in_words']}{unread}")
    if not looked_for:
        return verdict
    findings = examined["findings"]
    rests = f"{count(looked_for)} ways of going wrong were looked for in {listing(examined['looked_at'])}"
    found = len(list(_all(findings)))
    seen = f"; {count(found)} {'was' if found == 1 else 'were'} seen" if found else ""
    causes = f", from {count(len(findings))} {'cause' if len(findings) == 1 else 'causes'}" if found > 1 else ""
    known = _modes(examined["not_found"]) | _modes(_all(findings))
    gaps = len(_modes(examined["unchecked"]) - known)
    unknown = f"; {count(gaps)} more could not be checked" if gaps else ""
    return f"{verdict} {rests}{seen}{causes}{unknown}."


def _causes(findings: Sequence[Facts]) -> Sequence[Cause]:
    """In their order; what follows from several causes has its evidence at the first of them."""
    told: set[tuple[str, str]] = set()
    causes = []
    for finding in findings:
        also = [
            Consequence(
                so["title"],
                so["where"],
                so["severity"],
                evidence="" if _id(so) in told else _sentence(so["evidence"]),
                page=so["page"],
            )
            for so in finding["consequences"]
        ]
        told.update(map(_id, finding["consequences"]))
        causes.append(_cause(finding, also))
    return causes


def _id(finding: Facts) -> tuple[str, str]:
    return finding["mode"], finding["where"]


def _cause(finding: Facts, consequences: Sequence[Consequence]) -> Cause:
    return Cause(
        level=LEVELS[finding["severity"]],
        severity=finding["severity"].capitalize(),
        title=finding["title"],
        where=finding["where"],
        evidence=_sentence(finding["evidence"]),
        why=guide.line(finding["cause"]),
        cure=guide.line(finding["cure"]),
        settings=[f"{key}={_value(value)}" for key, value in finding["change"].items()],
        sureness=SURENESS[finding["sureness"]],
        page=finding["page"],
        guide=guide.html(finding["guide"]),
        consequences=consequences,
    )


def _value(value: Any) -> str:
    """A setting's value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _sentence(text: str) -> str:
    """With a capital at its beginning, unless it begins with the name of a metric, and a full stop at its end."""
    begins = text[:1].upper() if text.partition(" ")[0].isalpha() else text[:1]
    return f"{begins}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def _all(findings: Iterable[Facts]) -> Iterable[Facts]:
    """Causes and consequences; one that follows from two causes is one."""
    return {_id(found): found for cause in findings for found in (cause, *cause["consequences"])}.values()


def _modes(entries: Iterable[Facts]) -> set[str]:
    return {entry["mode"] for entry in entries}


def _by_place(entries: Iterable[Facts]) -> Sequence[tuple[str, Sequence[str]]]:
    """Titles by where they were looked for."""
    places: dict[str, list[str]] = {}
    for entry in entries:
        places.setdefault(entry["where"], []).append(entry["title"])
    return list(places.items())


def _by_reason(entries: Iterable[Facts]) -> Sequence[tuple[str, Sequence[str]]]:
    """Titles by where and why they could not be looked for."""
    reasons: dict[str, dict[str, None]] = {}
    for entry in entries:
        reasons.setdefault(f"{entry['where']}: {entry['why']}", {})[entry["title"]] = None
    return [(reason, list(titles)) for reason, titles in reasons.items()]
