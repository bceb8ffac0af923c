"""The last steps of a log, which most detectors judge: their mean with its interval, by Student's t.

Not a single step decides. Thresholds were set so that healthy runs of the embedded recipe and of the stages' toy task
stay silent.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from assay.doctor.detector import Missing
from assay.doctor.log import Log, Series

LATE = 5
"""Steps that an interval needs; of a long run, its last quarter."""
CONFIDENCE = 0.99
"""One-sided: several bounds must be crossed at once for most findings."""
SIGNIFICANT = 1e-3
"""The p that `likely` stands for (finding.py)."""
ROUNDED = 1e-6
"""Share of a number that float32 does not tell."""


def late(series: Series, steps: int = LATE) -> NDArray[np.float64]:
    """The last quarter of a run, and at least so many steps."""
    if len(series) < steps:
        raise Missing(f"{series.name} was logged {len(series)} times; {steps} are needed")
    return series.tail(max(steps, len(series) // 4))


def together(log: Log, *names: str) -> list[Series]:
    """Several metrics at the steps where all of them are known."""
    known = [dict(zip(log[name].steps.tolist(), log[name].values.tolist(), strict=True)) for name in names]
    steps = sorted(set.intersection(*map(set, known)))
    if not steps:
        raise Missing(f"{' and '.join(names)} were never logged together")
    return [
        Series(name, np.array(steps), np.array([values[step] for step in steps]))
        for name, values in zip(names, known, strict=True)
    ]


def bounds(values: NDArray[np.float64], p: float = 1 - CONFIDENCE) -> tuple[float, float]:
    """Lower and upper confidence bound of the mean, each wrong with probability p; values all alike are their own."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    margin = float(stats.t.isf(p, len(values) - 1) * error)
    return float(values.mean()) - margin, float(values.mean()) + margin


def text(values: NDArray[np.float64]) -> str:
    """A mean with its interval."""
    low, high = bounds(values)
    return f"{values.mean():.3g} (99 %: {low:.3g} to {high:.3g}, last {len(values)} steps)"


def rose(series: Series) -> bool:
    """Whether the last steps are surely above the first, by more than the rounding of their means."""
    low, high = bounds(late(series))[0], bounds(series.head(LATE))[1]
    return low > high and not math.isclose(low, high, rel_tol=ROUNDED)


def fell(series: Series) -> bool:
    """Whether the last steps are surely below the first."""
    return rose(replace(series, values=-series.values))


def trend(series: Series, part: slice) -> tuple[float, float]:
    """Slope of a line through a part of a metric, and its two-sided p."""
    line: Any = stats.linregress(series.steps[part], series.values[part])
    return float(line.slope), float(line.pvalue)
