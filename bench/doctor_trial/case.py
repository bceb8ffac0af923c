"""What is put before the doctor, and the record of what it says."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from bench.doctor_trial import faults_recipe
from bench.doctor_trial.dials import detector_name, standings
from bench.doctor_trial.fault import Faulty, seeded
from bench.doctor_trial.finished_runs import QUIET, looked_at

from assay.doctor.detector import DETECTORS, Evidence, examine
from assay.doctor.finding import Diagnosis, diagnosis
from assay.doctor.log import Log
from assay.pipeline import finished

Group = Literal["fault", "pair", "healthy", "recipe"]
"""Recipes are healthy ones, before they run."""
Answer = Literal["found", "silent", "unchecked"]
PLACES = {
    "sft": ["data"],
    "reward": ["data", "sft"],
    **{place: ["data", "sft", "reward"] for place in ("ppo", "group", "policy")},
    "preference": ["data", "sft"],
}
"""What each place of the evidence is made from."""


@dataclass(frozen=True)
class Shown:
    """What the doctor is shown of one run, and what its command says of it."""

    evidence: Sequence[Evidence]
    said: Diagnosis | None = None
    """Where there is neither a recipe nor a run on the disk, nothing."""


Show = Callable[[Path], AbstractContextManager[Mapping[str, Shown]]]
"""Runs something in a folder; while it is entered, the doctor looks at it, by run."""


@dataclass(frozen=True)
class Case:
    """Something to be examined, and what is wrong with it."""

    group: Group
    name: str
    modes: tuple[str, ...]
    """What the doctor must name; nothing, where nothing is wrong."""
    what: str
    seed: int
    show: Show

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


def in_memory(run: Callable[[Path], Mapping[str, Sequence[Evidence]]]) -> Show:
    """Evidence as it is, for every detector."""

    @contextmanager
    def show(folder: Path) -> Iterator[Mapping[str, Shown]]:
        yield {name: Shown(evidence) for name, evidence in run(folder).items()}

    return show


def by_command(faulty: Faulty) -> Show:
    """A recipe or a finished run, as `assay doctor` reads it, asks its models and judges it."""

    @contextmanager
    def show(folder: Path) -> Iterator[Mapping[str, Shown]]:
        with faulty(folder) as made:
            yield {"": shown_run(made) if made.is_dir() else Shown(*faults_recipe.looked_at(made))}

    return show


def shown_run(run: Path) -> Shown:
    return Shown(looked_at(run), finished.of_run(run, QUIET.say, seconds=math.inf).diagnosis)


def examined(case: Case) -> list[Record]:
    """Every run of the case, through every detector."""
    began = worked()
    with TemporaryDirectory(prefix="doctor-trial-") as folder, seeded(case.seed), case.show(Path(folder)) as runs:
        made = (worked() - began) / len(runs)
        return [_record(case, run, shown, made) for run, shown in runs.items()]


def _record(case: Case, run: str, shown: Shown, made: float) -> Record:
    began, evidence = worked(), shown.evidence
    own = [
        detector for detector in DETECTORS if not case.modes or {mode.name for mode in detector.modes} & {*case.modes}
    ]
    said = {
        detector_name(detector): [examine([one], [detector]) for one in evidence if detector.reads(one)]
        for detector in (own if shown.said else DETECTORS)
    }
    whole = shown.said or together(said.values())
    findings = [Seen(f.mode.name, f.mode.family, f.severity, f.sureness, f.evidence) for f in whole.findings]
    causes = list(dict.fromkeys(finding.mode.name for finding in whole.causes))
    answers: dict[str, Answer] = {name: answer(parts) for name, parts in said.items() if parts}
    # To find where a run stands its models are asked again and again: those of recipes are not.
    stands = {} if case.group == "recipe" else standings(evidence, own)
    return Record(
        group=case.group,
        name=case.name,
        modes=list(case.modes),
        what=case.what,
        seed=case.seed,
        run=run,
        learnt=learnt(evidence) if case.group == "healthy" else "",
        findings=findings,
        causes=causes,
        answers=answers,
        standings=stands,
        seconds=made + worked() - began,
    )


def together(said: Iterable[Sequence[Diagnosis]]) -> Diagnosis:
    """What all detectors say, each asked about each piece of evidence."""
    parts = [part for parts in said for part in parts]
    found, unchecked = [f for part in parts for f in part.findings], [u for part in parts for u in part.unchecked]
    return diagnosis(found, unchecked, places=PLACES)


def worked() -> float:
    """Seconds of processor time so far, of this process and those that it has waited for."""
    return sum(os.times()[:4])


def answer(parts: Sequence[Diagnosis]) -> Answer:
    """Of one detector, asked about each piece of evidence."""
    if any(part.findings for part in parts):
        return "found"
    return "unchecked" if all(part.unchecked for part in parts) else "silent"


def learnt(evidence: Sequence[Evidence]) -> str:
    """What a run has come to, in the number that its stage is for; of several its reward model's."""
    logs = [one for one in evidence if isinstance(one, Log) and one.kind != "data"]
    log = next((one for one in logs if one.kind == "reward"), logs[0])
    number = log.number
    if log.kind == "sft":
        return f"validation loss {log['eval/loss'].first:.2f} → {log['eval/loss'].last:.2f}"
    if log.kind == "reward":
        return f"accuracy {number('accuracy'):.0%}"
    if log.kind == "preference":
        return f"validation accuracy {number('validation_accuracy'):.0%}"
    if log.kind == "distill":
        return f"KL from the teacher {number('teacher_kl_before'):.2f} → {number('teacher_kl_after'):.2f} nats"
    reward = log["objective/score" if log.kind == "bestof" else "objective/reward"]
    return f"reward {reward.first:+.2f} → {reward.last:+.2f} deviations"
