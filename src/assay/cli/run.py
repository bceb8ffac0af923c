"""`assay run`: a recipe from data to report."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import typer

from assay.cli.output import emit, number, say, stdout_for_results, table
from assay.errors import Interrupted, UsageError

HEADLINES = {
    "data": ("demonstrations_train", "preferences_train", "prompts_train", "text"),
    "pretrain": ("validation_loss", "parameters"),
    "sft": ("loss_first", "loss_last", "validation_loss"),
    "reward": ("accuracy", "accuracy_low", "accuracy_high", "truth_accuracy", "n"),
    "ppo": ("win_rate", "win_rate_low", "win_rate_high", "kl", "truth_before", "truth_after"),
    "group": ("win_rate", "win_rate_low", "win_rate_high", "kl", "truth_before", "truth_after"),
    "preference": ("win_rate", "win_rate_low", "win_rate_high", "kl", "truth_before", "truth_after"),
    "bestof": ("win_rate", "win_rate_low", "win_rate_high", "kl", "truth_before", "truth_after"),
    "distill": ("win_rate", "win_rate_low", "win_rate_high", "teacher_kl_before", "teacher_kl_after"),
    "evaluate": ("selected", "prompts"),
}


def run(
    words: list[str] = typer.Argument(
        None,
        metavar="[RECIPE] [KEY=VALUE]...",
        help="A recipe's path or name (`assay config ls`), then settings: seed=1 ppo.kl_target=3 data.path=…",
        show_default=False,
    ),
    only: str = typer.Option(None, metavar="STAGE", help="Run this stage, and what it needs that does not exist."),
    start: str = typer.Option(None, "--from", metavar="STAGE", help="Make this stage and all that read it anew."),
    despite: list[str] = typer.Option(
        [], metavar="MODE", help="Run although the doctor finds this; may be given several times (docs/doctor/)."
    ),
    dry_run: bool = typer.Option(False, help="Print the plan: data, steps, memory, time. Write nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout, nothing else."),
) -> None:
    """Run a recipe: what exists already is kept, what was interrupted goes on. Without RECIPE: the sandbox.

    Exit code 0 once all is made; the last line says what the doctor thinks of it, and `assay doctor RUN` exits with 1
    where that is red.
    """
    from assay.pipeline import runner
    from assay.pipeline.recipe import load_recipe

    if only and start:
        raise UsageError("--only and --from exclude each other", hint="give one of them")
    named = load_recipe(*split_words(words or []))
    with stdout_for_results():
        if dry_run:  # nothing to save: Ctrl-C ends it at once
            from assay.pipeline.plan import plan

            result = plan(named, runner.Request(only=only, start=start, say=say))
        else:
            try:
                with runner.stop_on_signals(say) as stop:
                    request = runner.Request(only=only, start=start, stop=stop, say=say, despite=despite)
                    result = runner.run(named, request)
            except Interrupted as stopped:
                again = shlex.join(["assay", "run", *(words or []), *(["--only", only] if only else [])])
                raise Interrupted(stopped.what, hint=f"resume with: {again}") from stopped
    if as_json:
        emit(result if dry_run else {**result, "before": found_before(Path(result["dir"]))})
    elif dry_run:
        show_plan(result)
    else:
        show_summary(result)


def found_before(run_dir: Path) -> Any:
    """What the doctor found before this run, or an earlier start of it, computed anything."""
    from assay.doctor.cure import BEFORE

    file = run_dir / BEFORE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """The recipe, if the first word is none of the settings, and the settings."""
    recipe = words[0] if words and "=" not in words[0] else None
    settings = words[1:] if recipe else words
    if odd := [word for word in settings if "=" not in word]:
        raise UsageError(f"{odd[0]!r} is not key=value", hint="give one recipe first, then settings like seed=1")
    return recipe, settings


def show_summary(summary: dict[str, Any]) -> None:
    """The headline numbers of each stage, and where the report is."""
    rows = []
    for name, stage in summary["stages"].items():
        headline = [k for k in HEADLINES.get(stage["kind"], ()) if stage["metrics"].get(k)]
        rows.append([name, stage["artifact"], ", ".join(f"{k} {number(stage['metrics'][k])}" for k in headline)])
    table(["stage", "artifact", "result"], rows)
    print(
        f"\n{summary['wall_s']:.0f} s, at most {summary['peak_rss_mb']:,.0f} MB. Report: {summary['dir']}/report.html"
    )


def show_plan(plan: dict[str, Any]) -> None:
    """The plan as a table."""
    data = {key: value for key, value in plan["data"].items() if isinstance(value, int) and value}
    print(f"run {plan['dir']}\ndata: {', '.join(f'{key} {number(value)}' for key, value in data.items())}\n")
    columns = ["id", "kind", "artifact", "state", "steps", "parameters", "trained", "memory_mb", "step_s", "wall_s"]
    table([c.replace("_", " ") for c in columns], [[stage[column] for column in columns] for stage in plan["stages"]])
    print(
        f"\nabout {number(plan['wall_s'])} s for what is not there yet, "
        f"{number(plan['memory_mb'])} MB of memory at most; nothing was written"
    )
