"""Files of other programs as rows of numbers: a trainer's history (.json), a table with a metric a column (.csv).

A row is a step and the metrics that were measured there. A file that holds no rows is refused with the reason; what is
left out of one that does is noted.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from assay.errors import UsageError
from assay.tracking.metrics import MOST_STEPS

STATE = "trainer_state.json"
COUNTED = ("step", "global_step", "train/global_step")
"""Columns that count the steps of the trainer, the best first."""
STEPS = (*COUNTED, "Step", "episode")
"""Columns that may number the rows. `Step` counts what was sent to Weights & Biases; epochs are fractions of a pass."""
GROUPED = re.compile(r"[1-9]\d{0,2}(,\d{3})+")
"""A step as spreadsheets write it. No other number is read so: 0,693 is a decimal comma."""
OTHER_SEPARATORS = ";\t"
Rows = Sequence[tuple[int, Mapping[str, float]]]


def of_history(path: Path, notes: list[str]) -> tuple[Rows, int | None]:
    """The log_history of a trainer of TRL or transformers, and the rows of a device in one of its steps, if it tells.

    A metric that a row has not was not measured there.
    """
    try:
        written = json.loads(_text(path))
    except ValueError as error:
        raise UsageError(
            f"{path} is no JSON, or was cut off: {error}", hint=f"give the {STATE} of an earlier checkpoint"
        ) from error
    history = written.get("log_history") if isinstance(written, dict) else None
    if not isinstance(history, list):
        raise UsageError(f"{path} has no log_history", hint=f"give the {STATE} that the trainer saved")
    if not history:
        raise UsageError(
            f"{path} has an empty log_history", hint="the trainer had logged nothing yet: give a later checkpoint's"
        )
    size = written.get("train_batch_size")
    rows = _numbered(path.name, [row for row in history if isinstance(row, Mapping)], notes)
    return rows, size if isinstance(size, int) else None


def of_table(path: Path, notes: list[str]) -> Rows:
    """The lines of a .csv. An empty cell is a gap, and so is nan where numbers follow it."""
    try:
        table = csv.DictReader(io.StringIO(_text(path), newline=""))
        lines = list(table)
    except csv.Error as error:
        raise UsageError(f"{path} is no table: {error}", hint="export it again as a .csv") from error
    header = list(table.fieldnames or [])
    if not header:
        raise UsageError(f"{path} is empty", hint="a table begins with the names of its columns")
    if len(header) == 1 and (other := next((mark for mark in OTHER_SEPARATORS if mark in header[0]), None)):
        raise UsageError(
            f"{path} separates its columns with {other!r}",
            hint="export it with commas between columns and points in numbers",
        )
    if not lines:
        raise UsageError(f"{path} has a header and no line below it", hint="nothing was logged yet, or it is cut off")
    if twice := sorted({column for column in header if header.count(column) > 1}):
        notes.append(f"{path.name}: of columns with one name the last is read: {', '.join(twice)}")
    names = _metrics(path, header)
    read = [{names[column]: cell for column, cell in line.items() if column in names} for line in lines]
    return _numbered(path.name, _without_gaps(path.name, read, notes), notes)


def _metrics(path: Path, header: Sequence[str]) -> dict[str, str]:
    """Column → metric. Charts of Weights & Biases have "run7 - train/loss" for train/loss, and its extremes besides."""
    runs = sorted({column.rpartition(" - ")[0] for column in header} - {""})
    if len(runs) > 1:
        raise UsageError(f"{path} holds metrics of {len(runs)} runs: {', '.join(runs)}", hint="keep the columns of one")
    return {column: column.rpartition(" - ")[2] for column in header if not column.endswith(("__MIN", "__MAX"))}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8 (byte {error.start})", hint="export it again as text") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check the path and its permissions") from error


def _numbered(name: str, rows: Sequence[Mapping[str, Any]], notes: list[str]) -> Rows:
    """Each row under its step; those whose step is no number are left out, for nobody knows where they belong."""
    column = next((column for column in STEPS if any(column in row for row in rows)), None)
    if column is None:
        notes.append(f"{name} has no column named {', '.join(STEPS[:-1])} or {STEPS[-1]}: lines are numbered")
    numbered, odd = [], []
    words: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=1):
        written = row.get(column) if column else number
        step = _number(written.replace(",", "") if isinstance(written, str) and GROUPED.fullmatch(written) else written)
        if step is None or not abs(step) < MOST_STEPS:
            odd.append(str(written or "nothing"))
            continue
        values = {metric: _number(value) for metric, value in row.items()}
        numbered.append((int(step), {metric: value for metric, value in values.items() if value is not None}))
        for metric, value in values.items():
            if value is None and row[metric] not in (None, "") and metric not in STEPS:
                words.setdefault(metric, []).append(str(row[metric]))
    if odd:
        shown = ", ".join(dict.fromkeys(odd[:3]))
        told = f"{len(odd)} of {len(rows)} lines are left out, for their {column} is no number ({shown})"
        if not numbered:
            raise UsageError(f"{name}: {told}", hint=f"write {column} as a whole number")
        notes.append(f"{name}: {told}")
    if words:
        shown = ", ".join(f"{metric} ({len(said)}, such as {said[0][:20]!r})" for metric, said in sorted(words.items()))
        notes.append(f"{name}: cells that are no numbers are left out: {shown}")
    return numbered


def _without_gaps(name: str, lines: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """Without the cells whose nan stands for "not measured here".

    Weights that have become NaN stay so: a nan that numbers follow is a gap. At the end of a column it is one if it is
    no longer than the gaps before it, as when every third line has a metric.
    """
    gaps: dict[str, int] = {}
    for column in lines[0].keys() - {*STEPS}:
        written = [(line, _number(line.get(column))) for line in lines]
        cells = [(line, math.isnan(value)) for line, value in written if value is not None]
        runs = [[line for line, _ in run] for empty, run in groupby(cells, key=lambda cell: cell[1]) if empty]
        ends = cells[-1:] and cells[-1][1]
        longest = max(map(len, runs[:-1] if ends else runs), default=0)
        for line in (line for run in runs if len(run) <= longest for line in run):
            del line[column]
            gaps[column] = gaps.get(column, 0) + 1
    if gaps:
        told = ", ".join(f"{column} ({gaps[column]})" for column in sorted(gaps))
        notes.append(f"{name}: nan is taken for a gap where numbers follow it: {told}")
    return lines


def _number(value: Any) -> float | None:
    """A number, also one written as text, also NaN; None for anything else and for an empty cell."""
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return None
