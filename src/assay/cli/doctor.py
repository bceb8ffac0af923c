"""`assay doctor`: what is wrong with a recipe before it runs, or what went wrong in a run, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from assay.cli.output import emit, say, stdout_for_results
from assay.cli.run import split_words

if TYPE_CHECKING:
    from assay.doctor.examination import Examination
    from assay.doctor.finding import Diagnosis, Finding

EXIT_CODES = {"red": 1, "unchecked": 2}


def doctor(
    words: list[str] = typer.Argument(
        None,
        metavar="[RECIPE [KEY=VALUE]... | RUN | FILE]",
        help="A recipe with its settings, as `assay run` takes it; a run's name or folder; a trainer_state.json of TRL "
        "or its folder; a .csv of metrics; or another trainer's settings (.yaml).",
        show_default=False,
    ),
    runs_dir: Path = typer.Option(Path("runs"), help="Where runs and artifacts are."),
    probe: bool = typer.Option(
        True,
        "--probe/--no-probe",
        help="Ask the models that a run has made, too, for two minutes at most; without, only its logs are read.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Say what is wrong with a recipe before it runs, or what went wrong in a run; why, and what to change.

    Exit code 1 where the verdict is red, 2 where too little could be read for one.
    """
    reference, settings = split_words(words or [])
    with stdout_for_results():
        given = _examined(reference, settings, runs_dir, probe=probe)
    if as_json:
        emit(given.facts())
    else:
        print("\n".join(lines(given)))
    if code := EXIT_CODES.get(given.verdict):
        raise typer.Exit(code)


def _examined(reference: str | None, settings: list[str], runs_dir: Path, *, probe: bool) -> Examination:
    """A recipe before it runs, or what lies on the disk; says how the words are understood."""
    from assay.doctor.examination import examination, of_settings
    from assay.doctor.read import is_run
    from assay.errors import UsageError
    from assay.pipeline.recipe import draft, find_recipe, shipped

    found = None if reference is None else _on_disk(reference, runs_dir)
    if found is None and (reference is None or Path(reference).is_file() or reference in shipped()):
        from assay.pipeline.checkup import of_recipe

        path = find_recipe(reference)
        if foreign := of_settings(path):
            say(f"{reference}: taken as the settings of another trainer, for it has neither stages nor data")
            return foreign
        written = draft(reference, settings)
        if not written.document.data:
            raise UsageError(f"{path} holds no settings", hint="it is empty, or was cut off: write it again")
        say(f"{reference or 'no name'}: taken as the recipe {written.path}, before it runs")
        return of_recipe(written)
    if found is None:
        raise UsageError(
            f"{reference} is no recipe, no run and no log of another trainer",
            hint=f"give a recipe's file or name ({', '.join(shipped())}), a run's folder or its name in {runs_dir} "
            "(--runs-dir), a trainer_state.json of TRL or its folder, a .csv of metrics, or a trainer's settings",
        )
    if settings:
        raise UsageError(f"{found} has run: it takes no {settings[0]}", hint="settings are for a recipe")
    say(f"{reference}: taken as what lies in {found}, after it ran")
    if probe and is_run(found):
        from assay.pipeline.finished import of_run

        return of_run(found, say)
    return examination(found)


def _on_disk(reference: str, runs_dir: Path) -> Path | None:
    """A folder or a log of metrics; None for a recipe, and for nothing."""
    path = Path(reference)
    found = path if path.exists() else runs_dir / path
    return found if found.is_dir() or (found.is_file() and found.suffix in (".json", ".csv")) else None


def lines(given: Examination) -> Iterator[str]:
    """The examination in words."""
    from assay.doctor.finding import VERDICTS

    diagnosis = given.diagnosis
    yield f"{given.verdict}: {VERDICTS[given.verdict]} ({', '.join(given.stages) or 'nothing'} looked at)"
    for lost in given.unread:
        yield f"   not read   {lost}"
    for number, cause in enumerate(diagnosis.causes, start=1):
        yield ""
        yield from told(number, cause, diagnosis)
    for note in given.notes:
        yield f"\nnote: {note}"
    if diagnosis.unchecked:
        yield "\nnot checked:"
        for (why, names), places in unchecked(diagnosis).items():
            yield f"  {', '.join(places)}: {why} ({', '.join(names)})"


def unchecked(diagnosis: Diagnosis) -> dict[tuple[str, tuple[str, ...]], list[str]]:
    """The reason and the modes, with every place where both are the same."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in diagnosis.unchecked:
        reasons.setdefault((one.where, one.why), []).append(one.mode.name)
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (where, why), names in reasons.items():
        together.setdefault((why, tuple(dict.fromkeys(names))), []).append(where)
    return together


def told(number: int, cause: Finding, diagnosis: Diagnosis) -> Iterator[str]:
    """One finding, and what follows from it."""
    from assay.doctor.cure import written

    yield f"{number}. {cause.mode.title} ({cause.where}): {cause.severity}, {cause.sureness}"
    yield f"   seen   {cause.evidence}"
    yield f"   why    {cause.explanation}"
    yield f"   cure   {cause.advice}"
    for setting in written(cause.change):
        yield f"          {setting}"
    for finding in diagnosis.consequences_of(cause):
        yield f"   so     {finding.mode.title} ({finding.where}): {finding.severity}, {finding.evidence}"
    yield f"   more   {cause.mode.page}"
