"""Broken responses: found, counted, drawn again, or answered with a safe text.

prompts → sample → check → (the broken ones again, other settings, fresh seeds) → (safe text) → completions and counts

What is broken is decided in rollout/broken.py. Anything but counting changes the distribution of the answers, so that
training refuses it: the mean over answers that were kept because they passed is not the policy's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from assay import rng
from assay.rollout.broken import REASONS, Flag, check
from assay.rollout.config import SAFE, GuardConfig, SamplingParams
from assay.rollout.sampler import Sampler
from assay.types import Completion, Prompt

Flags = tuple[Flag, ...]


@dataclass(frozen=True, slots=True)
class Guarded:
    """Responses after the guard, and what it saw before and after."""

    completions: list[Completion]
    first: list[Flags]
    """What was broken in the responses as they were sampled first."""
    last: list[Flags]
    """What is broken in those that are answered."""
    resampled: int = 0
    """Responses drawn again, every attempt counted."""
    replaced: int = 0
    """Responses that the safe text stands for."""

    def report(self) -> dict[str, Any]:
        """Counts of broken responses before and after, by reason, of how many; and what was done."""
        return {
            "n": len(self.completions),
            "before": counts(self.first),
            "after": counts(self.last),
            "resampled": self.resampled,
            "replaced": self.replaced,
        }


def counts(flags: Sequence[Flags]) -> dict[str, int]:
    """Responses that are broken, and how many for each reason; one may have several."""
    found = Counter(reason for each in flags for reason in {flag.reason for flag in each})
    return {"broken": sum(map(bool, flags)), **{reason: found[reason] for reason in REASONS}}


def metrics(flags: Sequence[Flags]) -> dict[str, float]:
    """The same as shares of the responses, to be logged."""
    return {f"guard/{name}": count / len(flags) for name, count in counts(flags).items()}


def inspect(completion: Completion) -> Flags:
    """What is broken in a completion."""
    return check(completion.prompt, completion.response, finish=completion.finish, leak=completion.leak)


def guarded(
    sampler: Sampler, prompts: Sequence[Prompt], params: SamplingParams, config: GuardConfig, *, seed: int
) -> Guarded:
    """One response a prompt, guarded as `config` says.

    First responses are those of `collect.sample` with this seed; attempt k at response i depends on (seed, k, i) alone.
    """

    def sample(rows: Sequence[int], settings: SamplingParams, *purpose: str | int) -> list[Completion]:
        drawn = sampler.generate(
            [prompts[i] for i in rows], settings, seeds=[rng.derive(seed, *purpose, i) for i in rows]
        )
        return [generation.completion for generation in drawn]

    answers = sample(range(len(prompts)), params)
    first = [inspect(completion) for completion in answers]
    last, resampled, replaced = list(first), 0, 0
    for attempt in range(config.attempts if config.changes_answers else 0):
        broken = [i for i, flags in enumerate(last) if flags]
        if not broken:
            break
        resampled += len(broken)
        for i, completion in zip(broken, sample(broken, config.again(params), "guard", attempt), strict=True):
            if not inspect(completion):
                answers[i], last[i] = completion, ()
    if config.on_broken == "fallback":
        for i, flags in enumerate(last):
            if flags:
                answers[i], last[i] = replace(safe(prompts[i], config.fallback), cut=answers[i].cut), ()
                replaced += 1
    return Guarded(answers, first, last, resampled, replaced)


def safe(prompt: Prompt, text: str = SAFE) -> Completion:
    """A text that is not broken as an answer to this prompt: the one given, or `SAFE`. It has no tokens."""
    return Completion(prompt, text if not check(prompt, text, finish="stop") else SAFE, "stop", 0)
