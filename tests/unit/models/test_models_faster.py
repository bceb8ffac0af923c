"""Memory that a step frees is there for the next one."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest
import torch

from assay.models.faster import keep_freed_memory

BLOCK = 20 * 2**20


def faults_of_steps(steps: int = 4) -> int:
    """Page faults of some steps that take and free the same blocks, after as many to warm up."""

    def step() -> None:
        held = [torch.ones(BLOCK // 4) for _ in range(4)]
        held.clear()

    for _ in range(steps):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back after each step")
def test_steps_that_repeat_cause_no_page_faults() -> None:
    page = resource.getpagesize()
    if plainly() < 4 * 4 * BLOCK / page / 2:
        pytest.skip("the pages of this system are large, or its allocator is another")
    keep_freed_memory()
    assert faults_of_steps() < 4 * BLOCK / page


def plainly() -> int:
    """The same in a process that was told nothing."""
    program = "from tests.unit.models.test_models_faster import faults_of_steps; print(faults_of_steps())"
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
