"""The parts of the page, each built from one stage's files. What a run does not have is left out, with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from assay.tracking.report.attribution import attribution_blocks
from assay.tracking.report.blocks import Block, Chart, Charts, Facts, Note, Section, Table
from assay.tracking.report.charts import reliability_chart
from assay.tracking.report.curve_blocks import curve_blocks
from assay.tracking.report.data import MOST_SLICES, data_section
from assay.tracking.report.evaluation import evaluation_section
from assay.tracking.report.run_files import BASELINES, POLICIES, RunFiles, StageFiles
from assay.tracking.report.samples import samples_block
from assay.tracking.report.shares import ranges, share
from assay.tracking.report.words import (
    SPACE,
    count,
    number,
    percent,
    points,
    signed,
)

Report = Mapping[str, Any]


def policy_section(run: RunFiles, stage: StageFiles) -> Section:
    """A trained policy: the comparison in numbers, its curves, its answers."""
    base = run.input_name(stage, "base", "before")
    curves = curve_blocks(stage)
    blocks: list[Block] = [_before_after(stage, base)]
    blocks += curves or [Note("Its metrics are no longer on disk, so there are no curves.")]
    blocks.append(samples_block(run, stage))
    return Section(stage.id, f"Policy: {stage.id}", _how(run, stage, base), blocks)


def _how(run: RunFiles, stage: StageFiles, base: str) -> str:
    """One sentence about how this policy came to be."""
    reward = run.input_name(stage, "reward", "a reward model from elsewhere")
    n, episodes = count(stage.get("n")), count(stage.get("episodes"))
    if stage.kind == "preference":
        examples = count(stage.get("examples"))
        return f"{examples} comparisons of answers taught {base} directly, without a reward to maximise."
    if stage.kind == "distill":
        teacher, texts = run.input_name(stage, "teacher", "a teacher from elsewhere"), count(stage.get("sequences"))
        return f"{base} learned the distribution of every next token of {teacher} on {texts} texts."
    if stage.kind == "bestof" and stage.get("loss_last") is None:
        return f"The best of {n} answers of {base} to every prompt, chosen by {reward}. Nothing was trained."
    if stage.kind == "bestof":
        return f"{base} imitated the best of its own {n} answers to each prompt, {episodes} in all, scored by {reward}."
    method = str(stage.manifest.get("config", {}).get("method", "ppo"))
    return f"{episodes} sampled answers of {base} were scored by {reward} and reinforced by {method.upper()}."


def _before_after(stage: StageFiles, base: str) -> Block:
    names = [
        ("truth", "True worth of an answer", number),
        ("judge", "Judge’s score", number),
        ("reward", "Reward model’s score", number),
        ("harmful_refusal", "Harmful requests refused", percent),
        ("over_refusal", "Harmless requests refused", percent),
        ("repetition", "Repetition (four-word runs seen before)", percent),
        ("distinct_2", "Distinct word pairs", percent),
        ("length_tokens", "Tokens in an answer", number),
        ("length_words", "Words in an answer", number),
        ("truncated", "Answers cut off", percent),
        ("entropy", "Entropy per token (nats)", number),
        ("teacher_kl", "KL from the teacher (nats)", number),
    ]
    rows = []
    for name, label, form in names:
        before, after = stage.get(f"{name}_before"), stage.get(f"{name}_after")
        if before is not None and after is not None:
            rows.append([label, form(before), form(after), _changed(stage, name, after - before, form is percent)])
    if not rows:
        return Note("The stage reported no comparison with the model it started from.")
    notes = []
    if any("(" in row[-1] for row in rows):
        notes.append("Brackets are 95 % intervals of the change, prompt by prompt.")
    if cut := stage.get("prompts_cut"):
        notes.append(f"{count(cut)} of the prompts did not fit beside an answer and lost their beginning.")
    return Table("Before and after, on held-out prompts", ["", base, stage.id, "change"], rows, " ".join(notes))


def _changed(stage: StageFiles, name: str, change: float, share: bool) -> str:
    """A difference with its sign, and its paired interval where the stage measured one."""
    measured = "gain" if name in ("truth", "judge") else f"{name}_change"
    low, high = stage.get(f"{measured}_low"), stage.get(f"{measured}_high")
    form, unit = (points, f"{SPACE}points") if share else (number, "")
    interval = "" if low is None or high is None else f" ({signed(form(low))} to {signed(form(high))})"
    return f"{signed(form(change))}{unit}{interval}"


def reward_section(stage: StageFiles) -> Section:
    """A reward model: accuracy beside what it must beat, calibration, slices, curves."""
    report = stage.reports.get("accuracy", {})
    blocks: list[Block] = [_accuracies(stage, report)]
    measured = report.get("reliability")
    if isinstance(measured, Mapping) and measured.get("bins"):
        blocks.append(Charts("Does its confidence mean what it says?", [_reliability(stage, measured)]))
    blocks += [*_slices(report), *attribution_blocks(stage), *curve_blocks(stage)]
    pairs = f"Trained on {count(stage.get('pairs'))} pairs" if stage.get("pairs") else "A reward model"
    lead = f"{pairs}, measured on {count(stage.get('n'))} held-out pairs of other prompts."
    return Section(stage.id, f"Reward model: {stage.id}", lead, blocks)


def _accuracies(stage: StageFiles, report: Report) -> Block:
    own = [("This reward model", "accuracy", True)]
    own += [
        ("… against the truth", "truth_accuracy", False),
        ("… where the truth is clear", "truth_accuracy_clear", False),
    ]
    rows = [
        share(label, source, name, strong=strong)
        for label, name, strong in own
        if (source := report if name in report else stage.metrics).get(name) is not None
    ]
    baselines = report.get("baselines", {})
    rows += [
        share(words.capitalize(), baselines[name], "accuracy") for name, words in BASELINES.items() if name in baselines
    ]
    if not rows:
        return Note("It was not measured on held-out pairs.")
    marks = [(0.5, "chance")]
    if (ceiling := report.get("ceiling")) is not None:
        marks.append((ceiling, f"ceiling {percent(ceiling)}"))
    said = ["Bars are 95 % intervals; a tie counts half."]
    if ceiling is not None:
        agreement = percent(report.get("agreement"))
        said.append(
            f"Annotators agree with each other in {agreement} of pairs, "
            "so nobody can match one of them more often than the ceiling."
        )
    if stage.get("ties"):
        said.append(f"{count(stage.get('ties'))} of the pairs tie.")
    return ranges("Share of held-out pairs ordered as people did", rows, marks, " ".join(said))


def _reliability(stage: StageFiles, measured: Report) -> Chart:
    ece, floor = measured["ece"], measured.get("ece_floor")
    said = f"Expected calibration error {percent(ece)}"
    said += f"; perfect confidence would show {percent(floor)} by chance alone." if floor is not None else "."
    if (raw := stage.get("ece_uncalibrated")) is not None:
        said += f" Before calibration by a temperature of {number(stage.get('temperature'))} it was {percent(raw)}."
    note = (
        "Across: how sure it is of a pair; up: how often it is right. "
        f"On the dashed line, both agree; a larger dot is more pairs. {said}"
    )
    return Chart("Sure and right", reliability_chart(measured["bins"]), note)


def _slices(report: Report) -> list[Block]:
    blocks: list[Block] = []
    for name, heading in (("kind", "By kind of request"), ("source", "By source")):
        parts = report.get("slices", {}).get(name, {})
        if len(parts) < 2:
            continue
        largest = sorted(parts.items(), key=lambda part: -part[1]["n"])[:MOST_SLICES]
        rows = [share(label, part, "accuracy", note=f"{part['n']:,} pairs") for label, part in sorted(largest)]
        left = len(parts) - len(largest)
        blocks.append(ranges(heading, rows, [(0.5, "chance")], f"{left:,} smaller ones are not shown." if left else ""))
    taste = report.get("length")
    if taste and taste.get("labels_prefer_longer") is not None:
        rows = [
            share("People", taste, "labels_prefer_longer"),
            share("This reward model", taste, "model_prefers_longer", strong=True),
        ]
        note = (
            f"Of {taste['n']:,} pairs of unequal length. "
            "A model that likes length more than people do can be fooled by padding."
        )
        blocks.append(ranges("How often the longer answer is preferred", rows, [(0.5, "indifferent")], note))
    return blocks


def learning_section(stage: StageFiles) -> Section:
    """Pretraining or supervised fine-tuning."""
    what = {"pretrain": "Pretraining", "sft": "Supervised fine-tuning"}[stage.kind]
    facts = [
        ("rows", "Rows learned from", count),
        ("documents", "Documents", count),
        ("dropped", "Rows that did not fit the context", count),
        ("steps", "Optimizer steps", count),
        ("loss_first", "Loss of the first step", number),
        ("loss_last", "Loss of the last step", number),
        ("validation_loss", "Held-out loss (nats per token)", number),
        ("perplexity", "Held-out perplexity", number),
        ("parameters", "Parameters", count),
        ("tokens", "Tokens", count),
    ]
    items = [(label, form(value)) for name, label, form in facts if (value := stage.get(name)) is not None]
    blocks: list[Block] = [Facts("", items)] if items else []
    blocks += curve_blocks(stage) or [Note("Its metrics are no longer on disk, so there are no curves.")]
    return Section(stage.id, f"{what}: {stage.id}", "", blocks)


SECTIONS: Sequence[str] = (*POLICIES, "evaluate", "reward", "sft", "pretrain", "data")
"""Kinds of stages in the order a reader wants them: results first."""


def stage_section(run: RunFiles, stage: StageFiles) -> Section:
    """The section of one stage."""
    if stage.kind in POLICIES:
        return policy_section(run, stage)
    if stage.kind == "reward":
        return reward_section(stage)
    if stage.kind == "evaluate":
        return evaluation_section(stage)
    return data_section(stage) if stage.kind == "data" else learning_section(stage)
