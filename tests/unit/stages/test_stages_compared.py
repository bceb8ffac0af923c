"""A policy beside the one it started from: what is compared, and that its intervals are of the right numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests.unit.stages.toy import QUESTIONS

from assay.data.prepared import Prepared
from assay.pipeline.evaluators import Evaluators
from assay.rollout.collect import Rollouts
from assay.rollout.sampler import Generation
from assay.stages import compared
from assay.stages.context import StageInputs


def rollouts(scores: Sequence[float], logprobs: Sequence[float]) -> Rollouts:
    """One answer of two tokens to each question, equally likely; the reference gives each log-probability −1."""
    answers = [
        Generation(prompt, [1], [2, 3], [logprob] * 2, "blue", "stop")
        for prompt, logprob in zip(QUESTIONS, logprobs, strict=True)
    ]
    return Rollouts.of(answers, scores, torch.full((len(QUESTIONS), 2), -1.0))


def test_kl_and_gain_have_the_interval_of_their_prompts() -> None:
    before = rollouts([0.0, 10.0, 20.0, 30.0, 40.0, 50.0], [-1.0] * 6)
    after = rollouts([2.0, 12.0, 22.0, 32.0, 42.0, 52.0], [-1.0, -0.9, -0.8, -0.7, -0.6, -0.5])
    inputs = StageInputs(Prepared(), "", reward="a folder", mean=Evaluators(Prepared(), 0).mean)
    report = compared.compare(before, after, inputs)
    assert (report["reward_before"], report["reward_after"]) == (25.0, 27.0)
    assert [report[f"reward_gain{end}"] for end in ("", "_low", "_high")] == [2.0] * 3  # every prompt gains the same
    assert report["kl"] == pytest.approx(0.5)  # 0, 0.2 … 1.0 nats
    # Student's t of six values with standard deviation 0.3742: 0.5 ± 2.571 · 0.3742/√6
    assert [report["kl_low"], report["kl_high"]] == pytest.approx([0.107, 0.893], abs=0.06)


def test_without_a_reward_model_or_intervals_the_kl_stands_alone() -> None:
    before, after = rollouts([0.0] * 6, [-1.0] * 6), rollouts([0.0] * 6, [-0.5] * 6)
    assert compared.compare(before, after, StageInputs(Prepared(), "")) == {
        "kl": pytest.approx(1.0),
        "prompts_cut": 0,
    }
