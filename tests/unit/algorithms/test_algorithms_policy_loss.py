"""PPO's losses, their gradients and their metrics (correctness.md 24, 25, 26, 28, 29, 30)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import losses
from tests.oracles import tokens as token_oracle
from tests.unit.algorithms.batches import GARBAGE, Batch, assert_same, batches, quick
from torch import Tensor

from assay.algorithms.policy_loss import (
    MAX_LOG_RATIO,
    Aggregation,
    RatioLevel,
    Surrogate,
    aggregation_weights,
    clip_binds,
    clipped_surrogate,
    clipped_value_loss,
    entropy_loss,
    importance_weights,
    log_ratio,
    mismatch,
    ppo_value_loss,
    ratio_error,
    surrogate_loss,
    token_mean,
)

LOW, HIGH, CLIP = 0.2, 0.3, 0.5
EVERY = [[True, True, True]]

Parts = tuple[Tensor, Tensor, Tensor, Tensor]
Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]


def policy(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, total: int) -> tuple[Tensor, dict[str, Tensor]]:
    weights = mask.double() / total
    loss, sums = surrogate_loss(new, old, advantages, mask, weights, clip_low=LOW, clip_high=HIGH)
    return loss, {key: value / total for key, value in sums.items()}


def value(new: Tensor, old: Tensor, returns: Tensor, mask: Tensor, total: int) -> tuple[Tensor, dict[str, Tensor]]:
    return ppo_value_loss(new, old, returns, mask, clip=CLIP, total=total)


def entropy(new: Tensor, old: Tensor, returns: Tensor, mask: Tensor, total: int) -> tuple[Tensor, dict[str, Tensor]]:
    return entropy_loss(new, mask, mask.double() / total), {}


every_loss = pytest.mark.parametrize("loss", [policy, value, entropy])


@quick
@given(batch=batches(fields=3))
def test_policy_loss_and_its_metrics_match_the_definition(batch: Batch) -> None:
    loss, metrics = policy(batch.field(0), batch.field(1), batch.field(2), batch.mask_BT, batch.count)
    tokens = [token for row in batch.tokens for token in row]
    n = len(tokens)
    assert_same(loss, sum(losses.clipped_surrogate(new - old, a, LOW, HIGH) for new, old, a in tokens) / n)
    assert_same(metrics["approxkl"], sum(math.exp(new - old) - 1 - (new - old) for new, old, _ in tokens) / n)
    cut = [
        (a > 0 and new - old > math.log(1 + HIGH)) or (a < 0 and new - old < math.log(1 - LOW))
        for new, old, a in tokens
    ]
    assert_same(metrics["clipfrac"], sum(cut) / n)


@quick
@given(batch=batches(fields=3))
def test_value_loss_and_its_metrics_match_the_definition(batch: Batch) -> None:
    loss, metrics = value(batch.field(0), batch.field(1), batch.field(2), batch.mask_BT, batch.count)
    tokens = [token for row in batch.tokens for token in row]
    n = len(tokens)
    each = [losses.clipped_value_loss(v, old, target, CLIP) for v, old, target in tokens]
    assert_same(loss, sum(each) / n)
    assert_same(metrics["error"], sum((v - target) ** 2 for v, _, target in tokens) / n)
    outside = [abs(v - old) > CLIP for v, old, _ in tokens]
    decided = [
        out and one > (v - target) ** 2 / 2 for out, one, (v, _, target) in zip(outside, each, tokens, strict=True)
    ]
    assert_same(metrics["clipfrac"], sum(decided) / n)


@pytest.mark.parametrize(
    ("advantage", "ratio", "gradient"),
    [
        (2.0, 1.0, -2.0),
        (2.0, 1.29, -2.58),
        (2.0, 1.31, 0.0),  # A > 0 and ρ > 1 + clip_high
        (2.0, 0.5, -1.0),  # outside on the other side: the way back is open
        (-2.0, 1.0, 2.0),
        (-2.0, 0.81, 1.62),
        (-2.0, 0.79, 0.0),  # A < 0 and ρ < 1 − clip_low
        (-2.0, 1.5, 3.0),
        (0.0, 1.5, 0.0),
    ],
)
def test_gradient_is_zero_only_where_the_clip_binds(advantage: float, ratio: float, gradient: float) -> None:
    log_rho = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    clipped_surrogate(log_rho, advantages, clip_low=LOW, clip_high=HIGH).sum().backward()
    assert log_rho.grad is not None
    assert_same(log_rho.grad, [[gradient]])  # ∂(−Aρ)/∂log ρ = −Aρ
    binds = clip_binds(log_rho, advantages, clip_low=LOW, clip_high=HIGH).item()
    assert binds == (gradient == 0 and advantage != 0)


@pytest.mark.parametrize(
    ("v", "target", "expected", "gradient"),
    [
        (0.3, 1.0, 0.245, -0.7),  # inside the interval [−½, ½] of V_old = 0: the plain squared error
        (0.8, 2.0, 1.125, 0.0),  # left towards R: the clipped term, (½ − 2)²/2, is larger and flat
        (0.8, -1.0, 1.62, 1.8),  # left away from R: the plain term is larger, and pulls back
        (-0.8, -2.0, 1.125, 0.0),
        (-0.8, 1.0, 1.62, -1.8),
        (0.8, 0.6, 0.02, 0.2),  # left past R: the plain term is still the larger one
        (0.9, 0.8, 0.045, 0.0),  # past R by less than R is past the interval: the clipped term, (½ − 0.8)²/2
    ],
)
def test_value_loss_by_quadrant(v: float, target: float, expected: float, gradient: float) -> None:
    values = torch.tensor([[v]], dtype=torch.float64, requires_grad=True)
    old, returns = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[target]], dtype=torch.float64)
    loss = clipped_value_loss(values, old, returns, clip=CLIP)
    loss.sum().backward()
    assert values.grad is not None
    assert_same(loss.detach(), [[expected]])
    assert_same(values.grad, [[gradient]])


@quick
@given(batch=batches(fields=3), garbage=st.sampled_from(GARBAGE))
@every_loss
def test_what_does_not_count_has_no_effect_on_loss_metrics_or_gradient(
    batch: Batch, garbage: float, loss: Loss
) -> None:
    def run(fill: float) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        new = batch.field(0, fill).requires_grad_()
        result, metrics = loss(new, batch.field(1, fill), batch.field(2, fill), batch.mask_BT, batch.count)
        return result.detach(), metrics, torch.autograd.grad(result, new)[0]

    clean, dirty = run(0.0), run(garbage)
    assert torch.equal(clean[0], dirty[0])
    assert {name: m.item() for name, m in clean[1].items()} == {name: m.item() for name, m in dirty[1].items()}
    assert torch.equal(clean[2], dirty[2])
    assert not dirty[2][~batch.mask_BT].any()


@quick
@given(batch=batches(fields=3))
@every_loss
def test_micro_batches_and_the_order_of_rows_change_neither_gradient_nor_metrics(batch: Batch, loss: Loss) -> None:
    new, old, third = (batch.field(i) for i in range(3))
    new.requires_grad_()

    def run(parts: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
        gradient, sums = torch.zeros_like(new), {"loss": 0.0}
        for rows in parts:
            share, metrics = loss(new[rows], old[rows], third[rows], batch.mask_BT[rows], batch.count)
            gradient += torch.autograd.grad(share, new)[0]
            for name, metric in {"loss": share, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + metric.item()
        return gradient, sums

    rows = torch.arange(len(new))
    gradient, sums = run([rows])
    for parts in (list(rows.split(1)), list(rows.split(3)), [rows.flip(0)]):
        other_gradient, other_sums = run(parts)
        assert_same(other_gradient, gradient)
        assert other_sums == pytest.approx(sums, rel=1e-9, abs=1e-12)


def test_before_the_first_update_the_gradient_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    advantages = torch.tensor([[0.7, -0.4, 2.0]])
    mask = torch.tensor(EVERY)
    loss, metrics = policy(logprobs, logprobs.detach(), advantages, mask, 3)
    loss.backward()
    assert logprobs.grad is not None
    assert_same(logprobs.grad, -advantages / 3, 1e-6)
    assert {name: metric.item() for name, metric in metrics.items()} == {"approxkl": 0.0, "clipfrac": 0.0}


def test_approxkl_is_the_kl_from_the_old_policy_to_the_new_one() -> None:
    """Tokens drawn from the old policy in exact proportion: the mean of k3 is then KL(old‖new), not KL(new‖old)."""
    old = [math.log(0.5), math.log(0.25), math.log(0.25)]
    new = token_oracle.log_softmax([0.0, 1.0, -1.0])
    drawn = [0, 0, 1, 2]
    _, metrics = policy(
        torch.tensor([[new[i] for i in drawn]], dtype=torch.float64),
        torch.tensor([[old[i] for i in drawn]], dtype=torch.float64),
        torch.ones(1, 4, dtype=torch.float64),
        torch.ones(1, 4, dtype=torch.bool),
        4,
    )
    assert_same(metrics["approxkl"], token_oracle.kl(old, new))
    assert abs(token_oracle.kl(old, new) - token_oracle.kl(new, old)) > 0.01


def test_the_mismatch_of_a_sampler_is_its_kl_and_its_largest_log_ratio_over_counted_tokens() -> None:
    old, sampled = (
        torch.tensor([[chances]], dtype=torch.float64).log()[0] for chances in ([0.4, 0.1, 0.5], [0.2, 0.2, 1e-9])
    )
    found = mismatch(sampled, old, torch.tensor([[True, True, False]]))
    # k3 = ρ − 1 − log ρ of ρ = 2 and ρ = ½
    assert_same(found["kl"], ((2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2))) / 2)
    assert_same(found["log_ratio"], math.log(2))
    assert_same(found["error"], 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_the_mismatch_averages_to_the_kl_of_the_sampler_to_the_trainer(seed: int) -> None:
    """Σ_y p(y)·k3(y) over all tokens that the sampler p may draw is Σ p·log(p/q)."""
    p, q = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed)).double().softmax(1)
    every = torch.ones(1, 1, dtype=torch.bool)
    drawn = [mismatch(p[y].log().view(1, 1), q[y].log().view(1, 1), every)["kl"].item() for y in range(5)]
    exact = sum(float(a) * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    assert sum(a * k for a, k in zip(p.tolist(), drawn, strict=True)) == pytest.approx(exact, abs=1e-12)


def test_ratio_error_is_the_largest_deviation_of_a_counted_token() -> None:
    new = torch.tensor([[-1.0, -2.0 + 1e-3, 5.0]], dtype=torch.float64)
    old = torch.tensor([[-1.0, -2.0, -5.0]], dtype=torch.float64)
    assert_same(ratio_error(new, old, torch.tensor([[True, True, False]])), math.expm1(1e-3))
    assert_same(ratio_error(-new, -old, torch.tensor([[True, True, False]])), -math.expm1(-1e-3))


def test_log_ratio_is_zero_and_flat_where_nothing_counts() -> None:
    new = torch.tensor([[1.0, math.nan]], requires_grad=True)
    ratio = log_ratio(new, torch.tensor([[0.25, math.inf]]), torch.tensor([[True, False]]))
    assert_same(ratio.detach(), [[0.75, 0.0]])
    assert torch.autograd.grad(ratio.sum(), new)[0].tolist() == [[1.0, 0.0]]


def test_an_absurd_ratio_saturates_instead_of_overflowing() -> None:
    log_rho = torch.tensor([[500.0, -500.0]], requires_grad=True)
    loss = clipped_surrogate(log_rho, torch.tensor([[-1.0, 1.0]]), clip_low=LOW, clip_high=HIGH)
    assert loss.isfinite().all()
    assert_same(loss[0, 0].detach(), math.exp(MAX_LOG_RATIO), 1e-5)
    assert torch.autograd.grad(loss.sum(), log_rho)[0].isfinite().all()


def test_policy_metrics_stay_finite_at_an_absurd_ratio() -> None:
    new, old = torch.tensor([[500.0, -0.5]]), torch.tensor([[-1.0, -0.5]])
    _, metrics = policy(new, old, torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), 2)
    assert all(metric.isfinite() for metric in metrics.values())


def test_token_mean_weighs_every_token_alike_whatever_the_length_of_its_response() -> None:
    loss = torch.tensor([[9.0] + [0.0] * 8, [1.0] * 9], requires_grad=True)
    mask = torch.tensor([[True] + [False] * 8, [True] * 9])
    mean = token_mean(loss, mask, total=10)
    assert_same(mean.detach(), 1.8, 1e-6)
    assert_same(torch.autograd.grad(mean, loss)[0], mask * 0.1, 1e-6)


def test_following_the_entropy_loss_downhill_raises_the_entropy() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)

    def entropies() -> Tensor:
        return -(logits.softmax(0) * logits.log_softmax(0)).sum()[None, None]

    before = entropies().item()
    entropy_loss(entropies(), torch.tensor([[True]]), torch.ones(1, 1)).backward()
    with torch.no_grad():
        assert logits.grad is not None
        logits -= 0.1 * logits.grad
    assert entropies().item() > before + 1e-3


@every_loss
def test_gradients_agree_with_finite_differences(loss: Loss) -> None:
    generator = torch.Generator().manual_seed(5)
    new, old, third = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(3, 5, generator=generator) < 0.7
    assert torch.autograd.gradcheck(lambda x: loss(x, old, third, mask, 11)[0], (new.requires_grad_(),))


def test_metrics_carry_no_gradient() -> None:
    x = torch.zeros(1, 3, requires_grad=True)
    for loss in (policy, value):
        _, metrics = loss(x, torch.ones(1, 3), torch.ones(1, 3), torch.tensor(EVERY), 3)
        assert not any(metric.requires_grad for metric in metrics.values())


@quick
@given(batch=batches(fields=3), level=st.sampled_from(["token", "sequence", "trajectory"]))
@pytest.mark.parametrize("kind", ["clip", "plain", "cispo", "penalty"])
def test_every_surrogate_at_every_level_matches_the_definition(
    kind: Surrogate, batch: Batch, level: RatioLevel
) -> None:
    for how in ("token_mean", "sequence_mean", "constant"):
        weights = aggregation_weights(batch.mask_BT, how, max_tokens=7).double()
        loss, _ = surrogate_loss(
            batch.field(0),
            batch.field(1),
            batch.field(2),
            batch.mask_BT,
            weights,
            clip_low=LOW,
            clip_high=HIGH,
            kind=kind,
            level=level,
            bound=1.5,
            drift_coef=0.3,
        )
        expected = losses.policy(batch.tokens, kind, level, how, LOW, HIGH, 1.5, 0.3, 7)
        assert_same(loss, expected, 1e-6)


@pytest.mark.parametrize(
    ("how", "table"),
    [
        ("token_mean", [[1 / 10] + [0] * 8, [1 / 10] * 9, [0] * 9]),
        ("sequence_mean", [[1 / 2] + [0] * 8, [1 / 18] * 9, [0] * 9]),
        ("constant", [[1 / 24] + [0] * 8, [1 / 24] * 9, [0] * 9]),
    ],
)
def test_what_a_token_weighs_in_responses_of_1_and_9_tokens_and_one_that_was_dropped(
    how: Aggregation, table: list[list[float]]
) -> None:
    mask = torch.tensor([[True] + [False] * 8, [True] * 9, [False] * 9])
    assert_same(aggregation_weights(mask, how, max_tokens=12), table, 1e-6)


@pytest.mark.parametrize("kind", ["clip", "plain", "cispo", "penalty"])
@pytest.mark.parametrize("level", ["token", "sequence", "trajectory"])
def test_at_a_ratio_of_one_every_surrogate_has_the_policy_gradient(kind: Surrogate, level: RatioLevel) -> None:
    """−A·Σ_t ∇log π_t per response, by whichever aggregation goes with the level of the ratio."""
    new = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    advantages = torch.tensor([[2.0], [-3.0]], dtype=torch.float64).expand(2, 4)
    if level == "token" or kind == "cispo":  # CISPO's gradient goes through each token's own log-probability
        weights, scale = aggregation_weights(mask, "constant", max_tokens=1), 0.5
    else:
        weights, scale = aggregation_weights(mask, "sequence_mean", max_tokens=1), 0.5
    loss, _ = surrogate_loss(
        new, new.detach(), advantages, mask, weights, clip_low=LOW, clip_high=HIGH, kind=kind, level=level
    )
    (gradient,) = torch.autograd.grad(loss, new)
    lengths = mask.sum(1, keepdim=True) if level == "sequence" and kind != "cispo" else 1
    assert_same(gradient, -scale * advantages * mask / lengths, 1e-6)


def test_the_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely() -> None:
    ratios = torch.tensor([[1.5, 10.0]], dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, _ = surrogate_loss(
        ratios, torch.zeros(1, 2), -torch.ones(1, 2), mask, mask.double(), clip_low=0.2, clip_high=0.2, bound=3.0
    )
    assert_same(loss.detach(), 1.5 + 3.0)
    assert_same(torch.autograd.grad(loss, ratios)[0], [[1.5, 0.0]])


def test_truncated_importance_weights_are_ratios_up_to_the_cap_without_gradient() -> None:
    old = torch.tensor([[-1.0, -1.0, math.nan]], requires_grad=True)
    sampled = torch.tensor([[-1.5, -3.0, math.nan]])
    weights = importance_weights(old, sampled, torch.tensor([[True, True, False]]), cap=2.0)
    assert_same(weights, [[math.exp(0.5), 2.0, 1.0]], 1e-6)
    assert not weights.requires_grad


@pytest.mark.parametrize(
    ("kind", "bound", "cut"),
    [
        ("clip", None, [True, False, False, True]),  # only where the clip takes the gradient
        ("clip", 3.0, [True, False, False, True]),
        ("clip", 1.2, [True, True, False, True]),  # A < 0 and ρ > bound: the dual clip takes it
        ("cispo", None, [True, True, True, True]),  # the weight is clipped whatever the sign of A
        ("plain", None, [False] * 4),
    ],
)
def test_the_share_of_cut_tokens_is_of_those_that_were_cut(
    kind: Surrogate, bound: float | None, cut: list[bool]
) -> None:
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5]], dtype=torch.float64)
    signs = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    zeros = torch.zeros_like(ratios)
    _, metrics = surrogate_loss(
        ratios.log(), zeros, signs, mask, mask.double(), clip_low=0.2, clip_high=0.2, kind=kind, bound=bound
    )
    assert metrics["clipfrac"].item() == sum(cut)
