"""What the scripts that measure share: running `assay`, where a result comes from, tables and numbers in Markdown."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from assay.pipeline import environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
MEASURED = ("src", "recipes", "bench", "pyproject.toml", "constraints.txt")
"""What a result depends on: a commit is called dirty if any of it differs."""


@dataclass(frozen=True, slots=True)
class Run:
    """One finished `assay run --json`, with time and memory as the kernel saw its process."""

    summary: dict[str, Any]
    wall_s: float
    peak_rss_mb: float

    def metrics(self, stage: str) -> dict[str, Any]:
        return self.summary["stages"][stage]["metrics"]

    def artifact(self, stage: str) -> Path:
        return ROOT / Path(self.summary["dir"]).parent / "artifacts" / self.summary["stages"][stage]["artifact"]

    def read(self, stage: str, file: str) -> dict[str, Any]:
        """A JSON file of a stage's artifact."""
        return json.loads((self.artifact(stage) / file).read_text(encoding="utf-8"))


def command(*words: str) -> list[str]:
    """`assay WORDS` with this interpreter."""
    return [sys.executable, "-c", "from assay.cli.main import app; app()", *words]


def run_assay(*words: str, prefix: Sequence[str] = ()) -> Run:
    """`assay run WORDS --json` from the root of the repository; progress goes to stderr. Exits where it fails."""
    with TemporaryFile("w+", encoding="utf-8") as out:
        began = time.monotonic()
        process = subprocess.Popen([*prefix, *command("run", *words, "--json")], stdout=out, cwd=ROOT)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"assay run {' '.join(words)} ended with exit code {process.returncode}")
        out.seek(0)
        summary = json.load(out)
        # The run starts the kernel's mark again with every stage, so the kernel's figure is that of the last one.
        return Run(summary, wall_s, max(used.ru_maxrss, summary["peak_rss_mb"] * 1024) * 1024 / 1e6)


def fresh_runs_dir(name: str) -> str:
    """A folder under runs/ that no earlier run has used, relative to the root; it stays, to be looked at."""
    return f"runs/{name}/{datetime.now(UTC):%Y%m%d-%H%M%S}"


def two_cores() -> None:
    """Keep this process and all it starts to two cores, which is what the requirements speak of."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])


def origin(made_by: str) -> dict[str, Any]:
    """Where a result comes from: command, commit, date, machine, versions."""
    facts = environment.facts("cpu")
    return {
        "command": made_by,
        "commit": _commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_at_start": round(os.getloadavg()[0], 1),
        **{name: facts[name] for name in ("python", "torch", "transformers")},
    }


def origin_text(facts: Mapping[str, Any]) -> str:
    """The same as the lines under a heading."""
    return (
        f"`{facts['command']}`, commit {facts['commit']}, {facts['date']}.\n"
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB of memory, load {facts['load_at_start']} at "
        f"the start; Python {facts['python']}, torch {facts['torch']}, transformers {facts['transformers']}.\n"
    )


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", *MEASURED) else "")


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(facts: Mapping[str, Any], name: str) -> str:
    """`name` with its bounds: 56.6 % (55.1–58.1)."""
    low, high = facts[f"{name}_low"], facts[f"{name}_high"]
    return percent(facts[name]) + ("" if low is None else f" ({100 * low:.1f}–{100 * high:.1f})")


def change(facts: Mapping[str, Any], name: str) -> str:
    """Before → after, as shares."""
    return f"{percent(facts[f'{name}_before'])} → {percent(facts[f'{name}_after'])}"


def write(path: Path, text: str) -> None:
    """Write whole or not at all, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    print(path)
