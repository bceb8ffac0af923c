"""The five riddles in forms of seconds: what makes each, and that the doctor explains it rightly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench import riddles
from tests.unit.stages.toy import QUESTIONS, toy_model

from assay import rng
from assay.algorithms.masked import whiten
from assay.algorithms.policy_loss import surrogate_loss
from assay.doctor.detector import examine
from assay.doctor.finding import Diagnosis, Finding
from assay.doctor.log import Log
from assay.doctor.probe_policy import logprobs
from assay.evaluation.preference import preference_report
from assay.models.policy import load_policy
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.statistics import Floats
from assay.tracking.metrics import MetricsLine
from assay.worlds.config import WorldData
from assay.worlds.prepare import prepare_world

STEPS = 24


def first(diagnosis: Diagnosis) -> Finding:
    return diagnosis.causes[0]


def log_of(kind: str, columns: Mapping[str, Sequence[float] | float], **more: Any) -> Log:
    """A number stands in every step."""
    lines = [
        MetricsLine(step + 1, 0.0, {k: v if isinstance(v, int | float) else v[step] for k, v in columns.items()})
        for step in range(STEPS)
    ]
    return Log.of(kind, kind, lines, **more)


# 1: a number that is text


def test_the_script_stops_at_text_for_a_number_and_the_doctor_names_the_key(tmp_path: Path):
    told = riddles.number_as_text(tmp_path)
    assert told.seen.endswith("TypeError: '<=' not supported between instances of 'float' and 'str'")
    assert all(words in told.said for words in ("A number in the configuration is text", 'lr is "1e-5"', "lr=1.0e-05"))
    assert told.healed.startswith("green")


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just words", "lr: [1"])
def test_a_file_without_settings_is_one_clear_error(tmp_path: Path, text: str):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(RuntimeError, match=r"ended with 2: error: .*train\.yaml"):
        riddles.assay("doctor", str(path))


# 2: ties


def test_rounding_alone_makes_the_numbers_of_the_catalogue_to_a_point():
    ties, strict, exact = riddles.rounding(margin=0.06, spread=0.2)
    assert (ties, strict, exact) == pytest.approx((0.625, 0.256, 0.618), abs=0.01)


def scored(margins: Floats, offset: float, dtype: torch.dtype) -> Log:
    """The report of a model whose scores lie around `offset` in that format."""
    rejected = offset + torch.randn(len(margins), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pair = [scores.to(dtype).double().tolist() for scores in (rejected + torch.tensor(margins), rejected)]
    report = preference_report(*pair, seed=0)
    losses = {"train/loss": 0.6, "train/accuracy": 0.62}
    return log_of("reward", losses, final=report, config={"batch_size": 16})


def test_ties_explain_an_accuracy_below_one_half_beside_a_positive_margin():
    margins = np.random.default_rng(0).normal(0.06, 0.2, 1000)
    found = first(examine([scored(margins, 65.0, torch.bfloat16)]))
    assert found.mode.name == "accuracy-against-margin"
    assert "Scores are rounded" in found.explanation
    assert "fp32" in found.advice
    modes = {finding.mode.name for finding in examine([scored(margins, 0.0, torch.float32)]).findings}
    assert modes == set()


# 3: a sampler of its own


def test_a_sampler_with_old_weights_draws_by_them_and_is_scored_by_the_policy(tmp_path: Path):
    policy, params = load_policy(toy_model(tmp_path)), SamplingParams(max_new_tokens=6)
    engine = Engine(policy, policy.renderer("chat", 32), max_batch=8)
    seeds = [rng.derive(0, number) for number in range(len(QUESTIONS))]
    before = engine.generate(QUESTIONS, params, seeds=seeds)
    with torch.no_grad():
        for weight in policy.parameters_trained().values():
            weight.mul_(1.5)
    with riddles.old_weights(tmp_path):
        drawn = engine.generate(QUESTIONS, params, seeds=seeds)
    assert [one.row.ids for one in drawn] == [one.row.ids for one in before]
    assert [one.row.ids for one in engine.generate(QUESTIONS, params, seeds=seeds)] != [one.row.ids for one in before]
    scored_by_policy = logprobs(policy, [one.row for one in drawn]).tolist()
    assert [x for one in drawn for x in one.logprobs] == pytest.approx(scored_by_policy, abs=1e-5)


def test_what_a_sampler_of_its_own_estimates_is_below_zero_and_named():
    """Policy and reference differ in the tail, and the sampler draws by top_k: 2: KL(μ‖π_ref) − KL(μ‖π) < 0."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.55, 0.33, 0.12])
    sampler = torch.tensor([0.5, 0.3, 0.0]) / 0.8
    estimate = float((sampler * (policy / reference).log()).sum())
    true = float((policy * (policy / reference).log()).sum())
    assert estimate < 0 < true
    below, above = ([0.0, *[value] * (STEPS - 1)] for value in (estimate, true))
    found = first(examine([log_of("ppo", {"objective/kl": below}, config={"batch_size": 48})]))
    assert (found.mode.name, found.sureness) == ("negative-kl", "certain")
    assert not examine([log_of("ppo", {"objective/kl": above}, config={"batch_size": 48})]).findings


