"""Ten steps of every named policy method: loss, clipped share and drift, as they were when the gradients were proved.

python -m tests.golden.test_golden_presets     writes presets.json anew, after a change that was meant
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.proof.test_proof_presets import BETA, COMPOSED, Given, episodes

from assay.stages.policy_step import policy_step

GOLDEN = Path(__file__).with_name("presets.json")
STEPS, RATE = 10, 0.5
MEASURED = ("policy/loss", "policy/clipfrac_avg", "policy/approxkl_avg")


def steps_of(name: str) -> list[list[float]]:
    """What ten steps of plain gradient descent measure, on one batch of four ragged responses."""
    noise = torch.Generator().manual_seed(7)
    policy, batch = Given(noise), episodes(noise)
    parameters = [policy.logprobs_BR, policy.entropy_BR]
    rows = []
    for _ in range(STEPS):
        measured = policy_step(batch, policy, COMPOSED[name], BETA)  # type: ignore[arg-type]
        rows.append([measured[key] for key in MEASURED])
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
                    parameter.grad = None
    return rows


@pytest.mark.parametrize("name", COMPOSED)
def test_ten_steps_of_a_method_are_those_that_were_committed(name: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden.keys() == COMPOSED.keys()
    for step, (actual, expected) in enumerate(zip(steps_of(name), golden[name], strict=True)):
        assert actual == pytest.approx(expected, rel=1e-6, abs=1e-9), f"step {step}"


if __name__ == "__main__":
    table = {name: [[round(x, 12) for x in row] for row in steps_of(name)] for name in COMPOSED}
    GOLDEN.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
