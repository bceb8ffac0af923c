"""What a stage is given: its inputs, and a context to log, checkpoint and show progress through."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from assay.errors import TrainingError
from assay.models.config import Template
from assay.types import Completion, Preference, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from assay.data.prepared import Prepared

Scorer = Callable[[Sequence[Prompt], Sequence[str]], list[float]]
"""Prompts and responses to one number each: the truth of a world, or a judge model."""

PreferenceEvaluator = Callable[[Sequence[Preference], Sequence[float], Sequence[float]], dict[str, Any]]
"""Held-out pairs with the scores of chosen and rejected to a report: accuracy, intervals, slices, baselines."""

PolicyEvaluator = Callable[[Sequence[Completion], Sequence[Completion]], dict[str, Any]]
"""Completions before and after, prompt by prompt, to a report: win rate, safety, text statistics."""

PoliciesEvaluator = Callable[[Mapping[str, Sequence[Completion]], Mapping[str, Sequence[Completion]]], dict[str, Any]]
"""Completions of several policies, the baseline first, on validation and on test prompts: the first select one, the
second are compared."""


class Estimate(Protocol):
    """A name and one number a row to `name`, their mean, and `name_low` and `name_high`, its 95 % interval.

    `groups`, one label a row, vary together: the steps of one response, for example.
    """

    def __call__(
        self, name: str, values: Sequence[float], groups: Sequence[Hashable] | None = None
    ) -> dict[str, float | None]: ...


def mean_alone(name: str, values: Sequence[float], groups: Sequence[Hashable] | None = None) -> dict[str, float | None]:
    """Where nobody gives an interval."""
    return {name: sum(values) / len(values)}


@dataclass(frozen=True, slots=True)
class StageInputs:
    """Everything a stage reads. `None` where the recipe has no such thing."""

    data: Prepared
    base: str
    """Model to start from: the folder of an earlier stage's artifact, or the recipe's own model."""
    template: Template = "chat"
    """How dialogues become text: chat, plain or tags."""
    reward: str | None = None
    """Folder of the reward model."""
    teacher: str | None = None
    """Folder of the model that is imitated."""
    policies: Mapping[str, str] = field(default_factory=dict)
    """Models to evaluate, by stage id; the first is the one the others are compared with."""
    truth: Scorer | None = None
    """What the simulated humans really want; only worlds have it."""
    mean: Estimate = mean_alone
    """Of any numbers."""
    share: Estimate = mean_alone
    """Of outcomes between 0 and 1: its interval holds where all of them are alike, too."""
    cache: Path | None = None
    """Folder for what may be computed again, such as token rows."""
    evaluate_preferences: PreferenceEvaluator | None = None
    evaluate_policy: PolicyEvaluator | None = None
    evaluate_policies: PoliciesEvaluator | None = None


class Progress(Protocol):
    """A progress display of one stage."""

    def update(self, done: int, note: str = "") -> None: ...


LOWER = 1 / 3
"""Of the learning rate, with every correction."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """What was changed since a stage went wrong and began anew from its last checkpoint (doctor.act: correct)."""

    times: int = 0
    """Corrections so far: each lowers the learning rate for good."""
    here: int = 0
    """Those that the last checkpoint does not know of: β is raised, and what was best so far is forgotten, now."""

    @property
    def rate(self) -> float:
        """Factor of the learning rate."""
        return LOWER**self.times


class RunContext(Protocol):
    """The stage's link to the run: built by the pipeline, or by a test."""

    seed: int
    folder: Path
    """Working folder of the artifact: the stage writes its files here."""
    device: str
    remedy: Remedy
    """Known once `restore` was called."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None: ...

    def progress(self, total: int, description: str) -> AbstractContextManager[Progress]: ...

    def checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Save atomically, replacing the last one; logs of later steps are dropped on restore."""
        ...

    def restore(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint as (step, tensors, state), or None at a fresh start."""
        ...

    def trouble(self) -> TrainingError | None:
        """Why going on is useless, if it is: the stage checkpoints and raises it."""
        ...

    def interrupted(self) -> bool:
        """True once the user asked to stop: a stage with checkpoints saves one and raises `Interrupted`."""
        ...
