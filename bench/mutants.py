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
        trees: Queue[Path] = Queue()
        for number in range(processes):
            trees.put(copy(Path(folder) / str(number)))

        def healthy(tests: tuple[str, ...]) -> None:
            if failure := ask(trees, tests).caught:
                raise SystemExit(f"error: without any mistake {failure} fails: nothing can be judged by it")

        def one(mutant: Mutant) -> tuple[Mutant, Verdict]:
            return mutant, ask(trees, mutant.tests, mutant)

        list(pool.map(healthy, dict.fromkeys(mutant.tests for mutant in waiting)))
        for mutant, verdict in pool.map(one, waiting):
            memory[keys[mutant]] = asdict(verdict)
            MEMORY.parent.mkdir(exist_ok=True)
            MEMORY.write_text(json.dumps(memory, indent=1), encoding="utf-8")
            print(
                f"{verdict.seconds:5.1f} s  {verdict.caught or 'NOT NOTICED'}  {mutant.file}: {mutant.what}", flush=True
            )
    return {mutant: Verdict(**memory[keys[mutant]]) for mutant in mutants}


def copy(folder: Path) -> Path:
    """A copy of the package, without what Python has compiled: a change within one second would go unseen."""
    shutil.copytree(PACKAGE, folder / "assay", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def ask(trees: Queue[Path], tests: Sequence[str], mutant: Mutant | None = None) -> Verdict:
    """Run tests against a copy of the package, with the mistake in it while they run."""
    tree = trees.get()
    began = time.monotonic()
    file = tree / "assay" / (mutant.file if mutant else "__init__.py")
    right = file.read_text(encoding="utf-8")
    try:
        if mutant:
            file.write_text(mutant.mistaken(right), encoding="utf-8")
        return Verdict(first_failure(tree, tests), round(time.monotonic() - began, 1))
    finally:
        file.write_text(right, encoding="utf-8")
        trees.put(tree)


def first_failure(tree: Path, tests: Sequence[str]) -> str | None:
    """Name of the first test that fails against the package in `tree`; None where all pass."""
    options = ("-x", "-q", "--no-header", "-p", "no:cacheprovider")
    where = "import assay, sys; sys.exit(0 if assay.__file__.startswith(sys.argv[1]) else 'another assay was imported')"
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", where, str(tree)], env=environment, cwd=common.ROOT, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        env=environment,
        cwd=common.ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        raise SystemExit(
            f"error: pytest {' '.join(tests)} could not judge:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return failed[1]


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
