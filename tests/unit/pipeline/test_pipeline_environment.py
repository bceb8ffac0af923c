"""Peak memory is that of this process since the last lap, whoever launched it; a stage gets a heap without holes."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from assay.models.faster import keep_freed_memory
from assay.pipeline.environment import PeakMemory, give_back, resident_mb

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the mark cannot be started again")
MB = 2**20


@linux
def test_what_the_launching_process_holds_is_not_counted():
    held = b"\1" * (400 * MB)
    measure = "from assay.pipeline.environment import PeakMemory; print(PeakMemory().lap())"
    child = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True)
    assert 5 < float(child.stdout) < len(held) / MB / 2


@linux
def test_a_lap_forgets_the_one_before_and_most_does_not():
    memory = PeakMemory()
    memory.lap()
    block = b"\1" * (200 * MB)
    high = memory.lap()
    del block
    memory.lap()
    assert memory.lap() < high - 150
    assert memory.most >= high


def grown_after_a_large_stage(*, gives_back: bool) -> float:
    """Megabytes that blocks of 2 to 6 MB take, one at a time, after 400 MB were freed between blocks that live on."""
    keep_freed_memory()
    sizes = [2 * MB + 41 * 1024 * number for number in range(100)]
    large, live_on = [], []
    for size in sizes:
        large.append(bytearray(size))
        live_on.append(bytearray(100_000))
    del large
    if gives_back:
        give_back()
    else:
        ctypes.CDLL(None).malloc_trim(0)
    before = resident_mb()
    for size in sizes:
        bytearray(size - 9000)
    return resident_mb() - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="holes of other heaps are not known")
def test_a_stage_does_not_fill_the_holes_that_the_one_before_left() -> None:
    def grown(*, gives_back: bool) -> float:
        program = "from tests.unit.pipeline import test_pipeline_environment as here; "
        call = f"print(here.grown_after_a_large_stage(gives_back={gives_back}))"
        done = subprocess.run([sys.executable, "-c", program + call], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert grown(gives_back=False) > 200, "trimmed alone, a heap takes all its holes again"
    assert grown(gives_back=True) < 20
