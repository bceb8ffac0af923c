"""The oracle of the proofs agrees with itself, by routes that share nothing (oracles.md 1, 6)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.oracles import tree as oracle
from tests.oracles.tree import RESPONSES, STATES, Array, Tree


def world(seed: int = 0, beta: float = 0.7) -> tuple[Tree, Array]:
    """A task, and a policy that is neither its reference nor its optimum."""
    numbers = np.random.default_rng(seed)
    reference, policy = (oracle.softmax(numbers.normal(size=(len(STATES), oracle.TOKENS))) for _ in range(2))
    return Tree(reference, 0.5 * numbers.normal(size=len(RESPONSES)), beta), policy


@pytest.mark.parametrize("beta", [0.2, 0.7, 2.0])
def test_the_soft_bellman_policy_is_the_gibbs_distribution_and_earns_beta_log_z(beta: float) -> None:
    tree, _ = world(beta=beta)
    optimum, worth = oracle.best(tree)
    policy = oracle.soft_policy(tree)
    np.testing.assert_allclose(policy.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(oracle.responses(policy), optimum, rtol=1e-12)
    assert oracle.objective(tree, policy) == pytest.approx(worth, abs=1e-12)
    assert oracle.soft_values(tree)[()] == pytest.approx(worth, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_what_any_policy_lacks_is_beta_times_its_kl_to_the_optimum(seed: int) -> None:
    tree, policy = world(seed)
    optimum, worth = oracle.best(tree)
    missing = tree.beta * oracle.kl(oracle.responses(policy), optimum)
    assert missing > 0.05
    assert worth - oracle.objective(tree, policy) == pytest.approx(missing, abs=1e-12)


def test_the_gradient_by_enumeration_is_that_of_finite_differences_and_vanishes_at_the_optimum() -> None:
    tree, policy = world()
    slopes = oracle.differences(lambda table: oracle.objective(tree, table), policy)
    np.testing.assert_allclose(oracle.gradient(tree, policy), slopes, atol=1e-9)
    np.testing.assert_allclose(oracle.gradient(tree, oracle.soft_policy(tree)), 0, atol=1e-12)


def test_with_standardised_rewards_the_field_vanishes_at_the_point_that_the_oracle_names() -> None:
    """Σ_y π(y)·((r − mean)/σ − β·log(π/π_ref))·∇log π(y) = 0 there, and not at the optimum of J."""
    tree, _ = world()
    settled = oracle.standardised_best(tree)
    table = oracle.soft_policy(Tree(tree.reference, tree.scores, tree.beta * oracle.deviation(tree, settled)))
    np.testing.assert_allclose(oracle.responses(table), settled, rtol=1e-9)
    standard = Tree(tree.reference, tree.scores / oracle.deviation(tree, settled), tree.beta)
    np.testing.assert_allclose(oracle.gradient(standard, table), 0, atol=1e-9)
    assert oracle.kl(settled, oracle.best(tree)[0]) > 0.05


def test_grpo_comes_to_rest_where_its_policy_gradient_and_its_token_k3_cancel() -> None:
    tree, _ = world()
    settled = oracle.grpo_best(tree)
    sigma = oracle.deviation(tree, settled)
    mean = float(settled @ tree.scores)
    table = conditionals(settled)
    climb, pull = np.zeros_like(table), np.zeros_like(table)
    for y in range(len(RESPONSES)):
        climb += settled[y] * (tree.scores[y] - mean) / sigma * oracle.score_gradient(table, y)
        for state in oracle.PATHS[y]:  # E over sampled tokens of ∇k3 in a state is π − π_ref
            pull[state] += settled[y] * tree.beta * (table[state] - tree.reference[state])
    np.testing.assert_allclose(climb, pull, atol=1e-9)
    assert oracle.kl(settled, oracle.best(tree)[0]) > 0.05


def conditionals(chances: Array) -> Array:
    """The token policy of a distribution over responses."""
    table = np.zeros((len(STATES), oracle.TOKENS))
    for y, (response, path) in enumerate(zip(RESPONSES, oracle.PATHS, strict=True)):
        for state, token in zip(path, response, strict=True):
            table[state, token] += chances[y]
    return table / table.sum(axis=1, keepdims=True)


def test_too_weak_a_hold_leaves_standardised_rewards_no_point_to_rest_at() -> None:
    """As π settles on one response σ vanishes, and with it the hold β·σ: there is nothing to find but a collapse."""
    tree, _ = world(beta=0.05)
    with pytest.raises(ArithmeticError, match="vanishes"):
        oracle.standardised_best(tree)


def test_kl_counts_nothing_for_what_is_never_said() -> None:
    assert oracle.kl(np.array([0.0, 1.0]), np.array([0.5, 0.5])) == pytest.approx(math.log(2))
