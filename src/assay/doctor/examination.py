"""The whole examination of what lies on the disk: every detector, asked about every log that can be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    updates,
)
from assay.doctor.detector import ODD, Evidence, examine
from assay.doctor.finding import VERDICTS, Diagnosis
from assay.doctor.log import Log
from assay.doctor.machine import Settings
from assay.doctor.read import graph, read

FAMILIES = (
    *(data, labels, tokens, machine, recipe),
    *(sft, reward, kl, updates, responses, groups, direct, outcome),
    *(probe_reward, probe_policy, probe_batch),
)
"""Every file of detectors: importing one enters what it has."""


@dataclass(frozen=True, slots=True)
class Examination:
    """A diagnosis, what it is of, and what could not be read for it."""

    what: str
    stages: Sequence[str]
    diagnosis: Diagnosis
    notes: Sequence[str]

    def facts(self) -> dict[str, Any]:
        """As plain data: what `assay doctor --json` prints, and what the report begins with."""
        causes = self.diagnosis.causes
        found = {(finding.mode, finding.where) for finding in self.diagnosis.findings}
        healthy = dict.fromkeys(pair for pair in self.diagnosis.checked if pair not in found)
        return {
            "what": self.what,
            "verdict": self.diagnosis.verdict,
            "in_words": VERDICTS[self.diagnosis.verdict],
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
            "notes": list(self.notes),
        }


def examination(path: Path) -> Examination:
    """Of a run, a foreign trainer's history or a table of metrics. UsageError where it is none of these."""
    found = read(path)
    notes: list[str] = [*found.notes]
    evidence: list[Evidence] = [*found.logs, *_readings(found.logs, notes)]
    return Examination(str(path), [log.where for log in found.logs], examine(evidence, places=graph(path)), notes)


def _readings(logs: Sequence[Log], notes: list[str]) -> Iterator[data.Reading]:
    """What was left out of files, as the report of a data stage counts it; the data of a world were not read."""
    for log in logs:
        if "rows" in log.reports.get("report", {}):
            try:
                yield data.Reading.of(log.reports["report"], log.where)
            except ODD as error:
                notes.append(f"{log.where}: report.json does not tell what was left out ({type(error).__name__})")


def of_settings(path: Path) -> Examination:
    """Of another trainer's settings, a map in a file of YAML, as PyYAML hands them to it."""
    settings = Settings.foreign(path.name, yaml.safe_load(path.read_text(encoding="utf-8")))
    return Examination(str(path), [settings.where], examine([settings]), ())
