"""Every mode has a picture of its injected fault in its page; and what the kinds of drawing draw."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bench.doctor_trial import counterparts, drawing, plots
from bench.doctor_trial.drawing import FAULTY, HEALTHY, Row

from assay.doctor.detector import modes
from assay.doctor.examination import FAMILIES
from assay.doctor.log import Log
from assay.statistics import Interval
from assay.tracking.metrics import MetricsLine

PAGES = Path(__file__).parents[3] / "docs" / "doctor"
IN_WORDS = {"cannot-run"}
"""What the doctor tells is an error's words, and no number that could be drawn."""
LARGEST = 40_000
"""Bytes of a picture."""
ALL = {mode.name for mode in modes() if FAMILIES}
TITLES = {picture.mode: picture.title for picture in plots.PICTURES}


def test_there_is_a_picture_for_each_mode_and_a_fault_behind_it():
    assert set(TITLES) == ALL - IN_WORDS
    assert [name for name in TITLES if not counterparts.faults_of(name)] == []


@pytest.mark.parametrize("mode", TITLES)
def test_the_page_shows_its_picture(mode: str):
    text = (PAGES / f"{mode}.md").read_text(encoding="utf-8")
    assert re.findall(r"!\[(.+)\]\(images/(.+)\.svg\)", text) == [(TITLES[mode], mode)]
    picture = (PAGES / "images" / f"{mode}.svg").read_bytes()
    assert len(picture) < LARGEST
    assert TITLES[mode] in picture.decode()


def given(*values: float) -> list[Log]:
    return [Log.of("ppo", "ppo", [MetricsLine(step, 0.0, {"x": value}) for step, value in enumerate(values, 1)])]


def test_the_same_numbers_give_the_same_picture_and_others_another():
    draw = drawing.lines(drawing.metric("x", {"limit": 2.5}))
    one, again, other = (drawing.svg("A title", draw, given(1, 2), given(3, last)) for last in (4, 4, 5))
    assert one == again
    assert one != other
    assert all(text in one for text in ("A title", "healthy", "faulty", "limit", HEALTHY, FAULTY))


def last(found: drawing.Given) -> float:
    return drawing.pick(found, Log)["x"].last


def test_bars_tell_values_with_their_intervals_and_limits_that_the_evidence_sets():
    def measure(found: drawing.Given) -> drawing.Amounts:
        return {"share": Interval(last(found), last(found) - 0.1, last(found) + 0.1)}

    draw = drawing.bars(measure, "", lambda found: {f"limit {last(found)}": last(found)})
    picture = drawing.svg("", draw, given(0.25), given(0.75))
    assert all(text in picture for text in ("25.0%", "75.0%", "limit 0.75"))


def test_odd_cells_are_filled():
    def measure(found: drawing.Given) -> list[Row]:
        return [Row("", ["first", f"{last(found):g}"], [False, last(found) > 1])]

    healthy, faulty = (drawing.svg("", drawing.cells(measure), given(1), given(end)) for end in (1, 2))
    filled = f'<path d="[^"]*" [^>]*style="fill: {FAULTY};'
    assert (len(re.findall(filled, healthy)), len(re.findall(filled, faulty))) == (0, 1)
