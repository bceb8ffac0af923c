"""Sources → typed items, each with its place. Rows that cannot be read are dropped and counted by reason."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from assay.data.config import FileSource
from assay.data.dialogue import Unfit
from assay.data.files import Located, kind_of, list_files, places, read_rows
from assay.data.formats import Format
from assay.data.hub import hub_content, hub_rows, is_hub_id
from assay.data.recognise import named, read_row, recognise
from assay.data.records import Item
from assay.data.stored import store
from assay.errors import DataError
from assay.rng import python_rng

SAMPLE = 200  # rows looked at to recognise a format
EXAMPLES = 5  # dropped rows shown for each reason
SNIPPET = 120  # characters of each
NOT_DATA = re.compile(r"(licen[cs]e|readme|notice|dataset_info)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """An item and the place it was read from."""

    item: Item
    place: str


@dataclass
class Drops:
    """What was left out: reason → how many, and where the first ones stood."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def add(self, reason: str, place: str, text: object = "", *, times: int = 1) -> None:
        """Count a row under a reason, and keep it as an example if it is among the first."""
        self.counts[reason] = self.counts.get(reason, 0) + times
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            flat = " ".join(str(text).split())
            shown.append({"place": place, "text": flat[:SNIPPET] + ("…" if len(flat) > SNIPPET else "")})

    def merge(self, other: Drops) -> None:
        """Take over what another stretch of work dropped."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            self.examples[reason] = [*self.examples.get(reason, []), *other.examples[reason]][:EXAMPLES]

    @property
    def total(self) -> int:
        """Rows dropped for any reason."""
        return sum(self.counts.values())

    def report(self) -> list[dict[str, Any]]:
        """Reasons, most frequent first, with counts and examples."""
        by_count = sorted(self.counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return [{"reason": r, "count": n, "examples": self.examples[r]} for r, n in by_count]


@dataclass
class Loaded:
    """What a source held. `files` maps each to its format, rows, items and content hash."""

    entries: list[Entry] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    drops: Drops = field(default_factory=Drops)

    @property
    def rows(self) -> int:
        """Rows looked at."""
        return sum(file["rows"] for file in self.files.values())

    @property
    def items(self) -> int:
        """Items read from them."""
        return sum(file["items"] for file in self.files.values())


def read(source: FileSource | str | Path, *, format: str = "auto", seed: int = 0, strict: bool = False) -> Loaded:
    """Everything in a source, in its order. `strict` refuses what would otherwise be dropped and counted.

    Raises DataError: no such path, unreadable file, unknown or unfitting format, no usable row.
    """
    if not isinstance(source, FileSource):
        source = FileSource(path=str(source), format=format)
    loaded = Loaded()
    loaded.entries = list(scan(source, loaded, seed=seed, strict=strict))
    return loaded


def scan(source: FileSource, loaded: Loaded, *, seed: int, strict: bool) -> Iterator[Entry]:
    """The same, one entry after the other; `loaded` is told what was found and is complete after the last."""
    invalid: list[tuple[Located, str]] = []
    for name, rows in _chosen(source, seed):
        sample = list(itertools.islice(rows, SAMPLE))
        found, stem = _recognised(source.format, sample, name), _stem(name)
        counts = loaded.files.setdefault(name, {"format": found.name, "gives": found.gives, "rows": 0, "items": 0})
        for located in itertools.chain(sample, rows):
            counts["rows"] += 1
            try:
                items = read_row(found, located.row, stem)
            except Unfit as reason:
                loaded.drops.add(str(reason), located.place, located.row)
                if strict:
                    invalid.append((replace(located, row={}), str(reason)))
            else:
                counts["items"] += len(items)
                for item in items:
                    yield Entry(item, located.place)
    if invalid:
        raise _refused(invalid, loaded.rows)
    if not loaded.items:
        raise DataError(
            f"{', '.join(loaded.files)}: none of {loaded.rows:,} rows can be used: {_reasons(loaded.drops)}",
            hint="look at them with `assay data inspect`, or set format=… by hand",
        )
    hashes = content_hashes(source)
    for name, file in loaded.files.items():
        file["hash"] = hashes[name]


def content_hashes(source: FileSource) -> dict[str, str]:
    """File → hash of its bytes; hub id → id, commit and split, since its content is not here to hash.

    What decides whether prepared data can be used again. Raises DataError when a path does not exist.
    """
    hashes: dict[str, str] = {}
    for path in source.paths:
        if is_hub_id(path):
            hashes[path] = f"{hub_content(path)} {source.split}"
            continue
        for file in _files(path, source.include):
            with file.open("rb") as raw:
                hashes[str(file)] = hashlib.file_digest(raw, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return hashes


def _chosen(source: FileSource, seed: int) -> Iterator[tuple[str, Iterator[Located]]]:
    """File by file, the rows to use: all, or `subset_size` of them over all files."""
    if source.subset_size is None:
        yield from _opened(source)
    elif source.streaming:
        left = source.subset_size
        for name, rows in _opened(source):
            taken = list(itertools.islice(rows, left))
            left -= len(taken)
            if taken:
                yield name, iter(taken)
    else:
        every = store(((n, located) for n, rows in _opened(source) for located in rows), pickle.dumps, pickle.loads)
        picked = python_rng(seed, "data", "subset").sample(range(len(every)), min(source.subset_size, len(every)))
        for name, group in itertools.groupby(every.take(sorted(picked)), key=lambda row: row[0]):
            yield name, (located for _, located in group)


def _opened(source: FileSource) -> Iterator[tuple[str, Iterator[Located]]]:
    return ((name, iter(rows)) for path in source.paths for name, rows in _open(path, source))


def _open(path: str, source: FileSource) -> Iterator[tuple[str, Iterable[Located]]]:
    if is_hub_id(path):
        yield path, hub_rows(path, source.split, streaming=source.streaming)
        return
    for file in _files(path, source.include):
        yield str(file), read_rows(file)


def _files(path: str, include: str) -> list[Path]:
    """The files of a path, without the licences and readmes that lie in a folder beside the data."""
    files = list_files(Path(path).expanduser(), include)
    return files if len(files) == 1 else [file for file in files if not NOT_DATA.match(file.name)]


def _recognised(wanted: str, rows: list[Located], where: str) -> Format:
    sample = [located.row for located in rows]
    return recognise(sample, where) if wanted == "auto" else named(wanted, sample, where)


def _stem(name: str) -> str:
    path = Path(name)
    return path.name.removesuffix(".gz").removesuffix(kind_of(path))


def _refused(invalid: list[tuple[Located, str]], rows: int) -> DataError:
    first, reason = invalid[0]
    numbers = [located.number for located, _ in invalid if located.file == first.file]
    listed = places(numbers, first.unit)
    return DataError(
        f"{first.place}: {reason}",
        hint=f"{len(invalid):,} of {rows:,} rows cannot be used ({listed}). Drop them with  clean.drop_invalid=true",
    )


def _reasons(drops: Drops) -> str:
    return ", ".join(f"{entry['reason']} ({entry['count']:,})" for entry in drops.report())
