"""What a trial of the doctor injects: one fault, and what the doctor is then given to look at."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.unit.stages.toy import Memory

from assay.config import Config
from assay.doctor.detector import Evidence
from assay.doctor.log import Log
from assay.doctor.read import REPORTS
from assay.tracking.metrics import MetricsLine

SEED: ContextVar[int] = ContextVar("SEED", default=0)
"""Of the data that are made and of the stages that are run."""


Faulty = Callable[[Path], AbstractContextManager[Path]]
"""Makes a finished run, or a recipe, in a folder; while it is entered, the program that looks may be at fault, too."""


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
    """The same in a recipe before it runs, or in a finished run, for what shows when the doctor's command looks."""


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


def log_of(kind: str, config: Config, ctx: Memory, report: Mapping[str, Any]) -> Log:
    """What a stage has logged and reported, as it is read from the disk."""
    lines = [MetricsLine(step, 0.0, dict(metrics)) for step, metrics in ctx.logged.items()]
    said = {name: json.loads(file.read_text()) for name in REPORTS if (file := ctx.folder / f"{name}.json").is_file()}
    return Log.of(kind, kind, lines, final=report, reports=said, config=config.model_dump(mode="json"))
