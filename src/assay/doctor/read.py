"""Logs from the disk: a run's, finished or not; TRL's trainer_state.json; a table of metrics.

What cannot be read is told, and everything else is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from assay.doctor.cure import BEFORE
from assay.doctor.foreign import log_of
from assay.doctor.log import TRAINING, Log
from assay.doctor.rows import STATE, of_history, of_table
from assay.errors import StorageError, UsageError
from assay.tracking.metrics import read_json_lines, read_metrics

T = TypeVar("T")
METRICS, SUMMARY, MANIFEST = "metrics.jsonl", "summary.json", "manifest.json"
REPORTS = ("accuracy", "evaluation", "report")
"""JSON files of an artifact that hold more than its flat metrics."""
SHOWN = 3
"""Of the lines that were left out: how many are told one by one."""


@dataclass
class Found:
    """What was read, and sentences for what was not."""

    logs: list[Log] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """What must be there and could not be read: it speaks neither for the run nor against it."""
    graph: dict[str, list[str]] = field(default_factory=dict)
    """Every stage of a run → those that it is made from."""


def read(path: Path) -> Found:
    """A run's folder, a folder or file of TRL's, or a .csv. UsageError where it is none of these, or damaged."""
    if is_run(path):
        return read_run(path)
    if path.is_dir():
        path = next((state for state in (path / STATE, *_checkpoints(path)) if state.is_file()), path)
    if path.is_file() and path.suffix in (".csv", ".json"):
        return _read_file(path)
    raise UsageError(
        f"{path} is no run, no {STATE} and no .csv of metrics",
        hint="give a recipe, a folder that `assay run` or TRL wrote, or a table with one metric a column",
    )


def _read_file(path: Path) -> Found:
    """The log of another trainer. Where nothing in it is known, what was left out of it may be the reason."""
    notes: list[str] = []
    rows, batch_size = (of_table(path, notes), None) if path.suffix == ".csv" else of_history(path, notes)
    try:
        return Found([log_of(path.name, rows, notes, batch_size)], notes)
    except UsageError as error:
        raise UsageError("; ".join([error.what, *notes]), hint=error.hint) from error


def is_run(path: Path) -> bool:
    """Whether it is the folder of a run of ours."""
    return (path / SUMMARY).is_file() or (path / "recipe.yaml").is_file()


def read_run(folder: Path) -> Found:
    """The stages of a run in their order; the one at work is read from its working folder."""
    found = Found()
    summary = summary_of(folder, found)
    for part, read_stage in (("stages", _finished), ("unfinished", _unfinished)):
        for name, entry in summary[part].items():
            read_stage(name, entry, folder.parent / "artifacts", found)
    written = _mapping(summary["graph"])
    found.graph = {stage: [str(name) for name in names] for stage, names in written.items() if isinstance(names, list)}
    return found


def summary_of(folder: Path, found: Found) -> dict[str, Any]:
    """What a run's summary says; where it says nothing that can be read, what the manifests of its artifacts say.

    Every entry of `stages` and `unfinished` names kind and artifact, and the former its metrics, too; what does not is
    told.
    """
    summary = _object(folder / SUMMARY, found)
    if not summary and (summary := _by_manifests(folder)):
        found.notes.append(f"{folder.name}: its stages are told by the manifests of their artifacts")
    stages = dict(_entries(folder, summary, "stages", found))
    for name, entry in stages.items():
        if not isinstance(entry.get("metrics"), Mapping):
            found.unread.append(f"{folder.name}/{SUMMARY} does not say what {name} came to")
            stages[name] = {**entry, "metrics": {}}
    unfinished = dict(_entries(folder, summary, "unfinished", found))
    return {"stages": stages, "unfinished": unfinished, "graph": summary.get("graph")}


def _entries(
    folder: Path, summary: Mapping[str, Any], part: str, found: Found
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The stages in a part of a summary that tell what they are and where they lie."""
    stages = summary.get(part, {})
    if not isinstance(stages, Mapping):
        found.unread.append(f"{folder.name}/{SUMMARY}: {part} is no object with an entry for each stage")
        return
    for name, entry in stages.items():
        if all(isinstance(_mapping(entry).get(key), str) for key in ("kind", "artifact")):
            yield name, entry
        else:
            found.unread.append(f"{folder.name}/{SUMMARY} says nothing of {name} that could be read")


