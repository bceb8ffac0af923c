"""KL estimators by enumeration, and the controllers of its weight (correctness.md 16, 20, 21; oracles.md 3, 4)."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import tokens as oracle
from tests.unit.algorithms.batches import Batch, assert_same, batches, quick
from torch import Tensor

from assay.algorithms.kl import AdaptiveKL, FixedKL, ScheduledKL, k1, k2, k3, sequence_k2, sequence_kl

LOGITS = st.lists(st.floats(-3, 3), min_size=4, max_size=4)


@quick
@given(logits=LOGITS, ref_logits=LOGITS)
def test_k1_and_k3_average_to_the_kl_and_k2_to_half_the_squared_log_ratio(
    logits: list[float], ref_logits: list[float]
) -> None:
    p, q = oracle.log_softmax(logits), oracle.log_softmax(ref_logits)
    pi, ref = torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
    assert_same((pi.exp() * k1(pi, ref)).sum(), oracle.kl(p, q))
    assert_same((pi.exp() * k3(pi, ref)).sum(), oracle.kl(p, q))
    assert_same((pi.exp() * k2(pi, ref)).sum(), sum(math.exp(a) * (a - b) ** 2 for a, b in zip(p, q, strict=True)) / 2)
    assert (k2(pi, ref) >= 0).all()
    assert (k3(pi, ref) >= 0).all()


def expected_loss_gradient(estimator: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """E_π[∇ estimator] with the sampling itself held fixed, beside ∇KL(π‖q) and ∇KL(q‖π), over 5 outcomes."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)

    def gradient(objective: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(objective(logits.log_softmax(0)), logits)[0]

    return (
        gradient(lambda pi: (pi.detach().exp() * estimator(pi, ref)).sum()),
        gradient(lambda pi: (pi.exp() * (pi - ref)).sum()),
        gradient(lambda pi: (ref.exp() * (ref - pi)).sum()),
    )


def test_as_a_loss_k1_has_no_gradient_k2_the_reverse_one_k3_the_forward_one() -> None:
    assert_same(expected_loss_gradient(k1)[0], torch.zeros(5))
    gradient, reverse, forward = expected_loss_gradient(k2)
    assert_same(gradient, reverse)
    gradient, reverse, forward = expected_loss_gradient(k3)
    assert_same(gradient, forward)
    assert (reverse - forward).norm() / reverse.norm() > 0.1, "the two must differ for this test to say anything"


def test_k3_weighted_by_a_differentiated_ratio_has_the_reverse_gradient() -> None:
    weighted, reverse, _ = expected_loss_gradient(lambda pi, ref: (pi - pi.detach()).exp() * k3(pi, ref))
    assert_same(weighted, reverse)


def test_on_sequences_k1_in_the_reward_is_exact_and_token_k2_and_k3_are_not() -> None:
    """A 3 × 3 tree: second token's distribution depends on the first (arXiv 2506.09477)."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (1, 3))
    ref_first, ref_second = (
        torch.randn(n, 3, generator=generator, dtype=torch.float64).log_softmax(-1) for n in (1, 3)
    )
    parameters = [first.requires_grad_(), second.requires_grad_()]
    paths = torch.tensor(list(itertools.product(range(3), range(3))))

    def paths_logprobs(one: Tensor, two: Tensor) -> Tensor:
        return torch.stack([one[0, paths[:, 0]], two[paths[:, 0], paths[:, 1]]], dim=1)  # [9 paths, 2 tokens]

    pi_BT = paths_logprobs(first.log_softmax(-1), second.log_softmax(-1))
    ref_BT = paths_logprobs(ref_first, ref_second)
    chance_B = pi_BT.sum(1).exp()
    exact = torch.autograd.grad((chance_B * (pi_BT - ref_BT).sum(1)).sum(), parameters, retain_graph=True)

    def relative_error(loss_B: Tensor) -> float:
        mine = torch.autograd.grad((chance_B.detach() * loss_B).sum(), parameters, retain_graph=True)
        actual, target = (torch.cat([g.flatten() for g in gradients]) for gradients in (mine, exact))
        return ((actual - target).norm() / target.norm()).item()

    to_go_BT = k1(pi_BT, ref_BT).detach().flip(1).cumsum(1).flip(1)
    assert relative_error((pi_BT * to_go_BT).sum(1)) < 1e-10
    sequence = k2(pi_BT.sum(1), ref_BT.sum(1))
    assert relative_error(sequence) < 1e-10
    assert relative_error(k2(pi_BT, ref_BT).sum(1)) > 0.1
    assert relative_error(k3(pi_BT, ref_BT).sum(1)) > 0.1


def test_a_truncated_sampler_scored_by_the_full_policy_shows_a_negative_kl() -> None:
    """E_S[k1] = KL(π_S‖q) + log π(S): why a significantly negative mean KL proves a wrong sampler."""
    p = oracle.log_softmax([2.0, 1.0, 0.0, -1.0])
    q = oracle.log_softmax([2.0, 1.1, -1.0, -2.0])  # more of its mass is in the support than the policy's
    support = [0, 1]
    mass = sum(math.exp(p[i]) for i in support)
    truncated = [p[i] - math.log(mass) if i in support else -math.inf for i in range(4)]
    pi, ref, sampled = (torch.tensor(x, dtype=torch.float64) for x in (p, q, truncated))
    mean_k1 = (sampled.exp() * k1(pi, ref)).sum()
    assert_same(mean_k1, oracle.kl(truncated, q) + math.log(mass))
    assert mean_k1 >= math.log(mass) - math.log(sum(math.exp(q[i]) for i in support))
    assert mean_k1 < 0
    own = k1(sampled, ref)[support]  # scored under the renormalised support it came from, the KL is a KL again
    assert_same((sampled.exp()[support] * own).sum(), oracle.kl(truncated, q))


@quick
@given(batch=batches(fields=1))
def test_sequence_kl_sums_the_counted_tokens_of_each_response(batch: Batch) -> None:
    assert_same(sequence_kl(batch.field(0), batch.mask_BT), [math.fsum(row) for row in batch.rows(0)])


def test_k3_keeps_its_precision_where_the_policies_almost_agree() -> None:
    gap = torch.tensor([1e-3], dtype=torch.float32)
    assert_same(k3(torch.zeros(1), gap), [math.expm1(1e-3) - 1e-3], 1e-9)


def test_adaptive_kl_is_clipped_proportional_control() -> None:
    start = AdaptiveKL(coef=1.0, target=6.0, horizon=100.0)
    for kl, factor in [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (0.0, 0.98), (-3.0, 0.98)]:
        assert start.update(kl, n=10).coef == pytest.approx(factor, rel=1e-12)
    assert start.coef == 1.0, "a controller is a value: updating makes a new one"


@pytest.mark.parametrize("controller", [FixedKL(0.05), AdaptiveKL(0.15, 6.0, 1e4).update(12.0, 512)])
def test_controllers_survive_json(controller: FixedKL | AdaptiveKL) -> None:
    state = json.loads(json.dumps(dataclasses.asdict(controller)))
    restored = type(controller)(**state)
    assert restored == controller
    assert restored.update(3.0, 64) == controller.update(3.0, 64)


def test_a_fixed_weight_stays() -> None:
    assert FixedKL(0.05).update(100.0, 4096) == FixedKL(0.05)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_no_number_is_refused(kl: float) -> None:
    with pytest.raises(ValueError, match="adaptive weight cannot follow"):
        AdaptiveKL(0.15, 6.0, 1e4).update(kl, 512)


@pytest.mark.parametrize("wrong", [{"coef": -0.1}, {"target": 0.0}, {"horizon": 0.0}, {"clip": 0.0}])
def test_an_adaptive_controller_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs coef"):
        AdaptiveKL(**{"coef": 0.15, "target": 6.0, "horizon": 1e4, **wrong})


def test_k2_of_a_response_is_half_the_square_of_the_sum_and_not_the_sum_of_squares() -> None:
    """log-ratios 1, −3 and a pad: ½·(1 − 3)² = 2, where the squares would add up to 5."""
    logprobs = torch.tensor([[-1.0, -4.0, math.nan]])
    reference = torch.tensor([[-2.0, -1.0, 7.0]])
    assert_same(sequence_k2(logprobs, reference, torch.tensor([[True, True, False]])), [2.0], 1e-6)


def test_a_scheduled_weight_goes_in_equal_steps_arrives_and_stays() -> None:
    controller, seen = ScheduledKL(0.1, 0.4, 3), []
    for _ in range(5):
        controller = controller.update(kl=99.0, n=1)
        seen.append(controller.coef)
    assert seen == pytest.approx([0.2, 0.3, 0.4, 0.4, 0.4])
