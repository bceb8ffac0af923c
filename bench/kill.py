"""Kills a run with `kill -9` at random moments, starts it again each time, and compares what it made.

    make kill          →  docs/results/kill.md

A moment is a number of training steps, drawn from all steps of the run, and a fraction of a second after it. Every
file of every artifact must equal that of a run left alone, byte for byte, except for clock times and speeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

from bench import common

RECIPE = "bench/kill.yaml"
LONGEST_DELAY = 1.0  # seconds after the step, so that kills also hit checkpoints, evaluations and changes of stage
CLOCK = {"time", "started", "finished", "wall_s", "environment", "code", "peak_rss_mb"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_intermixed_args()

    facts = common.origin("make kill")
    runs_dir = common.fresh_runs_dir("kill")
    words = [*asked.settings, f"runs_dir={runs_dir}/run"]
    broken, whole = common.ROOT / runs_dir / "run", common.ROOT / runs_dir / "whole"
    common.run_assay(RECIPE, *words)
    broken.rename(whole)  # both ran under the same name, because adapters record where their base model lies
    steps = steps_done(whole)

    draw = random.Random(asked.seed)
    moments = sorted(draw.randrange(1, steps) for _ in range(asked.kills))
    hits = [hit(moment, draw.uniform(0, LONGEST_DELAY), broken, *words) for moment in moments]
    common.run_assay(RECIPE, *words)
    if len(sources(whole) | sources(broken)) > 1:
        raise SystemExit("the source changed between the runs: measure again in a tree that stands still")
    expected, made = content(whole), content(broken)
    common.write(asked.results / "kill.md", page(facts, steps, hits, expected, made))
    if expected != made:
        raise SystemExit("the killed run made something else")


def hit(moment: int, delay: float, folder: Path, *words: str) -> list[str]:
    """Start the run, kill it `delay` seconds after it has done `moment` steps, and say what it was at."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (folder / "stderr.log").open("a") as log:
        process = subprocess.Popen(common.command("run", RECIPE, *words), cwd=common.ROOT, stdout=log, stderr=log)
        while steps_done(folder) < moment and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is not None:
            raise SystemExit(f"the run ended before it could be killed; see {folder / 'stderr.log'}")
        process.kill()
        process.wait()
    unfinished = sorted((folder / "artifacts").glob(".*.partial"), key=lambda path: path.stat().st_mtime)
    at = unfinished[-1].name.split("-")[0].lstrip(".") if unfinished else "between stages"
    resumes = "its checkpoint" if unfinished and (unfinished[-1] / "checkpoint").is_dir() else "the stage's start"
    return [f"{moment} + {delay:.2f} s", f"{time.monotonic() - began:.1f} s", at, resumes]


def steps_done(runs_dir: Path) -> int:
    """Lines that training has logged so far, in finished and unfinished artifacts."""
    done = 0
    for log in (runs_dir / "artifacts").glob("*/metrics.jsonl"):
        try:
            done += log.read_bytes().count(b"\n")
        except FileNotFoundError:  # its folder has just been renamed
            continue
    return done


def sources(runs_dir: Path) -> set[str]:
    """Hashes of the source that made the artifacts; artifacts of two versions have nothing to compare."""
    manifests = (runs_dir / "artifacts").glob("[!.]*/manifest.json")
    return {json.loads(manifest.read_text(encoding="utf-8"))["code"]["hash"] for manifest in manifests}


def content(runs_dir: Path) -> dict[str, str]:
    """sha256 of every file of every artifact, by its path; records without clock times, speeds and memory."""
    files = sorted(file for file in (runs_dir / "artifacts").glob("[!.]*/**/*") if file.is_file())
    return {str(file.relative_to(runs_dir)): hashlib.sha256(_timeless(file)).hexdigest() for file in files}


def _timeless(file: Path) -> bytes:
    if file.name not in {"manifest.json", "metrics.jsonl"}:
        return file.read_bytes()
    texts = file.read_text(encoding="utf-8")
    records = [json.loads(text) for text in (texts.splitlines() if file.suffix == ".jsonl" else [texts])]
    return json.dumps([_without_clock(record) for record in records], sort_keys=True).encode()


def _without_clock(record: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in record.items() if key not in CLOCK and not key.endswith("_per_s")}
    return {key: _without_clock(value) if isinstance(value, dict) else value for key, value in kept.items()}


def page(
    facts: dict[str, Any], steps: int, hits: list[list[str]], expected: dict[str, str], made: dict[str, str]
) -> str:
    """The result as Markdown."""
    differ = sorted(name for name in expected.keys() | made.keys() if expected.get(name) != made.get(name))
    weights = sorted(name for name in expected if name.endswith(".safetensors"))
    changed = [name for name in weights if name in differ]
    others = [name for name in differ if name not in weights]
    verdict = (
        f"**{len(changed)} of {len(weights)} files of weights differ** from those of a run left alone."
        if changed
        else f"All {len(weights)} files of weights are bit-identical to those of a run left alone."
    )
    rest = f"the {len(expected) - len(weights)} other files (records without clock times, speeds and memory)"
    verdict += f" Of {rest}, {len(others) or 'none'} differ{': ' if others else '.'}{', '.join(others[:5])}"
    rows = [[str(number), *row] for number, row in enumerate(hits, start=1)]
    header = ["kill -9", f"after step (of {steps})", "the process lived", "it was at", "goes on from"]
    kills = common.table(header, rows)
    sums = [
        [f"`{name.removeprefix('artifacts/')}`", expected[name][:16], made.get(name, "missing")[:16]]
        for name in weights
    ]
    hashes = common.table(["weights", "sha256, left alone", "sha256, killed"], sums)
    return f"# Killed and started again\n\n{common.origin_text(facts)}\n{verdict}\n\n{kills}\n{hashes}"


if __name__ == "__main__":
    main()
