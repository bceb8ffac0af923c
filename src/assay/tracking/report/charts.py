"""Charts as inline SVG: a few hundred bytes each, sharp in print, coloured by the page's own light or dark theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from assay.tracking.report import words

WIDTH, HEIGHT = 360.0, 196.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 12.0, 10.0, 26.0
MOST_POINTS = 120
"""A longer series is shown as the mean of each of so many stretches, within the band from lowest to highest."""


@dataclass(frozen=True)
class Series:
    """A line; `low` and `high` make a band around it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Mark:
    """A named point with the interval of its height, and the single points that it is the mean of."""

    label: str
    x: float
    y: float
    low: float
    high: float
    single: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Guide:
    """A level to compare with, and the band around it that counts as near."""

    label: str
    y: float
    band: tuple[float, float] | None = None


@dataclass(frozen=True)
class Scale:
    """Data to picture, linear."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def clamped(self, value: float) -> float:
        """The same, held within the scale; not finite stays not finite."""
        return self(min(max(value, self.low), self.high)) if math.isfinite(value) else math.nan


@dataclass
class Drawing:
    """Elements of one SVG."""

    parts: list[Markup] = field(default_factory=list)

    def add(self, tag: str, text: str | None = None, **attributes: object) -> None:
        """One element; attribute names use _ for - and `cls` for class."""
        named = {("class" if key == "cls" else key.replace("_", "-")): value for key, value in attributes.items()}
        listed = Markup(" ").join(Markup('{}="{}"').format(key, _short(value)) for key, value in named.items())
        inner = Markup("") if text is None else escape(text)
        self.parts.append(Markup("<{} {}>{}</{}>").format(Markup(tag), listed, inner, Markup(tag)))

    def svg(self, width: float, height: float, label: str, cls: str = "chart") -> Markup:
        """The whole picture; `label` is what a screen reader says."""
        return Markup('<svg class="{}" width="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
            cls, _short(width), _short(width), _short(height), label, Markup("").join(self.parts)
        )


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    guide: Guide | None = None,
    share: bool = False,
    limits: tuple[float, float] | None = None,
) -> Markup:
    """Lines over steps. Values that are not finite leave gaps.

    `share` writes values as per cent. `limits` bounds the vertical axis; what lies beyond is drawn at its edge.
    """
    drawn = [_condensed(one) for one in series]
    x = Scale(*_span([step for one in series for step in one.x]), LEFT, WIDTH - RIGHT)
    heights = [v for s in drawn for v in (*s.y, *s.low, *s.high)] + ([guide.y] if guide else [])
    low, high, ticks = axis(heights, limits)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    picture = Drawing()
    if guide and guide.band:
        top, bottom = y(min(guide.band[1], high)), y(max(guide.band[0], low))
        picture.add("rect", x=LEFT, y=top, width=WIDTH - RIGHT - LEFT, height=bottom - top, cls="near")
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    for tick in ticks:
        said = f"{words.tick(100 * tick, 100 * step)}{words.SPACE}%" if share else words.tick(tick, step)
        picture.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), cls="grid")
        picture.add("text", said, x=LEFT - 6, y=y(tick) + 4, text_anchor="end")
    _x_axis(picture, x, x_label)
    if guide:
        picture.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(guide.y), y2=y(guide.y), cls="guide")
        above = y(guide.y) - TOP > 16
        picture.add("text", guide.label, x=LEFT + 4, y=y(guide.y) + (-4 if above else 13), cls="guide-label")
    for index, one in enumerate(drawn, start=1):
        _line(picture, one, x, y, index)
    form = words.percent if share else words.number
    return picture.svg(WIDTH, HEIGHT, f"{title}. {'; '.join(_told(one, form) for one in series)}.")


def reliability_chart(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """How often a pair is judged right against how sure the model is; the area of a dot is its number of pairs."""
    x, y = Scale(0.5, 1.0, LEFT, WIDTH - RIGHT), Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    lowest = min((row["accuracy"] for row in bins), default=0.5)
    y = Scale(0.5 if lowest >= 0.5 else 0.0, 1.0, HEIGHT - BOTTOM, TOP)
    picture = Drawing()
    for tick in (0.5, 0.75, 1.0) if lowest >= 0.5 else (0.0, 0.25, 0.5, 0.75, 1.0):
        picture.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), cls="grid")
        picture.add("text", f"{100 * tick:.0f} %", x=LEFT - 6, y=y(tick) + 4, text_anchor="end")
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        picture.add("text", f"{100 * tick:.0f} %", x=min(x(tick), WIDTH - 18), y=HEIGHT - 9, text_anchor="middle")
    picture.add("line", x1=x(0.5), y1=y(0.5), x2=x(1), y2=y(1), cls="guide")
    most = max((row["n"] for row in bins), default=1)
    for row in bins:
        radius = 2.5 + 8 * math.sqrt(row["n"] / most)
        told = f"sure {words.percent(row['confidence'])}, right {words.percent(row['accuracy'])}, {row['n']:,} pairs"
        at = (x(row["confidence"]), y(row["accuracy"]))
        picture.parts.append(
            Markup('<circle class="dot" cx="{}" cy="{}" r="{}"><title>{}</title></circle>').format(
                _short(at[0]), _short(at[1]), _short(radius), told
            )
        )
    told = "; ".join(f"sure {words.percent(r['confidence'])}, right {words.percent(r['accuracy'])}" for r in bins)
    return picture.svg(WIDTH, HEIGHT, f"Reliability of the reward model. {told}.")


def scatter_chart(marks: Sequence[Mark], *, title: str, share: bool = False) -> Markup:
    """Named points over nats of KL, each with its interval; the names stand to the right and do not overlap."""
    width, height = 2 * WIDTH, 1.6 * HEIGHT
    heights = [v for mark in marks for v in (mark.low, mark.high, *(b for _, b in mark.single))]
    low, high, ticks = axis(heights, (0.0, 1.0) if share else None)
    _, right, steps = axis([0.0, *(mark.x for mark in marks), *(a for mark in marks for a, _ in mark.single)], (0, 1e9))
    x, y = Scale(0.0, right, LEFT, width - 130.0), Scale(low, high, height - BOTTOM, TOP)
    picture, form = Drawing(), words.percent if share else words.number
    for tick in ticks:
        picture.add("line", x1=LEFT, x2=width - 130, y1=y(tick), y2=y(tick), cls="grid")
        picture.add("text", form(tick), x=LEFT - 6, y=y(tick) + 4, text_anchor="end")
    for tick in steps:
        picture.add("text", words.number(tick), x=x(tick), y=height - 9, text_anchor="middle")
    picture.add("text", "KL, nats", x=width - 112, y=height - 9, cls="axis")
    last = -math.inf
    for mark in sorted(marks, key=lambda mark: y(mark.y)):
        at = (x(mark.x), y(mark.y))
        for a, b in mark.single:
            picture.add("circle", cx=x(a), cy=y(b), r=2.0, cls="dot")
        picture.add("line", x1=at[0], x2=at[0], y1=y.clamped(mark.low), y2=y.clamped(mark.high), cls="line s1")
        picture.add("circle", cx=at[0], cy=at[1], r=4.0, cls="point s1")
        last = max(at[1] + 4, last + 14)
        picture.add("line", x1=at[0], y1=at[1], x2=width - 122, y2=last - 4, cls="grid")
        picture.add("text", mark.label, x=width - 118, y=last)
    told = "; ".join(f"{mark.label}: {form(mark.y)} at {words.number(mark.x)} nats" for mark in marks)
    return picture.svg(width, height, f"{title}. {told}.")


def axis(values: Sequence[float], limits: tuple[float, float] | None) -> tuple[float, float, list[float]]:
    """Ends of an axis around the finite values, and two to five round ticks within."""
    low, high = _span(values)
    room = 0.06 * (high - low)
    low, high = low - room, high + room
    if limits:
        low, high = max(low, limits[0]), min(high, limits[1])
    step = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(step))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return low, high, [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-6):
        return low, high
    room = max(abs(low) * 0.1, 1e-6) if low else 1.0
    return low - room, high + room


def _condensed(series: Series) -> Series:
    size = len(series.x)
    if size <= MOST_POINTS:
        return series
    bounds = [(n * size // MOST_POINTS, (n + 1) * size // MOST_POINTS) for n in range(MOST_POINTS)]
    stretches = [[v for v in series.y[a:b] if math.isfinite(v)] or [math.nan] for a, b in bounds]
    return Series(
        series.label,
        [sum(series.x[a:b]) / (b - a) for a, b in bounds],
        [sum(values) / len(values) for values in stretches],
        [min(values) for values in stretches],
        [max(values) for values in stretches],
    )


def _x_axis(picture: Drawing, x: Scale, label: str) -> None:
    base = HEIGHT - 9
    picture.add("text", words.count(x.low), x=LEFT, y=base)
    picture.add("text", label, x=(LEFT + WIDTH - RIGHT) / 2, y=base, text_anchor="middle", cls="axis")
    picture.add("text", words.count(x.high), x=WIDTH - RIGHT, y=base, text_anchor="end")


def _line(picture: Drawing, series: Series, x: Scale, y: Scale, index: int) -> None:
    points = [(x(a), y.clamped(b)) for a, b in zip(series.x, series.y, strict=True)]
    if series.low:
        known = [(a, b, c) for a, b, c in zip(series.x, series.low, series.high, strict=True) if math.isfinite(b + c)]
        edge = [(x(a), y.clamped(c)) for a, _, c in known] + [(x(a), y.clamped(b)) for a, b, _ in reversed(known)]
        picture.add("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in edge), cls=f"band s{index}")
    path, pen = [], "M"
    for a, b in points:
        if math.isfinite(b):
            path.append(f"{pen}{a:.1f} {b:.1f}")
        pen = "L" if math.isfinite(b) else "M"
    picture.add("path", d="".join(path), cls=f"line s{index}")
    if len(points) <= 12:
        for a, b in points:
            if math.isfinite(b):
                picture.add("circle", cx=a, cy=b, r=2.6, cls=f"point s{index}")


def _told(series: Series, form: Callable[[float], str]) -> str:
    finite = [value for value in series.y if math.isfinite(value)]
    if not finite:
        return f"{series.label}: no finite value"
    ends = f"from {form(finite[0])} to {form(finite[-1])}"
    return f"{series.label}: {ends}, lowest {form(min(finite))}, highest {form(max(finite))}"


def _short(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
