"""The cases of the trial, worked through by processes; what is finished is kept, by the code that it is about."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import torch
import transformers
from bench import common
from bench.doctor_trial import (
    faults_data,
    faults_models,
    faults_outcome,
    faults_policy,
    faults_recipe,
    healthy,
    page,
    pairs,
)
from bench.doctor_trial.case import Case, Record, by_command, examined, in_memory
from bench.doctor_trial.fault import Fault

KEPT = common.ROOT / ".bench" / "doctor_trial"
CODE = (
    "src/assay/**/*.py",
    *(f"bench/doctor_trial/{name}" for name in ("case.py", "dials.py", "fault*.py", "healthy.*", "pairs.py")),
    *(f"bench/doctor_trial/{name}.py" for name in ("broken_code", "finished_runs", "words")),
    "recipes/*.yaml",
    "tests/tiny.py",
    "tests/unit/stages/toy.py",
)
"""What a record depends on; not how it is kept, nor the page that is made of it."""
FAULTS: Sequence[Fault] = (
    *faults_data.FAULTS,
    *faults_models.FAULTS,
    *faults_policy.FAULTS,
    *faults_outcome.FAULTS,
    *faults_recipe.FAULTS,
)


def cases(seeds: int) -> dict[str, Case]:
    """All of them; what `--seeds 1` needs comes first."""
    first, *more = ([of_fault(number, fault, seed) for number, fault in enumerate(FAULTS)] for seed in range(seeds))
    found = [*pairs.cases(), *first, *healthy.cases(), *(case for seed in more for case in seed)]
    return {case.key: case for case in found}


def of_fault(number: int, fault: Fault, seed: int) -> Case:
    return Case(
        "fault",
        f"{number:03d}-{fault.mode}",
        (fault.mode,),
        fault.what,
        seed,
        by_command(fault.run) if fault.run else in_memory(lambda folder: {"": fault.evidence(folder)}),
    )


def finished(wanted: Sequence[Case], folder: Path, workers: int, seeds: int) -> Iterator[list[Record]]:
    """The records of every case, as they are there; those that are not kept yet are made."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {case.key: folder / f"{case.key}.json" for case in wanted}
    waiting = [key for key, path in kept.items() if not path.exists()]
    print(f"{len(kept) - len(waiting)} of {len(kept)} cases are there; records in {folder}", flush=True)
    for case in wanted:
        if case.key not in waiting:
            yield read(kept[case.key])
    # fork would copy torch's thread pool in an unknown state
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread) as pool:
        jobs = {pool.submit(_examined, key, seeds): key for key in waiting}
        for number, job in enumerate(as_completed(jobs), len(kept) - len(waiting) + 1):
            records = job.result()
            write(kept[jobs[job]], records)
            for record in records:
                print(f"{number}/{len(kept)} {page.line(record)}", flush=True)
            yield records


def _one_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()


def _examined(key: str, seeds: int) -> list[Record]:
    return examined(cases(seeds)[key])


def read(path: Path) -> list[Record]:
    return [Record.from_json(values) for values in json.loads(path.read_text(encoding="utf-8"))]


def write(path: Path, records: Sequence[Record]) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps([record.to_json() for record in records], indent=1), encoding="utf-8")
    unfinished.replace(path)


@cache
def digest() -> str:
    """Of the code that decides what a record says."""
    files = sorted(path for pattern in CODE for path in common.ROOT.glob(pattern))
    seen = hashlib.sha256()
    for path in files:
        seen.update(str(path.relative_to(common.ROOT)).encode() + b"\0" + path.read_bytes())
    return seen.hexdigest()[:12]
