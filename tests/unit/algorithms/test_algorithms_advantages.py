"""Scores, shaped rewards and generalised advantages (correctness.md 17, 18, 19, 22; oracles.md 7)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import episodes
from tests.unit.algorithms.batches import Batch, assert_same, batches, quick, scattered

from assay.algorithms.advantages import (
    MissingEosRule,
    explained_variance,
    gae,
    group_relative,
    informative_groups,
    leave_one_out,
    missing_eos_scores,
    overlong_penalty,
    shaped_rewards,
)

UNIT = st.floats(0, 1)


@quick
@given(batch=batches(fields=2), gamma=UNIT, lam=UNIT)
def test_gae_is_the_sum_over_later_counted_tokens(batch: Batch, gamma: float, lam: float) -> None:
    advantages, returns = gae(batch.field(0), batch.field(1), batch.mask_BT, gamma=gamma, lam=lam)
    expected = [
        episodes.advantages(rewards, values, gamma, lam)
        for rewards, values in zip(batch.rows(0), batch.rows(1), strict=True)
    ]
    assert_same(advantages, scattered(expected, batch.mask_BT))
    assert_same(returns, scattered(expected, batch.mask_BT) + scattered(batch.rows(1), batch.mask_BT))


@quick
@given(batch=batches(fields=2), gamma=UNIT, lam=UNIT)
def test_returns_are_the_mixture_of_all_n_step_returns(batch: Batch, gamma: float, lam: float) -> None:
    _, returns = gae(batch.field(0), batch.field(1), batch.mask_BT, gamma=gamma, lam=lam)
    expected = [
        episodes.lambda_returns(rewards, values, gamma, lam)
        for rewards, values in zip(batch.rows(0), batch.rows(1), strict=True)
    ]
    assert_same(returns, scattered(expected, batch.mask_BT))


REWARDS = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
VALUES = torch.tensor([[0.3, -0.4, 2.0, 1.0]])
ALL = torch.ones(1, 4, dtype=torch.bool)


def test_with_lambda_zero_the_advantage_is_the_td_error() -> None:
    advantages, _ = gae(REWARDS, VALUES, ALL, gamma=0.5, lam=0.0)
    td = [1.0 + 0.5 * -0.4 - 0.3, -2.0 + 0.5 * 2.0 + 0.4, 0.5 + 0.5 * 1.0 - 2.0, 3.0 - 1.0]
    assert_same(advantages, [td], 1e-6)


def test_with_lambda_one_the_return_is_the_discounted_sum_and_values_drop_out() -> None:
    _, returns = gae(REWARDS, VALUES, ALL, gamma=0.5, lam=1.0)
    assert_same(returns, [[1 - 1 + 0.125 + 0.375, -2 + 0.25 + 0.75, 0.5 + 1.5, 3.0]], 1e-6)


def test_a_perfect_critic_leaves_no_advantage() -> None:
    values = torch.tensor([[2.5, 1.5, 3.5, 3.0]])  # the sums of the rewards to come
    advantages, returns = gae(REWARDS, values, ALL, gamma=1.0, lam=0.95)
    assert_same(advantages, torch.zeros(1, 4), 1e-6)
    assert_same(returns, values, 1e-6)


def test_no_gradient_flows_through_advantages_or_returns() -> None:
    values = VALUES.clone().requires_grad_()
    advantages, returns = gae(REWARDS, values, ALL, gamma=1.0, lam=0.95)
    assert not advantages.requires_grad
    assert not returns.requires_grad


@quick
@given(batch=batches(fields=1), coef=st.floats(0, 2))
def test_rewards_sum_to_the_score_minus_the_weighted_kl(batch: Batch, coef: float) -> None:
    scores = torch.linspace(-2, 2, len(batch.tokens), dtype=torch.float64)
    rewards = shaped_rewards(scores, batch.field(0), batch.mask_BT, coef=coef)
    expected = [
        episodes.shaped_rewards(score, kl, coef) for score, kl in zip(scores.tolist(), batch.rows(0), strict=True)
    ]
    assert_same(rewards, scattered(expected, batch.mask_BT))
    assert_same(
        rewards.sum(1), [s - coef * math.fsum(kl) for s, kl in zip(scores.tolist(), batch.rows(0), strict=True)]
    )


def test_the_score_is_paid_at_the_end_token_not_one_slot_later() -> None:
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    rewards = shaped_rewards(torch.tensor([5.0, 7.0]), torch.ones(2, 4), mask, coef=0.1)
    assert_same(rewards, [[-0.1, 4.9, 0.0, 0.0], [-0.1, -0.1, -0.1, 6.9]], 1e-6)


def test_a_response_without_tokens_cannot_be_paid() -> None:
    mask = torch.tensor([[True], [False]])
    with pytest.raises(ValueError, match="nowhere to receive its score"):
        shaped_rewards(torch.zeros(2), torch.zeros(2, 1), mask, coef=0.1)


@pytest.mark.parametrize(
    ("rule", "expected"), [("set", [0.5, -1.5, -1.5]), ("subtract", [0.5, 1.0, -3.5]), ("none", [0.5, 2.5, -2.0])]
)
def test_missing_eos_rules(rule: MissingEosRule, expected: list[float]) -> None:
    scores, finished = torch.tensor([0.5, 2.5, -2.0]), torch.tensor([True, False, False])
    assert missing_eos_scores(scores, finished, rule=rule, penalty=1.5).tolist() == expected


def test_an_unknown_missing_eos_rule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'drop'.*set, subtract, none"):
        missing_eos_scores(torch.zeros(1), torch.ones(1, dtype=torch.bool), rule="drop", penalty=1.0)  # type: ignore[arg-type]


def test_a_truncated_episode_is_paid_its_score_and_nothing_is_bootstrapped_on_top() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = shaped_rewards(torch.tensor([5.0, 7.0]), torch.zeros(2, 3), mask, coef=0.0)
    values = torch.full((2, 3), 0.4)
    _, returns = gae(rewards, values, mask, gamma=0.5, lam=1.0)
    assert_same(returns, [[2.5, 5.0, 0.0], [1.75, 3.5, 7.0]], 1e-6)  # no V after the last token, whoever cut it


@quick
@given(batch=batches(fields=2))
def test_explained_variance_matches_its_definition(batch: Batch) -> None:
    values, returns = ([x for row in batch.rows(i) for x in row] for i in (0, 1))
    if max(returns) - min(returns) < 0.1:
        return
    measured = explained_variance(batch.field(0), batch.field(1), batch.mask_BT)
    assert_same(measured, episodes.explained_variance(values, returns), 1e-7)


@pytest.mark.parametrize(
    ("values", "returns", "expected"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0], 1.0),
        ([2.0, 3.0, 5.0], [1.0, 2.0, 4.0], 1.0),  # a constant offset is no unexplained variance
        ([7.0, 7.0, 7.0], [1.0, 2.0, 4.0], 0.0),
        ([-1.0, -2.0, -4.0], [1.0, 2.0, 4.0], -3.0),
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], 1.0),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 0.0),
    ],
)
def test_explained_variance_of_perfect_constant_and_harmful_critics(
    values: list[float], returns: list[float], expected: float
) -> None:
    measured = explained_variance(
        torch.tensor([[*values, 99.0]]), torch.tensor([[*returns, -5.0]]), torch.tensor([[True, True, True, False]])
    )
    assert_same(measured, expected, 1e-6)


GROUPS = st.lists(st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=1, max_size=3)


@quick
@given(groups=GROUPS)
def test_group_baselines_match_their_definitions(groups: list[list[float]]) -> None:
    scores = torch.tensor(groups, dtype=torch.float64)
    assert_same(group_relative(scores, scale=False), [episodes.minus_mean(group) for group in groups])
    assert_same(leave_one_out(scores), [episodes.minus_mean_of_the_others(group) for group in groups])
    assert_same(group_relative(scores, scale=True), [episodes.standard_scores(group, 1e-6) for group in groups], 1e-6)


def test_a_group_whose_scores_are_all_equal_teaches_nothing() -> None:
    scores = torch.tensor([[0.1, 0.1, 0.1], [0.0, 1.0, 2.0]])
    scaled = group_relative(scores, scale=True)
    assert scaled[0].tolist() == [0.0, 0.0, 0.0]
    assert_same(scaled[1], [-math.sqrt(1.5), 0.0, math.sqrt(1.5)], 1e-5)  # population deviation √(2/3)
    assert informative_groups(scores).tolist() == [False, True]


def test_a_group_of_one_has_no_others() -> None:
    with pytest.raises(ValueError, match="group of one"):
        leave_one_out(torch.zeros(3, 1))


def test_the_overlong_penalty_starts_at_the_buffer_and_ends_at_minus_one() -> None:
    lengths = torch.tensor([1, 30, 35, 40])
    assert_same(overlong_penalty(lengths, max_tokens=40, buffer=10), [0.0, 0.0, -0.5, -1.0], 1e-6)
