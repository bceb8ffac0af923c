"""Number formats: bf16 where the machine has units for it, fp32 elsewhere, decided by measurement and not by name."""

from __future__ import annotations

import functools
import time

import torch

SMALL_MODEL = 100_000_000
"""Parameters below which a CPU spends its time on overhead, so that bf16 would cost precision and win nothing."""


@functools.cache
def bf16_speedup_on_cpu() -> float:
    """How many times faster a bf16 matrix product is than an fp32 one on this CPU; the best of a few each.

    CPUs with bf16 units are about twice as fast in it, those without 100 to 300 times *slower*: however busy a machine
    is, it cannot be taken for the other kind, so that a run that goes on does so in the format in which it began.
    """
    return product_seconds(torch.float32) / product_seconds(torch.bfloat16)


def product_seconds(dtype: torch.dtype, size: int = 512, repeats: int = 5) -> float:
    """Seconds of one matrix product on this CPU, the best of a few."""
    # The emulated product of a CPU without units would take seconds at full size; an eighth of it shows the same.
    a = torch.ones(size // 8, size, dtype=dtype)
    b = torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        _ = a @ b
        best = min(best, time.perf_counter() - began)
    return best


def weight_dtype(device: str, parameters: int, *, trained: bool) -> torch.dtype:
    """Format of a model's weights in memory.

    Weights that an optimizer changes stay in fp32, because bf16 rounds small updates away; frozen ones may be bf16.
    """
    return torch.float32 if trained else compute_dtype(device, parameters)


def compute_dtype(device: str, parameters: int) -> torch.dtype:
    """Format of the trunk's matrix products; heads and logits are fp32 everywhere."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if kind == "cpu" and parameters >= SMALL_MODEL and bf16_speedup_on_cpu() > 1:
        return torch.bfloat16
    return torch.float32
