"""Which prompt is trained on, and which is held out. A prompt, or a whole dialogue's opening, is in one split only."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from assay.data.items import prompt_of
from assay.data.prepared import Splits
from assay.data.records import Item
from assay.data.stored import batched, select
from assay.errors import DataError
from assay.rng import derive
from assay.types import Message, Prompt

T = TypeVar("T", bound=Item)
A = TypeVar("A", bound="Asked")
Hashes = NDArray[np.int64]
RUN = 8  # words; shared runs of this length betray copied prompts
PLACES = np.random.Generator(np.random.Philox(0)).integers(2**62, size=RUN) * 2 + 1
PART = 4096  # prompts looked at together


class Asked(Protocol):
    """An item that belongs to a prompt."""

    @property
    def prompt(self) -> Prompt: ...


def key_of(prompt: Prompt, by: str) -> str:
    """What must not straddle two splits: the prompt, or what its dialogue opens with (up to the first user turn)."""
    if by == "prompt":
        return prompt.id
    first = next((i for i, turn in enumerate(prompt.messages) if turn.role == "user"), len(prompt.messages) - 1)
    opening: tuple[Message, ...] = prompt.messages[: first + 1]
    return Prompt(opening).id


def assign(
    prompts: Iterable[Prompt], *, validation: float, test: float, seed: int, by: str = "opening"
) -> Callable[[Prompt], str]:
    """A function that names a prompt's split; see `assign_keys`."""
    keys = {key_of(prompt, by) for prompt in prompts}
    split_of = assign_keys(keys, validation=validation, test=test, seed=seed, by=by)
    return lambda prompt: split_of[key_of(prompt, by)]


def assign_keys(keys: Collection[str], *, validation: float, test: float, seed: int, by: str) -> dict[str, str]:
    """The split of each key.

    Each falls by its own hash, so a prompt stays in its split whatever else is in the data. Where nothing
    fell into a wanted split, one key of the fullest moves there.
    Raises DataError when there are fewer keys than splits.
    """
    units = {key: _unit(seed, key) for key in keys}
    bounds = {"test": test, "validation": test + validation}
    split_of = {key: _fall(units[key], bounds) for key in sorted(keys, key=lambda key: (units[key], key))}
    wanted = [name for name, share in (("test", test), ("validation", validation)) if share > 0]
    if keys and len(keys) <= len(wanted):
        raise DataError(
            f"{len(keys)} different {'prompt' if by == 'prompt' else 'dialogue opening'}(s) cannot fill training and "
            f"{' and '.join(wanted)}",
            hint="give more data, or set validation_split and test_split to 0"
            + (", or split_by=prompt" * (by != "prompt")),
        )
    for name in [*wanted, "train"]:
        if keys and name not in split_of.values():
            fullest = Counter(split_of.values()).most_common(1)[0][0]
            split_of[next(key for key in split_of if split_of[key] == fullest)] = name
    return split_of


def split(items: Iterable[T], split_of: Callable[[Prompt], str]) -> Splits[T]:
    """Items apart by their prompt's split, each in order."""
    parts: dict[str, list[T]] = {"train": [], "validation": [], "test": []}
    for item in items:
        prompt = prompt_of(item)
        if prompt is not None:
            parts[split_of(prompt)].append(item)
    return Splits(**parts)


def leakage(splits: Splits[Prompt]) -> dict[str, Any]:
    """How much of the held-out prompts is in the training prompts: equal ones, and ones that share 8 words in a row."""
    held_out = {name: prompts for name, prompts in splits.items() if name != "train"}
    ids = {prompt.id for prompts in held_out.values() for prompt in prompts}
    runs = _runs_of(itertools.chain(*held_out.values()))
    trained, met = set[str](), np.zeros(len(runs), dtype=bool)
    for part in batched(splits.train, PART):
        trained.update(ids.intersection(prompt.id for prompt in part))
        found, there = _places(np.unique(_runs(part)[0]), runs)
        met[found[there]] = True
    report: dict[str, Any] = {}
    for name, prompts in held_out.items():
        alike = _sharing(prompts, runs[met])
        report[name] = {
            "prompts": len(prompts),
            "equal": sum(prompt.id in trained for prompt in prompts),
            "shared_8_words": len(alike),
            "share": round(len(alike) / len(prompts), 4) if prompts else 0.0,
            "examples": [prompts[i].text[:120] for i in alike[:3]],
        }
    return report


def contaminated(prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> set[str]:
    """Ids of the prompts that share a run of 8 words with a held-out prompt."""
    return {prompts[i].id for i in _sharing(prompts, _runs_of(held_out))}


def _sharing(prompts: Sequence[Prompt], runs: Hashes) -> list[int]:
    """Numbers of the prompts in which one of these runs occurs."""
    found: list[int] = []
    for start, part in zip(itertools.count(0, PART), batched(prompts, PART), strict=False):
        own, owners = _runs(part)
        found += (start + np.unique(owners[_places(own, runs)[1]])).tolist()
    return found


def _places(values: Hashes, table: Hashes) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each value stands in a sorted table, and whether it does."""
    if not len(table):
        return np.zeros(len(values), np.intp), np.zeros(len(values), bool)
    places = np.searchsorted(table, values).clip(max=len(table) - 1)
    return places, table[places] == values


def _runs_of(prompts: Iterable[Prompt]) -> Hashes:
    """Every run of the prompts, once, sorted."""
    return np.unique(np.concatenate([np.empty(0, np.int64), *(_runs(part)[0] for part in batched(prompts, PART))]))


def _runs(prompts: Sequence[Prompt]) -> tuple[Hashes, Hashes]:
    """Runs of 8 words of what users said, as 64-bit hashes, and for each the number of the prompt it is in.

    A run's hash is the sum of its words' hashes, each times an odd constant for its place (modulo 2⁶⁴).
    """
    turns = [
        (number, list(map(hash, re.findall(r"\w+", turn.content.lower()))))
        for number, prompt in enumerate(prompts)
        for turn in prompt.messages
        if turn.role == "user"
    ]
    words = np.fromiter(itertools.chain.from_iterable(words for _, words in turns), np.int64)
    lengths = np.array([len(words) for _, words in turns], dtype=np.int64)
    ends = np.repeat(np.cumsum(lengths), lengths)
    starts = np.flatnonzero(np.arange(len(words)) + RUN <= ends)  # a run does not go on into the next turn
    runs = sum(words[starts + place] * factor for place, factor in enumerate(PLACES))
    return np.asarray(runs), np.repeat(np.array([number for number, _ in turns], dtype=np.int64), lengths)[starts]


def _unit(seed: int, key: str) -> float:
    return derive(seed, "split", key) / 2**63


def _fall(unit: float, bounds: dict[str, float]) -> str:
    return next((name for name, bound in bounds.items() if unit < bound), "train")


def part_of(items: Sequence[A], part: tuple[int, int]) -> Sequence[A]:
    """The i-th of n disjoint parts; what belongs to one prompt stays together."""
    index, count = part
    if count == 1:
        return items
    return select(items, lambda item: derive(0, "part", item.prompt.id) % count == index - 1)
