"""The `assay` command.

Nothing heavy is imported here: `assay --help` answers at once, and torch is loaded by the stage that needs it.
Exit codes: 0 done, 1 the run failed, 2 the request or a configuration is wrong, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from assay import __version__
from assay.cli import config, data, doctor, lineage, report, run
from assay.cli.output import DEBUG, fail


class Assay(TyperGroup):
    """The root command: every error becomes `error:` and `hint:`, and --debug may stand anywhere."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        debug = DEBUG in words
        try:
            code = super().main(
                [word for word in words if word != DEBUG],
                prog_name or "assay",
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except (Exception, KeyboardInterrupt) as error:
            fail(error, debug=debug)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


app = typer.Typer(
    name="assay",
    cls=Assay,
    no_args_is_help=True,
    add_completion=False,
    help="Align a language model with human feedback, and prove that it worked. Start with [bold]assay run[/bold].",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"assay {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, DEBUG, help="Print the traceback of an error; may stand anywhere."),
) -> None:
    """Options of every command; both are handled before this function is called."""


app.command("run")(run.run)
app.add_typer(data.app, name="data")
app.command("doctor")(doctor.doctor)
app.command("report")(report.report)
app.command("lineage")(lineage.lineage)
app.add_typer(config.app, name="config")
