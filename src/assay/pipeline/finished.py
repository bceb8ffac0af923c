"""The doctor after a run: what it has logged, and what its data and its models say when they are asked.

assay doctor RUN    its models are asked what `questions.py` has; for at most `SECONDS`, and what was left out is said
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from assay.data.prepared import Prepared
from assay.doctor.data import Data
from assay.doctor.detector import Evidence, examine
from assay.doctor.examination import Examination, examination
from assay.doctor.finding import Diagnosis, Finding, diagnosis
from assay.errors import AssayError
from assay.models.locate import locate
from assay.pipeline import environment
from assay.pipeline.artifacts import code_hash, read_json
from assay.pipeline.asking import Question, Stage
from assay.pipeline.evidence import Gathered
from assay.pipeline.graph import Node
from assay.pipeline.questions import after
from assay.pipeline.recipe import NamedRecipe, load_recipe

SECONDS = 120.0
"""After which no further question is begun."""


def of_run(folder: Path, say: Callable[[str], None], *, seconds: float = SECONDS) -> Examination:
    """Its logs, its data and its models."""
    read, gathered = examination(folder), Gathered()
    parts: list[Diagnosis] = [read.diagnosis, *map(examine, asked(folder, gathered, say, seconds=seconds))]
    found: list[Finding] = []
    for finding in (finding for part in parts for finding in part.findings):
        if finding not in found:  # a log and a probe may say the same in the same words
            found.append(finding)
    whole = diagnosis(
        found,
        [*(one for part in parts for one in part.unchecked), *gathered.unchecked],
        [pair for part in parts for pair in part.checked],
        read.diagnosis.places,
    )
    return Examination(read.what, read.stages, whole, [*read.notes, *gathered.notes], read.unread)


def asked(
    folder: Path, gathered: Gathered, say: Callable[[str], None], *, seconds: float = SECONDS
) -> Iterator[list[Evidence]]:
    """What each question gives, one after the other, until the time is over."""
    began = time.monotonic()
    for question in questions(folder, gathered):
        spent = time.monotonic() - began
        if spent > seconds:
            why = f"the {seconds:.0f} s for questions to models were over"
            gathered.leave_out(question.where, why, *question.kinds)
            continue
        say(f"{question.where}: {question.what} ({spent:.0f} s)")
        yield answered(gathered, question)


def answered(gathered: Gathered, question: Question) -> list[Evidence]:
    """What a question gives; what cannot be read is a reason like others why something is unchecked."""
    try:
        return gathered.put(question)
    except (AssayError, OSError) as error:
        gathered.leave_out(question.where, str(error).splitlines()[0], *question.kinds)
        return []


def questions(folder: Path, gathered: Gathered) -> Iterator[Question]:
    """Of every stage that the run has finished, and of its data, in the order in which they were made."""
    try:
        named, made = load_recipe(str(folder / "recipe.yaml"), environment={}), stages_of(folder)
        data = Prepared.load(folder.parent / "artifacts" / made["data"]["artifact"])
        device = environment.device(named.recipe.device)
    except (AssayError, OSError, LookupError, TypeError, ValueError) as error:
        gathered.notes.append(f"data and models were not asked: {str(error).splitlines()[0]}")
        return
    yield Question("data", "what was prepared", (), (Data,), lambda: [Data("data", data)])
    for node in named.graph:
        if node.id in made:
            yield from after(stage_of(named, node, made, folder.parent, data, device))


def stages_of(folder: Path) -> Mapping[str, Any]:
    """What the run's summary says of its stages."""
    return read_json(folder / "summary.json", hint="run the recipe again: what is finished is kept")["stages"]


def stage_of(named: NamedRecipe, node: Node, made: Mapping[str, Any], runs: Path, data: Prepared, device: str) -> Stage:
    """A finished stage with the folders of its roles."""
    folders, absent = dict[str, Path](), dict[str, str]()
    for role, (source, *_) in node.inputs.items():
        try:
            if source.outside:
                folders[role] = locate(source.name, fetch=False)
            elif (kept := runs / "artifacts" / str(made.get(source.name, {}).get("artifact"))).is_dir():
                folders[role] = kept
            else:
                absent[role] = f"what {source.name} has made is gone"
        except AssayError as error:
            absent[role] = str(error).splitlines()[0]
    own = runs / "artifacts" / made[node.id]["artifact"]
    if (own / "config.json").is_file():
        folders["made"] = own
    else:
        absent["made"] = f"{own.name} holds no model"
    return Stage(
        node.id,
        node.config,
        folders,
        data,
        named.recipe.model.template,
        device,
        named.recipe.seed,
        absent,
        cache=runs / "cache" / code_hash(),
        report=made[node.id]["metrics"],
    )
