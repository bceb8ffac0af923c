"""A fault for the doctor's trial: a way to spoil a small healthy run, data set or model, and what the doctor sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.doctor.detector import Evidence


@dataclass(frozen=True, slots=True)
class Fault:
    """One injected fault; the doctor should name its mode first."""

    mode: str
    """Name of the mode that is injected."""
    what: str
    """What is done, in a few words."""
    evidence: Callable[[Path], Sequence[Evidence]]
    """Does it, in an empty folder, and gives what the doctor looks at."""
