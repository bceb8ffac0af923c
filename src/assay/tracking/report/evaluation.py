"""The section of an evaluation: several policies on the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from assay.tracking.report.blocks import Block, Note, Section, Table
from assay.tracking.report.run_files import StageFiles
from assay.tracking.report.shares import ranges, share
from assay.tracking.report.words import count, listing, number, number_range, percent, percent_range

Report = Mapping[str, Any]


def evaluation_section(stage: StageFiles) -> Section:
    """Several policies on the same prompts."""
    report = stage.reports.get("evaluation")
    title = "Evaluation" if stage.id == stage.kind else f"Evaluation: {stage.id}"
    if not report or not report.get("policies"):
        return Section(stage.id, title, "", [Note("Its report is no longer on disk.")])
    policies: Mapping[str, Report] = report["policies"]
    names = list(policies)
    blocks: list[Block] = [Table("All policies", ["", *names], _policy_rows(policies), "Brackets are 95 % intervals.")]
    for name, win in report.get("wins", {}).items():
        rows = [share("All prompts", win, "win_rate", strong=True, note=f"{win['n']:,} prompts")]
        rows += [
            share(kind, part, "win_rate", note=f"{part['n']:,} prompts")
            for kind, part in win.get("kinds", {}).items()
            if kind
        ]
        note = f"{win['wins']:,} wins, {win['ties']:,} ties, {win['losses']:,} losses; a tie counts half."
        blocks.append(ranges(f"{name} against {report['baseline']}, by kind", rows, [(0.5, "no better")], note))
    judge = "the truth" if report.get("judged_by") == "truth" else "the judge model"
    lead = f"{listing(names)} answered the same {count(stage.get('prompts'))} held-out prompts, judged by {judge}."
    if report.get("selected"):
        lead += (
            f" Selected: {report['selected']}, the least trained one within one standard error of the best on the"
            " validation prompts."
        )
    return Section(stage.id, title, lead, blocks)


COMPARED: Sequence[tuple[str, str, bool]] = (
    ("score", "Score", False),
    ("win_rate", "Win rate over the first", True),
    ("harmful_refusal", "Harmful requests refused", True),
    ("over_refusal", "Harmless requests refused", True),
    ("repetition", "Repetition", True),
    ("truncated", "Cut off", True),
    ("prompts_cut", "Prompts that lost their beginning", False),
    ("empty", "Empty answers", True),
    ("broken_before", "Broken as sampled", True),
    ("broken_after", "Broken after the guard", True),
    ("length_tokens", "Tokens in an answer", False),
    ("distinct_1", "Distinct words", True),
    ("distinct_2", "Distinct word pairs", True),
    ("bleu", "BLEU", False),
    ("rougeL", "ROUGE-L", True),
    ("bertscore_f1", "BERTScore F1", False),
)
"""What is compared between policies: name, label, and whether it is a share."""


def _policy_rows(policies: Mapping[str, Report]) -> list[list[str]]:
    return [
        [label, *(_cell(policy, name, share=share) for policy in policies.values())]
        for name, label, share in COMPARED
        if any(policy.get(name) is not None for policy in policies.values())
    ]


def _cell(source: Report, name: str, *, share: bool) -> str:
    value, low, high = (source.get(f"{name}{suffix}") for suffix in ("", "_low", "_high"))
    text = percent(value) if share else number(value)
    bounds = percent_range(low, high) if share else number_range(low, high)
    return f"{text} ({bounds})" if bounds else text
