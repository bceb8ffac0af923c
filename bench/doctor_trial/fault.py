"""What a trial of the doctor injects: one fault, and what the doctor is then given to look at."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from tests.unit.stages.toy import Memory

from assay.doctor.detector import Evidence

SEED: ContextVar[int] = ContextVar("SEED", default=0)
"""Of the data that are made and of the stages that are run."""


Faulty = Callable[[Path], AbstractContextManager[Path]]
"""Makes a finished run in a folder; while it is entered, the program that looks at the run may be at fault, too."""


@dataclass(frozen=True)
class Fault:
    """One mode, injected into what is healthy otherwise."""

    mode: str
    """Name of the mode that the doctor must name first."""
    what: str
    """What is done, in a few words."""
    evidence: Callable[[Path], Sequence[Evidence]]
    """Runs it in a folder, and returns what shows it."""
    run: Faulty | None = None
    """The same in a finished run, for what only its models show when the doctor's command asks them."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything meanwhile is made and run with this seed."""
    token = SEED.set(seed)
    try:
        yield
    finally:
        SEED.reset(token)


def memory(folder: Path) -> Memory:
    """The context of a stage."""
    return Memory(folder, seed=SEED.get())


def chance(salt: int = 0) -> random.Random:
    """Where data are drawn from."""
    return random.Random(1000 * SEED.get() + salt)
