"""Every method comes to rest where its theory says, on a world small enough to sum over (oracles.md 1, 2, 6).

The fast form of `make proof`: fewer iterations, and the transformer for one method of each family.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench.climb import METHODS, ROWS, TO_OPTIMUM, Kind, Method, World, climb, rollouts, table_of, transformer
from tests.oracles import bestof as slow
from tests.oracles import tree as oracle

from assay.algorithms.bestof import best_of_n, best_of_n_kl
from assay.data.pack import collate

LIMIT = 0.01
BY_NAME = {method.name: method for method in METHODS}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_table_of_logits_arrives(method: Method) -> None:
    found = climb(method, "table", iterations=40, points=2)
    assert found.shares[-1] <= LIMIT
    assert (found.gap <= LIMIT) == (method in TO_OPTIMUM)
    assert found.certificate_error < 1e-12


@pytest.mark.parametrize("name", ["RLOO", "REINFORCE++ baseline", "PPO, clip", "distillation, reverse KL to π*"])
def test_a_transformer_is_nearly_there(name: str) -> None:
    """It has more weights than these few steps can average the noise out of; `make proof` takes all methods there."""
    found = climb(BY_NAME[name], "transformer", iterations=100, points=2)
    assert found.shares[-1] <= 0.05
    assert found.certificate_error < 1e-12


@pytest.mark.parametrize("kind", ["table", "transformer"])
def test_the_world_starts_as_its_own_reference_and_its_probabilities_sum_to_one(kind: Kind) -> None:
    world = World.new(kind, 3)
    np.testing.assert_allclose(world.tree.reference.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(table_of(world.policy), world.tree.reference)
    sampled = rollouts(world)
    assert sampled.mask_BR.all()
    assert torch.equal(sampled.logprobs_BR, sampled.reference_BR)


def test_the_transformer_is_read_as_plain_transformers_reads_it() -> None:
    policy = transformer(0)
    batch = collate(ROWS, policy.pad_id)
    with torch.no_grad():
        expected = policy.model(input_ids=batch.input_ids).logits.log_softmax(-1)
    table = table_of(policy)
    for y, response in enumerate(oracle.RESPONSES):
        for t, (state, token) in enumerate(zip(oracle.PATHS[y], response, strict=True)):
            assert table[state, token] == pytest.approx(expected[y, t, token].exp().item(), abs=1e-6)


@pytest.mark.parametrize("n", [2, 3])
def test_best_of_n_is_what_listing_all_draws_gives_and_misses_the_optimum_by_its_kl(n: int) -> None:
    """J* − J(π_n) = β·KL(π_n‖π*): no training, so nothing is left but the certificate."""
    tree = World.new("table", 0).tree
    probs, scores = torch.from_numpy(oracle.responses(tree.reference)), torch.from_numpy(tree.scores)
    exact = best_of_n(probs, scores, n).numpy()
    np.testing.assert_allclose(exact, slow.best_of_n(probs.tolist(), scores.tolist(), n), atol=1e-12)
    assert best_of_n_kl(probs, scores, n).item() == pytest.approx(oracle.kl(exact, probs.numpy()), abs=1e-9)
    optimum, worth = oracle.best(tree)
    missing = worth - oracle.objective_of(tree, exact)
    assert missing == pytest.approx(tree.beta * oracle.kl(exact, optimum), abs=1e-9)
    assert missing > 0
