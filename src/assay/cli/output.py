"""Results on stdout, everything else on stderr, errors in two lines."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from assay.errors import AssayError

DEBUG = "--debug"
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory"),
    "could not create a memory",
)
"""What CUDA, the CPU's allocators, the system and oneDNN say."""
LESS_MEMORY = (
    "the result stays the same with a smaller micro_batch_size, a smaller decode_batch (evaluate: batch_size) or "
    "gradient_checkpointing=true; lora and a smaller max_length take less, too, and change it"
)


def say(line: str) -> None:
    """A line for the person who watches, on stderr."""
    print(line, file=sys.stderr, flush=True)


def emit(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False), flush=True)


def table(columns: list[str], rows: list[list[Any]]) -> None:
    """A table on stdout, aligned; plain when stdout is no terminal. Numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else 200
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numbers = all(isinstance(row[index], int | float | None) for row in rows)
        drawn.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*map(number, row))
    Console(width=width, highlight=False, markup=False).print(drawn)


def number(value: Any) -> str:
    """A cell: 1,234,567 · 0.1235 · – for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


@contextlib.contextmanager
def stdout_for_results() -> Iterator[None]:
    """Inside, whatever libraries print to stdout goes to stderr, so that stdout holds the result and nothing else.

    What they say about their own future is not for the user.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|datasets|torch)\.")
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def fail(error: BaseException, *, debug: bool) -> NoReturn:
    """Print an error as `error:` and `hint:`, with its traceback under --debug, and exit with its code."""
    if debug:
        import traceback

        traceback.print_exception(error)
    what, hint, code = explain(error)
    say(f"error: {what}")
    if hint:
        say(f"hint: {hint}")
    sys.exit(code)


def explain(error: BaseException) -> tuple[str, str, int]:
    """(what, hint, exit code) of any exception."""
    if isinstance(error, AssayError):
        return error.what, error.hint, error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped at once; the last checkpoint stays", "the same command resumes from it", 130
    if hasattr(error, "format_message"):  # a usage error of the command-line library, which typer does not export
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "assay"
        return error.format_message().rstrip("."), f"{command} --help", 2  # pyright: ignore
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
        return f"out of memory: {error}", LESS_MEMORY, 1
    fault = f"{type(error).__name__}: {error}"
    return f"a fault in assay itself: {fault}", f"please report it with what {DEBUG} prints", 1
