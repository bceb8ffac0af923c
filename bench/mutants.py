"""Puts one mistake at a time into a copy of the package and sees whether the tests notice.

    make mutants       →  docs/results/mutants.md, exit code 1 where a mistake survives

bench/mutants.yaml lists the mistakes: by file, what is wrong, the text it replaces (once in that file) and the text it
puts there. The working tree is never touched. What has been judged is kept in runs/mutants.json, so that a run that was
stopped goes on, and one after a change of a file judges again only what reads it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import yaml
from bench import common

LIST = common.ROOT / "bench" / "mutants.yaml"
MEMORY = common.ROOT / "runs" / "mutants.json"
PACKAGE = common.ROOT / "src" / "assay"
TIMEOUT_S = 1800
"""Beyond it nothing is judged: a busy machine looks like a mistake that makes the tests run for ever."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake: in `file`, `old` becomes `new`; `tests` are asked in this order until one fails."""

    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]

    def mistaken(self, source: str) -> str:
        """The file with the mistake in it; a text that is not there exactly once is refused."""
        if source.count(self.old) != 1:
            raise SystemExit(
                f"error: {self.file}: {source.count(self.old)} places read {self.old!r} ({self.what})\n"
                f"hint: the source has moved on; mend this entry of {LIST.relative_to(common.ROOT)}"
            )
        return source.replace(self.old, self.new)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`caught` is the first test that failed; None where every test passed."""

    caught: str | None
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="", help="part of a file's name or of what a mistake is")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()

    facts = common.origin("make mutants")
    mutants = [mutant for mutant in read(LIST) if asked.only in f"{mutant.file} {mutant.what}"]
    for mutant in mutants:
        source = (PACKAGE / mutant.file).read_text(encoding="utf-8")
        compile(
            mutant.mistaken(source), mutant.file, "exec"
        )  # before anything runs: every patch applies, and is Python
    verdicts = judge(mutants, asked.processes)
    survivors = [mutant for mutant in mutants if verdicts[mutant].caught is None]
    if not asked.only:
        common.write(asked.results / "mutants.md", page(facts, verdicts))
    print(f"{len(mutants)} mistakes, {len(survivors)} not noticed")
    for mutant in survivors:
        print(f"  {mutant.file}: {mutant.what}")
    sys.exit(bool(survivors))


def read(path: Path) -> Iterator[Mutant]:
    """The list, file by file."""
    for file, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for mistake in entry["mistakes"]:
            tests = mistake.get("tests", entry["tests"])
            yield Mutant(file, mistake["what"], mistake["old"], mistake["new"], tuple(tests))


def judge(mutants: Sequence[Mutant], processes: int) -> dict[Mutant, Verdict]:
    """Every mutant by its tests, `processes` at a time, after the tests have passed without any mistake."""
    memory = json.loads(MEMORY.read_text(encoding="utf-8")) if MEMORY.is_file() else {}
    keys = {mutant: key_of(mutant) for mutant in mutants}
    waiting = [mutant for mutant in mutants if keys[mutant] not in memory]
    with tempfile.TemporaryDirectory(prefix="assay-mutants-") as folder, ThreadPoolExecutor(processes) as pool:
        copies: Queue[Copy] = Queue()
        for number in range(processes if waiting else 0):
            copies.put(Copy(Path(folder) / str(number)))

        def healthy(tests: tuple[str, ...]) -> None:
            if failure := ask(copies, tests).caught:
                raise SystemExit(f"error: without any mistake {failure} fails: nothing can be judged by it")

        def one(mutant: Mutant) -> tuple[Mutant, Verdict]:
            return mutant, ask(copies, mutant.tests, mutant)

        list(pool.map(healthy, dict.fromkeys(mutant.tests for mutant in waiting)))
        for mutant, verdict in pool.map(one, waiting):
            memory[keys[mutant]] = asdict(verdict)
            MEMORY.parent.mkdir(exist_ok=True)
            MEMORY.write_text(json.dumps(memory, indent=1), encoding="utf-8")
            print(
                f"{verdict.seconds:5.1f} s  {verdict.caught or 'NOT NOTICED'}  {mutant.file}: {mutant.what}", flush=True
            )
    return {mutant: Verdict(**memory[keys[mutant]]) for mutant in mutants}


class Copy:
    """A copy of the package, and a process that tests it as it is at the time (bench/warm.py)."""

    def __init__(self, folder: Path) -> None:
        self.package = folder / "assay"
        # What Python has compiled stays behind: a change within one second would go unseen.
        shutil.copytree(PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        environment = {
            **os.environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),
        }
        command = [sys.executable, "-P", str(common.ROOT / "bench" / "warm.py")]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, cwd=common.ROOT, stdin=pipe, stdout=pipe, text=True)
        if not self._line().startswith(str(folder)):
            raise SystemExit("error: the tests would import another assay than the copy")

    def first_failure(self, tests: Sequence[str]) -> str | None:
        """Name of the first test that fails; None where all pass."""
        assert self.process.stdin
        print(json.dumps({"tests": tests}), file=self.process.stdin, flush=True)
        timer = threading.Timer(TIMEOUT_S, self.process.kill)
        timer.start()
        code, output = json.loads(self._line()).values()
        timer.cancel()
        if code == 0:
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        if code != 1 or failed is None:
            raise SystemExit(f"error: pytest {' '.join(tests)} could not judge:\n{output[-2000:]}")
        return failed[1]

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: the process that runs the tests has ended (after {TIMEOUT_S} s it is stopped)")
        return line


def ask(copies: Queue[Copy], tests: Sequence[str], mutant: Mutant | None = None) -> Verdict:
    """Run tests against a copy of the package, with the mistake in it while they run."""
    copy = copies.get()
    began = time.monotonic()
    file = copy.package / (mutant.file if mutant else "__init__.py")
    right = file.read_text(encoding="utf-8")
    try:
        if mutant:
            file.write_text(mutant.mistaken(right), encoding="utf-8")
        return Verdict(copy.first_failure(tests), round(time.monotonic() - began, 1))
    finally:
        file.write_text(right, encoding="utf-8")
        copies.put(copy)


def key_of(mutant: Mutant) -> str:
    """Changes with the mistake, with the tests that are asked and with what they read."""
    room = PACKAGE / "algorithms" if mutant.file.startswith("algorithms/") else PACKAGE  # the maths reads nothing else
    tests = [common.ROOT / test.partition("::")[0] for test in mutant.tests]
    digest = hashlib.sha256(repr(mutant).encode())
    for file in [*sorted(room.rglob("*.py")), *sorted(common.ROOT.glob("tests/oracles/*.py")), *tests]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def page(facts: Mapping[str, Any], verdicts: Mapping[Mutant, Verdict]) -> str:
    """The result as Markdown."""
    survivors = [mutant for mutant, verdict in verdicts.items() if verdict.caught is None]
    headline = f"{len(verdicts)} mistakes, **{len(survivors) or 'none'} not noticed**."
    rows = [
        [f"`{mutant.file}`", mutant.what, f"`{verdict.caught}`" if verdict.caught else "**not noticed**"]
        for mutant, verdict in verdicts.items()
    ]
    table = common.table(["file", "mistake", "first test that noticed"], rows)
    return f"# Mistakes on purpose\n\n{common.origin_text(facts)}\n{headline}\n\n{table}"


if __name__ == "__main__":
    main()
