"""Everything a report is made of, read from a run's folder and the artifacts its summary names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.errors import StorageError, UsageError
from assay.tracking.metrics import MetricsLine, read_json_lines, read_metrics

REPORTS = ("accuracy", "attribution", "evaluation", "report")
"""JSON files of an artifact that hold more than its flat metrics."""

BASELINES = {"length_only": "length alone", "bag_of_words": "a bag of words"}
"""What a reward model must beat, by its name in accuracy.json."""

POLICIES = ("ppo", "group", "preference", "bestof", "distill")
"""Kinds of stages that compare the policy they trained with the one it started from."""


@dataclass(frozen=True)
class StageFiles:
    """One stage of a run. `folder` is None where the artifact is gone; the summary's metrics remain."""

    id: str
    kind: str
    artifact: str
    metrics: Mapping[str, Any]
    folder: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    lines: list[MetricsLine] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def get(self, name: str) -> float | None:
        """A final metric that is a number."""
        value = self.metrics.get(name)
        return float(value) if isinstance(value, int | float) else None

    @property
    def inputs(self) -> dict[str, list[str]]:
        """Role → artifact ids (or "model:HASH" for a model from outside)."""
        return {role: str(ids).split(",") for role, ids in self.manifest.get("inputs", {}).items() if ids}


@dataclass(frozen=True)
class RunFiles:
    """A run: its stages in the order they ran."""

    folder: Path
    summary: Mapping[str, Any]
    recipe: str
    stages: Mapping[str, StageFiles]

    @property
    def name(self) -> str:
        return self.summary["run"]

    def of_kind(self, *kinds: str) -> list[StageFiles]:
        return [stage for stage in self.stages.values() if stage.kind in kinds]

    def input_name(self, stage: StageFiles, role: str, default: str) -> str:
        """What the run calls the input of a stage: a stage's id, or `default` for what comes from elsewhere."""
        artifacts = {other.artifact: other.id for other in self.stages.values()}
        return next((artifacts[name] for name in stage.inputs.get(role, []) if name in artifacts), default)


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder. UsageError where it holds no run; StorageError where a file is damaged."""
    path = folder / "summary.json"
    if not path.is_file():
        runs = sorted(found.parent.name for found in folder.glob("*/summary.json"))
        hint = f"Runs in it: {', '.join(runs)}." if runs else "Give the folder that `assay run` named at its end."
        raise UsageError(f"{folder}: no summary.json, so this is not the folder of a run", hint=hint)
    summary = _read_object(path)
    recipe = folder / "recipe.yaml"
    stages = {name: _read_stage(folder, name, entry) for name, entry in summary["stages"].items()}
    return RunFiles(folder, summary, recipe.read_text(encoding="utf-8") if recipe.is_file() else "", stages)


def _read_stage(run: Path, name: str, entry: Mapping[str, Any]) -> StageFiles:
    known = {"id": name, "kind": entry["kind"], "artifact": entry["artifact"], "metrics": entry.get("metrics", {})}
    folder = run.parent / "artifacts" / entry["artifact"]
    if not folder.is_dir():
        return StageFiles(**known)
    manifest = folder / "manifest.json"
    return StageFiles(
        **known,
        folder=folder,
        manifest=_read_object(manifest) if manifest.is_file() else {},
        lines=read_metrics(folder / "metrics.jsonl"),
        samples=list(read_json_lines(folder / "samples.jsonl")),
        reports={name: _read_object(file) for name in REPORTS if (file := folder / f"{name}.json").is_file()},
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StorageError(f"{path}: not valid JSON ({error})", hint="Run the stage again to write it anew.") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path}: not a JSON object", hint="Run the stage again to write it anew.")
    return value