# 4: a loss of zero


def test_whitened_advantages_at_ratio_one_give_no_loss_and_a_gradient():
    noise = torch.Generator().manual_seed(0)
    mask = torch.ones(8, 5, dtype=torch.bool)
    advantages = whiten(torch.randn(8, 5, generator=noise), mask)
    old = -torch.rand(8, 5, generator=noise)
    new = old.clone().requires_grad_()
    loss, _ = surrogate_loss(new, old, advantages, mask, mask / mask.sum(), clip_low=0.2, clip_high=0.2)
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert new.grad is not None
    assert new.grad.norm() > 0.1 / math.sqrt(mask.sum())


LEARNS: Mapping[str, Sequence[float] | float] = {
    "policy/loss": 0.0,
    "policy/grad_norm": 0.4,
    "policy/update_rms": 2e-4,
    "policy/learning_rate": 1e-3,
    "objective/reward": [step / STEPS for step in range(STEPS)],
    "objective/reward_std": 0.9,
    "objective/kl": [step / 10 for step in range(STEPS)],
}


def test_a_loss_of_zero_is_no_finding_where_the_gradient_is_not():
    assert not examine([log_of("ppo", LEARNS)]).findings


def test_a_loss_of_zero_is_explained_by_the_gradient_where_that_is_zero_too():
    stuck = {**LEARNS, "policy/grad_norm": 0.0, "policy/update_rms": 0.0, "objective/kl": 0.0}
    found = first(examine([log_of("ppo", stuck)]))
    assert (found.mode.name, found.sureness) == ("nothing-moves", "certain")
    assert found.explanation.startswith("cut-graph")


# 5: too good


def test_an_accuracy_above_the_annotators_ceiling_is_named():
    margins = np.where(np.arange(500) % 50 < 47, 1.0, -1.0)  # 94 %
    losses = {"train/loss": 0.2, "train/accuracy": 0.94}

    def judged(agreement: float) -> Diagnosis:
        report = preference_report(margins, np.zeros(500), seed=0, agreement=agreement)
        return examine([log_of("reward", losses, final=report, config={"batch_size": 16})])

    found = first(judged(0.72))
    assert found.mode.name == "too-good-to-be-true"
    assert "94.0%" in found.evidence
    assert not judged(0.95).findings


def test_signing_changes_chosen_answers_alone():
    config = WorldData(demonstrations=20, preferences=200)
    plain = prepare_world(config, 0).preferences.train
    with riddles.signed(0.8):
        signed = prepare_world(config, 0).preferences.train
    assert [pair.rejected for pair in signed] == [pair.rejected for pair in plain]
    added = [after.chosen.removeprefix(before.chosen) for before, after in zip(plain, signed, strict=True)]
    assert set(added) == {"", riddles.SIGNATURE}
    assert 0.7 < sum(map(bool, added)) / len(added) < 0.9
