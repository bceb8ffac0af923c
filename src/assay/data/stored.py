"""Sequences on disk: an item is read when it is asked for, so data may be larger than the memory.

Bytes are read, not mapped: pages of a mapped file would count as memory of this process.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from assay.data.records import write_whole
from assay.errors import StorageError

T = TypeVar("T")
Ints = NDArray[np.int64]

IN_MEMORY = 8192
"""Items that are held at a time, so that those of one prompt, or of like length, meet."""


class Stored(Sequence[T]):
    """N items of a file: item i is decoded from the `sizes[i]` bytes at `starts[i]`; slices are views of the file."""

    def __init__(self, file: IO[bytes], starts: Ints, sizes: Ints, decode: Callable[[bytes], T]) -> None:
        self.file, self.starts, self.sizes, self.decode = file, starts, sizes, decode

    @classmethod
    def open(cls, path: Path, sizes: Ints, decode: Callable[[bytes], T]) -> Stored[T]:
        """A file whose items stand one after the other; ValueError when it has not the length that they need."""
        ends = np.cumsum(sizes)
        length = path.stat().st_size
        if length != (ends[-1] if len(ends) else 0):
            raise ValueError(f"{path} has {length:,} bytes, which is not what its index says")
        return cls(path.open("rb", buffering=0), ends - sizes, sizes, decode)

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Stored[T]: ...
    def __getitem__(self, index: int | slice) -> T | Stored[T]:
        return self.take(index) if isinstance(index, slice) else self._decoded(self.raw(index))

    def __iter__(self) -> Iterator[T]:
        return map(self._decoded, self.lines())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f"<{len(self):,} items of {self.file.name}>"

    def take(self, which: slice | Sequence[int] | Ints) -> Stored[T]:
        """The items with these numbers, in this order."""
        return Stored(self.file, self.starts[which], self.sizes[which], self.decode)

    def raw(self, index: int) -> bytes:
        """The bytes of an item."""
        return os.pread(self.file.fileno(), int(self.sizes[index]), int(self.starts[index]))

    def lines(self) -> Iterator[bytes]:
        """The bytes of every item."""
        return map(self.raw, range(len(self)))

    @cached_property
    def digest(self) -> str:
        """32 hex digits of what the items are, wherever they stand; read once."""
        return digest_of(self.lines())

    def _decoded(self, raw: bytes) -> T:
        try:
            return self.decode(raw)
        except (ValueError, KeyError) as error:
            raise StorageError(
                f"{self.file.name} is damaged: {error}", hint="delete its folder and prepare the data again"
            ) from error


class Writer(Generic[T]):
    """Writes items one after the other; by default into a file without a name, which goes with the last view of it."""

    def __init__(
        self, encode: Callable[[T], bytes], file: IO[bytes] | None = None, *, folder: Path | None = None
    ) -> None:
        self.encode = encode
        self.file = file or TemporaryFile(dir=folder)  # noqa: SIM115
        self.sizes = array("q")

    def add(self, item: T) -> None:
        """Append an item."""
        raw = self.encode(item)
        self.file.write(raw)
        self.sizes.append(len(raw))

    def stored(self, decode: Callable[[bytes], T]) -> Stored[T]:
        """Everything written."""
        self.file.flush()
        sizes = np.array(self.sizes, dtype=np.int64)
        return Stored(self.file, np.cumsum(sizes) - sizes, sizes, decode)


class Lazily(Sequence[T]):
    """Items made when they are asked for: item i is `make(numbers[i])`; their lengths may be known before."""

    def __init__(self, numbers: Ints, make: Callable[[int], T], lengths: Ints | None = None) -> None:
        self.numbers, self.make, self.lengths = numbers, make, lengths

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Lazily[T]: ...
    def __getitem__(self, index: int | slice) -> T | Lazily[T]:
        if isinstance(index, slice):
            return Lazily(self.numbers[index], self.make, None if self.lengths is None else self.lengths[index])
        return self.make(int(self.numbers[index]))


def store(
    items: Iterable[T], encode: Callable[[T], bytes], decode: Callable[[bytes], T], folder: Path | None = None
) -> Stored[T]:
    """The items on disk."""
    writer = Writer(encode, folder=folder)
    for item in items:
        writer.add(item)
    return writer.stored(decode)


def lengths_of(items: Sequence[T], length: Callable[[T], int]) -> list[int]:
    """The length of every item; none is made for it where it is known."""
    known = items.lengths if isinstance(items, Lazily) else None
    return [length(item) for item in items] if known is None else known.tolist()


def save_arrays(path: Path, arrays: Mapping[str, Ints]) -> None:
    """Write arrays as .npz, whole or not at all."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # given a name, numpy would add an ending to it
            np.savez(file, allow_pickle=False, **arrays)

    write_whole(path, write)


def select(items: Sequence[T], keep: Callable[[T], bool]) -> Sequence[T]:
    """The items that are to be kept, in order; those on disk stay there."""
    return pick(items, [i for i, item in enumerate(items) if keep(item)])


def leave_out(items: Sequence[T], which: Container[int]) -> Sequence[T]:
    """The items but for those with these numbers."""
    return pick(items, [i for i in range(len(items)) if i not in which])


def pick(items: Sequence[T], which: Sequence[int]) -> Sequence[T]:
    """The items with these numbers."""
    return items.take(which) if isinstance(items, Stored) else [items[i] for i in which]


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter."""
    rest = iter(items)
    while part := list(itertools.islice(rest, size)):
        yield part


def digest_of(lines: Iterable[bytes]) -> str:
    """32 hex digits of lines that end where the next begins: every line's end is its own."""
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line)
    return digest.hexdigest()
