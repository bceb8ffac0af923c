"""The curves of a stage, drawn from its metrics."""

from __future__ import annotations

from assay.tracking.metrics import series
from assay.tracking.report.blocks import Chart, Charts
from assay.tracking.report.charts import Series, line_chart
from assay.tracking.report.curves import CURVES, Curve
from assay.tracking.report.run_files import StageFiles


def curve_blocks(stage: StageFiles) -> list[Charts]:
    """The stage's curves that have at least two points, grouped under what they answer."""
    groups = []
    kind = "ppo" if stage.kind == "group" else stage.kind  # the same curves; a critic's have no points there
    for heading, curves in CURVES.get(kind, ()):
        charts = [chart for curve in curves if (chart := _chart(curve, stage))]
        if charts:
            groups.append(Charts(heading, charts))
    return groups


def _chart(curve: Curve, stage: StageFiles) -> Chart | None:
    drawn = [line for label, name in curve.lines if len((line := _series(label, name, stage)).x) > 1]
    if not drawn:
        return None
    picture = line_chart(
        drawn,
        title=curve.title,
        x_label=_x_label(stage),
        guide=curve.guide(stage),
        share=curve.share,
        limits=curve.limits,
    )
    legend = [line.label for line in drawn] if len(drawn) > 1 else []
    return Chart(curve.title, picture, curve.note, legend)


def _x_label(stage: StageFiles) -> str:
    """What a step of its metrics is."""
    if stage.kind == "bestof":
        return "n" if stage.get("loss_last") is None else "round"
    return "iteration" if stage.kind in ("ppo", "group") else "step"


def _series(label: str, name: str, stage: StageFiles) -> Series:
    steps, values = series(stage.lines, name)
    at_low, low = series(stage.lines, f"{name}_low")
    at_high, high = series(stage.lines, f"{name}_high")
    if at_low == at_high == steps:
        return Series(label, steps, values, low, high)
    return Series(label, steps, values)
