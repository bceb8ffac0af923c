"""Bias of every policy-gradient estimator, by enumeration of all that can be drawn (oracles.md 3, 5, 6)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bench.gradients import ESTIMATORS, GROUP, Estimator, moments
from tests.oracles import tree as oracle
from tests.oracles.tree import Tree
from torch import Tensor

from assay.algorithms.advantages import group_relative, informative_groups, leave_one_out
from assay.algorithms.policy_loss import surrogate_loss
from assay.models.int8 import Int8Linear
from assay.stages.config import GroupConfig
from assay.stages.policy_step import importance_weighted

NUMBERS = np.random.default_rng(0)
REFERENCE, POLICY = (oracle.softmax(NUMBERS.normal(size=(21, 4))) for _ in range(2))
SAMPLER = oracle.softmax(np.log(POLICY) + 0.3 * NUMBERS.normal(size=(21, 4)))
TREE = Tree(REFERENCE, 0.5 * NUMBERS.normal(size=64) + 1, 0.7)
BY_NAME = {estimator.name: estimator for estimator in ESTIMATORS}


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if e.exact], ids=lambda e: e.name)
def test_right_on_average(estimator: Estimator) -> None:
    found = moments(estimator, TREE, POLICY, SAMPLER)
    assert found.bias < 1e-9
    assert found.variance > 0


@pytest.mark.parametrize("estimator", [e for e in ESTIMATORS if not e.exact], ids=lambda e: e.name)
def test_wrong_on_average_by_more_than_rounding(estimator: Estimator) -> None:
    assert moments(estimator, TREE, POLICY, SAMPLER).bias > 0.01


def test_the_mean_of_the_group_costs_exactly_one_gth_of_the_gradient() -> None:
    found = moments(BY_NAME["group mean (Dr.GRPO): (G−1)/G·∇J"], TREE, POLICY)
    np.testing.assert_allclose(found.mean, (GROUP - 1) / GROUP * found.true, atol=1e-12)
    assert found.cosine == pytest.approx(1, abs=1e-12)


def test_dividing_by_the_deviation_turns_the_gradient() -> None:
    assert moments(BY_NAME["group mean and std (GRPO)"], TREE, POLICY).cosine < 0.999


def test_a_constant_in_every_score_is_noise_without_a_baseline_and_nothing_with_one() -> None:
    raised = Tree(TREE.reference, TREE.scores + 2, TREE.beta)
    low, high = ([moments(BY_NAME[name], tree, POLICY) for name in ("REINFORCE", "RLOO")] for tree in (TREE, raised))
    assert high[0].variance > 2 * low[0].variance
    assert high[1].variance == pytest.approx(low[1].variance, rel=1e-9)


def test_weighing_tokens_by_their_own_ratio_is_better_than_not_at_all() -> None:
    names = ("another sampler, ratio of each token", "another sampler, no ratio")
    weighed, ignored = (moments(BY_NAME[name], TREE, POLICY, SAMPLER).bias for name in names)
    assert weighed < ignored


@pytest.mark.parametrize(("cap", "bias"), [(2.0, 1e-5), (None, 1e-3)], ids=["weighed", "not weighed"])
def test_one_token_from_int8_weights_teaches_what_the_trained_ones_would_where_it_is_weighed(
    cap: float | None, bias: float
) -> None:
    """E over the copy's tokens of the production gradient, against ∇ Σ_y π(y)·A(y) of the trained weights."""
    noise = torch.Generator().manual_seed(3)
    states, scores = torch.randn(1, 16, generator=noise), torch.tensor([1.0, -0.5, 2.0, 0.25])
    weight = (2 * torch.randn(4, 16, generator=noise)).requires_grad_()
    logprobs = (states @ weight.T).log_softmax(-1).T  # one response of one token a row: [4, 1]
    (true,) = torch.autograd.grad((logprobs[:, 0].exp() * scores).sum(), weight, retain_graph=True)
    copied = Int8Linear.of(weight, None)(states).log_softmax(-1).detach().T
    rollouts: Any = SimpleNamespace(mask_BR=torch.ones(4, 1, dtype=torch.bool), logprobs_BR=copied)
    config = GroupConfig.model_validate({"importance_cap": cap})
    advantages = importance_weighted(scores[:, None], rollouts, logprobs.detach(), config)
    loss, _ = surrogate_loss(
        logprobs, logprobs.detach(), advantages, rollouts.mask_BR, copied.exp(), clip_low=0.2, clip_high=0.2
    )
    (found,) = torch.autograd.grad(-loss, weight)
    off = float((found - true).norm() / true.norm())
    assert off < bias if cap else off > bias


SCORES = [1.0, -0.5, 2.0, 0.25]
CHANCES = [0.1, 0.2, 0.3, 0.4]


def expected_gradient(advantages_of: Callable[[Tensor], Tensor], size: int) -> list[float]:
    """E[1/G·Σ_i A_i·∇log π(y_i)] of a softmax over four outcomes, over all 4^G groups."""
    groups = list(itertools.product(range(4), repeat=size))
    advantages = advantages_of(torch.tensor([[SCORES[y] for y in group] for group in groups])).tolist()
    total = [0.0] * 4
    for group, advantage in zip(groups, advantages, strict=True):
        likely = math.prod(CHANCES[y] for y in group)
        for y, a in zip(group, advantage, strict=True):
            for k in range(4):
                total[k] += likely * a * ((k == y) - CHANCES[k]) / size
    return total


@pytest.mark.parametrize("size", [2, 3, 5])
def test_for_groups_of_any_size_leaving_one_out_is_exact_and_the_mean_is_short_by_one_gth(size: int) -> None:
    mean = sum(p * r for p, r in zip(CHANCES, SCORES, strict=True))
    true = [p * (r - mean) for p, r in zip(CHANCES, SCORES, strict=True)]
    assert expected_gradient(leave_one_out, size) == pytest.approx(true, abs=1e-6)
    short = [(size - 1) / size * slope for slope in true]
    assert expected_gradient(lambda scores: group_relative(scores, scale=False), size) == pytest.approx(short, abs=1e-6)


@pytest.mark.parametrize("size", [2, 4, 7])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_group_of_binary_scores_teaches_nothing_with_probability_p_to_the_g_plus_q_to_the_g(
    p: float, size: int
) -> None:
    groups = torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)))
    likely = (p**groups * (1 - p) ** (1 - groups)).prod(dim=1)
    silent = likely[~informative_groups(groups)].sum().item()
    assert silent == pytest.approx(p**size + (1 - p) ** size, rel=1e-5)
    assert not group_relative(groups, scale=True)[~informative_groups(groups)].any()


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_grpo_on_binary_scores_climbs_twice_the_arcsine_of_the_root_of_p(p: float) -> None:
    """d/dθ 2·arcsin√p = √(p(1 − p)) for p = σ(θ): what the expected estimate tends to as groups grow."""
    size = 600
    wins = torch.arange(size + 1)
    groups = (torch.arange(size) < wins[:, None]).double()  # k wins and G − k losses, in one order of many
    log_likely = torch.tensor(
        [
            math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1) + k * math.log(p)
            + (size - k) * math.log(1 - p)
            for k in range(size + 1)
        ],
        dtype=torch.float64,
    )  # fmt: skip
    estimates = (group_relative(groups, scale=True) * (groups - p)).mean(dim=1)
    assert (log_likely.exp() * estimates).sum().item() == pytest.approx(math.sqrt(p * (1 - p)), rel=5e-3)
