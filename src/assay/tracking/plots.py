"""Pictures for sinks, which take PNG; the report draws its own (report/charts.py)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.tracking.metrics import MetricsLine, read_metrics, series
from assay.tracking.report.curves import CURVES, Curve
from assay.tracking.sinks import Sink

COLUMNS = 3


def show(sinks: Sequence[Sink], kind: str, folder: Path) -> None:
    """Hand the pictures of a finished stage to every sink, at its last step."""
    lines = read_metrics(folder / "metrics.jsonl")
    for name, png in stage_plots(kind, folder).items():
        for sink in sinks:
            sink.figure(lines[-1].step if lines else 0, name, png)


def stage_plots(kind: str, folder: Path) -> dict[str, bytes]:
    """PNG files by name: the curves that the report shows of such a stage, the reliability of a reward model."""
    lines, path = read_metrics(folder / "metrics.jsonl"), folder / "accuracy.json"
    curves = [curve for _, group in CURVES.get(kind, ()) for curve in group if _drawn(curve, lines)]
    measured = json.loads(path.read_text(encoding="utf-8")).get("reliability") if path.is_file() else None
    plots = {"curves": curves_png(curves, lines)} if curves else {}
    return plots | ({"reliability": reliability_png(measured["bins"], measured["ece"])} if measured else {})


def curves_png(curves: Sequence[Curve], lines: Sequence[MetricsLine]) -> bytes:
    """One panel a curve, each line over the steps that have it."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    rows = -(-len(curves) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 2.6 * rows), dpi=100, layout="constrained")
    for place, curve in enumerate(curves, start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        drawn = _drawn(curve, lines)
        for label, (steps, values) in drawn.items():
            axes.plot(steps, values, label=label)
        axes.set_title(curve.title)
        if len(drawn) > 1:
            axes.legend()
    return _png(figure)


def reliability_png(bins: Sequence[Mapping[str, Any]], ece: float) -> bytes:
    """Accuracy against confidence of pairwise choices, one dot a bin, its area the number of pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], linestyle="--", color="grey", linewidth=1)
    most = max((row["n"] for row in bins), default=1)
    axes.scatter(
        [row["confidence"] for row in bins],
        [row["accuracy"] for row in bins],
        s=[20 + 180 * row["n"] / most for row in bins],
        alpha=0.8,
    )
    axes.set(xlabel="confidence", ylabel="accuracy", title=f"Reliability, expected calibration error {100 * ece:.1f} %")
    return _png(figure)


def _drawn(curve: Curve, lines: Sequence[MetricsLine]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of the curve's lines that have at least two points, by label."""
    found = {label: series(lines, name) for label, name in curve.lines}
    return {label: points for label, points in found.items() if len(points[0]) > 1}


def _png(figure: Any) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
