"""What a trial of the doctor injects: one fault, and what the doctor is then given to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.doctor.detector import Evidence


@dataclass(frozen=True)
class Fault:
    """One mode, injected into what is healthy otherwise."""

    mode: str
    """Name of the mode that the doctor must name first."""
    what: str
    """What is done, in a few words."""
    evidence: Callable[[Path], Sequence[Evidence]]
    """Runs it in a folder, and returns what the doctor looks at."""
