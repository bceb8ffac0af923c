"""Number formats follow measurement, and a trained weight is never rounded away."""

from __future__ import annotations

import pytest
import torch

from assay.models import precision


@pytest.mark.parametrize(
    ("speedup", "parameters", "expected"),
    [
        (0.005, 10**9, torch.float32),  # a CPU without bf16 units: 100 to 300 times slower in it
        (1.3, 10**9, torch.bfloat16),  # one with units, on a busy machine
        (3.0, 10**9, torch.bfloat16),
        (3.0, 10**6, torch.float32),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_that_is_measured_to_pay(
    monkeypatch: pytest.MonkeyPatch, speedup: float, parameters: int, expected: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "bf16_speedup_on_cpu", lambda: speedup)
    assert precision.compute_dtype("cpu", parameters) == expected
    assert precision.weight_dtype("cpu", parameters, trained=False) == expected
    assert precision.weight_dtype("cpu", parameters, trained=True) == torch.float32


def test_the_measurement_is_a_ratio_of_times() -> None:
    assert 1e-4 < precision.bf16_speedup_on_cpu() < 100


def test_an_update_that_bf16_would_lose_is_why_trained_weights_are_fp32() -> None:
    weight, update = 1.0, 1e-3
    assert torch.tensor(weight).bfloat16() + update == weight
    assert torch.tensor(weight) + update > weight
