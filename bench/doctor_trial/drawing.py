"""Five kinds of drawing that show a fault beside its healthy counterpart, and where the doctor decides.

    Lines     something over steps
    Twice     one thing measured in two ways, which should lie on the diagonal
    Spread    a distribution
    Bars      a few numbers, with their intervals where they have one
    Cells     tokens or values as text, the odd ones marked

Each is given a measure, a function from evidence to numbers, and asks it about both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any, Protocol, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from assay.doctor.detector import Evidence
from assay.doctor.log import Log
from assay.statistics import Interval

Given = Sequence[Evidence]
Numbers = Any
"""A list, an array or a tensor's list: whatever numpy makes an array of."""
Marks = Mapping[str, float]
"""Lines at which something is decided: what they mean → where they are."""
E = TypeVar("E")

HEALTHY, FAULTY, MARK = "#2a78b5", "#d1440c", "#555555"
"""Blue and vermilion, which colour-blind readers tell apart; the faulty side also has another marker."""
SIDES = (("healthy", HEALTHY, "o"), ("faulty", FAULTY, "X"))
WIDTH, HEIGHT = 6.4, 2.7
POINTS, LONGEST, MARKED = 100, 80, 40
"""Points of a cloud and of a line that are drawn, and of a line whose points are marked."""
FLOOR = 1e-8
"""Where a zero stands on a logarithmic scale."""


class Drawing(Protocol):
    """Draws the evidence of both sides."""

    def __call__(self, figure: Figure, healthy: Given, faulty: Given) -> None: ...


def svg(title: str, draw: Drawing, healthy: Given, faulty: Given) -> str:
    """The drawing under its title, as text that is the same for the same numbers.

    On white, with its text as text: it can be read on a dark page, and found by a search.
    """
    style: dict[Any, Any] = {
        "svg.hashsalt": "assay",
        "svg.fonttype": "none",
        "font.size": 9,
        "lines.linewidth": 1.2,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="white")
        figure.suptitle(title, fontsize=10)
        draw(figure, healthy, faulty)
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Title": title})
    return out.getvalue()


def pick(given: Given, kind: type[E]) -> E:
    """The first piece of evidence of a kind."""
    return next(one for one in given if isinstance(one, kind))


def at(marks: Marks | Callable[[Given], Marks], faulty: Given) -> Marks:
    """The marks, where some of them depend on the faulty evidence."""
    return marks(faulty) if callable(marks) else marks


@dataclass(frozen=True)
class Panel:
    """One pair of axes of `Lines`."""

    label: str
    measure: Callable[[Given], tuple[Numbers, Numbers]]
    """Where, and how much."""
    marks: Marks | Callable[[Given], Marks] = field(default_factory=dict)
    scale: str = "linear"
    along: str = "step"
    joined: bool = True
    """By a line; not where neighbours have nothing to do with each other."""


def metric(
    name: str, marks: Marks | Callable[[Given], Marks] | None = None, scale: str = "linear", label: str = ""
) -> Panel:
    """A metric of the log."""

    def course(given: Given) -> tuple[Numbers, Numbers]:
        series = pick(given, Log)[name]
        return series.steps, series.values

    return Panel(label or name, course, marks or {}, scale)


def lines(*panels: Panel) -> Drawing:
    """Side by side, and one legend."""

    def draw(figure: Figure, healthy: Given, faulty: Given) -> None:
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            for (name, colour, marker), given in zip(SIDES, (healthy, faulty), strict=True):
                where, values = (np.asarray(numbers) for numbers in panel.measure(given))
                some = np.linspace(0, len(where) - 1, min(len(where), LONGEST)).round().astype(int)
                drawn = np.maximum(values[some], FLOOR) if panel.scale == "log" else values[some]
                marked = marker if len(some) <= MARKED or not panel.joined else ""
                line = "-" if panel.joined else "none"
                axes.plot(where[some], drawn, ls=line, color=colour, marker=marked, markersize=3, label=name)
            for meaning, y in at(panel.marks, faulty).items():
                axes.axhline(y, color=MARK, linestyle="--", linewidth=1, label=meaning)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set(xlabel=panel.along, ylabel=panel.label, yscale=panel.scale)
            legend(axes, beside=len(panels) == 1)

    return draw


def legend(axes: Axes, *, beside: bool = True) -> None:
    """Where it covers nothing, or on white where there is no room beside the axes."""
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if beside else {}
    axes.legend(fontsize=8, edgecolor="none", framealpha=0.8, **place)


def twice(measure: Callable[[Given], tuple[Numbers, Numbers]], across: str, up: str) -> Drawing:
    """The healthy points lie on the diagonal."""

    def draw(figure: Figure, healthy: Given, faulty: Given) -> None:
        axes = figure.add_subplot()
        for (name, colour, marker), given in zip(SIDES, (healthy, faulty), strict=True):
            x, y = (np.asarray(values, float)[:POINTS] for values in measure(given))
            axes.plot(x, y, marker, color=colour, markersize=4, markeredgewidth=0, alpha=0.7, label=name)
        axes.axline((0, 0), slope=1, color=MARK, linestyle="--", linewidth=1, zorder=0, label="equal")
        axes.set(xlabel=across, ylabel=up)
        legend(axes)

    return draw


