"""Memory that a step frees is there for the next one, and a stage does not take the holes of the one before."""

from __future__ import annotations

import ctypes
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from assay.models.heap import give_back, keep_freed_memory
from assay.pipeline.environment import resident_mb

BLOCK = 20 * 2**20
MB = 2**20
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="nothing is known of other heaps")


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


@glibc
def test_steps_that_repeat_cause_no_page_faults() -> None:
    page = resource.getpagesize()
    if plainly() < 4 * 4 * BLOCK / page / 2:
        pytest.skip("the pages of this system are large, or its allocator is another")
    keep_freed_memory()
    assert faults_of_steps() < 4 * BLOCK / page


def plainly() -> int:
    """The same in a process that was told nothing."""
    return int(elsewhere("faults_of_steps()"))


def elsewhere(call: str) -> float:
    """What a call to a function of this file gives in a process of its own."""
    program = f"from tests.unit.models import test_models_heap as here; print(here.{call})"
    return float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def large_stage() -> list[bytearray]:
    """Frees 400 MB in blocks of 2 to 6 MB, between others that live on."""
    keep_freed_memory()
    freed, lives_on = [], []
    for size in SIZES:
        freed.append(bytearray(size))
        lives_on.append(bytearray(100_000))
    return lives_on


SIZES = [2 * MB + 41 * 1024 * number for number in range(100)]


def grown_after_a_large_stage(*, gives_back: bool) -> float:
    """Megabytes that blocks of all those sizes take then, one at a time."""
    lives_on = large_stage()
    if gives_back:
        give_back()
    else:
        ctypes.CDLL(None).malloc_trim(0)
    before = resident_mb()
    for size in SIZES:
        bytearray(size - 9000)
    assert lives_on
    return resident_mb() - before


@glibc
def test_a_stage_does_not_fill_the_holes_that_the_one_before_left() -> None:
    assert elsewhere("grown_after_a_large_stage(gives_back=False)") > 200, "trimmed alone, a heap takes all of them"
    assert elsewhere("grown_after_a_large_stage(gives_back=True)") < 20


def taken_within_a_limit() -> int:
    """Megabytes that the next stage can have where addresses are limited to 200 MB more than there are."""
    lives_on = large_stage()
    addresses = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (addresses + 200 * MB, resource.RLIM_INFINITY))
    give_back()
    assert lives_on
    return len([bytearray(2 * MB) for _ in range(150)]) * 2


@glibc
def test_holes_stay_where_addresses_are_limited() -> None:
    assert elsewhere("taken_within_a_limit()") == 300
