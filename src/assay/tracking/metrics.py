"""Append-only logs of a stage: one JSON object a line, readable after a crash at any byte.

    {"step": 12, "time": 3.4, "train/loss": 0.61, "policy/loss": null, "non_finite": {"policy/loss": "nan"}}

Metric names follow TRL (`objective/kl`, `policy/clipfrac_avg` …).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from assay.errors import StorageError

RESERVED = frozenset({"step", "time", "non_finite"})
MOST_STEPS = 2**62
"""More than any run has; numpy counts them in 64 bits."""
T = TypeVar("T")


class Mirror(Protocol):
    """Where metrics and samples go besides the file; every `sinks.Sink` is one."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def text(self, step: int, name: str, rows: Sequence[Mapping[str, Any]]) -> None: ...


@dataclass(frozen=True, slots=True)
class MetricsLine:
    """One line of metrics.jsonl. Numbers that were not finite come back as `nan`, `inf` or `-inf`."""

    step: int
    time: float
    """Seconds of work since the stage began; pauses between a crash and its resume do not count."""
    values: dict[str, float]


class JsonLines:
    """A file of JSON lines that only grows, each line in one write, or is cut back to a step.

    A half-written last line, left by a crash, is removed on opening.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._remove_torn_tail()
        self._open()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Hand the rows to the operating system before returning, so that a killed process loses none."""
        rest = memoryview("".join(_dump(row) for row in rows).encode())
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}", hint="Free some disk space and run again.") from error

    def truncate_after(self, step: int, *, but: Callable[[Mapping[str, Any]], bool] = lambda row: False) -> None:
        """Drop the lines of later steps, but for some: a resumed stage will write the others again."""
        self._file.close()
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("wb") as file:
            rows = read_json_lines(self.path)
            file.writelines(_dump(row).encode() for row in rows if row["step"] <= step or but(row))
        os.replace(temporary, self.path)
        self._open()

    def close(self) -> None:
        self._file.close()

    def _open(self) -> None:
        self._file = self.path.open("ab", buffering=0)

    def _remove_torn_tail(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        if whole := len(content) - (content.rfind(b"\n") + 1):
            os.truncate(self.path, len(content) - whole)


class MetricsLog:
    """The numbers of a stage, step by step, on disk and in every sink.

    `clock` gives seconds; a resumed log goes on from the time of its last line.
    """

    def __init__(
        self, path: Path, sinks: Sequence[Mirror] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sinks = sinks
        self._clock = clock
        self._lines = JsonLines(path)
        self._set_start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line. A number that JSON cannot hold becomes null and is named under "non_finite"."""
        if clash := RESERVED & metrics.keys():
            raise ValueError(f"metric names {sorted(clash)} are reserved")
        values = {name: float(value) for name, value in metrics.items()}
        row: dict[str, Any] = {"step": step, "time": round(self._clock() - self._start, 3)}
        row |= {name: _or_null(value) for name, value in values.items()}
        if odd := {name: str(value) for name, value in values.items() if not math.isfinite(value)}:
            row["non_finite"] = odd
        self._lines.append([row])
        for sink in self._sinks:
            sink.log(step, values)

    def truncate_after(self, step: int) -> None:
        """Forget the steps after `step`. Sinks keep theirs: a resumed stage logs the same numbers there again."""
        self._lines.truncate_after(step)
        self._set_start()

    def close(self) -> None:
        self._lines.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _set_start(self) -> None:
        lines = read_metrics(self._lines.path)
        self._start = self._clock() - (lines[-1].time if lines else 0.0)


class SamplesLog:
    """The texts of a stage: rows of samples.jsonl, each with its step, on disk and in every sink."""

    def __init__(self, path: Path, sinks: Sequence[Mirror] = ()) -> None:
        self._sinks = sinks
        self._lines = JsonLines(path)

    def log(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append one line per row. A number that JSON cannot hold becomes null."""
        self._lines.append({"step": step, **{key: _or_null(value) for key, value in row.items()}} for row in rows)
        for sink in self._sinks if rows else ():
            sink.text(step, "samples", rows)

    def truncate_after(self, step: int) -> None:
        self._lines.truncate_after(step)

    def close(self) -> None:
        self._lines.close()


def _raise(error: StorageError) -> None:
    raise error


def read_metrics(path: Path, odd: Callable[[StorageError], None] = _raise) -> list[MetricsLine]:
    """Every whole line of a metrics.jsonl; [] where there is no such file. Raises, or tells `odd`, as below."""
    return list(_read_lines(path, _metrics_line, odd))


def read_json_lines(path: Path, odd: Callable[[StorageError], None] = _raise) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file in order; a last line without its end is left out. Nothing if there is no file.

    Raises `StorageError` with the line number where a whole line is not a JSON object; or `odd` is told, and the line
    is left out.
    """
    return _read_lines(path, _row, odd)


def series(lines: Iterable[MetricsLine], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric, at the lines that have it."""
    points = [(line.step, line.values[name]) for line in lines if name in line.values]
    return [step for step, _ in points], [value for _, value in points]


def _read_lines(path: Path, made_of: Callable[[bytes], T], odd: Callable[[StorageError], None]) -> Iterator[T]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                made = made_of(line)
            except (AttributeError, OverflowError, TypeError, ValueError) as error:
                odd(StorageError(f"{path} line {number}: {error}", hint="Delete that line."))
            else:
                yield made


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise TypeError("not a JSON object")
    return row


def _metrics_line(line: bytes) -> MetricsLine:
    row = _row(line)
    for name in ("step", "time"):
        if not isinstance(row.get(name), int | float) or not abs(row[name]) < MOST_STEPS:
            raise ValueError(f"its {name} is {row.get(name)!r}")
    odd = row.get("non_finite", {})
    known = {name: odd.get(name, "nan" if value is None else value) for name, value in row.items()}
    values = {name: float(value) for name, value in known.items() if name not in RESERVED}
    return MetricsLine(step=int(row["step"]), time=row["time"], values=values)


def _or_null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _dump(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