def spread(measure: Callable[[Given], Numbers], label: str, marks: Marks, bins: int = 40) -> Drawing:
    """Two histograms over the same bins, each as shares of its own."""

    def draw(figure: Figure, healthy: Given, faulty: Given) -> None:
        axes = figure.add_subplot()
        both = [np.asarray(measure(given), float) for given in (healthy, faulty)]
        edges = np.histogram_bin_edges(np.concatenate(both), bins)
        for (name, colour, _), values in zip(SIDES, both, strict=True):
            shares = np.full(len(values), 1 / len(values))
            axes.hist(
                values, edges.tolist(), weights=shares, color=colour, alpha=0.6, histtype="stepfilled", label=name
            )
        for meaning, x in marks.items():
            axes.axvline(x, color=MARK, linestyle="--", linewidth=1, label=meaning)
        axes.set(xlabel=label, ylabel="share")
        legend(axes)

    return draw


Amounts = Mapping[str, Interval | float]


def bars(
    measure: Callable[[Given], Amounts],
    label: str,
    marks: Marks | Callable[[Given], Marks],
    style: str = ".1%",
    scale: str = "linear",
) -> Drawing:
    """For each of the numbers a bar of either side."""

    def draw(figure: Figure, healthy: Given, faulty: Given) -> None:
        axes = figure.add_subplot()
        both = [measure(healthy), measure(faulty)]
        names = list(both[0])
        for side, ((title, colour, _), amounts) in enumerate(zip(SIDES, both, strict=True)):
            found = [amounts[name] for name in names]
            values = [one.value if isinstance(one, Interval) else one for one in found]
            places = [row + 0.2 * (2 * side - 1) for row in range(len(names))]
            axes.barh(places, values, 0.34, color=colour, label=title)
            for place, one in zip(places, found, strict=True):
                if isinstance(one, Interval) and one.low is not None and one.high is not None:
                    axes.plot([one.low, one.high], [place, place], color="black", linewidth=1)
            ends = [one.high or one.value if isinstance(one, Interval) else one for one in found]
            for place, value, end in zip(places, values, ends, strict=True):
                axes.annotate(format(value, style), (end, place), (4, 0), textcoords="offset points", va="center")
        for meaning, x in at(marks, faulty).items():
            axes.axvline(x, color=MARK, linestyle="--", linewidth=1)
            axes.annotate(meaning, (x, 1), xycoords=axes.get_xaxis_transform(), fontsize=8, color=MARK, va="bottom")
        axes.set(xlabel=label, xscale=scale, yticks=range(len(names)))
        axes.set_yticklabels(names)
        axes.margins(x=0.15, y=0.3 if len(names) == 1 else 0.05)
        axes.invert_yaxis()
        legend(axes)

    return draw


@dataclass(frozen=True)
class Row:
    """A line of cells; those that are odd are marked."""

    name: str
    texts: Sequence[str]
    odd: Sequence[bool]


def cells(measure: Callable[[Given], Sequence[Row]], heads: Sequence[str] = ()) -> Drawing:
    """Rows of the healthy side, then of the faulty one."""

    def draw(figure: Figure, healthy: Given, faulty: Given) -> None:
        axes = figure.add_subplot()
        axes.axis("off")
        rows = [
            (Row(f"{side}: {row.name}".removesuffix(": "), row.texts, row.odd), colour)
            for (side, colour, _), given in zip(SIDES, (healthy, faulty), strict=True)
            for row in measure(given)
        ]
        columns = max(len(row.texts) for row, _ in rows)
        for line, (row, colour) in enumerate(rows):
            axes.text(-0.1, line, row.name, ha="right", va="center", color=colour)
            for column, (text, odd) in enumerate(zip(row.texts, row.odd, strict=True)):
                box(axes, column, line, text, colour if odd else None)
        for column, head in enumerate(heads):
            axes.text(column + 0.5, -0.75, head, ha="center", va="center", fontsize=8, color=MARK)
        axes.set(xlim=(-0.45 * columns, columns), ylim=(len(rows) - 0.4, -1.1 if heads else -0.6))

    return draw


LONG_TEXT = 10
"""Characters that need a smaller size."""


def box(axes: Axes, column: int, line: int, text: str, colour: str | None) -> None:
    """One cell; filled with a colour where there is one."""
    fill, ink = (colour, "white") if colour else ("#eef1f4", "black")
    axes.add_patch(Rectangle((column + 0.03, line - 0.36), 0.94, 0.72, color=fill))
    size = 8 if len(text) < LONG_TEXT else 6
    axes.text(column + 0.5, line, text, ha="center", va="center", fontsize=size, color=ink, parse_math=False)
