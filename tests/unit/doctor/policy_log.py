"""A log shaped like that of a healthy run of PPO or a group method, and what is changed in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from assay.doctor import groups, kl, responses, updates
from assay.doctor.detector import DETECTORS, Detector, examine
from assay.doctor.finding import Diagnosis, Finding
from assay.doctor.log import Log
from assay.tracking.metrics import MetricsLine

STEPS = 24

END = 6
"""The last quarter of the steps, which most detectors judge."""

OURS: list[Detector] = [
    one for one in DETECTORS if one.find.__module__ in {part.__name__ for part in (groups, kl, responses, updates)}
]

Column = Sequence[float] | float | None


def wave(mean: float, size: float, steps: int = STEPS) -> list[float]:
    """A mean, and something around it that is the same in every test."""
    return [mean + size * float(np.sin(2.4 * step)) for step in range(steps)]


def ramp(first: float, last: float, steps: int = STEPS) -> list[float]:
    return [first + (last - first) * step / (steps - 1) for step in range(steps)]


def late(before: float, after: float) -> list[float]:
    return [before] * (STEPS - END) + wave(after, 0.01 * abs(after), END)


def kl_from_0(before: float, after: float) -> list[float]:
    """A KL, which is 0 before the first update."""
    return [0.0, *late(before, after)[1:]]


HEALTHY: Mapping[str, Column] = {
    "objective/reward": ramp(0.0, 1.3),
    "objective/reward_std": wave(0.9, 0.1),
    "objective/kl": [0.0, *ramp(0.04, 3.4, STEPS - 1)],
    "objective/entropy": ramp(0.52, 0.22),
    "objective/truth": ramp(12.0, 16.0),
    "lengths/response_mean": wave(18.0, 2.0),
    "lengths/truncated": wave(0.02, 0.02),
    "lengths/empty": 0.0,
    "text/repetition": wave(0.015, 0.01),
    "val/explained_variance": ramp(-2.0, 0.7),
    "policy/clipfrac_avg": wave(0.015, 0.01),
    "policy/approxkl_avg": wave(0.003, 0.002),
    "policy/grad_norm": wave(0.3, 0.1),
    "policy/learning_rate": ramp(6e-4, 1e-5),
    "policy/update_rms": wave(2e-4, 1e-4),
    "policy/ratio_first_error": wave(5e-6, 1e-6),
    "objective/groups_without_signal": wave(0.1, 0.05),
    "objective/prompts_per_group": 1.0,
    "val/sampler_kl": 1e-12,
}
"""Shaped like a healthy run of the embedded recipe."""


def log(
    changes: Mapping[str, Column] | None = None,
    *,
    kind: str = "group",
    steps: int = STEPS,
    final: Mapping[str, Any] | None = None,
    **config: Any,
) -> Log:
    """A healthy log with other columns; a number stands in every step, None takes the column away."""
    columns = {
        name: [float(column)] * steps if isinstance(column, int | float) else list(column)[:steps]
        for name, column in {**HEALTHY, **(changes or {})}.items()
        if column is not None
    }
    lines = [
        MetricsLine(step + 1, 0.0, {name: column[step] for name, column in columns.items()}) for step in range(steps)
    ]
    return Log.of(kind, kind, lines, final=final or {}, config={"batch_size": 128, **config})


def diagnosed(*evidence: Any) -> Diagnosis:
    return examine(evidence, OURS)


def named(diagnosis: Diagnosis) -> list[str]:
    return [finding.mode.name for finding in diagnosis.findings]


def only(diagnosis: Diagnosis) -> Finding:
    (found,) = diagnosis.findings
    return found
