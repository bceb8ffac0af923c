"""Numbers worked out by hand, and one PPO update traced from scores to losses."""

from __future__ import annotations

import math

import pytest
import torch

from assay.algorithms.advantages import gae, missing_eos_scores, shaped_rewards
from assay.algorithms.kl import AdaptiveKL, k1, k2, k3
from assay.algorithms.logprobs import token_logprobs
from assay.algorithms.masked import whiten
from assay.algorithms.policy_loss import aggregation_weights, ppo_value_loss, surrogate_loss
from assay.algorithms.preference_loss import bradley_terry, ranking_loss


def test_adaptive_kl_after_three_updates() -> None:
    controller = AdaptiveKL(coef=0.15, target=6.0, horizon=1e4)
    for _ in range(3):
        controller = controller.update(12.0, 512)  # each multiplies by 1 + 0.2·512/10⁴ = 1.01024
    assert controller.coef == pytest.approx(0.1546553, abs=5e-8)


def test_kl_estimators_at_a_ratio_of_two() -> None:
    policy, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert k1(policy, reference).item() == pytest.approx(0.6931472)  # log 2
    assert k2(policy, reference).item() == pytest.approx(0.2402265)  # ½·log²2
    assert k3(policy, reference).item() == pytest.approx(0.1931472)  # ½ − 1 + log 2


def test_bradley_terry_at_a_gap_of_two() -> None:
    chosen, rejected = torch.tensor([1.5]), torch.tensor([-0.5])
    assert bradley_terry(chosen, rejected)[0].item() == pytest.approx(0.1269280)  # log(1 + e⁻²)
    assert bradley_terry(chosen, rejected, margin=0.5)[0].item() == pytest.approx(0.2014133)  # log(1 + e^−1.5)
    assert bradley_terry(torch.zeros(1), torch.zeros(1))[0].item() == pytest.approx(math.log(2))


def test_centring_adds_the_mean_square_of_the_sums() -> None:
    chosen, rejected = torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 2.0])
    plain, centred = (bradley_terry(chosen, rejected, centring=c)[0].item() for c in (0.0, 0.01))
    assert centred - plain == pytest.approx(0.1, abs=1e-6)  # 0.01·((1 − 3)² + (2 + 2)²)/2


def test_a_ranking_of_three_is_three_pairs() -> None:
    loss, metrics = ranking_loss(torch.tensor([[2.0, 1.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool))
    # gaps 1, −1, −2: (0.3132617 + 1.3132617 + 2.1269280)/3
    assert loss.item() == pytest.approx(1.2511505)
    assert metrics["accuracy"].item() == pytest.approx(1 / 3)


def test_logprob_and_entropy_of_a_small_head() -> None:
    """h = (1, 2), W = rows (1, 0), (0, 1), (1, 1): logits 1, 2, 3, so log Z = 3.4076059."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    logprobs, entropies = token_logprobs(torch.tensor([[1.0, 2.0]]), weight, torch.tensor([1]), with_entropy=True)
    assert entropies is not None
    assert logprobs.item() == pytest.approx(-1.4076059)
    assert entropies.item() == pytest.approx(0.8323953, abs=1e-6)  # log Z − (0.0900306 + 2·0.2447285 + 3·0.6652410)


def test_one_ppo_update_from_scores_to_losses() -> None:
    """Two responses, of 3 and 2 tokens; the second never ended. β = 0.1, γ = 1, λ = ½, clip 0.2, value clip ¼."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    scores = missing_eos_scores(torch.tensor([2.0, 3.0]), torch.tensor([True, False]), rule="set", penalty=1.0)
    kl = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, math.nan]])
    rewards = shaped_rewards(scores, kl, mask, coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 0.0, 2.1], [-0.2, -1.0, 0.0]]))

    values = torch.tensor([[1.0, 1.0, 1.5], [0.0, -0.5, math.nan]])
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=0.5)
    # δ = (−0.1, 0.5, 0.6) and (−0.7, −0.5);  A_t = δ_t + ½·A_{t+1}
    torch.testing.assert_close(advantages, torch.tensor([[0.3, 0.8, 0.6], [-0.95, -0.5, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.3, 1.8, 2.1], [-0.95, -1.0, 0.0]]))

    white = whiten(advantages, mask)
    # mean 0.05; deviations 0.25, 0.75, 0.55, −1, −0.55; variance 2.23/5 = 0.446
    expected = torch.tensor([[0.25, 0.75, 0.55], [-1.0, -0.55, 0.0]]) / math.sqrt(0.446)
    torch.testing.assert_close(white, expected)

    ratios = torch.tensor([[1.1, 1.5, 0.7], [0.5, 1.3, 1.0]])
    old = torch.full((2, 3), -2.0)
    weights = aggregation_weights(mask, "token_mean", max_tokens=3)
    loss, metrics = surrogate_loss(old + ratios.log(), old, white, mask, weights, clip_low=0.2, clip_high=0.2)
    # −A·ρ after the pessimistic clip, before 1/√0.446: −0.275, −0.9 (cut), −0.385, +0.8 (cut), +0.715; sum −0.045
    assert loss.item() == pytest.approx(-0.045 / 5 / math.sqrt(0.446), abs=1e-6)
    assert metrics["clipfrac"].item() == 2
    # ρ − 1 − log ρ: 0.0046898, 0.0945349, 0.0566749, 0.1931472, 0.0376357; sum
    assert metrics["approxkl"].item() == pytest.approx(0.3866826, abs=1e-6)

    moved = torch.tensor([[1.2, 1.5, 1.0], [-0.1, -0.4, math.nan]])
    loss, metrics = ppo_value_loss(moved, values, returns, mask, clip=0.25, total=5)
    # ½·squares: 0.1²; clipped to 1.25: 0.55² (cut); 1.1² (1.0 is away from R, plain); 0.85²; 0.6²
    assert loss.item() == pytest.approx(0.5 * (0.01 + 0.3025 + 1.21 + 0.7225 + 0.36) / 5, abs=1e-6)
    assert metrics["clipfrac"].item() == pytest.approx(0.2)
    assert metrics["error"].item() == pytest.approx((0.01 + 0.09 + 1.21 + 0.7225 + 0.36) / 5, abs=1e-6)
