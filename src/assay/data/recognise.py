"""Which format a file is in, told by its columns; a row of it as typed items."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from assay.data.dialogue import Unfit, is_dialogue, is_missing
from assay.data.formats import BY_NAME, FORMATS, Format, Kind
from assay.data.records import Item
from assay.errors import DataError
from assay.types import Preference, Prompt, Ranking

SOURCE_COLUMNS = ("source", "dataset", "data_source")
OBJECTIVE_COLUMNS = ("objective",)
KIND_COLUMNS = ("kind", "category", "type", "domain", "motivation_app")


def recognise(rows: Sequence[Mapping[str, Any]], where: str) -> Format:
    """The format of rows like these; DataError naming the columns and the nearest format when none fits.

    Pairs whose chosen answers are all null are pairs, and no prompts beside a column of answers: a format of which some
    columns hold nothing is meant where it has a use for more of those that hold something.
    """
    kinds = column_kinds(rows)
    whole = next((format for format in FORMATS if format.fits(kinds)), None)
    used = whole.filled(kinds) if whole else 0
    for format in FORMATS:
        if format.filled(kinds) > used and not format.fits(kinds) and format.fits(kinds, hollow=True):
            return format
    if whole:
        return whole
    shared = {format.name: len(format.needs.keys() & kinds.keys()) for format in FORMATS}
    nearest = max(FORMATS, key=lambda format: (shared[format.name], -len(format.needs)))
    near = f"the nearest, {nearest.name!r}, has {nearest.columns}; " if shared[nearest.name] else ""
    raise DataError(
        f"{where}: no known format has the columns {_quoted(kinds)}",
        hint=f"{near}rename the columns to those of a format (`assay data formats` lists them)",
    )


def named(name: str, rows: Sequence[Mapping[str, Any]], where: str) -> Format:
    """The format that the user asked for; DataError when there is none of that name or a column is missing."""
    if name not in BY_NAME:
        close = difflib.get_close_matches(name, BY_NAME, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"one of: auto, {', '.join(BY_NAME)}"
        raise DataError(f"unknown data format {name!r}", hint=hint)
    format = BY_NAME[name]
    kinds = column_kinds(rows)
    if missing := [column for column in format.needs if column not in kinds]:
        raise DataError(
            f"{where}: format {name!r} needs {_quoted(missing)}, and the columns are {_quoted(kinds)}",
            hint="rename the columns, or leave format at auto",
        )
    return format


def column_kinds(rows: Iterable[Mapping[str, Any]]) -> dict[str, set[Kind]]:
    """Every column with the kinds of value found in it; columns that hold nothing are left with none."""
    kinds: dict[str, set[Kind]] = {}
    for row in rows:
        for column, value in row.items():
            seen = kinds.setdefault(str(column), set())
            if not is_missing(value) and value != "":
                seen.add(_kind(value))
    return kinds


def read_row(format: Format, row: Mapping[str, Any], file_source: str) -> list[Item]:
    """The items of one row, with their source and kind; Unfit with the reason when it has none."""
    try:
        items = format.read(row)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise Unfit(f"not in the shape of format {format.name!r} ({type(error).__name__})") from error
    source = _tag(row, SOURCE_COLUMNS) or file_source
    kind = _tag(row, KIND_COLUMNS)
    objective = _tag(row, OBJECTIVE_COLUMNS)
    return [_tagged(item, source, kind, objective) for item in items]


def _tagged(item: Item, source: str, kind: str, objective: str) -> Item:
    if isinstance(item, str):
        return item
    if isinstance(item, Prompt):
        return replace(item, source=source, kind=kind)
    prompt = replace(item.prompt, source=source, kind=kind)
    if isinstance(item, Preference | Ranking):
        return replace(item, prompt=prompt, objective=objective)
    return replace(item, prompt=prompt)


def _tag(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    return next((value.strip() for c in columns if isinstance(value := row.get(c), str) and value.strip()), "")


def _kind(value: Any) -> Kind:
    if isinstance(value, str):
        return "dialogue" if is_dialogue(value) else "text"
    if isinstance(value, Mapping):
        return "turns" if _is_turn(value) else "any"
    if isinstance(value, Sequence):
        return "turns" if value and all(map(_is_turn, value)) else "list"
    return "any"


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and bool({"role", "from"} & value.keys())


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
