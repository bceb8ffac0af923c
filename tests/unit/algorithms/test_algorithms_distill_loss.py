"""Divergences of student and teacher: values, gradients, limits, chunks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import divergences as oracle
from tests.unit.algorithms.batches import assert_same, quick
from torch import Tensor

from assay.algorithms.distill_loss import (
    Divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    token_divergence,
)

LOGITS = st.lists(st.tuples(st.floats(-6, 6), st.floats(-6, 6)), min_size=2, max_size=6)
Slow = Callable[[list[float], list[float]], float]
ALL: dict[str, tuple[Divergence, Slow]] = {
    "forward": (forward_kl, oracle.forward),
    "reverse": (reverse_kl, oracle.reverse),
    "jsd": (partial(jensen_shannon, beta=0.3), partial(oracle.jensen_shannon, beta=0.3)),
}
every = pytest.mark.parametrize(("divergence", "slow"), ALL.values(), ids=ALL)


def logprobs(logits: list[float]) -> Tensor:
    return torch.tensor(logits, dtype=torch.float64).log_softmax(-1)


def model(seed: int, tokens: int = 7, width: int = 3, vocabulary: int = 5) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Hidden states [N, D] and a head in float64."""
    noise = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, width, dtype=torch.float64, generator=noise) for n in (tokens, vocabulary))
    return hidden, (weight, torch.randn(vocabulary, dtype=torch.float64, generator=noise))


@every
@quick
@given(logits=LOGITS)
def test_a_divergence_is_its_sum_over_the_vocabulary(
    divergence: Divergence, slow: Slow, logits: list[tuple[float, float]]
) -> None:
    student, teacher = map(list, zip(*logits, strict=True))
    assert_same(
        divergence(logprobs(student), logprobs(teacher)), slow(oracle.softmax(student), oracle.softmax(teacher))
    )


def test_values_by_hand() -> None:
    """q = (½, ½), p = (¾, ¼): KL(p‖q) = ln 2 − H(p); KL(q‖p) = ½·ln(4/3); the mixture at β = ½ is (⅝, ⅜)."""
    student, teacher = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    assert_same(forward_kl(student, teacher), 0.75 * math.log(1.5) + 0.25 * math.log(0.5), 1e-6)
    assert_same(reverse_kl(student, teacher), 0.5 * math.log(4 / 3), 1e-6)
    by_hand = 0.5 * (0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3) + 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3))
    assert_same(jensen_shannon(student, teacher, beta=0.5), by_hand, 1e-6)


@quick
@given(logits=LOGITS, beta=st.floats(0.01, 0.99))
def test_jensen_shannon_is_bounded_and_symmetric_under_an_exchange_of_roles(
    logits: list[tuple[float, float]], beta: float
) -> None:
    student, teacher = (logprobs(list(side)) for side in zip(*logits, strict=True))
    value = jensen_shannon(student, teacher, beta=beta)
    assert_same(value, jensen_shannon(teacher, student, beta=1 - beta))
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert -1e-12 <= value.item() <= entropy


def test_jensen_shannon_becomes_forward_and_reverse_kl_at_its_ends() -> None:
    student, teacher = logprobs([0.3, -1.0, 2.0, 0.0]), logprobs([1.0, 1.5, -0.5, 0.2])
    tiny = 1e-6
    assert_same(jensen_shannon(student, teacher, beta=tiny) / tiny, forward_kl(student, teacher), 1e-5)
    assert_same(jensen_shannon(student, teacher, beta=1 - tiny) / tiny, reverse_kl(student, teacher), 1e-5)


@every
def test_it_vanishes_with_its_gradient_where_the_student_is_the_teacher(divergence: Divergence, slow: Slow) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    value = divergence(logits.log_softmax(-1), logits.detach().log_softmax(-1))
    value.backward()
    assert logits.grad is not None
    assert_same(value.detach(), 0.0)
    assert_same(logits.grad, [0.0, 0.0, 0.0])


def test_the_gradient_of_forward_kl_is_student_minus_teacher() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    teacher = logprobs([1.0, 1.5, -0.5])
    forward_kl(logits.log_softmax(-1), teacher).backward()
    assert logits.grad is not None
    assert_same(logits.grad, logits.detach().softmax(-1) - teacher.exp())


@every
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_token_divergence_is_that_of_each_token_and_its_gradient_that_of_finite_differences(
    divergence: Divergence, slow: Slow, temperature: float
) -> None:
    (hidden, head), (teacher_hidden, teacher_head) = model(0), model(1, width=4)
    run = partial(token_divergence, divergence, temperature=temperature, chunk=3)
    by_token = [
        slow(
            oracle.softmax(oracle.logits(h, head[0].tolist(), head[1].tolist()), temperature),
            oracle.softmax(oracle.logits(t, teacher_head[0].tolist(), teacher_head[1].tolist()), temperature),
        )
        for h, t in zip(hidden.tolist(), teacher_hidden.tolist(), strict=True)
    ]
    assert_same(run(hidden, head, teacher_hidden, teacher_head), by_token)
    leaves = [x.clone().requires_grad_() for x in (hidden, *head)]
    assert torch.autograd.gradcheck(lambda h, w, b: run(h, (w, b), teacher_hidden, teacher_head), leaves)


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_chunks_change_neither_values_nor_gradients(chunk: int) -> None:
    (hidden, head), teacher = model(0), model(1)

    def gradients(size: int) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in (hidden, *head)]
        values = token_divergence(reverse_kl, leaves[0], (leaves[1], leaves[2]), *teacher, chunk=size)
        (values * torch.arange(7)).sum().backward()
        return [values.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    whole, parts = gradients(7), gradients(chunk)
    assert len(whole) == len(parts) == 4
    for one, other in zip(whole, parts, strict=True):
        assert_same(one, other, 1e-12)


def test_the_teacher_gets_no_gradient_and_padding_rows_of_a_head_are_no_tokens() -> None:
    (hidden, head), (teacher_hidden, (weight, bias)) = model(0), model(1)
    padded = (torch.cat([weight, torch.full((3, 3), 1e3)]).requires_grad_(), torch.cat([bias, torch.ones(3)]))
    hidden.requires_grad_()
    values = token_divergence(forward_kl, hidden, head, teacher_hidden, padded)
    values.sum().backward()
    assert_same(values.detach(), token_divergence(forward_kl, hidden, head, teacher_hidden, (weight, bias)).detach())
    assert hidden.grad is not None
    assert padded[0].grad is None


def test_extreme_distributions_stay_finite() -> None:
    student = torch.tensor([80.0, -80.0], requires_grad=True)
    teacher = torch.tensor([-80.0, 80.0]).log_softmax(-1)
    for divergence, _ in ALL.values():
        value = divergence(student.log_softmax(-1), teacher)
        (gradient,) = torch.autograd.grad(value, student)
        assert value.isfinite()
        assert gradient.isfinite().all()
