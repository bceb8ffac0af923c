"""Every named method as it is composed: the gradient of an optimizer step is that of its definition, row by row."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.oracles import composed
from torch import Tensor, nn

from assay.data.pack import TokenBatch, parts
from assay.data.render import Row
from assay.models.policy import ResponseLogprobs
from assay.rollout.collect import Experience
from assay.rollout.config import SamplingParams
from assay.stages.config import GroupConfig, PPOConfig
from assay.stages.config.policy import METHODS, SamplingStageConfig
from assay.stages.policy_step import policy_step

LENGTHS = (4, 1, 3, 2)
LONGEST = 7
BETA = 0.3


class Given:
    """A policy whose log-probabilities and entropies are parameters; a row's first id says which it is."""

    pad_id = 0
    backbone = SimpleNamespace(device="cpu", parts=lambda examples, most: parts(examples, tokens=1000, most=most))

    def __init__(self, noise: torch.Generator) -> None:
        self.logprobs_BR, self.entropy_BR = (
            nn.Parameter(torch.randn(len(LENGTHS), max(LENGTHS), generator=noise, dtype=torch.float64) * 0.3 - shift)
            for shift in (1.5, -1.0)
        )

    def logprobs(self, batch: TokenBatch, *, temperature: float = 1.0, entropy: bool = False) -> ResponseLogprobs:
        rows, mask = batch.input_ids[:, 0], batch.loss_mask[:, 1:]
        width = mask.shape[1]
        return ResponseLogprobs(
            self.logprobs_BR[rows, :width], self.entropy_BR[rows, :width] if entropy else None, mask
        )


def episodes(noise: torch.Generator) -> Experience:
    """Ragged responses with random numbers; NaN where nothing counts."""
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    old, reference, advantages = (
        torch.randn(mask.shape, generator=noise, dtype=torch.float64) * scale - shift
        for scale, shift in ((0.3, 1.5), (0.5, 1.5), (1.0, 0.0))
    )
    rows = [Row([b, *[0] * length], 1) for b, length in enumerate(LENGTHS)]
    nothing = mask.new_zeros(len(LENGTHS), 0)
    old, reference, advantages = (x.where(mask, math.nan) for x in (old, reference, advantages))
    return Experience(rows, mask, old, reference, advantages, torch.ones_like(old), nothing, nothing)


def group(method: str, **changes: Any) -> GroupConfig:
    return GroupConfig.model_validate({"method": method, **common(), **changes})


def common() -> dict[str, Any]:
    return {"kl_coef": BETA, "sampling": SamplingParams(max_new_tokens=LONGEST), "micro_batch_size": 2, "batch_size": 8}


COMPOSED: dict[str, SamplingStageConfig] = {
    **{method: group(method) for method in METHODS},
    "rloo, k2 in the loss": group("rloo", kl_loss="k2"),
    "rloo, k3 in the loss": group("rloo", kl_loss="k3"),
    "grpo as published": group("grpo", kl_loss="k3"),
    "grpo, entropy bonus": group("grpo", entropy_coef=0.2),
    "ppo": PPOConfig.model_validate(common()),
    "ppo, dual clip": PPOConfig.model_validate({**common(), "dual_clip": 1.1, "clip": 0.5}),
    "ppo, penalty": PPOConfig.model_validate({**common(), "surrogate": "penalty", "penalty_coef": 2.0}),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_the_gradient_of_a_step_is_that_of_its_definition(name: str) -> None:
    noise = torch.Generator().manual_seed(1)
    config, policy, batch = COMPOSED[name], Given(noise), episodes(noise)
    policy_step(batch, policy, config, BETA)  # type: ignore[arg-type]
    for parameter, column in ((policy.logprobs_BR, 0), (policy.entropy_BR, 4)):
        expected = slopes(policy, batch, config, column)
        actual = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)


def slopes(policy: Given, batch: Experience, config: SamplingStageConfig, column: int) -> Tensor:
    """Central differences of the definition; CISPO's weight is no function of what is differentiated."""
    now = [policy.logprobs_BR, batch.logprobs_BR, batch.reference_BR, batch.advantages_BR, policy.entropy_BR]
    table = [
        [[x[b, t].item() for x in now] for t in range(length)]
        for b, length in enumerate(LENGTHS)
    ]  # fmt: skip
    chosen = config.model_dump()
    result = torch.zeros(batch.mask_BR.shape, dtype=torch.float64)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            if config.surrogate == "cispo" and column == 0:
                new, old, _, advantage, _ = table[b][t]
                weight = min(max(math.exp(new - old), 1 - config.clip), 1 + (config.clip_high or config.clip))
                result[b, t] = -weight * advantage * composed.weight(table, table[b], config.aggregation, LONGEST)
                continue
            ends = []
            for side in (1e-6, -1e-6):
                table[b][t][column] += side
                ends.append(composed.step(table, chosen, LONGEST))
                table[b][t][column] -= side
            result[b, t] = (ends[0] - ends[1]) / 2e-6
    return result


@pytest.mark.parametrize("name", COMPOSED)
def test_episodes_without_an_advantage_are_left_out_only_where_they_teach_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With them and without them: one gradient, and the same denominators."""

    def gradient() -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.Generator().manual_seed(3)
        policy, batch = Given(noise), episodes(noise)
        batch.advantages_BR[1::2] = 0.0
        policy_step(batch, policy, COMPOSED[name], BETA)  # type: ignore[arg-type]
        found = (policy.logprobs_BR.grad, policy.entropy_BR.grad)
        return tuple(torch.zeros(()) if g is None else g for g in found)  # type: ignore[return-value]

    left_out = gradient()
    monkeypatch.setattr(Experience, "with_signal", lambda self: list(range(len(self.rows))))
    for one, other in zip(left_out, gradient(), strict=True):
        torch.testing.assert_close(one, other)
    assert left_out[0].abs().sum() > 0


@pytest.mark.parametrize("name", COMPOSED)
def test_the_kl_that_stops_the_inner_epochs_is_that_of_all_episodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without an advantage are left out of the gradient, and not of what decides whether there is another."""
    config = COMPOSED[name].model_copy(update={"inner_epochs": 2})

    def drift(most: int | None) -> float:
        noise = torch.Generator().manual_seed(3)
        policy, batch = Given(noise), episodes(noise)
        batch.advantages_BR[1::2] = 0.0
        changed = config.model_copy(update={"micro_batch_size": most})
        return policy_step(batch, policy, changed, BETA)["policy/approxkl_avg"].item()  # type: ignore[arg-type]

    left_out = [drift(1), drift(None)]
    monkeypatch.setattr(Experience, "with_signal", lambda self: list(range(len(self.rows))))
    assert left_out == pytest.approx([drift(None)] * 2, rel=1e-5)
    assert left_out[0] > 0
