"""The whole examination of what lies on the disk: every detector, asked about every log that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.doctor import data, direct, labels, machine, policy, probes, reward, sft, tokens
from assay.doctor.detector import examine
from assay.doctor.finding import Diagnosis
from assay.doctor.read import read

FAMILIES = (data, labels, tokens, machine, sft, reward, policy, direct, probes)
"""Every file of detectors: importing one enters what it has."""


@dataclass(frozen=True, slots=True)
class Examination:
    """A diagnosis, what it is of, and what could not be read for it."""

    what: str
    stages: Sequence[str]
    diagnosis: Diagnosis
    notes: Sequence[str]

    def facts(self) -> dict[str, Any]:
        """As plain data: what `assay doctor --json` prints."""
        causes = self.diagnosis.causes
        return {
            "what": self.what,
            "verdict": self.diagnosis.verdict,
            "looked_at": list(self.stages),
            "findings": [
                {**cause.facts(), "consequences": [found.facts() for found in self.diagnosis.consequences_of(cause)]}
                for cause in causes
            ],
            "unchecked": [
                {"mode": unchecked.mode.name, "where": unchecked.where, "why": unchecked.why}
                for unchecked in self.diagnosis.unchecked
            ],
            "notes": list(self.notes),
        }


def examination(path: Path) -> Examination:
    """Of a run, a foreign trainer's history or a table of metrics. UsageError where it is none of these."""
    found = read(path)
    return Examination(str(path), [log.where for log in found.logs], examine(found.logs), found.notes)