def _by_manifests(folder: Path) -> dict[str, Any]:
    """A summary by the artifacts that the run set out to make; nothing, where nothing tells which they are."""
    planned, root = _object(folder / BEFORE, Found()).get("artifacts"), folder.parent / "artifacts"
    entries: dict[str, dict[str, Any]] = {}
    for name in map(str, planned if isinstance(planned, list) else []):
        manifest = _object(root / name / MANIFEST, Found())
        entries[name] = {"stage": name, "kind": name.rpartition("-")[0], "metrics": {}, **manifest, "artifact": name}
    stage = {name: str(entry["stage"]) for name, entry in entries.items()}
    made = [name for name in entries if (root / name).is_dir()]
    inputs = {name: ",".join(map(str, _mapping(entries[name].get("inputs")).values())).split(",") for name in made}
    return entries and {
        "stages": {stage[name]: entries[name] for name in made},
        "unfinished": {stage[name]: entries[name] for name in entries if name not in made},
        "graph": {stage[name]: [stage[one] for one in inputs[name] if one in stage] for name in made},
    }


def _finished(name: str, entry: Mapping[str, Any], root: Path, found: Found) -> None:
    kind, final, folder = entry["kind"], entry["metrics"], root / entry["artifact"]
    if not folder.is_dir():
        found.unread.append(
            f"{name}: its artifact {folder.name} is gone: only the numbers of the summary are looked at"
        )
        found.logs.append(Log(kind, name, final=final))
        return
    _acted(name, folder, found)
    config = _mapping(_object(folder / MANIFEST, found).get("config"))
    reports = {file.stem: _object(file, found) for file in sorted(folder.glob("*.json")) if file.stem in REPORTS}
    told, lines = len(found.unread), _lines_of(read_metrics, folder / METRICS, found)
    if kind in TRAINING and not (lines or config.get("trained")) and len(found.unread) == told:
        lost = f"an empty {METRICS}" if (folder / METRICS).is_file() else f"no {METRICS}"
        found.unread.append(f"{name}: {folder.name} has {lost}: only its final numbers are looked at")
    found.logs.append(Log.of(kind, name, lines, final=final, reports=reports, config=config))


def _unfinished(name: str, entry: Mapping[str, Any], root: Path, found: Found) -> None:
    """What a stage has logged so far. Its id tells its folder from those that other runs work in."""
    folder = root / f".{entry['artifact']}.partial"
    if not folder.is_dir():
        found.notes.append(f"{name} has not begun")
        return
    found.notes.append(f"{name} is not finished: only what it has logged so far is looked at")
    acts, lines = _acted(name, folder, found), _lines_of(read_metrics, folder / METRICS, found)
    last = acts[-1] if acts else {}
    resumed = lines and last.get("action") == "stopped" and lines[-1].step > last["step"]
    stopped = last if last.get("action") == "stopped" and not resumed else {}
    found.logs.append(Log.of(entry["kind"], name, lines, config=_mapping(entry.get("config")), stopped=stopped))


def _acted(name: str, folder: Path, found: Found) -> list[Mapping[str, Any]]:
    """What its monitor did to a stage, and why, as notes too; what it only said, the log shows."""
    path = folder / "findings.jsonl"
    acts = []
    for row in _lines_of(read_json_lines, path, found):
        try:
            told = f"{row['title']}: {row['evidence']}"
            if row["action"] != "said":
                found.notes.append(f"{name} was {row['action']} at step {row.get('seen_at', row['step'])}: {told}")
                acts.append(row)
        except KeyError as error:
            found.unread.append(f"{_place(path)} has a line without {error}")
    return acts


def _lines_of(
    reader: Callable[[Path, Callable[[StorageError], None]], Iterable[T]], path: Path, found: Found
) -> list[T]:
    """The lines of a log that can be read; those that cannot are told."""
    odd: list[StorageError] = []
    try:
        lines = list(reader(path, odd.append))
    except OSError as error:
        found.unread.append(f"{_place(path)} is not readable: {error.strerror}")
        return []
    if odd:
        why = "; ".join(error.what.removeprefix(f"{path} ") for error in odd[:SHOWN])
        more = ", …" if len(odd) > SHOWN else ""
        told = f"{_place(path)}: {len(odd)} of {len(odd) + len(lines)} lines are left out: {why}{more}"
        (found.notes if lines else found.unread).append(told)
    return lines


def _object(path: Path, found: Found) -> dict[str, Any]:
    """A JSON object; empty, and told, where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        found.unread.append(f"{_place(path)} is not readable: {why}")
        return {}
    if not isinstance(value, dict):
        found.unread.append(f"{_place(path)} is no JSON object")
        return {}
    return value


def _place(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value, or nothing in its place."""
    return value if isinstance(value, Mapping) else {}


def _checkpoints(folder: Path) -> list[Path]:
    """The states that TRL's checkpoints hold, the latest first."""
    states = [path / STATE for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(states, key=lambda state: int(state.parent.name.rpartition("-")[2]), reverse=True)
