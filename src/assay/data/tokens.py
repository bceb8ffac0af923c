"""Items → token rows on disk. What was rendered before, by an equal tokenizer, is found again by its content."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast
from zipfile import BadZipFile

import numpy as np

from assay.data.items import prompt_of, replies_of
from assay.data.records import Item, write_whole
from assay.data.render import Row
from assay.data.stored import Ints, Lazily, Stored, Writer, batched, digest_of, save_arrays
from assay.types import Prompt

T = TypeVar("T", bound=Item)
TOGETHER = 1024  # items whose texts are encoded in one call


class RowRenderer(Protocol):
    """What makes rows: a Renderer, or the PairRenderer of an encoder."""

    tokenizer: Any
    max_length: int

    @property
    def digest(self) -> str | None: ...

    def rows(self, asked: Sequence[tuple[Prompt, str]]) -> Sequence[Row | None]: ...


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row for each reply of N items: those of item i from `starts[i]` on. None where no label would remain."""

    rows: Stored[Row | None]
    lengths: Ints
    """Tokens of each row; 0 for None."""
    starts: Ints

    def of(self, item: int) -> tuple[Row, ...]:
        """The rows of an item that there are."""
        return tuple(row for row in self.rows[int(self.starts[item]) : int(self.starts[item + 1])] if row)

    def counts(self) -> Ints:
        """How many rows each item has."""
        return self._sums((self.lengths > 0).astype(np.int64))

    def tokens(self) -> Ints:
        """How many tokens the rows of each item have."""
        return self._sums(self.lengths)

    def whole(self) -> Sequence[Row]:
        """All rows that there are."""
        there = np.flatnonzero(self.lengths)
        return Lazily(there, cast("Callable[[int], Row]", self.rows.__getitem__), self.lengths[there])

    def _sums(self, values: Ints) -> Ints:
        return np.diff(np.concatenate([[0], np.cumsum(values)])[self.starts])


@dataclass(frozen=True, slots=True)
class RowCode:
    """A row as numbers: the prompt's length, then the ids; nothing for None."""

    dtype: np.dtype[Any]

    @classmethod
    def of(cls, renderer: RowRenderer) -> RowCode:
        """Two bytes a number where they are enough."""
        small = len(renderer.tokenizer) <= 2**16 and renderer.max_length < 2**16
        return cls(np.dtype(np.uint16 if small else np.uint32))

    def encode(self, row: Row | None) -> bytes:
        return b"" if row is None else array(self.dtype.char, [row.prompt_length, *row.ids]).tobytes()

    def decode(self, raw: bytes) -> Row | None:
        length, *ids = np.frombuffer(raw, self.dtype).tolist() or [-1]
        return None if length < 0 else Row(ids, length)


def render(renderer: RowRenderer, items: Sequence[T], cache: Path | None = None) -> Rendered:
    """The rows of items that belong to prompts. With a folder `cache`, those of items on disk are kept there."""
    code, tokenizer = RowCode.of(renderer), renderer.digest
    if not (cache and isinstance(items, Stored) and tokenizer):
        rows = Writer(code.encode)
        counts = _write(rows, renderer, items)
        return _rendered(rows.stored(code.decode), counts, code)
    data, index = _files(cache, items, tokenizer)
    found = _opened(data, index, code)
    if found is None:
        arrays: dict[str, Ints] = {}

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                rows = Writer(code.encode, file)
                arrays["counts"] = _write(rows, renderer, items)
                arrays["sizes"] = np.array(rows.sizes, dtype=np.int64)

        write_whole(data, write)
        save_arrays(index, arrays)
        found = _opened(data, index, code)
        assert found is not None
    return found


def kept(renderer: RowRenderer, items: Sequence[Item], cache: Path | None) -> Rendered | None:
    """The rows of items as an earlier `render` has left them in the cache; None where it has not."""
    tokenizer = renderer.digest
    if not (cache and isinstance(items, Stored) and tokenizer):
        return None
    return _opened(*_files(cache, items, tokenizer), RowCode.of(renderer))


def _files(cache: Path, items: Stored[Any], tokenizer: str) -> tuple[Path, Path]:
    """Where rows and their index are kept."""
    name = digest_of([items.digest.encode(), tokenizer.encode()])
    return cache / f"{name}.rows", cache / f"{name}.npz"


def _opened(data: Path, index: Path, code: RowCode) -> Rendered | None:
    """What was kept; None if that is not all there."""
    try:
        with np.load(index) as known:
            return _rendered(Stored.open(data, known["sizes"], code.decode), known["counts"], code)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _rendered(rows: Stored[Row | None], counts: Ints, code: RowCode) -> Rendered:
    lengths = np.maximum(rows.sizes // code.dtype.itemsize - 1, 0)
    return Rendered(rows, lengths, np.concatenate([[0], np.cumsum(counts)]))


def _write(rows: Writer[Row | None], renderer: RowRenderer, items: Iterable[Item]) -> Ints:
    """Write the rows of every item; returns how many each has."""
    counts = array("q")
    for part in batched(items, TOGETHER):
        asked: list[tuple[Prompt, str]] = []
        for item in part:
            prompt, replies = prompt_of(item), replies_of(item)
            assert prompt is not None
            counts.append(len(replies))
            asked += [(prompt, reply) for reply in replies]
        for row in renderer.rows(asked):
            rows.add(row)
    return np.array(counts, dtype=np.int64)
