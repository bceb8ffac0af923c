"""Two policies on the same prompts, from every side: who wins, what is refused, how the text changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from assay.data.ngrams import repetition
from assay.errors import DataError
from assay.evaluation.safety import is_refusal, refusal_report
from assay.evaluation.text import References, text_report, words
from assay.evaluation.winrate import win_rate
from assay.statistics import Numbers, paired_bootstrap, same_length
from assay.types import Completion

Pair = tuple[Numbers, Numbers]
"""One number per completion: before, after."""

MEASURES: dict[str, Callable[[Completion], float]] = {
    "repetition": lambda completion: repetition(words(completion.response)),
    "length_words": lambda completion: float(len(words(completion.response))),
    "length_tokens": lambda completion: float(completion.tokens),
    "truncated": lambda completion: float(completion.finish == "length"),
}
"""What is measured on every completion, so that its change has a paired interval."""


def policy_report(
    before: Sequence[Completion],
    after: Sequence[Completion],
    *,
    seed: int,
    scores: Pair | None = None,
    harmful: Sequence[bool] | None = None,
    refused: tuple[Sequence[bool], Sequence[bool]] | None = None,
    references: References | None = None,
) -> dict[str, Any]:
    """Compare what two policies answered to the same prompts, row by row.

    `scores`: of the truth or a judge. `harmful`: is the request one to refuse; `refused`: were the answers
    refusals, by the truth of a world (`is_refusal` reads the text where this is not given).
    Keys: n; those of `win_rate` if scores were given; for each name of `MEASURES`, and if `harmful` was given of
    harmful_refusal and over_refusal: name_before, name_after, name_change, name_change_low, name_change_high
    (paired); distinct_2_before, distinct_2_after; text_before, text_after: all of `text_report`; safety_before,
    safety_after: all of `refusal_report`. Rows of one prompt are resampled together.
    """
    same_length(before=before, after=after)
    strangers = [row for row, (a, b) in enumerate(zip(before, after, strict=True)) if a.prompt.id != b.prompt.id]
    if strangers:
        raise DataError(
            f"{len(strangers)} of {len(before)} rows answer different prompts (row {strangers[0]} first)",
            hint="list both policies' completions in the order of the prompts",
        )
    groups = [completion.prompt.id for completion in before]
    texts = [text_report(side, seed=seed, references=references) for side in (before, after)]
    report: dict[str, Any] = {"n": len(before), "distinct_2_before": texts[0]["distinct_2"]}
    report |= {"distinct_2_after": texts[1]["distinct_2"], "text_before": texts[0], "text_after": texts[1]}
    for name, measure in MEASURES.items():
        report |= _change(name, [*map(measure, before)], [*map(measure, after)], groups, seed)
    if scores is not None:
        kinds = [completion.prompt.kind for completion in before]
        report |= win_rate(*scores, seed=seed, groups=groups, kinds=kinds if any(kinds) else None)
    if harmful is not None:
        if refused is None:
            refused = _read_refusals(before), _read_refusals(after)
        report |= _safety(harmful, refused[0], refused[1], groups, seed)
    return report


def _read_refusals(completions: Sequence[Completion]) -> list[bool]:
    return [is_refusal(completion.response) for completion in completions]


def _change(name: str, before: Numbers, after: Numbers, groups: Sequence[Hashable], seed: int) -> dict[str, Any]:
    return {
        f"{name}_before": float(np.mean(before)),
        f"{name}_after": float(np.mean(after)),
        **paired_bootstrap(before, after, seed=seed, groups=groups).named(f"{name}_change"),
    }


def _safety(
    harmful: Sequence[bool], before: Sequence[bool], after: Sequence[bool], groups: Sequence[Hashable], seed: int
) -> dict[str, Any]:
    """Refusals of each policy, and how they changed on the same requests; `None` where there is no such request."""
    report: dict[str, Any] = {
        "safety_before": refusal_report(harmful, before),
        "safety_after": refusal_report(harmful, after),
    }
    for name, wanted in (("harmful_refusal", True), ("over_refusal", False)):
        rows = [row for row, flag in enumerate(harmful) if bool(flag) is wanted]
        if rows:
            first, second = ([float(side[row]) for row in rows] for side in (before, after))
            report |= _change(name, first, second, [groups[row] for row in rows], seed)
        else:
            report |= dict.fromkeys(
                f"{name}_{part}" for part in ("before", "after", "change", "change_low", "change_high")
            )
    return report
