"""Races Assay against its peers, A B A B, each side in a process of its own.

    make bench                     →  docs/results/bench.md and .json; hours
    make bench-quick               →  .bench/bench.md: the smallest model, one step, without vLLM; three minutes
    python -m bench.race --only dpo --shapes gpt2 --steps 1 --rounds 1 --results .bench          one race alone

Environments, models and rows are made under .bench/ once, and again when what they are made from changes. A command
that is given again at the same commit goes on: what the results hold already is not raced again. What was raced at
another commit stays, and says at which, until the same race is run anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bench import common
from bench.race import page, work
from bench.race.races import RACES, Race
from bench.race.sides import OURS, THREADS, peer, side

from assay.algorithms.product import product

SHARED = {
    "threads": THREADS,
    "max_length": work.MAX_LENGTH,
    "new_tokens": work.NEW_TOKENS,
    "kl_coef": 0.05,
    "learning_rate": 1e-6,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hh-rlhf"), help="the folder of HH-RLHF files")
    parser.add_argument("--only", nargs="+", choices=[race.name for race in RACES], metavar="RACE")
    parser.add_argument("--shapes", nargs="+", choices=list(work.SHAPES), default=list(work.SHAPES), metavar="SHAPE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="optimizer steps of every race, instead of its own number")
    parser.add_argument("--results", type=Path, default=common.RESULTS)
    asked = parser.parse_args()

    common.two_cores()
    facts = common.origin(shlex.join(["python", "-m", "bench.race", *sys.argv[1:]]))
    races = [race if asked.steps is None else replace(race, steps=asked.steps) for race in RACES]
    races = [race for race in races if asked.only is None or race.name in asked.only]
    peers = dict[str, list[str]]()
    for script in {race.script for race in races}:
        try:
            peers[script] = peer(script)
        except subprocess.CalledProcessError as failed:
            print(f"{script} has no environment here, and its races are left out: {failed}", file=sys.stderr)
    races = [race for race in races if race.script in peers]
    folders = {shape: work.prepare(shape, asked.data) for shape in asked.shapes}
    before = page.read(asked.results)
    commit = facts["commit"]
    runs: list[dict[str, Any]] = before.get("runs", [])
    runs = [run for run in runs if not run["commit"].endswith("dirty")]  # two states of the code may be called so
    for number in range(1, asked.rounds + 1):
        for shape, folder in folders.items():
            for race in races:
                others = [run for run in runs if (run["shape"], run["race"]) != (shape, race.name)]
                done = [run for run in runs if run not in others and run["commit"] == commit]
                if len(done) >= number:
                    continue
                longer = replace(race, steps=race.steps * (1 if asked.steps else work.LONGER.get(shape, 1)))
                # What the peer's first round found to be best it keeps.
                tuned = {"batch_sizes": [run["peer"]["batch"] for run in done[:1] if "batch" in run["peer"]]}
                try:
                    measured = measure(longer, folder, peers[race.script], tuned)
                except PeerError as failed:
                    print(f"{shape} {race.name} is left out: {failed}", file=sys.stderr)
                    continue
                new = {"shape": shape, "commit": commit, **measured}
                runs = [*others, *done, new]
                print(page.line(new), file=sys.stderr)
                # After every race, so that one that is stopped has said what it saw.
                page.write(asked.results, {**facts, "runs": runs, "where": before.get("where")})


class PeerError(Exception):
    """A peer does not run here, such as one that does not know the architecture."""


def measure(race: Race, folder: Path, peer: list[str], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Both sides of one race, one after the other; `tuned` are settings of the peer's. Raises PeerError."""
    rows = [json.loads(row) for row in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = rows[: race.steps * race.prompts]
    weights = json.loads((folder / "shape.json").read_text(encoding="utf-8"))
    job = {
        **SHARED,
        **race.job(),
        "rows": str(folder / "rows.jsonl"),
        "policy": str(folder / ("counting" if race.samples else "policy")),
        "reward": str(folder / "reward"),
    }
    mine = side(OURS, job, folder / "ours")
    try:
        theirs = side(peer, {**job, **tuned}, folder / "peer")
    except SystemExit as failed:
        raise PeerError(str(failed)) from failed
    return {
        "race": race.name,
        "tokens": race.useful_tokens(rows),
        "flops": race.useful_flops(rows, weights),
        "decoding": race.decoding(rows, weights),
        "peak_flops": peak_flops(),
        "bandwidth": bandwidth(),
        "ours": mine,
        "peer": theirs,
    }


def peak_flops(size: int = 2048, times: int = 5) -> float:
    """fp32 operations a second in the fastest of some square matrix products, by either of torch's libraries."""
    torch.set_num_threads(THREADS)
    a, b = torch.randn(2, size, size)
    seconds = []
    for multiply in (torch.mm, product) * times:
        began = time.perf_counter()
        multiply(a, b)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def bandwidth(numbers: int = 2**27, times: int = 5) -> float:
    """Bytes a second that come from memory, in the fastest of some sums."""
    torch.set_num_threads(THREADS)
    many = torch.ones(numbers)
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        many.sum()
        seconds.append(time.perf_counter() - began)
    return many.nbytes / min(seconds)


if __name__ == "__main__":
    main()
