"""Prepared data: what every later stage reads. One split of the prompts, shared by all purposes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from assay.data.records import from_record, read_jsonl, to_record, write_jsonl, write_whole
from assay.errors import StorageError
from assay.types import Demonstration, JudgedSteps, Preference, Prompt, Ranking, Verdict

T = TypeVar("T")
PURPOSES = ("demonstrations", "preferences", "rankings", "steps", "verdicts", "prompts")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Splits(Generic[T]):
    """Items of one purpose, apart by prompt: to train on, to steer by, to report on."""

    train: list[T] = field(default_factory=list)
    validation: list[T] = field(default_factory=list)
    test: list[T] = field(default_factory=list)

    def items(self) -> Iterator[tuple[str, list[T]]]:
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
    text: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `<purpose>.<split>.jsonl`, `text.jsonl` and, last, `report.json`."""
        for purpose in PURPOSES:
            for split, items in getattr(self, purpose).items():
                write_jsonl(folder / f"{purpose}.{split}.jsonl", map(to_record, items))
        write_jsonl(folder / "text.jsonl", map(to_record, self.text))
        dumped = json.dumps(self.report, indent=2, ensure_ascii=False) + "\n"
        write_whole(folder / "report.json", lambda partial: partial.write_text(dumped, encoding="utf-8"))

    @classmethod
    def load(cls, folder: Path) -> Prepared:
        """Read what `save` wrote; StorageError when a file is missing or damaged."""
        try:
            text = [cast("str", from_record(row)) for row in read_jsonl(folder / "text.jsonl")]
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
            return cls(**{purpose: _load(folder, purpose) for purpose in PURPOSES}, text=text, report=report)
        except (OSError, ValueError, KeyError) as error:
            raise StorageError(
                f"{folder}: not readable as prepared data: {error}", hint="delete the folder and prepare the data again"
            ) from error


def _load(folder: Path, purpose: str) -> Splits[Any]:
    files = (folder / f"{purpose}.{split}.jsonl" for split in SPLITS)
    return Splits(*([from_record(row) for row in read_jsonl(file)] for file in files))
