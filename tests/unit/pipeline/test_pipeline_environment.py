"""Peak memory is that of this process since the last lap, whoever launched it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from assay.pipeline.environment import PeakMemory

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
