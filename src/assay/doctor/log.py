"""The log of one stage as detectors read it: metrics over steps, final numbers, configuration. Ours, TRL's or a table.

Names are those of metrics.jsonl, which follow TRL. Numbers that are not finite are kept apart: they are a finding of
their own, and must not hide what the others show.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from assay.doctor.detector import Missing
from assay.tracking.metrics import MetricsLine

SAMPLING = ("ppo", "group")
"""Kinds of stages whose policy learns from its own samples."""
TRAINING = ("pretrain", "sft", "distill", "bestof", "reward", "preference", *SAMPLING)
"""Kinds of stages that train, and so log steps."""


@dataclass(frozen=True, slots=True)
class Series:
    """One metric over steps; finite values only."""

    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    not_finite: tuple[int, ...] = ()
    """Steps at which it was NaN or infinite."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def first(self) -> float:
        return float(self.values[0])

    @property
    def last(self) -> float:
        return float(self.values[-1])

    def tail(self, count: int) -> NDArray[np.float64]:
        """The last values; all, where there are fewer."""
        return self.values[-count:]

    def head(self, count: int) -> NDArray[np.float64]:
        """The first values."""
        return self.values[:count]


@dataclass(frozen=True)
class Log:
    """What one stage, or a foreign trainer, has written down."""

    kind: str
    """ppo, group, preference, reward, sft …"""
    where: str
    """The stage's id, or the file."""
    series: Mapping[str, Series] = field(default_factory=dict)
    final: Mapping[str, Any] = field(default_factory=dict)
    """The stage's report: numbers by name, with `_low` and `_high` where they have an interval."""
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What the stage says at length, by the name of the file: accuracy, evaluation, report (of the data)."""
    config: Mapping[str, Any] = field(default_factory=dict)
    stopped: Mapping[str, Any] = field(default_factory=dict)
    """The finding, as plain data, for which its monitor stopped the stage, which has not gone on since."""
    counted: bool = True
    """Its steps are the trainer's own; else lines are numbered, and the first may come after many updates."""
    foreign: bool = False
    """Written by another trainer: what only we log is then missing, and keys of the cure are not ours."""

    @classmethod
    def of(cls, kind: str, where: str, lines: Iterable[MetricsLine], **more: Any) -> Self:
        """From lines of metrics, in the order of their steps."""
        columns = Columns()
        for line in lines:
            columns.add(line.step, line.values)
        return cls(kind, where, columns.series(), **more)

    def __contains__(self, name: str) -> bool:
        return name in self.series and len(self.series[name]) > 0

    def __getitem__(self, name: str) -> Series:
        """A metric with at least one finite value; `Missing` where there is none."""
        if name not in self:
            raise Missing(f"the log has no {name}")
        return self.series[name]

    def called(self, name: str) -> str:
        """What whoever reads the log calls a metric."""
        return name

    def number(self, name: str) -> float:
        """A final number; `Missing` where there is none."""
        value = self.final.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise Missing(f"the report has no {name}")
        return float(value)

    def report(self, name: str, part: str) -> Mapping[str, Any]:
        """A part of a report; `Missing` where there is none."""
        found = self.reports.get(name, {}).get(part)
        if not isinstance(found, Mapping):
            raise Missing(f"{name}.json has no {part}")
        return found

    def setting(self, name: str) -> Any:
        """A setting by its dotted name; `Missing` where the configuration is unknown."""
        value: Any = self.config
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise Missing(f"{name} is not among the settings")
            value = value[part]
        return value

    @property
    def learning_rate(self) -> float | None:
        """What the stage trains with, where it is known: the recipe's, lowered by the corrections so far."""
        optim = self.config.get("optim")
        rate = optim.get("learning_rate") if isinstance(optim, Mapping) else None
        return rate * self["doctor/lr_factor"].last if rate and "doctor/lr_factor" in self else rate


class Columns:
    """Lines of metrics while they come in, column by column: 16 bytes a number, however long the run."""

    def __init__(self) -> None:
        self._points: dict[str, tuple[array[int], array[float]]] = {}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One line more."""
        for name, value in values.items():
            steps, numbers = self._points.setdefault(name, (array("q"), array("d")))
            steps.append(step)
            numbers.append(value)

    def series(self) -> dict[str, Series]:
        """Every metric so far."""
        points = self._points.items()
        return {name: _series(name, np.array(steps), np.array(values)) for name, (steps, values) in points}


def _series(name: str, steps: NDArray[np.int64], values: NDArray[np.float64]) -> Series:
    finite = np.isfinite(values)
    return Series(name, steps[finite], values[finite], tuple(steps[~finite].tolist()))
