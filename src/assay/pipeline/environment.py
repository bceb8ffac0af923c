"""Where a run happens: code, machine, device. What a manifest keeps so that a result can be traced."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from assay import __version__
from assay.errors import UsageError
from assay.models import heap
from assay.pipeline.artifacts import PACKAGE, code_hash


@cache
def code() -> dict[str, Any]:
    """Version, hash of the source and, in a checkout, the commit ("-dirty" when files differ from it)."""
    return {"version": __version__, "hash": code_hash(), "commit": _commit()}


def facts(device: str) -> dict[str, Any]:
    """Versions and machine, as the manifest keeps them."""
    libraries = {name: _version(name) for name in ("torch", "transformers", "peft")}
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "device": device}
    return {"python": platform.python_version(), **libraries, **machine}


def device(wanted: str) -> str:
    """A device that is there: "auto" takes the GPU if one is. UsageError for one that is not."""
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    _, _, index = wanted.partition(":")
    if wanted != "cpu" and int(index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device: this machine has no {wanted}", hint="use device=auto")
    return wanted


class PeakMemory:
    """The most resident memory since the last `lap`, and in all, in MB.

    On Linux a lap starts the kernel's own mark again; elsewhere a lap's peak is that of the process so far.
    """

    def __init__(self) -> None:
        self.most = 0.0

    def lap(self) -> float:
        """Peak since the last lap; the next one starts now, without what this one has freed."""
        peak = round(_peak_rss_mb(), 1)
        self.most = max(self.most, peak)
        heap.give_back()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        return peak


def _peak_rss_mb() -> float:
    """The kernel's mark. Not ru_maxrss where it can be helped: that one begins at what the launching process held."""
    with suppress(OSError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def resident_mb() -> float:
    """What this process holds now."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return _peak_rss_mb()


def memory_mb(device: str = "cpu") -> float:
    """Memory that a process on this device can have: the GPU's, else the machine's or its cgroup's if that is less."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**20
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            file = "memory/{}/memory.limit_in_bytes" if controllers else "{}/memory.max"
            for folder in (group.strip("/"), ""):  # a container's own group may be its root
                with suppress(OSError, ValueError):  # "max" is no limit
                    limits.append(int((Path("/sys/fs/cgroup") / file.format(folder).lstrip("/")).read_text()))
    return min(limits) / 2**20


def free_mb(device: str = "cpu") -> float:
    """What of that memory nobody else holds now; all of it where the system does not say."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**20
    with suppress(OSError, KeyError):
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return min(memory_mb(device), int(facts["MemAvailable"].split()[0]) / 1024 + resident_mb())
    return memory_mb(device)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this package runs from; None for an installed package."""
    root = PACKAGE.parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
