"""What is put before the doctor, and the record of what it says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from bench.doctor_trial.dials import detector_name, standings
from bench.doctor_trial.fault import seeded

import assay.doctor.examination  # noqa: F401  # pyright: ignore[reportUnusedImport]  (enters every detector)
from assay.doctor.detector import DETECTORS, Evidence, examine
from assay.doctor.finding import Diagnosis, diagnosis
from assay.doctor.log import Log

Group = Literal["fault", "pair", "healthy"]
Answer = Literal["found", "silent", "unchecked"]
PLACES = {
    "sft": ["data"],
    "reward": ["data", "sft"],
    **{place: ["data", "sft", "reward"] for place in ("ppo", "group", "policy")},
    "preference": ["data", "sft"],
}
"""What each place of the evidence is made from."""


@dataclass(frozen=True)
class Case:
    """Something to be examined, and what is wrong with it."""

    group: Group
    name: str
    modes: tuple[str, ...]
    """What the doctor must name; nothing, where nothing is wrong."""
    what: str
    seed: int
    evidence: Callable[[Path], Mapping[str, Sequence[Evidence]]]
    """Runs it in a folder; returns what the doctor looks at, by run."""

    @property
    def key(self) -> str:
        return f"{self.group}-{self.name}-{self.seed}"


@dataclass(frozen=True)
class Seen:
    """A finding, as it is kept."""

    mode: str
    family: str
    severity: str
    sureness: str
    evidence: str


@dataclass(frozen=True)
class Record:
    """What was said of one run."""

    group: Group
    name: str
    modes: Sequence[str]
    what: str
    seed: int
    run: str
    learnt: str
    """What a healthy run has come to."""
    findings: Sequence[Seen]
    """In the order in which the doctor tells them."""
    causes: Sequence[str]
    answers: Mapping[str, Answer]
    """By detector, of those that read something here."""
    standings: Mapping[str, float | None]
    """By dial."""
    seconds: float
    """Of processor time."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Record:
        return cls(**{**values, "findings": [Seen(**finding) for finding in values["findings"]]})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examined(case: Case) -> list[Record]:
    """Every run of the case, through every detector."""
    began = worked()
    with TemporaryDirectory(prefix="doctor-trial-") as folder, seeded(case.seed):
        runs = case.evidence(Path(folder))
        made = (worked() - began) / len(runs)
        return [_record(case, run, evidence, made) for run, evidence in runs.items()]


def _record(case: Case, run: str, evidence: Sequence[Evidence], made: float) -> Record:
    began = worked()
    said = {
        detector_name(detector): [examine([one], [detector]) for one in evidence if detector.reads(one)]
        for detector in DETECTORS
    }
    parts = [part for parts in said.values() for part in parts]
    found, unchecked = [f for part in parts for f in part.findings], [u for part in parts for u in part.unchecked]
    whole = diagnosis(found, unchecked, places=PLACES)
    findings = [Seen(f.mode.name, f.mode.family, f.severity, f.sureness, f.evidence) for f in whole.findings]
    causes = list(dict.fromkeys(finding.mode.name for finding in whole.causes))
    answers: dict[str, Answer] = {name: answer(parts) for name, parts in said.items() if parts}
    stands = standings(evidence)
    return Record(
        group=case.group,
        name=case.name,
        modes=list(case.modes),
        what=case.what,
        seed=case.seed,
        run=run,
        learnt=next(learnt(one) for one in evidence if isinstance(one, Log)) if case.group == "healthy" else "",
        findings=findings,
        causes=causes,
        answers=answers,
        standings=stands,
        seconds=made + worked() - began,
    )


def worked() -> float:
    """Seconds of processor time so far, of this process and those that it has waited for."""
    return sum(os.times()[:4])


def answer(parts: Sequence[Diagnosis]) -> Answer:
    """Of one detector, asked about each piece of evidence."""
    if any(part.findings for part in parts):
        return "found"
    return "unchecked" if all(part.unchecked for part in parts) else "silent"


def learnt(log: Log) -> str:
    """What a run has come to, in the number that its stage is for."""
    number = log.number
    if log.kind == "sft":
        return f"validation loss {log['eval/loss'].first:.2f} → {log['eval/loss'].last:.2f}"
    if log.kind == "reward":
        return f"accuracy {number('accuracy'):.0%}"
    if log.kind == "preference":
        return f"validation accuracy {number('validation_accuracy'):.0%}"
    return f"reward {log['objective/reward'].first:+.2f} → {log['objective/reward'].last:+.2f} deviations"
