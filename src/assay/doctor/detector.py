"""Detectors: functions from one piece of evidence to what it shows; and the examination that asks all of them.

    @detects(NEGATIVE_KL, kinds=("ppo", "group"))
    def negative_kl(log: Log) -> Iterator[Finding]: ...

The type of its parameter says which evidence a detector reads. What is not there it need not ask for: whatever raises
`Missing` is noted as unchecked, with the reason, and everything else is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, get_type_hints

from assay.doctor.cure import settled
from assay.doctor.finding import Diagnosis, Finding, Mode, Places, Unchecked, diagnosis


class Missing(Exception):  # noqa: N818  (no fault of the program: a thing to be told)
    """Something that a detector needs and the evidence has not; the message says what, in words for the user."""


class Evidence(Protocol):
    """What detectors read: a log, data, a model."""

    @property
    def where(self) -> str: ...

    @property
    def kind(self) -> str: ...


ODD = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a detector, or torch, raises over evidence that somebody has damaged; the others must still be asked."""

E = TypeVar("E", bound=Evidence)
Find = Callable[[E], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Detector:
    """A function, the modes it looks for, and what it looks at."""

    modes: tuple[Mode, ...]
    kinds: tuple[str, ...]
    """Kinds of evidence, such as the stages whose logs it understands; all, where none is named."""
    evidence: type
    find: Find[Any]

    def reads(self, evidence: Evidence) -> bool:
        return isinstance(evidence, self.evidence) and (not self.kinds or evidence.kind in self.kinds)


DETECTORS: list[Detector] = []


def detects(*modes: Mode, kinds: Sequence[str] = ()) -> Callable[[Find[E]], Find[E]]:
    """Enter a function into the list of detectors."""

    def enter(find: Find[E]) -> Find[E]:
        hints = get_type_hints(find)
        hints.pop("return", None)
        (evidence,) = hints.values()
        DETECTORS.append(Detector(modes, tuple(kinds), evidence, find))
        return find

    return enter


def examine(
    evidence: Sequence[Evidence], detectors: Sequence[Detector] | None = None, places: Places | None = None
) -> Diagnosis:
    """Ask every detector about all the evidence that it reads; `places` tell which of it came of which."""
    findings: list[Finding] = []
    unchecked: list[Unchecked] = []
    checked: list[tuple[Mode, str]] = []
    for detector in DETECTORS if detectors is None else detectors:
        for one in evidence:
            if detector.reads(one):
                try:
                    findings += (_with_cure(found, one) for found in detector.find(one))
                    checked += [(mode, one.where) for mode in detector.modes]
                except Missing as missing:
                    unchecked += [Unchecked(mode, one.where, str(missing)) for mode in detector.modes]
                except ODD as error:
                    why = f"its numbers are not what they should be ({type(error).__name__}: {error})"
                    unchecked += [Unchecked(mode, one.where, why) for mode in detector.modes]
    return diagnosis(findings, unchecked, checked, places)


def _with_cure(finding: Finding, evidence: Evidence) -> Finding:
    """A cure in the words of the recipe, where the evidence says how the stage is set; another trainer has its own."""
    config = getattr(evidence, "config", None)
    return finding if config is None or getattr(evidence, "foreign", False) else settled(finding, config)


def modes() -> Iterator[Mode]:
    """Every mode that some detector looks for, by its number."""
    yield from sorted({mode for detector in DETECTORS for mode in detector.modes}, key=lambda mode: mode.number)
