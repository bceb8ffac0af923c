"""Logs from the disk: a run's, finished or not; TRL's trainer_state.json; a table of metrics.

What cannot be read is said in a note, and everything else is read.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from assay.doctor.log import Log
from assay.errors import AssayError, UsageError
from assay.tracking.metrics import MetricsLine, read_json_lines, read_metrics

STATE = "trainer_state.json"
REPORTS = ("accuracy", "evaluation", "report")
"""JSON files of an artifact that hold more than its flat metrics."""
STEPS = ("step", "global_step", "Step", "episode", "epoch")
"""Columns that may number the lines of a table, the best first."""

NAMES: Mapping[str, Mapping[str, str]] = {
    "ppo": {
        "objective/scores": "objective/score",
        "objective/rlhf_reward": "objective/reward",
        "loss/policy_avg": "policy/loss",
        "loss/value_avg": "val/loss",
        "lr": "policy/learning_rate",
        "val/ratio": "policy/ratio",
        "val/ratio_var": "policy/ratio_var",
    },
    "group": {
        "reward": "objective/reward",
        "reward_std": "objective/group_std",
        "kl": "objective/kl",
        "entropy": "objective/entropy",
        "frac_reward_zero_std": "objective/groups_without_signal",
        "completions/mean_length": "lengths/response_mean",
        "completions/clipped_ratio": "lengths/truncated",
        "clip_ratio/region_mean": "policy/clipfrac_avg",
        "loss": "policy/loss",
        "grad_norm": "policy/grad_norm",
        "learning_rate": "policy/learning_rate",
        "sampling/sampling_logp_difference/max": "val/sampler_log_ratio",
    },
    "preference": {
        "rewards/accuracies": "train/accuracy",
        "rewards/margins": "train/reward_margin",
        "rewards/chosen": "train/chosen_reward",
        "rewards/rejected": "train/rejected_reward",
        "logps/chosen": "train/chosen_logprob",
        "loss": "train/loss",
        "grad_norm": "train/grad_norm",
        "learning_rate": "train/learning_rate",
    },
    "reward": {
        "accuracy": "train/accuracy",
        "margin": "train/margin",
        "mean_reward": "train/score_mean",
        "min_reward": "train/score_min",
        "max_reward": "train/score_max",
        "eval_accuracy": "eval/accuracy",
        "loss": "train/loss",
        "grad_norm": "train/grad_norm",
        "learning_rate": "train/learning_rate",
        "eval_loss": "eval/loss",
    },
    "sft": {
        "loss": "train/loss",
        "grad_norm": "train/grad_norm",
        "learning_rate": "train/learning_rate",
        "eval_loss": "eval/loss",
    },
}
"""TRL's names → ours, by the kind of stage; names that are the same on both sides are left out."""

SIGNS: Sequence[tuple[str, str]] = (
    ("objective/kl", "ppo"),
    ("completions/mean_length", "group"),
    ("frac_reward_zero_std", "group"),
    ("rewards/margins", "preference"),
    ("rewards/chosen", "preference"),
    ("mean_reward", "reward"),
    ("margin", "reward"),
    ("loss", "sft"),
)
"""A metric that only one kind of trainer logs → the kind; the first that is there decides."""


@dataclass(frozen=True)
class Found:
    """What was read, and a sentence for everything that could not be."""

    logs: Sequence[Log]
    notes: Sequence[str] = field(default_factory=tuple)


def read(path: Path) -> Found:
    """A run's folder, a folder or file of TRL's, or a .csv. UsageError where it is none of these."""
    if path.is_dir() and ((path / "summary.json").is_file() or (path / "recipe.yaml").is_file()):
        return read_run(path)
    if path.is_dir():
        path = next((state for state in (path / STATE, *_checkpoints(path)) if state.is_file()), path)
    if path.is_file() and path.suffix == ".csv":
        return read_table(path)
    if path.is_file() and path.suffix == ".json":
        return read_trl(path)
    raise UsageError(
        f"{path} is no run, no {STATE} and no .csv of metrics",
        hint="give a recipe, a folder that `assay run` or TRL wrote, or a table with one metric a column",
    )


def read_run(folder: Path) -> Found:
    """The stages of a run in their order; the one at work is read from its working folder."""
    notes: list[str] = []
    stages = _mapping(_object(folder / "summary.json", notes).get("stages"))
    entries = {name: entry for name, entry in stages.items() if isinstance(entry, Mapping)}
    if odd := sorted(stages.keys() - entries.keys()):
        notes.append(f"{folder.name}/summary.json says nothing of {', '.join(odd)} that could be read")
    root = folder.parent / "artifacts"
    logs = [_stage(name, entry, root / str(entry.get("artifact")), notes) for name, entry in entries.items()]
    known = {str(entry.get("artifact")) for entry in entries.values()}
    awaited = _awaited(folder / "recipe.yaml", [log.kind for log in logs], notes)
    for working in sorted(root.glob(".*.partial")):
        kind, _, _ = working.name.removeprefix(".").rpartition("-")
        artifact = working.name.removeprefix(".").removesuffix(".partial")
        if artifact not in known and (awaited is None or kind in awaited):
            notes.append(f"{kind} is not finished: only what it has logged so far is looked at")
            _acted(kind, working / "findings.jsonl", notes)
            logs.append(Log.of(kind, f"{kind} (unfinished)", _lines(working / "metrics.jsonl", notes)))
    return Found(logs, tuple(notes))


