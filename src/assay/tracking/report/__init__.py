"""report.html: one self-contained file that a person would show to a colleague. Diagnosis first, lineage last.

    summary.json + recipe.yaml + artifacts + the doctor's word  →  Page (blocks.py)  →  report.html.j2  →  report.html

It reads files on disk and nothing else; no script runs in it and nothing is fetched (its CSP forbids both).
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from assay.tracking.progress import duration
from assay.tracking.report.blocks import Level, Page, Section, Tile
from assay.tracking.report.diagnosis import Facts, diagnosis
from assay.tracking.report.frontier import frontier_section
from assay.tracking.report.headline import headline
from assay.tracking.report.origin import boxes, origin_section
from assay.tracking.report.picture import pipeline_picture
from assay.tracking.report.run_files import POLICIES, RunFiles, StageFiles, read_run
from assay.tracking.report.sections import SECTIONS, stage_section
from assay.tracking.report.words import moment, number, percent, percent_range

TEMPLATE = "report.html.j2"


def write_report(run_dir: Path, examined: Facts) -> Path:
    """Write report.html into a run's folder and return its path; the old one stays until the new one is whole.

    `examined`: what the doctor says, as diagnosis.py takes it.
    """
    path = run_dir / "report.html"
    temporary = path.with_name(".report.html.tmp")
    temporary.write_text(render(page(read_run(run_dir), examined)), encoding="utf-8")
    os.replace(temporary, path)
    return path


def page(run: RunFiles, examined: Facts) -> Page:
    """Everything the report shows."""
    drawn = boxes(run)
    return Page(
        title=run.name,
        byline=_byline(run),
        headline=headline(run),
        diagnosis=diagnosis(examined),
        tiles=tiles(run),
        pipeline_wide=pipeline_picture(drawn, tall=False),
        pipeline_tall=pipeline_picture(drawn, tall=True),
        sections=[*_sections(run), origin_section(run)],
    )


def render(page: Page) -> str:
    """The page as HTML. Everything that is not our own markup is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("assay.tracking.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(page=page)


def tiles(run: RunFiles) -> list[Tile]:
    """The numbers to remember: of the last policy, of every reward model, of the run."""
    made = [tile for policy in run.of_kind(*POLICIES)[-1:] for tile in _policy_tiles(run, policy)]
    for reward in run.of_kind("reward"):
        if (accuracy := reward.get("accuracy")) is not None:
            note = percent_range(reward.get("accuracy_low"), reward.get("accuracy_high"))
            label = f"agrees with people ({reward.id})"
            made.append(Tile(label, percent(accuracy), note, _level(reward, "accuracy", 0.5)))
    for taught in run.of_kind("sft"):
        if (loss := taught.get("validation_loss")) is not None:
            made.append(Tile(f"held-out loss ({taught.id})", number(loss), "nats per token"))
    memory = run.summary.get("peak_rss_mb")
    note = f"{memory / 1024:.1f} GB of memory at most" if memory else ""
    return [*made, Tile("for the whole run", duration(_worked(run)), note)]


def _level(stage: StageFiles, name: str, middle: float, *, up: bool = True) -> Level:
    """Good, or bad, where the whole interval is on one side of the middle; `up`: the upper side is the good one."""
    low, high = stage.get(f"{name}_low"), stage.get(f"{name}_high")
    if low is None or high is None or low <= middle <= high:
        return "info"
    return "good" if (low > middle) is up else "bad"


def _policy_tiles(run: RunFiles, stage: StageFiles) -> list[Tile]:
    made = []
    truths = [data.reports.get("report", {}).get("truth", {}) for data in run.of_kind("data")]
    best = truths[0].get("best_mean") if truths else None
    if (rate := stage.get("win_rate")) is not None:
        note = percent_range(stage.get("win_rate_low"), stage.get("win_rate_high"))
        made.append(Tile("of answers beat the start’s", percent(rate), note, _level(stage, "win_rate", 0.5)))
    for name, change, label, form in (
        ("truth", "gain", "true worth of an answer", number),
        ("harmful_refusal", "harmful_refusal_change", "of harmful requests refused", percent),
        ("over_refusal", "over_refusal_change", "of harmless requests refused", percent),
    ):
        before, after = stage.get(f"{name}_before"), stage.get(f"{name}_after")
        if before is not None and after is not None:
            note = f"was {form(before)}" + (f", at best {form(best)}" if name == "truth" and best is not None else "")
            made.append(Tile(label, form(after), note, _level(stage, change, 0.0, up=name != "over_refusal")))
    if (kl := stage.get("kl")) is not None:
        target = stage.get("kl_target")
        note = f"target {number(target)}" if target else "no target"
        made.append(Tile("nats from the start (KL)", number(kl), note))
    return made


def _sections(run: RunFiles) -> list[Section]:
    sections = [stage_section(run, stage) for kind in SECTIONS for stage in run.of_kind(kind)]
    beside = frontier_section(run)
    return [beside, *sections] if beside else sections


def _worked(run: RunFiles) -> float:
    """Seconds of work in all stages: the summary's own time leaves out those that an earlier run had made."""
    walls = [stage.manifest["wall_s"] for stage in run.stages.values() if stage.manifest.get("wall_s") is not None]
    return sum(walls) if walls else run.summary.get("wall_s", 0.0)


def _byline(run: RunFiles) -> str:
    finished = max((stage.manifest.get("finished", "") for stage in run.stages.values()), default="")
    when = f"Finished {moment(finished)}. " if finished else ""
    return f"{when}{len(run.stages)} stages."
