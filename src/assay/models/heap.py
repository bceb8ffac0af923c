"""The heap of glibc, tuned for tensors that come and go: nothing here does anything with another allocator.

While a stage trains, the process keeps what it frees, for the next step asks for the same blocks again. Between stages
it gives that back. What outlives a stage lies here and there on its heap, with holes of all sizes between. A tensor
goes where it fits best, those of a new size to a hole that is not resident yet, until all are: a stage after one that
had gigabytes would take half as much again. So the holes are filled with blocks that nobody writes to, which take no
memory, and the next stage's tensors lie together.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import platform
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of mallopt(3)'s parameters."""
LARGE, ALLOWED = 256 * 2**20, 32 * 2**20
"""Bytes of a block that goes back to the system at once, such as a file of weights or an optimizer's moments; and the
most that some versions of glibc accept."""
LARGEST_HOLE, SMALLEST_HOLE = 128 * 2**20, 2**20

_fillers: list[int] = []
"""Addresses of the blocks that fill holes."""


@functools.cache
def keep_freed_memory() -> None:
    """Let the process keep what it frees.

    By itself glibc gives large blocks back after each backward pass, and the next forward pass pays a page fault for
    every 4 KiB of its activations: a sixth of the time of a training step at GPT-2's shape.
    """
    if libc := _glibc():
        if not libc.mallopt(MMAP_THRESHOLD, LARGE):
            libc.mallopt(MMAP_THRESHOLD, ALLOWED)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Return freed memory to the system, where it would count as the next stage's, and fill the holes it leaves."""
    gc.collect()
    if libc := _glibc():
        while _fillers:
            libc.free(_fillers.pop())
        libc.malloc_trim(0)
        if not _addresses_are_few():
            with suppress(OSError):  # without /proc nobody knows where the heap lies
                _fillers.extend(_holes(libc))


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """glibc, unless another allocator was loaded before it."""
    if platform.libc_ver()[0] != "glibc":
        return None
    libc, in_use = ctypes.CDLL("libc.so.6"), ctypes.CDLL(None)
    address = [ctypes.cast(library.malloc, ctypes.c_void_p).value for library in (libc, in_use)]
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    return libc if address[0] == address[1] else None


def _addresses_are_few() -> bool:
    """Whether blocks count that take no memory: with a limit on addresses, or where the system promises no more than it
    has.
    """
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    with suppress(OSError):
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
            return True
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def _holes(libc: ctypes.CDLL) -> Iterator[int]:
    """Blocks that fill the heap as far as it reaches."""
    maps = (line.split() for line in Path("/proc/self/maps").read_text().splitlines())
    heap = [int(end, 16) for words in maps if words[-1] == "[heap]" for end in words[0].split("-")]
    size = LARGEST_HOLE
    while heap and size >= SMALLEST_HOLE:
        block = libc.malloc(size)
        if block and heap[0] <= block and block + size <= heap[-1]:
            yield block
        else:  # beyond the heap's end, or no part of it
            libc.free(block)
            size //= 2
