"""One side of a race: told what to do in a JSON file, tells how long it took and how much memory it held.

    python -m bench.peers.SCRIPT JOB.json          →  the file that the job names as `out`

Every side has a process of its own. It does the work once on a few rows to warm up, and once more on all rows with the
clock running. The peers' scripts run in the peers' environments: nothing in this folder knows Assay.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Job = dict[str, Any]
Rows = list[dict[str, Any]]
Work = Callable[[Job, Rows], dict[str, Any]]
"""Does the job on rows; says `seconds`, without loading, tokenising and saving, and perhaps a `note` on settings."""


def run(races: Mapping[str, Work], path: str = sys.argv[-1]) -> None:
    """Do the job whose description lies at `path`."""
    libraries_mb = resident_mb("VmRSS")
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    rows = rows[: job["steps"] * job["prompts"]]
    work = races[job["race"]]
    work(job, rows[: job["prompts"]])
    gc.collect()
    measured = work(job, rows) | {"memory_mb": resident_mb("VmHWM") - libraries_mb}
    Path(job["out"]).write_text(json.dumps(measured), encoding="utf-8")


def resident_mb(mark: str) -> float:
    """Resident memory of this process: VmRSS is now, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(mark))
