"""The maximum of the Bradley–Terry likelihood over a table of scores, and where there is none (oracles.md 9)."""

from __future__ import annotations

import math

import pytest
import torch
from tests.oracles import zermelo
from torch import Tensor

from assay.algorithms.preference_loss import bradley_terry

WINS = [[0, 7, 4, 1], [3, 0, 6, 2], [2, 5, 0, 9], [0, 1, 3, 0]]


def fitted(wins: list[list[int]], *, steps: int = 200) -> Tensor:
    """Scores that minimise the loss over every comparison, mean 0."""
    pairs = [(i, j) for i, row in enumerate(wins) for j, count in enumerate(row) for _ in range(count)]
    chosen, rejected = torch.tensor(pairs).T
    scores = torch.zeros(len(wins), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scores], lr=1, max_iter=steps, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value, _ = bradley_terry(scores[chosen], scores[rejected])
        value.backward()
        return value

    optimizer.step(loss)
    return (scores - scores.mean()).detach()


def test_the_loss_has_its_minimum_at_zermelos_strengths() -> None:
    assert fitted(WINS).tolist() == pytest.approx(zermelo.strengths(WINS), abs=1e-5)


@pytest.mark.parametrize(("won", "lost"), [(7, 3), (1, 1), (19, 1)])
def test_two_items_differ_by_the_logit_of_the_win_rate(won: int, lost: int) -> None:
    scores = fitted([[0, won], [lost, 0]])
    assert (scores[0] - scores[1]).item() == pytest.approx(math.log(won / lost), abs=1e-6)


def test_an_item_that_never_loses_has_no_finite_strength() -> None:
    """Separable: the loss falls for ever, so its size tells how long one has trained and nothing else."""
    never_loses = [[0, 5, 5], [0, 0, 3], [0, 2, 0]]
    short, long = (fitted(never_loses, steps=steps)[0].item() for steps in (3, 50))
    assert long > short + 2
