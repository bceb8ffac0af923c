"""`assay doctor`: what went wrong in a run, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from assay.cli.output import emit

if TYPE_CHECKING:
    from assay.doctor.examination import Examination
    from assay.doctor.finding import Diagnosis, Finding


def doctor(
    what: Path = typer.Argument(
        metavar="RUN|FILE",
        help="A run's name or folder, a trainer_state.json of TRL or its folder, or a .csv of metrics.",
    ),
    runs_dir: Path = typer.Option(Path("runs"), help="Where runs and artifacts are."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Say what went wrong in a run, why, and what to change. Exit code 1 where the verdict is red."""
    from assay.doctor.examination import examination

    given = examination(what if what.exists() else runs_dir / what)
    if as_json:
        emit(given.facts())
    else:
        print("\n".join(lines(given)))
    if given.diagnosis.verdict == "red":
        raise typer.Exit(1)


def lines(given: Examination) -> Iterator[str]:
    """The examination in words."""
    from assay.doctor.finding import VERDICTS

    diagnosis = given.diagnosis
    yield f"{diagnosis.verdict}: {VERDICTS[diagnosis.verdict]} ({', '.join(given.stages) or 'nothing'} looked at)"
    for number, cause in enumerate(diagnosis.causes, start=1):
        yield ""
        yield from told(number, cause, diagnosis)
    for note in given.notes:
        yield f"\nnote: {note}"
    if diagnosis.unchecked:
        yield "\nnot checked:"
        for why in dict.fromkeys(f"{unchecked.where}: {unchecked.why}" for unchecked in diagnosis.unchecked):
            names = [u.mode.name for u in diagnosis.unchecked if f"{u.where}: {u.why}" == why]
            yield f"  {', '.join(dict.fromkeys(names))}: {why}"


def told(number: int, cause: Finding, diagnosis: Diagnosis) -> Iterator[str]:
    """One finding, and what follows from it."""
    yield f"{number}. {cause.mode.title} ({cause.where}): {cause.severity}, {cause.sureness}"
    yield f"   seen   {cause.evidence}"
    yield f"   why    {cause.explanation}"
    yield f"   cure   {cause.advice}"
    for key, value in cause.change.items():
        yield f"          {key}={value}"
    for finding in diagnosis.consequences_of(cause):
        yield f"   so     {finding.mode.title} ({finding.where}): {finding.evidence}"
    yield f"   more   {cause.mode.page}"
