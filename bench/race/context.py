"""The context of a stage that is raced: it keeps what is logged, and takes the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from torch.profiler import record_function

from assay.stages.context import Remedy

P = ParamSpec("P")
T = TypeVar("T")
CLOCK = "the race's clock"
"""What a profiler sees while the clock of a race runs."""


@dataclass
class Stopwatch:
    """A RunContext; `seconds` is from the first step's beginning to the last one's end."""

    folder: Path
    seed: int = 0
    device: str = "cpu"
    remedy: Remedy = field(default_factory=Remedy)
    seconds: float = 0.0
    logged: list[Mapping[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append(metrics)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Stopwatch]:
        began = time.perf_counter()
        with record_function(CLOCK):
            yield self
        self.seconds += time.perf_counter() - began

    def timed(self, function: Callable[P, T]) -> Callable[P, T]:
        """The same function, its time counted: for work of the race that a stage does before its first step."""

        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.progress(1, function.__name__):
                return function(*args, **kwargs)

        return wrapped

    def update(self, done: int, note: str = "") -> None:
        pass

    def checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        raise AssertionError("a race writes no checkpoint")

    def restore(self) -> None:
        return None

    def trouble(self) -> None:
        return None

    def interrupted(self) -> bool:
        return False
