"""Files → prepared data: read, clean, balance, make the purposes of one another, split by prompt.

Row by row, into files: what is held in memory of an item is a few numbers (pools.py).
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.data.clean import balance, sound, without_twins
from assay.data.config import FileData, FileSource
from assay.data.items import prompt_of
from assay.data.load import Drops, Entry, Loaded, scan
from assay.data.pools import Pools
from assay.data.prepared import PURPOSES, SPLITS, Prepared, Splits, lines_of
from assay.data.records import from_line, from_record, line_of, to_record
from assay.data.split import assign_keys, contaminated, leakage
from assay.data.stored import Lazily, digest_of, store
from assay.errors import DataError
from assay.types import Prompt

__all__ = ["Prepared", "Splits", "prepare_files"]

OWN = ("preferences", "demonstrations", "prompts", "text")
"""Purposes that may have a source of their own."""
TRAIN, NOWHERE = SPLITS.index("train"), -1


def prepare_files(config: FileData, seed: int, scratch: Path | None = None) -> Prepared:
    """Everything the stages need from the files of a recipe; the same files, settings and seed give the same.

    The items lie in files without a name in the folder `scratch`. Raises DataError for what cannot be read and when
    nothing is left; rows without use are dropped and counted in the report.
    """
    drops = Drops()
    sources: dict[str, dict[str, Any]] = {}
    pools = Pools(config.split_by, config.objectives, scratch)
    named: dict[str, FileSource | None] = {"data": config, **{purpose: getattr(config, purpose) for purpose in OWN}}
    for name, source in named.items():
        if source and source.paths:
            feeds = {name} if name != "data" else {purpose for purpose in OWN if not named[purpose]}
            pools.fill(_entries(source, config, seed, drops, sources, name, scratch), feeds)
    pools.complete()
    return _split(config, seed, pools, drops, sources)


def _entries(
    source: FileSource,
    config: FileData,
    seed: int,
    drops: Drops,
    sources: dict[str, dict[str, Any]],
    name: str,
    scratch: Path | None,
) -> Iterator[Entry]:
    """What is left of a source; `drops` and `sources` are told after the last entry."""
    loaded, unsound, kept = Loaded(), Drops(), 0
    entries: Iterable[Entry] = sound(
        scan(source, loaded, seed=seed, strict=not config.clean.drop_invalid), config.clean, unsound
    )
    if config.clean.near_duplicates or config.balance_by != "none":  # which look at all of them together
        entries = whole = store(entries, _to_line, _from_line, scratch)
        if config.clean.near_duplicates:
            entries = whole = without_twins(whole, config.clean.near_duplicates, unsound)
        entries = balance(whole, config.balance_by, seed, unsound)
    for kept, entry in enumerate(entries, start=1):  # noqa: B007
        yield entry
    sources[name] = loaded.files
    drops.merge(loaded.drops)
    drops.merge(unsound)
    if not kept:
        reasons = ", ".join(f"{entry['reason']} ({entry['count']:,})" for entry in drops.report())
        raise DataError(
            f"{', '.join(loaded.files)}: cleaning leaves none of {loaded.items:,} items: {reasons}",
            hint="switch the rule off under data.clean",
        )


def _split(config: FileData, seed: int, pools: Pools, drops: Drops, sources: dict[str, dict[str, Any]]) -> Prepared:
    """Every item in the split of its prompt. N items, those of one purpose after those of the other."""
    purposes, text = pools.complete(), pools.text.stored(from_line)
    keys_K, key_N = np.unique(np.concatenate([purpose.keys for purpose in purposes.values()]), return_inverse=True)
    split_N = _splits(config, seed, keys_K)[key_N]
    ids_N = np.concatenate([purpose.ids for purpose in purposes.values()])
    starts = np.cumsum([0, *(len(purpose.items) for purpose in purposes.values())])
    items = [purpose.items for purpose in purposes.values()]

    def prompt_at(n: int) -> Prompt:
        which = int(np.searchsorted(starts, n, side="right")) - 1
        prompt = prompt_of(items[which][n - starts[which]])
        assert prompt is not None
        return prompt

    first_N = np.zeros(len(ids_N), dtype=bool)
    first_N[np.unique(ids_N, return_index=True)[1]] = True
    whole = Splits(*(Lazily(np.flatnonzero(first_N & (split_N == split)), prompt_at) for split in range(len(SPLITS))))
    if config.decontaminate:
        dirty = [int(id, 16) for id in contaminated(whole.train, [*whole.validation, *whole.test])]
        dirty_N = np.isin(ids_N, np.array(dirty, dtype=np.uint64)) & (split_N == TRAIN)
        for prompt in map(prompt_at, np.flatnonzero(dirty_N).tolist()):
            drops.add("training prompt shares 8 words in a row with a held-out prompt", prompt.source, prompt.text)
        split_N[dirty_N] = NOWHERE
        whole = Splits(Lazily(np.flatnonzero(first_N & (split_N == TRAIN)), prompt_at), whole.validation, whole.test)

    parts: dict[str, Splits[Any]] = {}
    by_source: dict[str, dict[str, int]] = {}
    for (name, purpose), start in zip(purposes.items(), starts, strict=False):
        own = split_N[start : start + len(purpose.items)]
        which = [np.flatnonzero(own == split) for split in range(len(SPLITS))]
        parts[name] = Splits(*map(purpose.items.take, which))
        by_source[name] = dict(Counter(purpose.sources[np.concatenate(which)]).most_common())
    report = {
        "sources": sources,
        "rows": sum(file["rows"] for files in sources.values() for file in files.values()),
        "dropped": drops.report(),
        "counts": {name: parts[name].counts() for name in PURPOSES} | {"text": len(text)},
        "by_source": by_source,
        "split_by": config.split_by,
        "leakage": leakage(whole),
        "hashes": {name: _content(parts[name]) for name in PURPOSES} | {"text": text.digest},
    }
    return Prepared(**parts, text=text, report=report)


def _splits(config: FileData, seed: int, keys_K: NDArray[np.uint64]) -> NDArray[np.int8]:
    """The split of each key, as its number in SPLITS."""
    keys = [f"{key:016x}" for key in keys_K.tolist()]
    shares = {"validation": config.validation_split, "test": config.test_split}
    split_of = assign_keys(keys, **shares, seed=seed, by=config.split_by)
    return np.array([SPLITS.index(split_of[key]) for key in keys], dtype=np.int8)


def _content(part: Splits[Any]) -> str:
    return digest_of(line for name, items in part.items() for line in itertools.chain([name.encode()], lines_of(items)))


def _to_line(entry: Entry) -> bytes:
    return line_of({"place": entry.place, **to_record(entry.item)})


def _from_line(line: bytes) -> Entry:
    record = json.loads(line)
    return Entry(from_record(record), record["place"])
