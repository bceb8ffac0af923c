"""Best-of-n, exact and estimated (oracles.md 8)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import bestof as oracle
from tests.unit.algorithms.batches import assert_same, quick
from torch import Tensor

from assay.algorithms import bestof

PROBS = [0.4, 0.3, 0.2, 0.1]
SCORES = [1.0, 3.0, 2.0, 0.0]
TIED = [1.0, 3.0, 3.0, 0.0]


@st.composite
def spaces(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Probabilities and scores, ties among them, of 1–12 outcomes, and an n."""
    weights = draw(st.lists(st.floats(0.01, 1), min_size=1, max_size=12))
    scores = [float(draw(st.integers(0, 6))) for _ in weights]
    probs = torch.tensor(weights, dtype=torch.float64)
    return probs / probs.sum(), torch.tensor(scores), draw(st.integers(1, 40))


def tensors(one: list[float], other: list[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)


def rows(one: list[float], other: list[float]) -> tuple[Tensor, Tensor]:
    """Both for a single prompt, [1, K]."""
    return torch.tensor([one], dtype=torch.float64), torch.tensor([other], dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("scores", [SCORES, TIED, [5.0] * 4])
def test_the_distribution_is_that_of_all_tuples_and_ties_are_shared_as_the_policy_shares_them(
    n: int, scores: list[float]
) -> None:
    listed = oracle.best_of_n(PROBS, scores, n)
    assert_same(bestof.best_of_n(*tensors(PROBS, scores), n), listed)
    assert_same(bestof.best_of_n_kl(*tensors(PROBS, scores), n), oracle.kl(listed, PROBS))


def test_two_equal_outcomes_by_hand() -> None:
    """Best of 2 of a fair coin: the better side with probability 3/4, and a KL of ¾·ln 3 − ln 2."""
    coin, scores = tensors([0.5, 0.5], [0.0, 1.0])
    assert_same(bestof.best_of_n(coin, scores, 2), [0.25, 0.75])
    assert_same(bestof.best_of_n_kl(coin, scores, 2), 0.75 * math.log(3) - math.log(2))
    assert bestof.best_of_n_kl(coin, scores, 2).item() < bestof.kl_bound(2)


def test_the_bound_is_far_off_where_answers_are_few_and_tight_where_they_are_many() -> None:
    """oracles.md 8: 6 outcomes at n = 16 gave about 1.19 against 1.835; 20,000 uniform ones meet the bound."""
    probs, scores = tensors([0.05, 0.1, 0.15, 0.2, 0.2, 0.3], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    bound = bestof.kl_bound(16)
    assert bound == pytest.approx(1.835, abs=5e-4)
    assert bestof.best_of_n_kl(probs, scores, 16).item() == pytest.approx(1.19, abs=0.01)
    many = torch.full((20_000,), 1 / 20_000, dtype=torch.float64)
    exact = bestof.best_of_n_kl(many, torch.arange(20_000), 16).item()
    assert 0 < bound - exact < 1e-5


@quick
@given(space=spaces())
def test_it_is_a_distribution_whose_kl_lies_between_zero_and_the_bound(space: tuple[Tensor, Tensor, int]) -> None:
    probs, scores, n = space
    best = bestof.best_of_n(probs, scores, n)
    assert_same(best.sum(), 1.0)
    assert (best >= 0).all()
    kl = bestof.best_of_n_kl(probs, scores, n).item()
    assert -1e-9 <= kl <= bestof.kl_bound(n) + 1e-9


@quick
@given(space=spaces(), shift=st.floats(-3, 3))
def test_only_the_order_of_the_scores_matters(space: tuple[Tensor, Tensor, int], shift: float) -> None:
    probs, scores, n = space
    assert_same(bestof.best_of_n(probs, (scores + shift).exp(), n), bestof.best_of_n(probs, scores, n))


def test_impossible_outcomes_stay_impossible_and_the_best_of_very_many_is_the_best_there_is() -> None:
    probs, scores = tensors([0.0, 0.5, 0.5, 0.0], [0.0, 1.0, 2.0, 3.0])
    assert_same(bestof.best_of_n(probs, scores, 100_000), [0.0, 0.0, 1.0, 0.0])
    assert_same(bestof.best_of_n_kl(probs, scores, 100_000), math.log(2))


@quick
@given(
    samples=st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=7, unique_by=lambda s: s[0]),
    data=st.data(),
)
def test_the_estimate_is_the_mean_over_all_subsets(samples: list[tuple[float, float]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(samples)))
    scores, values = map(list, zip(*samples, strict=True))
    assert_same(bestof.expected_best_of_n(*rows(scores, values), n), [oracle.mean_best(values, scores, n)])


def test_the_estimate_is_right_on_average_also_where_equal_scores_hide_unequal_values() -> None:
    values, n, k = [10.0, -1.0, 4.0, 7.0], 3, 4
    truth = sum(p * v for p, v in zip(oracle.best_of_n(PROBS, TIED, n), values, strict=True))

    def estimate(drawn: list[int]) -> float:
        return bestof.expected_best_of_n(*rows([TIED[y] for y in drawn], [values[y] for y in drawn]), n).item()

    assert oracle.expectation(PROBS, k, estimate) == pytest.approx(truth, abs=1e-12)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="best of 4 cannot be estimated from 3"):
        bestof.expected_best_of_n(torch.zeros(2, 3), torch.zeros(2, 3), 4)


@pytest.mark.parametrize("n", [2, 4])
def test_the_sampled_kl_has_a_bias_that_shrinks_with_the_samples(n: int) -> None:
    """Over every sample of K answers that can be drawn, weighed by how likely it is; here the bound is off by 13 %."""
    exact = oracle.kl(oracle.best_of_n(PROBS, SCORES, n), PROBS)
    probs, scores = tensors(PROBS, SCORES)

    def bias(samples: int) -> float:
        drawn, likely = map(torch.tensor, zip(*oracle.tuples(PROBS, samples), strict=True))
        estimates = bestof.sampled_kl(scores[drawn], probs[drawn].log(), n)
        return abs((likely.double() * estimates).sum().item() - exact)

    assert bias(6) < 0.8 * bias(4) < 0.015
    assert bias(6) < 0.5 * (bestof.kl_bound(n) - exact)


def test_the_sampled_kl_converges_to_the_exact_one() -> None:
    probs, scores = tensors(PROBS, SCORES)
    drawn = torch.multinomial(probs, 2000, replacement=True, generator=torch.Generator().manual_seed(0))[None]
    estimate = bestof.sampled_kl(scores[drawn], probs[drawn].log(), 4).item()
    assert estimate == pytest.approx(bestof.best_of_n_kl(probs, scores, 4).item(), abs=0.02)


def test_the_sampled_kl_of_unlikely_answers_is_the_bound_and_of_a_certain_answer_zero() -> None:
    scores = torch.arange(8.0)[None]
    assert_same(bestof.sampled_kl(scores, torch.full((1, 8), -900.0), 4), [bestof.kl_bound(4)])
    assert_same(bestof.sampled_kl(scores, torch.full((1, 8), -30.0), 8), [bestof.kl_bound(8)])
    assert_same(bestof.sampled_kl(torch.zeros(1, 8), torch.zeros(1, 8), 4), [0.0])


@quick
@given(accept=st.lists(st.floats(0.01, 1), min_size=4, max_size=4))
def test_rejection_sampling_is_the_reweighted_policy(accept: list[float]) -> None:
    accepted, kl = bestof.rejection_sampling(*tensors(PROBS, accept))
    mass = [p * a for p, a in zip(PROBS, accept, strict=True)]
    expected = [m / sum(mass) for m in mass]
    assert_same(accepted, expected)
    assert_same(kl, oracle.kl(expected, PROBS))


def test_a_threshold_costs_the_logarithm_of_its_acceptance_rate() -> None:
    accepted, kl = bestof.rejection_sampling(*tensors(PROBS, [0.0, 1.0, 1.0, 0.0]))
    assert_same(accepted, [0.0, 0.6, 0.4, 0.0])
    assert_same(kl, -math.log(0.5))


def test_accepting_by_the_exponential_of_the_reward_gives_the_optimum_of_reward_minus_kl() -> None:
    """J(π) = E[r] − β·KL(π ‖ π_ref) has the maximum β·log E_ref[exp(r/β)] (oracles.md 1)."""
    beta = 0.7
    probs, rewards = tensors(PROBS, SCORES)
    gibbs, kl = bestof.rejection_sampling(probs, ((rewards - rewards.max()) / beta).exp())
    optimum = beta * math.log(sum(p * math.exp(r / beta) for p, r in zip(PROBS, SCORES, strict=True)))
    assert_same((gibbs * rewards).sum() - beta * kl, optimum)
