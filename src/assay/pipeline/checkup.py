"""The doctor before a run: what a recipe, its data, its models and this machine show already.

assay doctor RECIPE    on a sample of the data, or on what an earlier run has prepared of them
assay run RECIPE       on the data as they were prepared, before a stage begins
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from assay.config import did_you_mean
from assay.data.prepared import Prepared
from assay.doctor.cure import BEFORE, written
from assay.doctor.detector import examine, modes
from assay.doctor.examination import Examination
from assay.doctor.finding import Diagnosis, Finding
from assay.doctor.machine import Settings
from assay.doctor.recipe import Refusals
from assay.errors import StorageError, UsageError
from assay.pipeline import environment
from assay.pipeline.artifacts import Store, read_json, write_json
from assay.pipeline.evidence import Gathered, data_of, look_at_data, look_at_stages
from assay.pipeline.inputs import check_counts, counts
from assay.pipeline.questions import KINDS
from assay.pipeline.recipe import Draft, NamedRecipe, Recipe
from assay.pipeline.runner import Request, selected
from assay.pipeline.steps import Step, parents_of


def of_recipe(written: Draft) -> Examination:
    """All that can be told about a recipe; a fault of one part leaves the others to be checked."""
    what, gathered = str(written.path), Gathered(["settings"])
    settings = Settings.of(written.document, Recipe, name=written.label)
    gathered.evidence.append(settings)
    told = tuple(f"{key}: " for key in settings.texts)
    faults = [fault for fault in written.faults if not fault.what.startswith(told)]
    gathered.refused += [(f"{fault.place}: {fault.what}", fault.hint) for fault in faults]
    if written.named is None:
        gathered.notes.append("data, models and machine are looked at once the settings are valid")
        return examined(what, gathered)
    named, steps = written.named, []
    store = Store(Path(named.recipe.runs_dir))
    with gathered.refusing():
        environment.device(named.recipe.device)
    with gathered.refusing():
        steps = selected(named, Request(), fetch=False)
    data = None
    with gathered.refusing():
        data = data_of(gathered, named, steps, store)
    if data is not None:
        with gathered.refusing():
            check_counts(counts(data), steps)
    if data is not None:
        look_at_data(gathered, named, data)
    if not gathered.refused:
        look_at_stages(gathered, named, steps, store, data)
        if data is None and not any(isinstance(one, KINDS) for one in gathered.evidence):
            gathered.unread.append("neither data nor models are here: only the settings were looked at")
    return examined(what, gathered, steps)


def of_run(named: NamedRecipe, steps: Sequence[Step], store: Store, data: Prepared) -> Examination:
    """The same, for the steps of a run whose data are prepared."""
    gathered = Gathered(["settings"])
    look_at_data(gathered, named, data)
    look_at_stages(gathered, named, steps, store, data)
    return examined(named.name, gathered, steps)


def examined(what: str, gathered: Gathered, steps: Sequence[Step] = ()) -> Examination:
    """What the detectors say about all that was gathered."""
    given = examine([*gathered.evidence, Refusals(what, gathered.refused)], places=parents_of(steps))
    given = Diagnosis(given.findings, gathered.unknown(given.unchecked), given.checked, given.places)
    return Examination(what, gathered.looked_at, given, gathered.notes, gathered.unread)


def before_run(
    named: NamedRecipe, steps: Sequence[Step], store: Store, data: Prepared, folder: Path, request: Request
) -> None:
    """Look once before anything is computed, and say what was found; UsageError where it is red.

    A run that goes on, or finds everything made, is not looked at again.
    """
    made = [step.identity.id for step in steps]
    if all(store.get(step.identity.id) for step in steps) or _seen(folder, made):
        return
    given = of_run(named, steps, store, data)
    for line in summary(given.diagnosis):
        request.say(line)
    red = [found for found in given.diagnosis.findings if found.severity == "red"]
    if refused := [found for found in red if found.mode.name not in request.despite]:
        raise refusal(refused)
    write_json(folder / BEFORE, {**given.facts(), "despite": list(request.despite), "artifacts": made})


def check_names(despite: Sequence[str]) -> None:
    """UsageError for a mode that the doctor does not know."""
    known = [mode.name for mode in modes()]
    for name in despite:
        if name not in known:
            raise UsageError(f'--despite: the doctor knows no "{name}"', hint=did_you_mean(name, known))


def refusal(findings: Sequence[Finding]) -> UsageError:
    """One error for all that speaks against a run, with the cure of each and the way round."""
    told = [f"{found.mode.title} ({found.where}): {found.evidence}" for found in findings]
    cures = [" ".join([found.advice, *written(found.change)]) for found in findings]
    several = [f"{len(told)} things speak against this run", *(f"  {line}" for line in told)]
    what = told[0] if len(told) == 1 else "\n".join(several)
    despite = " ".join(f"--despite {name}" for name in dict.fromkeys(found.mode.name for found in findings))
    return UsageError(what, hint=f"{' '.join(dict.fromkeys(cures))}; to run all the same: {despite}")


def summary(given: Diagnosis) -> Iterator[str]:
    """A line for each cause."""
    if not given.causes:
        yield "doctor: green, nothing found that speaks against this run"
    for found in given.causes:
        cure = " ".join([found.advice, *written(found.change)])
        yield f"doctor: {found.severity}, {found.mode.name} ({found.where}): {found.evidence}. {cure}"


def _seen(folder: Path, made: Sequence[str]) -> bool:
    """Whether an earlier start of this run was looked at, and went on."""
    try:
        return read_json(folder / BEFORE, hint="")["artifacts"] == made
    except (StorageError, KeyError):
        return False
