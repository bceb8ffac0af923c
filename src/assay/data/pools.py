"""Items on their way to the purposes: written to disk as they come, known by a few numbers until all are there."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
from numpy.typing import NDArray

from assay.data.items import as_demonstration, as_preferences, prompt_of
from assay.data.load import Entry
from assay.data.prepared import PURPOSES
from assay.data.records import Item, from_line, to_line
from assay.data.split import key_of
from assay.data.stored import Ints, Stored, Writer
from assay.errors import DataError
from assay.types import Demonstration, JudgedSteps, Preference, Prompt, Ranking, Verdict


@dataclass(frozen=True, slots=True)
class Purpose:
    """The items of one purpose, and of each the id, the split's key (64 bits each) and the source of its prompt."""

    items: Stored[Any]
    ids: NDArray[np.uint64]
    keys: NDArray[np.uint64]
    sources: NDArray[np.object_]


class Pool:
    """A purpose that still takes items."""

    def __init__(self, split_by: str, scratch: Path | None) -> None:
        self.split_by = split_by
        self.lines = Writer[Item](to_line, folder=scratch)
        self.ids, self.keys = array("Q"), array("Q")
        self.sources: list[str] = []
        self.seen: set[int] = set()

    def add(self, item: Item) -> None:
        """Take an item that belongs to a prompt."""
        prompt = prompt_of(item)
        assert prompt is not None
        number, key = _numbers(prompt, self.split_by)
        self.lines.add(item)
        self.ids.append(number)
        self.keys.append(key)
        self.sources.append(intern(prompt.source))

    def add_new(self, item: Item) -> None:
        """Take an item, unless an equal one (by a 64-bit hash) is there."""
        if (found := hash(item)) not in self.seen:
            self.seen.add(found)
            self.add(item)

    def complete(self, which: Ints | slice = slice(None)) -> Purpose:
        """What was taken, or those of it that have these numbers."""
        return Purpose(
            self.lines.stored(from_line).take(which),
            ids=np.array(self.ids, dtype=np.uint64)[which],
            keys=np.array(self.keys, dtype=np.uint64)[which],
            sources=np.array(self.sources, dtype=object)[which],
        )


class Pools:
    """All purposes of one set of data; `objectives` maps each objective to the sources that asked about it."""

    def __init__(self, split_by: str, objectives: Mapping[str, str], scratch: Path | None) -> None:
        self.objectives = objectives
        self.of = {name: Pool(split_by, scratch) for name in (*PURPOSES, "made")}  # "made": not demonstrated, but best
        self.text = Writer[str](to_line, folder=scratch)
        self.posed = False
        self.asking: set[str] = set()

    def fill(self, entries: Iterable[Entry], feeds: Collection[str]) -> None:
        """Give every item to these purposes; "preferences" stands for all that people judged."""
        for item in (entry.item for entry in entries):
            prompt = prompt_of(item)
            if "preferences" in feeds and prompt is not None:
                self._judged(item, prompt.source)
            if "demonstrations" in feeds:
                self._shown(item)
            if "prompts" in feeds:
                self.posed = True
                if prompt is not None:
                    self.of["prompts"].add(prompt)
            if "text" in feeds and isinstance(item, str):
                self.text.add(item)

    def complete(self) -> dict[str, Purpose]:
        """Every purpose, some made of the others where nobody filled them. DataError: a pattern that fits no source."""
        for name, pattern in self.objectives.items():
            if not any(fnmatch(source, pattern) for source in self.asking):
                raise DataError(
                    f'data.objectives: no source of comparisons is like "{pattern}", so none asks about {name}',
                    hint=f"the sources are {', '.join(sorted(self.asking))}",
                )
        done = {name: self.of[name].complete() for name in ("preferences", "rankings", "steps", "verdicts")}
        shown = self.of["demonstrations" if self.of["demonstrations"].ids else "made"]
        if not shown.ids:
            for pair in done["preferences"].items:
                shown.add(Demonstration(pair.prompt, pair.chosen))
        done["demonstrations"] = shown.complete()
        prompts = self.of["prompts"]
        if not self.posed:
            for name in ("demonstrations", "preferences", "verdicts", "steps"):
                for item in done[name].items:
                    prompts.add(item.prompt)
        done["prompts"] = prompts.complete(_last_of_each(np.array(prompts.ids, dtype=np.uint64)))
        return {name: done[name] for name in PURPOSES}

    def _judged(self, item: Item, source: str) -> None:
        self.asking.add(source)
        if isinstance(item, Preference | Ranking):
            found = (name for name, pattern in self.objectives.items() if fnmatch(source, pattern))
            item = replace(item, objective=next(found, item.objective)) if self.objectives else item
        for pair in as_preferences(item):
            self.of["preferences"].add_new(pair)
        for kind, name in ((Ranking, "rankings"), (Verdict, "verdicts"), (JudgedSteps, "steps")):
            if isinstance(item, kind):
                self.of[name].add_new(item)

    def _shown(self, item: Item) -> None:
        """What was demonstrated; where nobody demonstrated anything, the best responses."""
        if isinstance(item, Demonstration):
            self.of["demonstrations"].add(item)
        elif (made := as_demonstration(item)) and not self.of["demonstrations"].ids:
            self.of["made"].add_new(made)


@lru_cache(maxsize=1)  # an item that goes to several purposes goes to one after the other
def _numbers(prompt: Prompt, split_by: str) -> tuple[int, int]:
    return int(prompt.id, 16), int(key_of(prompt, split_by), 16)


def _last_of_each(ids: NDArray[np.uint64]) -> Ints:
    """Of each id, in the order in which they first appear, the place where it does so for the last time."""
    first = np.unique(ids, return_index=True)[1]
    last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]
    return last[np.argsort(first)]
