"""Bradley–Terry pairs and K-way rankings (correctness.md 8, 9, 10)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import losses
from tests.unit.algorithms.batches import assert_same, quick
from torch import Tensor

from assay.algorithms.preference_loss import bradley_terry, ranking_loss

SCORE = st.floats(-5, 5)
PAIRS = st.lists(st.tuples(SCORE, SCORE), min_size=1, max_size=8)
RANKINGS = st.lists(st.lists(SCORE, min_size=2, max_size=5), min_size=1, max_size=5)


def column(pairs: list[tuple[float, float]], index: int) -> Tensor:
    return torch.tensor([pair[index] for pair in pairs], dtype=torch.float64)


def ragged(rankings: list[list[float]], garbage: float = math.nan) -> tuple[Tensor, Tensor]:
    width = max(len(scores) for scores in rankings) + 1
    padded = [scores + [garbage] * (width - len(scores)) for scores in rankings]
    mask = [[k < len(scores) for k in range(width)] for scores in rankings]
    return torch.tensor(padded, dtype=torch.float64), torch.tensor(mask)


@quick
@given(pairs=PAIRS, margin=st.floats(0, 2), centring=st.floats(0, 0.5))
def test_bradley_terry_is_the_mean_over_its_pairs(
    pairs: list[tuple[float, float]], margin: float, centring: float
) -> None:
    loss, metrics = bradley_terry(column(pairs, 0), column(pairs, 1), margin=margin, centring=centring)
    n = len(pairs)
    assert_same(loss, sum(losses.pair(c, r, margin, centring) for c, r in pairs) / n)
    assert_same(metrics["accuracy"], sum(losses.wins(c, r) for c, r in pairs) / n)
    assert_same(metrics["ties"], sum(c == r for c, r in pairs) / n)
    assert_same(metrics["reward_gap"], sum(c - r for c, r in pairs) / n)
    assert_same(metrics["chosen_mean"], sum(c for c, _ in pairs) / n)
    assert_same(metrics["rejected_mean"], sum(r for _, r in pairs) / n)


def test_a_margin_may_differ_from_pair_to_pair() -> None:
    chosen, rejected = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0])
    loss, _ = bradley_terry(chosen, rejected, margin=torch.tensor([0.0, 3.0]))
    assert_same(loss, (losses.pair(1.0, 0.5, 0.0, 0.0) + losses.pair(2.0, 0.0, 3.0, 0.0)) / 2, 1e-6)


@pytest.mark.parametrize("gap", [100.0, -100.0, 1e4, -1e4])
def test_loss_and_gradient_stay_finite_at_extreme_gaps(gap: float) -> None:
    chosen = torch.tensor([gap], requires_grad=True)
    loss, _ = bradley_terry(chosen, torch.zeros(1))
    loss.backward()
    assert chosen.grad is not None
    assert_same(loss.detach(), max(-gap, 0.0), 1e-6)
    assert_same(chosen.grad, [-1.0 if gap < 0 else 0.0], 1e-6)


@quick
@given(gap=st.floats(-30, 30), margin=st.floats(0, 3))
def test_gradient_is_minus_the_probability_of_being_wrong(gap: float, margin: float) -> None:
    chosen = torch.tensor([gap], dtype=torch.float64, requires_grad=True)
    rejected = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    bradley_terry(chosen, rejected, margin=margin)[0].backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    wrong = 1 / (1 + math.exp(gap - margin))
    assert_same(chosen.grad, [-wrong])
    assert_same(rejected.grad, [wrong])


@quick
@given(pairs=PAIRS, shift=st.floats(-10, 10))
def test_without_centring_only_differences_matter(pairs: list[tuple[float, float]], shift: float) -> None:
    chosen, rejected = column(pairs, 0), column(pairs, 1)
    assert_same(
        bradley_terry(chosen + shift, rejected + shift, margin=0.3)[0], bradley_terry(chosen, rejected, margin=0.3)[0]
    )


@quick
@given(gap=st.floats(-30, 30))
def test_swapping_the_labels_costs_the_gap(gap: float) -> None:
    up, zero = torch.tensor([gap], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert_same(bradley_terry(up, zero)[0] - bradley_terry(zero, up)[0], -gap)


@quick
@given(rankings=RANKINGS, margin=st.floats(0, 2), centring=st.floats(0, 0.5))
def test_a_ranking_is_the_mean_over_all_its_pairs_and_each_prompt_weighs_once(
    rankings: list[list[float]], margin: float, centring: float
) -> None:
    loss, metrics = ranking_loss(*ragged(rankings), margin=margin, centring=centring)
    assert_same(loss, sum(losses.ranking(scores, margin, centring) for scores in rankings) / len(rankings))
    accuracy = 0.0
    for scores in rankings:
        pairs = [(scores[i], scores[j]) for i in range(len(scores)) for j in range(i + 1, len(scores))]
        accuracy += sum(losses.wins(a, b) for a, b in pairs) / len(pairs) / len(rankings)
    assert_same(metrics["accuracy"], accuracy)


@quick
@given(pairs=PAIRS)
def test_a_ranking_of_two_is_a_pair(pairs: list[tuple[float, float]]) -> None:
    both = ranking_loss(*ragged([list(pair) for pair in pairs]), margin=0.4, centring=0.1)
    pair = bradley_terry(column(pairs, 0), column(pairs, 1), margin=0.4, centring=0.1)
    assert_same(both[0], pair[0])
    assert_same(both[1]["accuracy"], pair[1]["accuracy"])
    assert_same(both[1]["ties"], pair[1]["ties"])


def test_a_longer_ranking_pulls_no_harder_than_a_pair() -> None:
    scores = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    ranking_loss(scores, mask)[0].backward()
    assert scores.grad is not None
    # Six pairs of weight 1/6 each push with σ(0) = ½: the best is in three of them, the second in one net, and so on.
    assert_same(2 * scores.grad, [[-0.5, 0.5, 0.0, 0.0], [-0.25, -1 / 12, 1 / 12, 0.25]])


def test_a_ranking_of_one_adds_nothing_and_is_not_counted() -> None:
    with_single = ranking_loss(*ragged([[1.0, 0.2, 0.5], [3.0]]))
    without = ranking_loss(*ragged([[1.0, 0.2, 0.5]]))
    assert_same(with_single[0], without[0])
    assert_same(with_single[1]["accuracy"], without[1]["accuracy"])


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_missing_responses_have_no_effect_on_loss_metrics_or_gradient(garbage: float) -> None:
    scores, mask = ragged([[1.0, 0.2], [0.1, 0.5, 0.3], [2.0]], garbage)
    scores.requires_grad_()
    loss, metrics = ranking_loss(scores, mask, centring=0.1)
    loss.backward()
    assert scores.grad is not None
    assert not scores.grad[~mask].any()
    clean = ranking_loss(*ragged([[1.0, 0.2], [0.1, 0.5, 0.3], [2.0]], 0.0), centring=0.1)
    assert_same(loss.detach(), clean[0])
    assert_same(metrics["accuracy"], clean[1]["accuracy"])


@pytest.mark.parametrize("split", [(8,), (2, 6), (1,) * 8])
def test_micro_batches_of_pairs_and_rankings_add_up(split: tuple[int, ...]) -> None:
    scores = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(8, 3, dtype=torch.bool)
    mask[2:5, 2] = False
    whole_pairs = bradley_terry(scores[:, 0], scores[:, 1], margin=0.2, centring=0.1)
    whole_ranks = ranking_loss(scores, mask, margin=0.2, centring=0.1)
    pairs = [bradley_terry(s[:, 0], s[:, 1], margin=0.2, centring=0.1, total=8) for s in scores.split(split)]
    ranks = [
        ranking_loss(s, m, margin=0.2, centring=0.1, total=8)
        for s, m in zip(scores.split(split), mask.split(split), strict=True)
    ]
    for parts, whole in ((pairs, whole_pairs), (ranks, whole_ranks)):
        assert_same(torch.stack([loss for loss, _ in parts]).sum(), whole[0])
        for name, value in whole[1].items():
            assert_same(torch.stack([metrics[name] for _, metrics in parts]).sum(), value)


def test_pairs_in_another_order_are_the_same_batch() -> None:
    scores = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert_same(
        bradley_terry(scores[order, 0], scores[order, 1], centring=0.1)[0],
        bradley_terry(scores[:, 0], scores[:, 1], centring=0.1)[0],
    )


def test_gradients_agree_with_finite_differences() -> None:
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])
    assert torch.autograd.gradcheck(lambda s: bradley_terry(s[:, 0], s[:, 1], margin=0.5, centring=0.1)[0], (scores,))
    assert torch.autograd.gradcheck(lambda s: ranking_loss(s, mask, margin=0.5, centring=0.1)[0], (scores,))


def test_metrics_carry_no_gradient() -> None:
    scores = torch.zeros(2, 2, requires_grad=True)
    for _, metrics in (bradley_terry(scores[:, 0], scores[:, 1]), ranking_loss(scores, torch.ones(2, 2) > 0)):
        assert not any(value.requires_grad for value in metrics.values())