def graph(path: Path) -> dict[str, list[str]]:
    """Of a run's folder: every stage → those that it is made from. Empty for what is no run, or says nothing of it."""
    if not (path / "summary.json").is_file():
        return {}
    written = _mapping(_object(path / "summary.json", []).get("graph"))
    return {stage: [str(name) for name in names] for stage, names in written.items() if isinstance(names, list)}


def _awaited(recipe: Path, done: Sequence[str], notes: list[str]) -> Counter[str] | None:
    """Kinds of stages that the recipe still waits for; other runs have working folders in the same place."""
    if not recipe.is_file():
        return None
    try:
        wanted = Counter(["data"])
        for stage in yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"]:
            ((kind, settings),) = stage.items()
            wanted[kind] += (settings or {}).get("seeds") or 1
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:
        notes.append(f"{recipe.parent.name}/{recipe.name} is not readable: {error}")
        return None
    return wanted - Counter(done)


def read_trl(path: Path) -> Found:
    """The log history of a trainer of TRL or transformers."""
    notes: list[str] = []
    history = _object(path, notes).get("log_history")
    if not isinstance(history, list):
        raise UsageError(f"{path} has no log_history", hint=f"give the {STATE} that the trainer saved")
    rows = [{str(name): value for name, value in row.items()} for row in history if isinstance(row, Mapping)]
    return _foreign(path, ((row.get("step"), row) for row in rows), notes)


def read_table(path: Path) -> Found:
    """A .csv with a line a step and a column a metric, under TRL's names or ours."""
    notes: list[str] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    column = next((name for name in STEPS if rows and name in rows[0]), None)
    if column is None:
        notes.append(f"{path.name} has no column named {', '.join(STEPS[:-1])} or {STEPS[-1]}: lines are numbered")
    numbered = ((row.get(column) if column else number, row) for number, row in enumerate(rows, start=1))
    return _foreign(path, numbered, notes)


def _foreign(path: Path, rows: Iterable[tuple[Any, Mapping[str, Any]]], notes: list[str]) -> Found:
    points = [(step, {name: _number(value) for name, value in row.items()}) for step, row in rows]
    seen = {name for _, row in points for name, value in row.items() if value is not None}
    kind = next((kind for sign, kind in SIGNS if sign in seen), None)
    if kind is None:
        raise UsageError(
            f"{path} has none of the metrics that tell what was trained: {', '.join(sign for sign, _ in SIGNS)}",
            hint="name the columns as TRL does",
        )
    names = NAMES[kind]
    lines = []
    for number, (step, row) in enumerate(points, start=1):
        values = {
            names.get(name, name): value for name, value in row.items() if value is not None and name not in STEPS
        }
        lines.append(MetricsLine(int(_number(step) or number), 0.0, values))
    ours = {ours for of_kind in NAMES.values() for ours in of_kind.values()}
    if unknown := sorted(name for name in seen - set(STEPS) if "/" not in name and names.get(name, name) not in ours):
        notes.append(f"{path.name}: nothing is known of {', '.join(unknown)}")
    return Found([Log.of(kind, path.name, lines, foreign=True)], tuple(notes))


def _stage(name: str, entry: Mapping[str, Any], folder: Path, notes: list[str]) -> Log:
    kind, final = str(entry.get("kind", "")), _mapping(entry.get("metrics"))
    if not folder.is_dir():
        notes.append(f"{name}: its artifact {folder.name} is gone, so only the numbers of the summary are looked at")
        return Log(kind, name, final=final)
    _acted(name, folder / "findings.jsonl", notes)
    manifest = _object(folder / "manifest.json", notes)
    reports = {file.stem: _object(file, notes) for file in sorted(folder.glob("*.json")) if file.stem in REPORTS}
    lines, config = _lines(folder / "metrics.jsonl", notes), _mapping(manifest.get("config"))
    return Log.of(kind, name, lines, final=final, reports=reports, config=config)


def _acted(name: str, path: Path, notes: list[str]) -> None:
    """What its monitor did to a stage, and why; what it only said, the log shows."""
    try:
        for row in read_json_lines(path):
            if row["action"] != "said":
                seen = f"{row['title']}: {row['evidence']}"
                notes.append(f"{name} was {row['action']} at step {row.get('seen_at', row['step'])}: {seen}")
    except (AssayError, KeyError) as error:
        notes.append(f"{path.parent.name}/{path.name} is not readable: {error}")


def _lines(path: Path, notes: list[str]) -> list[MetricsLine]:
    try:
        return read_metrics(path)
    except (AssayError, KeyError, TypeError, ValueError, OSError) as error:
        notes.append(f"{path.parent.name}/{path.name} is not readable: {error}")
        return []


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; empty, with a note, where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"{path.parent.name}/{path.name} is not readable: {error}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.parent.name}/{path.name} is no JSON object")
        return {}
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value, or nothing in its place."""
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """A number, also one written as text, also NaN; None for anything else and for an empty cell."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _checkpoints(folder: Path) -> list[Path]:
    """The states that TRL's checkpoints hold, the latest first."""
    states = [path / STATE for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(states, key=lambda state: int(state.parent.name.rpartition("-")[2]), reverse=True)
