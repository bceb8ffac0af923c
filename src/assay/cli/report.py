"""`assay report`: write a run's report.html again, from the files on disk."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import typer

from assay.cli.output import emit


def report(
    run: Path = typer.Argument(metavar="RUN", help="A run's name or folder."),
    runs_dir: Path = typer.Option(Path("runs"), help="Where runs and artifacts are."),
    show: bool = typer.Option(False, "--open", help="Show it in the web browser."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object on stdout."),
) -> None:
    """Write RUN/report.html: diagnosis, curves, answers and lineage in one file that can be shown around."""
    from assay.pipeline.runner import write_report

    folder = run if run.is_dir() else runs_dir / run
    path = write_report(folder)
    if as_json:
        emit({"run": folder.name, "report": str(path)})
    else:
        print(path)
    if show:
        webbrowser.open(path.absolute().as_uri())
