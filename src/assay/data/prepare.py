"""Files → prepared data: read, clean, balance, make the purposes of one another, split by prompt."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from assay.data.clean import balance, clean
from assay.data.config import FileData, FileSource
from assay.data.items import as_demonstration, as_preferences, prompt_of
from assay.data.load import Drops, Entry, read
from assay.data.prepared import PURPOSES, Prepared, Splits
from assay.data.records import Item, to_record
from assay.data.split import assign, contaminated, leakage, split
from assay.errors import DataError
from assay.types import Demonstration, JudgedSteps, Preference, Ranking, Verdict

__all__ = ["Prepared", "Splits", "prepare_files"]


def prepare_files(config: FileData, seed: int) -> Prepared:
    """Everything the stages need from the files of a recipe; the same files, settings and seed give the same.

    Raises DataError for what cannot be read and when nothing is left; rows without use are dropped and counted
    in the report.
    """
    drops = Drops()
    sources: dict[str, dict[str, Any]] = {}
    main = _cleaned(config, config, seed, drops, sources, "data")

    def own(purpose: str) -> list[Entry]:
        source: FileSource | None = getattr(config, purpose)
        return _cleaned(source, config, seed, drops, sources, purpose) if source else main

    judged = _asked(own("preferences"), config.objectives)
    preferences = _unique(pair for item in judged for pair in as_preferences(item))
    rankings, verdicts, judged_steps = (
        _unique(item for item in judged if isinstance(item, kind)) for kind in (Ranking, Verdict, JudgedSteps)
    )
    demonstrations = _demonstrations(own("demonstrations")) or [Demonstration(p.prompt, p.chosen) for p in preferences]
    posed = own("prompts") or [Entry(item, "") for item in (*demonstrations, *preferences, *verdicts, *judged_steps)]
    prompts = list({p.id: p for entry in posed if (p := prompt_of(entry.item)) is not None}.values())
    text = [entry.item for entry in own("text") if isinstance(entry.item, str)]
    purposes = {
        "demonstrations": demonstrations,
        "preferences": preferences,
        "rankings": rankings,
        "steps": judged_steps,
        "verdicts": verdicts,
        "prompts": prompts,
    }
    return _split(config, seed, purposes, text, drops, sources)


def _cleaned(
    source: FileSource, config: FileData, seed: int, drops: Drops, sources: dict[str, dict[str, Any]], name: str
) -> list[Entry]:
    if not source.paths:
        return []
    loaded = read(source, seed=seed, strict=not config.clean.drop_invalid)
    sources[name] = loaded.files
    drops.merge(loaded.drops)
    kept = clean(loaded.entries, config.clean, drops)
    if not kept:
        named = ", ".join(f"{entry['reason']} ({entry['count']:,})" for entry in drops.report())
        raise DataError(
            f"{', '.join(loaded.files)}: cleaning leaves none of {len(loaded.entries):,} items: {named}",
            hint="switch the rule off under data.clean",
        )
    return balance(kept, config.balance_by, seed, drops)


def _demonstrations(entries: Sequence[Entry]) -> list[Demonstration]:
    """What was demonstrated; where nobody demonstrated anything, the best responses."""
    shown = [entry.item for entry in entries if isinstance(entry.item, Demonstration)]
    return shown or _unique(made for entry in entries if (made := as_demonstration(entry.item)))


def _asked(entries: Sequence[Entry], objectives: Mapping[str, str]) -> list[Item]:
    """The items, with what was asked about where their source says so; DataError for a pattern that fits none."""
    sources = {prompt.source for entry in entries if (prompt := prompt_of(entry.item)) is not None}
    for name, pattern in objectives.items():
        if not any(fnmatch(source, pattern) for source in sources):
            raise DataError(
                f'data.objectives: no source of comparisons is like "{pattern}", so none asks about {name}',
                hint=f"the sources are {', '.join(sorted(sources))}",
            )

    def asked(item: Item) -> Item:
        if not isinstance(item, Preference | Ranking):
            return item
        found = (name for name, pattern in objectives.items() if fnmatch(item.prompt.source, pattern))
        return replace(item, objective=next(found, item.objective))

    return [asked(entry.item) for entry in entries]


def _unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def _split(
    config: FileData,
    seed: int,
    purposes: Mapping[str, Sequence[Item]],
    text: list[str],
    drops: Drops,
    sources: dict[str, dict[str, Any]],
) -> Prepared:
    items = itertools.chain.from_iterable(purposes.values())
    every = list({p.id: p for item in items if (p := prompt_of(item)) is not None}.values())
    split_of = assign(every, validation=config.validation_split, test=config.test_split, seed=seed, by=config.split_by)
    parts: dict[str, Splits[Any]] = {name: split(items, split_of) for name, items in purposes.items()}
    whole = split(every, split_of)
    if config.decontaminate:
        dirty = contaminated(whole.train, [*whole.validation, *whole.test])
        parts = {name: _without(part, dirty, drops) for name, part in parts.items()}
        whole = _without(whole, dirty, Drops())
    report = {
        "sources": sources,
        "rows": sum(file["rows"] for files in sources.values() for file in files.values()),
        "dropped": drops.report(),
        "counts": {name: parts[name].counts() for name in PURPOSES} | {"text": len(text)},
        "by_source": {name: _sources(parts[name]) for name in PURPOSES},
        "split_by": config.split_by,
        "leakage": leakage(whole),
        "hashes": {name: _content(parts[name]) for name in PURPOSES} | {"text": _digest(text)},
    }
    return Prepared(**parts, text=text, report=report)


def _without(part: Splits[Any], dirty: set[str], drops: Drops) -> Splits[Any]:
    kept: list[Any] = []
    for item in part.train:
        prompt = prompt_of(item)
        if prompt is not None and prompt.id in dirty:
            drops.add("training prompt shares 8 words in a row with a held-out prompt", prompt.source, prompt.text)
        else:
            kept.append(item)
    return Splits(kept, part.validation, part.test)


def _sources(part: Splits[Any]) -> dict[str, int]:
    prompts = (prompt_of(item) for _, items in part.items() for item in items)
    return dict(Counter(prompt.source for prompt in prompts if prompt is not None).most_common())


def _content(part: Splits[Any]) -> str:
    return _digest([name, to_record(item)] for name, items in part.items() for item in items)


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in values:
        digest.update(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()
