"""Where a result comes from: the pipeline's picture, lineage, environment, settings, and how to get it again."""

from __future__ import annotations

from assay.tracking.progress import duration
from assay.tracking.report.blocks import Block, Code, Facts, Note, Section, Table
from assay.tracking.report.picture import Box
from assay.tracking.report.run_files import POLICIES, RunFiles, StageFiles
from assay.tracking.report.words import count, moment, number, percent


def boxes(run: RunFiles) -> list[Box]:
    """Stages, and the models from outside that they start from, in the order they ran."""
    names = {stage.artifact: stage.id for stage in run.stages.values()}
    found: list[Box] = []
    for stage in run.stages.values():
        needs = []
        for role, ids in stage.inputs.items():
            for artifact in ids:
                name = names.get(artifact)
                if name is None:
                    name = f"{role} model" if artifact.startswith("model:") else artifact
                    if name not in {box.name for box in found}:
                        found.append(Box(name, ("from outside", artifact.removeprefix("model:")[:12]), outside=True))
                needs.append(name)
        found.append(Box(stage.id, _box_lines(stage), tuple(dict.fromkeys(needs)), plain=stage.kind == "data"))
    return found


def _box_lines(stage: StageFiles) -> tuple[str, ...]:
    wall = stage.manifest.get("wall_s")
    fact = _key_number(stage)
    said = [stage.kind] if stage.kind != stage.id else []
    said += ["under 1 s" if wall < 0.5 else duration(wall)] if wall is not None else []
    return tuple(line for line in (fact, " · ".join(said), stage.artifact.rsplit("-", 1)[-1]) if line)


def _key_number(stage: StageFiles) -> str:
    """The number that says most about a stage."""
    shown = {
        "pretrain": ("validation_loss", "loss {}", number),
        "sft": ("validation_loss", "loss {}", number),
        "reward": ("accuracy", "{} right", percent),
        **dict.fromkeys(POLICIES, ("win_rate", "wins {}", percent)),
        "evaluate": ("prompts", "{} prompts", count),
    }
    if stage.kind == "data":
        splits = stage.reports.get("report", {}).get("counts", {}).get("preferences", {})
        return f"{sum(splits.values()):,} pairs" if splits and any(splits.values()) else ""
    name, words, form = shown.get(stage.kind, ("", "", number))
    value = stage.get(name)
    return "" if value is None else words.format(form(value))


def origin_section(run: RunFiles) -> Section:
    """The end of the page."""
    manifests = [stage.manifest for stage in run.stages.values() if stage.manifest]
    code = manifests[-1].get("code", {}) if manifests else {}
    blocks: list[Block] = [_command(run, code), _lineage(run)]
    if gone := [stage.id for stage in run.stages.values() if stage.folder is None]:
        blocks.append(Note(f"Artifacts no longer on disk: {', '.join(gone)}. Only their final numbers are shown."))
    if manifests and (environment := manifests[-1].get("environment")):
        items = [(name.replace("_", " "), str(value)) for name, value in environment.items() if value is not None]
        versions = [(f"assay {name}", str(value)) for name, value in code.items() if value]
        blocks.append(Facts("Environment", items + versions))
    if run.recipe:
        blocks.append(Code("The recipe, every setting resolved", run.recipe, folded=True))
    else:
        blocks.append(Note("There is no recipe.yaml beside the summary, so the settings cannot be shown."))
    return Section("origin", "Where this comes from", "", blocks)


def _command(run: RunFiles, code: dict[str, str]) -> Code:
    commit = code.get("commit")
    at = f"  # with the code at commit {commit}" if commit else ""
    return Code("To get this again", f"assay run {run.summary.get('dir', run.folder)}/recipe.yaml{at}")


def _lineage(run: RunFiles) -> Table:
    names = {stage.artifact: stage.id for stage in run.stages.values()}
    rows = []
    for stage in run.stages.values():
        read = {role: " and ".join(names.get(one, one) for one in ids) for role, ids in stage.inputs.items()}
        made_from = [name if name == role else f"{role}: {name}" for role, name in read.items()]
        finished, seed = stage.manifest.get("finished"), stage.manifest.get("seed")
        rows.append(
            [
                stage.id,
                stage.artifact,
                ", ".join(made_from) or "–",
                "–" if seed is None else str(seed),
                moment(finished) if finished else "–",
            ]
        )
    return Table("Lineage", ["stage", "artifact", "made from", "seed", "finished"], rows, wordy=True)
