"""Label smoothing, weighted rankings, ensembles and process rewards, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import losses, rewards
from tests.unit.algorithms.batches import assert_same, quick
from torch import Tensor

from assay.algorithms.ensemble import Aggregate, aggregate, disagreement
from assay.algorithms.preference_loss import bradley_terry, ranking_loss
from assay.algorithms.process_loss import StepAggregate, step_loss, whole_response

SCORE = st.floats(-5, 5)
AGGREGATES: tuple[Aggregate, ...] = ("mean", "worst", "uncertainty")
STEP_AGGREGATES: tuple[StepAggregate, ...] = ("sum", "min", "product", "last")


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ragged(rows: list[list[float]], garbage: float = math.nan) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows)) + 1
    mask = [[place < len(row) for place in range(width)] for row in rows]
    return double([row + [garbage] * (width - len(row)) for row in rows]), torch.tensor(mask)


@quick
@given(better=SCORE, worse=SCORE, margin=st.floats(0, 2), smoothing=st.floats(0, 0.49))
def test_a_smoothed_label_is_right_with_chance_one_minus_epsilon(
    better: float, worse: float, margin: float, smoothing: float
) -> None:
    expected = rewards.smoothed_pair(better, worse, margin, smoothing)
    assert_same(bradley_terry(double([better]), double([worse]), margin=margin, smoothing=smoothing)[0], expected)
    pair, mask = ragged([[better, worse]])
    assert_same(ranking_loss(pair, mask, margin=margin, smoothing=smoothing)[0], expected)


def test_smoothing_has_its_optimum_at_the_logit_of_the_labels_trust() -> None:
    gap = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    bradley_terry(gap, torch.zeros(1, dtype=torch.float64), smoothing=0.1)[0].backward()
    assert gap.grad is not None
    assert_same(gap.grad, [0.0])


def test_a_ranking_drawn_twice_is_a_ranking_given_twice_and_one_not_drawn_is_absent() -> None:
    scores, mask = ragged([[1.0, 0.2, 0.5], [0.3, 0.4], [2.0, -1.0]])
    drawn = ranking_loss(scores, mask, margin=double([0.1, 0.2, 0.3]), weight_P=double([2.0, 1.0, 0.0]))
    again, mask_again = ragged([[1.0, 0.2, 0.5], [1.0, 0.2, 0.5], [0.3, 0.4]])
    given_twice = ranking_loss(again, mask_again, margin=double([0.1, 0.1, 0.2]))
    assert_same(drawn[0], given_twice[0])
    assert_same(drawn[1]["accuracy"], given_twice[1]["accuracy"])


def test_each_ranking_has_its_own_margin() -> None:
    scores, mask = ragged([[1.0, 0.2, 0.5], [0.3, 0.4]])
    loss, _ = ranking_loss(scores, mask, margin=double([0.5, 2.0]))
    assert_same(loss, (losses.ranking([1.0, 0.2, 0.5], 0.5, 0.0) + losses.ranking([0.3, 0.4], 2.0, 0.0)) / 2)


@quick
@given(
    scores=st.lists(st.lists(SCORE, min_size=3, max_size=3), min_size=1, max_size=4),
    how=st.sampled_from(AGGREGATES),
    penalty=st.floats(0, 3),
)
def test_an_ensemble_aggregates_as_its_definition_says(
    scores: list[list[float]], how: Aggregate, penalty: float
) -> None:
    found = aggregate(double(scores), how, penalty=penalty)
    assert_same(found, [rewards.ensemble(row, how, penalty) for row in scores], 1e-9)


def test_an_ensemble_of_two_by_hand() -> None:
    scores = double([[1.0, 3.0], [2.0, 2.0]])
    assert_same(aggregate(scores, "mean"), [2.0, 2.0])
    assert_same(aggregate(scores, "worst"), [1.0, 2.0])
    assert_same(aggregate(scores, "uncertainty", penalty=0.5), [1.5, 2.0])
    assert_same(disagreement(scores), [1.0, 0.0])


@quick
@given(
    logits=st.lists(st.lists(SCORE, min_size=1, max_size=4), min_size=1, max_size=4),
    how=st.sampled_from(STEP_AGGREGATES),
    data=st.data(),
)
def test_steps_are_judged_and_summed_up_as_their_definitions_say(
    logits: list[list[float]], how: StepAggregate, data: st.DataObject
) -> None:
    good = [data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in logits]
    padded, mask = ragged(logits)
    labels = torch.tensor([row + [True] * (mask.shape[1] - len(row)) for row in good])
    loss, metrics = step_loss(padded, labels, mask)
    assert_same(loss, rewards.step_loss(logits, good))
    flat = [(z, y) for row, ys in zip(logits, good, strict=True) for z, y in zip(row, ys, strict=True)]
    assert_same(metrics["accuracy"], sum(0.5 if z == 0 else (z > 0) == y for z, y in flat) / len(flat))
    assert_same(whole_response(padded, mask, how), [rewards.whole_response(row, how) for row in logits])


def test_a_response_with_one_bad_step_by_hand() -> None:
    logits, mask = double([[0.0, math.log(3), 0.0]]), torch.tensor([[True, True, False]])
    assert_same(whole_response(logits, mask, "min"), [math.log(0.5)])
    assert_same(whole_response(logits, mask, "product"), [math.log(0.5 * 0.75)])
    assert_same(whole_response(logits, mask, "last"), [math.log(0.75)])
    assert_same(whole_response(logits, mask, "sum"), [math.log(1.0) + math.log(3.0)])  # odds of 1 : 1 and 3 : 1


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_what_stands_beyond_the_last_step_has_no_effect_on_the_gradient(garbage: float) -> None:
    logits, mask = ragged([[1.0, -2.0], [0.5]], garbage)
    logits.requires_grad_()
    labels = torch.ones_like(mask)
    loss, _ = step_loss(logits, labels, mask)
    (loss + whole_response(logits, mask, "product").sum()).backward()
    assert logits.grad is not None
    assert not logits.grad[~mask].any()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("split", [(4,), (1, 3), (1, 1, 1, 1)])
def test_micro_batches_of_steps_and_of_weighted_rankings_add_up(split: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, True, True], [True, True, False]])
    good, weight = scores > 0.1, double([1.0, 0.0, 3.0, 1.0])
    whole = step_loss(scores, good, mask)[0] + ranking_loss(scores, mask, weight_P=weight, smoothing=0.1)[0]
    parts = [part.split(split) for part in (scores, good, mask, weight)]
    shares = [
        step_loss(s, g, m, total=int(mask.sum()))[0]
        + ranking_loss(s, m, weight_P=w, smoothing=0.1, total=weight.sum())[0]
        for s, g, m, w in zip(*parts, strict=True)
    ]
    assert_same(torch.stack(shares).sum(), whole)


def test_gradients_agree_with_finite_differences() -> None:
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    weight, good = double([2.0, 1.0, 1.0]), torch.tensor([[True, False, True]] * 3)
    assert torch.autograd.gradcheck(
        lambda s: ranking_loss(s, mask, weight_P=weight, smoothing=0.2, centring=0.1)[0], (scores,)
    )
    assert torch.autograd.gradcheck(lambda s: step_loss(s, good, mask)[0], (scores,))
    assert torch.autograd.gradcheck(lambda s: whole_response(s, mask, "product"), (scores,))
