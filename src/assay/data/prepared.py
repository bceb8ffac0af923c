"""Prepared data: what every later stage reads. One split of the prompts, shared by all purposes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from zipfile import BadZipFile

import numpy as np

from assay.data.records import from_line, to_line, write_whole
from assay.data.stored import Ints, Stored, save_arrays
from assay.errors import StorageError
from assay.types import Demonstration, JudgedSteps, Preference, Prompt, Ranking, Verdict

T = TypeVar("T")
PURPOSES = ("demonstrations", "preferences", "rankings", "steps", "verdicts", "prompts")
SPLITS = ("train", "validation", "test")
INDEX = "index.npz"
"""Bytes of every line, by file."""


@dataclass(frozen=True)
class Splits(Generic[T]):
    """Items of one purpose, apart by prompt: to train on, to steer by, to report on."""

    train: Sequence[T] = field(default_factory=list)
    validation: Sequence[T] = field(default_factory=list)
    test: Sequence[T] = field(default_factory=list)

    def items(self) -> Iterator[tuple[str, Sequence[T]]]:
        """Name and items of each split."""
        return ((name, getattr(self, name)) for name in SPLITS)

    def __len__(self) -> int:
        return len(self.train) + len(self.validation) + len(self.test)

    def counts(self) -> dict[str, int]:
        """How many items each split has."""
        return {name: len(items) for name, items in self.items()}


@dataclass(frozen=True)
class Prepared:
    """Everything the stages train and evaluate on, and the report of how it came to be."""

    demonstrations: Splits[Demonstration] = field(default_factory=Splits[Demonstration])
    preferences: Splits[Preference] = field(default_factory=Splits[Preference])
    verdicts: Splits[Verdict] = field(default_factory=Splits[Verdict])
    prompts: Splits[Prompt] = field(default_factory=Splits[Prompt])
    rankings: Splits[Ranking] = field(default_factory=Splits[Ranking])
    """Whole; their pairs are among the preferences too, for those who want pairs."""
    steps: Splits[JudgedSteps] = field(default_factory=Splits[JudgedSteps])
    text: Sequence[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `<purpose>.<split>.jsonl`, `text.jsonl`, how long their lines are and, last, `report.json`."""
        files = {f"{purpose}.{split}": items for purpose in PURPOSES for split, items in getattr(self, purpose).items()}
        sizes = {name: _write(folder / f"{name}.jsonl", items) for name, items in (files | {"text": self.text}).items()}
        save_arrays(folder / INDEX, sizes)
        dumped = json.dumps(self.report, indent=2, ensure_ascii=False) + "\n"
        write_whole(folder / "report.json", lambda partial: partial.write_text(dumped, encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path) -> Prepared:
        """Open what `save` wrote; items are read when asked for. StorageError when a file is missing or damaged."""
        try:
            with np.load(folder / INDEX) as index:
                text, *files = (
                    Stored.open(folder / f"{name}.jsonl", index[name], from_line)
                    for name in ("text", *(f"{purpose}.{split}" for purpose in PURPOSES for split in SPLITS))
                )
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise StorageError(
                f"{folder}: not readable as prepared data: {error}", hint="delete the folder and prepare the data again"
            ) from error
        parts = {purpose: Splits(*files[3 * n : 3 * n + 3]) for n, purpose in enumerate(PURPOSES)}
        return cls(**parts, text=text, report=report)


def lines_of(items: Sequence[Any]) -> Iterator[bytes]:
    """The items as lines of JSON; those that stand in a file as such are not read as items."""
    return items.lines() if isinstance(items, Stored) and items.decode is from_line else map(to_line, items)


def _write(path: Path, items: Sequence[Any]) -> Ints:
    """Write the items, whole or not at all; returns the bytes of each."""
    sizes = np.empty(len(items), dtype=np.int64)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            for i, line in enumerate(lines_of(items)):
                sizes[i] = file.write(line)

    write_whole(path, write)
    return sizes
