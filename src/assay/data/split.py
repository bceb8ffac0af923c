"""Which prompt is trained on, and which is held out. A prompt, or a whole dialogue's opening, is in one split only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from assay.data.items import prompt_of
from assay.data.ngrams import ngrams
from assay.data.prepared import Splits
from assay.data.records import Item
from assay.errors import DataError
from assay.rng import derive
from assay.types import Message, Prompt

T = TypeVar("T", bound=Item)
A = TypeVar("A", bound="Asked")
RUN = 8  # words; shared runs of this length betray copied prompts


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
    """A function that names a prompt's split.

    Each key falls by its own hash, so a prompt stays in its split whatever else is in the data. Where nothing
    fell into a wanted split, one key of the fullest moves there.
    Raises DataError when there are fewer keys than splits.
    """
    keys = sorted({key_of(prompt, by) for prompt in prompts}, key=lambda key: (_unit(seed, key), key))
    bounds = {"test": test, "validation": test + validation}
    split_of = {key: _fall(_unit(seed, key), bounds) for key in keys}
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
            split_of[next(key for key in keys if split_of[key] == fullest)] = name
    return lambda prompt: split_of[key_of(prompt, by)]


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
    train = {prompt.id for prompt in splits.train}
    runs = _runs_of(splits.train)
    report: dict[str, Any] = {}
    for name, prompts in (("validation", splits.validation), ("test", splits.test)):
        equal = sum(prompt.id in train for prompt in prompts)
        alike = [prompt for prompt in prompts if not runs.isdisjoint(_runs(prompt))]
        report[name] = {
            "prompts": len(prompts),
            "equal": equal,
            "shared_8_words": len(alike),
            "share": round(len(alike) / len(prompts), 4) if prompts else 0.0,
            "examples": [prompt.text[:120] for prompt in alike[:3]],
        }
    return report


def contaminated(prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> set[str]:
    """Ids of the prompts that share a run of 8 words with a held-out prompt."""
    runs = _runs_of(held_out)
    return {prompt.id for prompt in prompts if not runs.isdisjoint(_runs(prompt))}


def _runs_of(prompts: Iterable[Prompt]) -> set[tuple[str, ...]]:
    return {run for prompt in prompts for run in _runs(prompt)}


def _runs(prompt: Prompt) -> set[tuple[str, ...]]:
    """Runs of 8 words of what the user said."""
    said = (re.findall(r"\w+", turn.content.lower()) for turn in prompt.messages if turn.role == "user")
    return {run for words in said for run in ngrams(words, RUN)}


def _unit(seed: int, key: str) -> float:
    return derive(seed, "split", key) / 2**63


def _fall(unit: float, bounds: dict[str, float]) -> str:
    return next((name for name, bound in bounds.items() if unit < bound), "train")


def part_of(items: Sequence[A], part: tuple[int, int]) -> list[A]:
    """The i-th of n disjoint parts; what belongs to one prompt stays together."""
    index, count = part
    return [item for item in items if derive(0, "part", item.prompt.id) % count == index - 1]
