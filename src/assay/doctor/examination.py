"""The whole examination of what lies on the disk: every detector, asked about every log that can be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from assay.doctor import (
    data,
    direct,
    groups,
    kl,
    labels,
    machine,
    outcome,
    probe_batch,
    probe_policy,
    probe_reward,
    recipe,
    responses,
    reward,
    sft,
    tokens,
    trl,
    updates,
)
from assay.doctor.cure import agreeing, proposed
from assay.doctor.detector import ODD, Evidence, examine, modes
from assay.doctor.finding import VERDICTS, Diagnosis, Finding, Verdict, diagnosis
from assay.doctor.log import Log
from assay.doctor.machine import Settings
from assay.doctor.read import read
from assay.doctor.reward import NOT_FINITE
from assay.doctor.terms import TRAINERS, in_terms

FAMILIES = (
    *(data, labels, tokens, machine, recipe),
    *(sft, reward, kl, updates, responses, groups, direct, outcome, trl),
    *(probe_reward, probe_policy, probe_batch),
)
"""Every file of detectors: importing one enters what it has."""
FEWEST = 10
"""Lines of another trainer's log, of which there is nothing else to look at: five to begin with, and five to end."""


@dataclass(frozen=True, slots=True)
class Examination:
    """A diagnosis, what it is of, and what could not be read for it."""

    what: str
    stages: Sequence[str]
    diagnosis: Diagnosis
    notes: Sequence[str] = ()
    unread: Sequence[str] = ()
    """What must be there and could not be read."""

    @property
    def verdict(self) -> Verdict:
        """That of the diagnosis; but without all that must be there, nothing less than red can be said for sure.

        Nor can it where nothing but NaN was looked for, which any number is enough for.
        """
        looked_for = {mode for mode, _ in self.diagnosis.checked}
        blind = self.unread or looked_for <= {NOT_FINITE}
        return "unchecked" if blind and self.diagnosis.verdict != "red" else self.diagnosis.verdict

    def facts(self) -> dict[str, Any]:
        """As plain data: what `assay doctor --json` prints, and what the report begins with."""
        causes = self.diagnosis.causes
        found = {(finding.mode, finding.where) for finding in self.diagnosis.findings}
        healthy = dict.fromkeys(pair for pair in self.diagnosis.checked if pair not in found)
        return {
            "what": self.what,
            "verdict": self.verdict,
            "in_words": VERDICTS[self.verdict],
            "looked_at": list(self.stages),
            "findings": [
                {**cause.facts(), "consequences": [found.facts() for found in self.diagnosis.consequences_of(cause)]}
                for cause in causes
            ],
            "not_found": [{"mode": mode.name, "title": mode.title, "where": where} for mode, where in healthy],
            "unchecked": [
                {
                    "mode": unchecked.mode.name,
                    "title": unchecked.mode.title,
                    "where": unchecked.where,
                    "why": unchecked.why,
                }
                for unchecked in self.diagnosis.unchecked
            ],
            "unread": list(self.unread),
            "notes": list(self.notes),
        }


def examination(path: Path) -> Examination:
    """Of a run, a foreign trainer's history or a table of metrics. UsageError where it is none of these."""
    found = read(path)
    for log in (log for log in found.logs if log.foreign):
        found.notes.append(f"{log.where}: taken as a log of TRL's {TRAINERS[log.kind]}, by the names of its metrics")
        if (lines := max(map(len, log.series.values()), default=0)) < FEWEST:
            found.unread.append(f"{log.where} has {lines} lines to read, and a verdict takes {FEWEST}")
    evidence: list[Evidence] = [*found.logs, *_readings(found.logs, found.unread)]
    given, before = examine(evidence, places=found.graph), proposed(path)
    findings = [agreeing(one, before) for one in [*given.findings, *_stopped(found.logs, given)]]
    given = in_terms(diagnosis(findings, given.unchecked, given.checked, found.graph), found.logs)
    if not (given.checked or found.unread):
        found.unread.append("no check found what it reads")
    return Examination(str(path), [log.where for log in found.logs], given, found.notes, found.unread)


def _stopped(logs: Sequence[Log], given: Diagnosis) -> Iterator[Finding]:
    """For what its monitor stopped a stage, where the log does not show it: it may be damaged."""
    shown = {(found.mode.name, found.where) for found in given.findings}
    for log in logs:
        for mode in modes():
            if mode.name == log.stopped.get("mode") and (mode.name, log.where) not in shown:
                seen = f"{log.stopped['evidence']}; its monitor stopped it at step {log.stopped['step']}"
                told = {name: log.stopped[name] for name in ("sureness", "cause", "cure", "change")}
                yield Finding(mode, log.where, seen, "red", **told)


def _readings(logs: Sequence[Log], unread: list[str]) -> Iterator[data.Reading]:
    """What was left out of files, as the report of a data stage counts it; the data of a world were not read."""
    for log in logs:
        if "rows" in log.reports.get("report", {}):
            try:
                yield data.Reading.of(log.reports["report"], log.where)
            except ODD as error:
                unread.append(f"{log.where}: report.json does not tell what was left out ({type(error).__name__})")


def of_settings(path: Path) -> Examination | None:
    """Of another trainer's settings, a map in a file of YAML, as PyYAML hands them to it; None where it is no such map.

    A recipe has stages and data; other keys, such as seed and model, are everybody's.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, Mapping) or not values or values.keys() & {"stages", "data"}:
            return None
        settings = Settings.foreign(path.name, values)
    except (OSError, RecursionError, ValueError, yaml.YAMLError):
        return None  # the reader of recipes says what is wrong with it, and where
    return Examination(str(path), [settings.where], examine([settings]))
