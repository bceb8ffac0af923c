"""What is wrong around the training: settings that are text, a number format the machine has no units for, and a
resumed run that lost its place in the data."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assay.config import Config, Fault, check
from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.log import Log
from assay.document import Document, KeyPath, dotted, show

if TYPE_CHECKING:
    import torch

SLOWER = 10.0
"""CPUs with units for a format are at least as fast in it as in fp32, those without 100 to 300 times slower."""
NUMBER = re.compile(
    r"[-+]?(?:\d+(?:[.,]\d*)?e[-+]?\d+|\d+(?:[.,]\d+)?\s*%|\d*\.\d+|\d,\d{2,}|\d{1,3}(?:,\d{3})+(?:\.\d+)?)", re.I
)
"""Numbers that are text to PyYAML: with an exponent, a percent sign or a comma, or quoted. Quoted whole numbers may be
names, and one digit after another with a comma between them (0,1) a list."""
THOUSANDS = re.compile(r",\d{3}(?!\d)")
"""One thousand to some, and one to others."""
NAMES = re.compile(r"version|revision", re.I)
"""Keys whose numbers are meant to be text."""
ROUNDING = 1e-9
"""Passes: what rounding may add at the end of one."""
WANTED = re.compile(r"must be (?:a|a whole) number\b")

NUMBER_AS_TEXT = Mode(
    1,
    "number-as-text",
    "machine",
    "A number in the configuration is text",
    "YAML 1.1 takes 1e-5 for a word, and quotes, commas and percent signs make words of numbers too.",
    "Write the number plainly, with a point: 1.0e-5.",
)
SLOW_FORMAT = Mode(
    48,
    "slow-number-format",
    "machine",
    "Everything is a hundred times slower than it need be",
    "The processor has no units for this number format and imitates it, one number at a time.",
    "Use fp32 on this machine, which is what Assay measures and chooses by itself.",
)
RESUME_SKIPS = Mode(
    50,
    "resume-skips",
    "machine",
    "After a restart the data begin somewhere else",
    "The place in the data is not part of the checkpoint, so a resumed run sees some examples twice and others never.",
    "Save the loader's state with the weights, or make the order of the data a function of seed and step.",
    ("overfitting",),
)


@dataclass(frozen=True)
class Settings:
    """Keys at which a number must stand and text does."""

    where: str
    texts: Mapping[str, str]
    refused: bool = True
    """By a schema; otherwise the text is what its reader will hand to the trainer."""
    kind: str = "settings"

    @classmethod
    def of(cls, document: Document, schema: type[Config], *, name: Callable[[KeyPath], str] = dotted) -> Settings:
        """What a schema refuses in a document because it is no number; `name` says how a key is called for the user."""
        faults = [fault for fault in check(schema, document, name=name)[1] if no_number(fault)]
        keys = {fault.what.partition(":")[0] for fault in faults}
        texts = ((name(path), text) for path, text in _texts(document.data))
        return cls(document.source, {key: text for key, text in texts if key in keys})

    @classmethod
    def foreign(cls, where: str, values: Mapping[str, Any]) -> Settings:
        """What another reader made of a file without a schema: the texts that can be nothing but a number."""
        found = {dotted(path): text for path, text in _texts(values) if NUMBER.fullmatch(text.strip())}
        return cls(where, {key: text for key, text in found.items() if not NAMES.search(key)}, refused=False)


@dataclass(frozen=True)
class Machine:
    """The number format in use, and the seconds that one matrix product takes in each."""

    where: str
    used: str
    seconds: Mapping[str, float]
    kind: str = "machine"

    @classmethod
    def of(cls, where: str, used: torch.dtype) -> Machine:
        """Measured on this processor."""
        import torch

        from assay.models.precision import product_seconds

        formats = {torch.float32, used}
        return cls(where, _plain(used), {_plain(dtype): product_seconds(dtype) for dtype in formats})


@dataclass(frozen=True)
class Cursor:
    """Which examples every step was to take, and which it took."""

    where: str
    planned: Sequence[Sequence[int]]
    taken: Sequence[Sequence[int]]
    """As far as the run has come."""
    kind: str = "cursor"


@detects(NUMBER_AS_TEXT)
def text_for_a_number(settings: Settings) -> Iterator[Finding]:
    """Text where a number belongs."""
    if settings.texts:
        listed = ", ".join(f"{key} is {show(text)}" for key, text in settings.texts.items())
        end = "refused before anything was loaded" if settings.refused else "and its reader hands it on as text"
        change = {key: number for key, text in settings.texts.items() if (number := number_of(text)) is not None}
        yield Finding(NUMBER_AS_TEXT, settings.where, f"{listed}: {end}", sureness="certain", change=change)


@detects(SLOW_FORMAT)
def imitated(machine: Machine) -> Iterator[Finding]:
    """A format in which products take many times as long as in fp32."""
    if machine.used not in machine.seconds or "float32" not in machine.seconds:
        raise Missing(f"no product was timed in {machine.used} and float32")
    ratio = machine.seconds[machine.used] / machine.seconds["float32"]
    if ratio > SLOWER:
        said = f"a matrix product takes {ratio:.0f} times as long in {machine.used} as in float32"
        yield Finding(SLOW_FORMAT, machine.where, said, sureness="certain")


@detects(RESUME_SKIPS)
def lost_its_place(cursor: Cursor) -> Iterator[Finding]:
    """Steps that took other examples than planned."""
    done = list(zip(cursor.planned, cursor.taken, strict=False))
    if not done:
        raise Missing("no step is recorded")
    planned = Counter(example for batch, _ in done for example in batch)
    taken = Counter(example for _, batch in done for example in batch)
    first = next((step for step, (wanted, seen) in enumerate(done, 1) if Counter(wanted) != Counter(seen)), None)
    if first is not None:
        again, never = (taken - planned).total(), (planned - taken).total()
        said = f"from step {first} on other examples than planned: {again:,} too often and {never:,} not at all"
        yield Finding(RESUME_SKIPS, cursor.where, f"{said}, of {planned.total():,}", sureness="certain")


@detects(RESUME_SKIPS, kinds=("pretrain", "sft", "reward", "preference"))
def comes_again(log: Log) -> Iterator[Finding]:
    """Batches that come twice within one pass over the data, in which every example has its turn once."""
    epochs, batches = log["train/epoch"], log["train/batch"]
    passes = dict(zip(epochs.steps.tolist(), epochs.values.tolist(), strict=True))
    first: dict[tuple[int, float], int] = {}
    again: list[tuple[int, int]] = []
    for step, batch in zip(batches.steps.tolist(), batches.values.tolist(), strict=True):
        if step in passes and (earlier := first.setdefault((math.ceil(passes[step] - ROUNDING), batch), step)) < step:
            again.append((step, earlier))
    if again:
        said = f"step {again[0][0]} takes the batch of step {again[0][1]} once more, in the same pass over the data"
        said += f"; {len(again):,} of {len(batches):,} steps do"
        yield Finding(RESUME_SKIPS, log.where, said, sureness="certain")


def number_of(text: str) -> float | None:
    """The number that a text is meant for; None where it is for none, or could be for two."""
    text = text.strip()
    if not NUMBER.fullmatch(text) or THOUSANDS.search(text):
        return None
    number = text.replace(",", ".")
    return float(number[:-1]) / 100 if number.endswith("%") else float(number)


def no_number(fault: Fault) -> bool:
    """Whether a schema refused a value because a number must stand there, and it is none."""
    return bool(WANTED.search(fault.what))


def _texts(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every text in nested settings, with its place."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, (*path, number))
    elif isinstance(value, str):
        yield path, value


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
