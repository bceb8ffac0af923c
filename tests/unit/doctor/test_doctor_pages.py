"""Every mode has a page, and the index names them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from assay.doctor.detector import modes
from assay.doctor.examination import FAMILIES
from assay.doctor.finding import Mode
from assay.doctor.index import index

PAGES = Path(__file__).parents[3] / "docs" / "doctor"
KNOWN = list(modes())


def test_families_hold_every_mode_that_is_looked_for() -> None:
    held = {value for family in FAMILIES for value in vars(family).values() if isinstance(value, Mode)}
    assert held == set(KNOWN)


def test_numbers_and_names_are_given_once() -> None:
    assert len({mode.number for mode in KNOWN}) == len({mode.name for mode in KNOWN}) == len(KNOWN)


def test_the_index_is_that_of_the_modes() -> None:
    written = (PAGES / "README.md").read_text(encoding="utf-8")
    assert written == index(), "python -m assay.doctor.index > docs/doctor/README.md"
    assert [mode.name for mode in KNOWN if f"]({mode.name}.md)" not in written] == []


@pytest.mark.parametrize("mode", KNOWN, ids=lambda mode: mode.name)
def test_a_page_says_what_why_how_and_what_to_do(mode: Mode) -> None:
    page = (PAGES / f"{mode.name}.md").read_text(encoding="utf-8")
    title, _, name, *_ = page.splitlines()
    assert title.startswith("# ")
    assert name == f"`{mode.name}` · mode {mode.number}"
    headings = ["What you see", "Why it happens", "How the doctor decides", "How to fix it"]
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == headings


def test_there_is_no_page_without_a_mode() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} - {"README", "riddles"} == {mode.name for mode in KNOWN}


def test_what_a_mode_brings_about_is_known() -> None:
    names = {mode.name for mode in KNOWN}
    assert [(mode.name, brought) for mode in KNOWN for brought in mode.brings if brought not in names] == []
