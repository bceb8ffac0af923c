"""The doctor after a run: what it has logged, and what its data and its models say when they are asked.

assay doctor RUN    its models are asked what `questions.py` has; for at most `SECONDS`, and what was left out is said
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from assay.data.prepared import Prepared
from assay.doctor.data import Data
from assay.doctor.detector import ODD, Evidence, examine
from assay.doctor.examination import Examination, examination
from assay.doctor.finding import Diagnosis, Finding, diagnosis
from assay.doctor.read import Found, summary_of
from assay.errors import AssayError, StorageError
from assay.models.locate import locate
from assay.pipeline import environment
from assay.pipeline.artifacts import code_hash
from assay.pipeline.asking import Question, Stage
from assay.pipeline.evidence import Gathered
from assay.pipeline.graph import Node
from assay.pipeline.questions import KINDS, after, inapplicable
from assay.pipeline.recipe import NamedRecipe, load_recipe

SECONDS = 120.0
"""After which no further question is begun."""
MODELS = "data and models"
UNREADABLE = (AssayError, OSError, SafetensorError, *ODD)
"""What is raised over a file that somebody has damaged."""


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
        gathered.unknown(one for part in parts for one in part.unchecked),
        [pair for part in parts for pair in part.checked],
        read.diagnosis.places,
    )
    notes, unread = [*read.notes, *gathered.notes], [*read.unread, *gathered.unread]
    return Examination(read.what, read.stages, whole, notes, unread)


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
    """What a question gives; what cannot be read is told, and the others are still asked."""
    try:
        return gathered.put(question)
    except UNREADABLE as error:
        gathered.lose(question.where, error, *question.kinds)
        return []


def questions(folder: Path, gathered: Gathered) -> Iterator[Question]:
    """Of every stage that the run has finished, and of its data, in the order in which they were made."""
    made = summary_of(folder, Found())["stages"]  # what it does not say, the reader of the logs has told
    if "data" not in made:
        gathered.leave_out(MODELS, "nothing says that data were made", Data, *KINDS)
        return
    try:
        named = load_recipe(str(folder / "recipe.yaml"), environment={})
        data = Prepared.load(folder.parent / "artifacts" / made["data"]["artifact"])
    except UNREADABLE as error:
        gathered.lose(MODELS, error, Data, *KINDS)
        return
    for lost in made.keys() - {"data", *(node.id for node in named.graph)}:
        gathered.lose(lost, StorageError(f"{folder.name}/recipe.yaml says nothing of it"), *KINDS)
    yield Question("data", "what was prepared", (), (Data,), lambda: [Data("data", data)])
    device = environment.device("cpu" if named.recipe.device == "cpu" else "auto")  # the run's may be elsewhere
    for node in named.graph:
        if node.id in made:
            stage = stage_of(named, node, made, folder.parent, data, device)
            gathered.inapplicable.update(inapplicable(stage))
            yield from after(stage)


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
                absent[role] = f"what {source.name} has made is not here"
        except AssayError as error:
            absent[role] = str(error).splitlines()[0]
    own = runs / "artifacts" / made[node.id]["artifact"]
    if own.is_dir():
        folders["made"] = own
    else:
        absent["made"] = f"what {node.id} has made is not here"
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
