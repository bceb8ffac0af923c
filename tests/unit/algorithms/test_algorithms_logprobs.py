"""Token log-probabilities, entropies and the SFT loss (correctness.md 1, 3, 16, 26, 29; oracles.md 4)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles import tokens as oracle
from tests.unit.algorithms.batches import Batch, assert_same, batches, quick
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from assay.algorithms.logprobs import completion_loss, token_logprobs
from assay.algorithms.policy_loss import ratio_error

N, D, V = 13, 5, 11


def head(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head weight and bias that want gradients, and ids."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*s, generator=generator).to(dtype) for s in ((N, D), (V, D), (V,)))
    ids = torch.randint(0, V, (N,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), ids


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same numbers by torch's own autograd, with every logit in memory."""
    logprobs = ((hidden @ weight.T + bias) / temperature).log_softmax(-1)
    return logprobs.gather(1, ids[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(-1)


@quick
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.3, 3), chunk=st.integers(1, N + 3))
def test_logprobs_and_entropies_match_sums_over_the_vocabulary(seed: int, temperature: float, chunk: int) -> None:
    hidden, weight, bias, ids = head(seed=seed)
    logprobs, entropies = token_logprobs(
        hidden, weight, ids, bias=bias, temperature=temperature, chunk=chunk, with_entropy=True
    )
    assert entropies is not None
    for i in (0, N // 2, N - 1):
        logits = oracle.head_logits(hidden[i].tolist(), weight.tolist(), bias.tolist(), temperature)
        distribution = oracle.log_softmax(logits)
        assert_same(logprobs[i].detach(), distribution[ids[i]])
        assert_same(entropies[i].detach(), oracle.entropy(distribution))


@pytest.mark.parametrize("chunk", [1, 4, N, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradients_equal_those_of_a_plain_log_softmax(chunk: int, temperature: float) -> None:
    hidden, weight, bias, ids = head()
    weights = torch.randn(2, N, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected_logprobs, expected_entropies = plain(hidden, weight, bias, ids, temperature)
    logprobs, entropies = token_logprobs(
        hidden, weight, ids, bias=bias, temperature=temperature, chunk=chunk, with_entropy=True
    )
    assert entropies is not None
    inputs = (hidden, weight, bias)
    both = torch.autograd.grad((weights[0] * logprobs + weights[1] * entropies).sum(), inputs)
    expected = torch.autograd.grad(
        (weights[0] * expected_logprobs + weights[1] * expected_entropies).sum(), inputs, retain_graph=True
    )
    alone, _ = token_logprobs(hidden, weight, ids, bias=bias, temperature=temperature, chunk=chunk)
    only = torch.autograd.grad((weights[0] * alone).sum(), inputs)
    expected_only = torch.autograd.grad((weights[0] * expected_logprobs).sum(), inputs)
    for mine, theirs in zip((*both, *only), (*expected, *expected_only), strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_under_a_frozen_head_the_gradient_that_is_taken_on_the_way_is_the_same(chunk: int, temperature: float) -> None:
    hidden, weight, bias, ids = head()
    weights = torch.randn(N, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected, _ = plain(hidden, weight, bias, ids, temperature)
    frozen = weight.detach(), bias.detach()
    found, _ = token_logprobs(hidden, frozen[0], ids, bias=frozen[1], temperature=temperature, chunk=chunk)
    (mine,) = torch.autograd.grad((weights * found).sum(), hidden)
    (theirs,) = torch.autograd.grad((weights * expected).sum(), hidden)
    assert_same(mine, theirs)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("learns", [(True, True, True), (True, False, False), (False, True, True), (True, True, False)])
def test_for_a_sum_over_all_tokens_every_gradient_is_taken_on_the_way(
    chunk: int, learns: tuple[bool, bool, bool]
) -> None:
    inputs, ids = head()[:3], head()[3]
    for tensor, one in zip(inputs, learns, strict=True):
        tensor.requires_grad_(one)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    expected = torch.autograd.grad(-0.3 * plain(*inputs, ids, 0.7)[0].sum(), wanted)
    hidden, weight, bias = inputs
    found, _ = token_logprobs(hidden, weight, ids, bias=bias, temperature=0.7, chunk=chunk, alike=True)
    with LargestTensor() as largest:
        mine = torch.autograd.grad(-0.3 * found.sum(), wanted)
    assert largest.elements <= max(x.numel() for x in inputs), "logits were computed again"
    for one, other in zip(mine, expected, strict=True):
        assert_same(one, other)


def test_tokens_that_were_said_to_be_alike_and_are_not_are_an_error() -> None:
    hidden, weight, bias, ids = head()
    found, _ = token_logprobs(hidden, weight, ids, bias=bias, alike=True)
    with pytest.raises(RuntimeError, match="alike"):
        (found * torch.arange(N)).sum().backward()


@pytest.mark.parametrize("with_entropy", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_agree_with_finite_differences(with_entropy: bool, with_bias: bool) -> None:
    hidden, weight, bias, ids = head()
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)

    def outputs(h: Tensor, w: Tensor, b: Tensor | None = None) -> tuple[Tensor, ...]:
        both = token_logprobs(h, w, ids, bias=b, temperature=0.7, chunk=4, with_entropy=with_entropy)
        return tuple(x for x in both if x is not None)

    assert torch.autograd.gradcheck(outputs, inputs)


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_keep_theirs() -> None:
    hidden, weight, bias, ids = head()
    expected = torch.autograd.grad(plain(hidden, weight, bias, ids, 1.0)[0].sum(), hidden)[0]
    frozen_weight, frozen_bias = weight.detach(), bias.detach()
    token_logprobs(hidden, frozen_weight, ids, bias=frozen_bias, chunk=4)[0].sum().backward()
    assert hidden.grad is not None
    assert_same(hidden.grad, expected)
    assert frozen_weight.grad is None
    assert frozen_bias.grad is None


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation's result had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(("with_entropy", "alike"), [(True, False), (False, False), (False, True)])
def test_no_operation_ever_makes_all_logits_and_nothing_of_their_size_is_kept(with_entropy: bool, alike: bool) -> None:
    tokens, width, vocabulary, chunk = 96, 4, 64, 8
    hidden, weight = torch.randn(tokens, width, requires_grad=True), torch.randn(vocabulary, width, requires_grad=True)
    ids = torch.randint(0, vocabulary, (tokens,))
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs, entropies = token_logprobs(hidden, weight, ids, chunk=chunk, with_entropy=with_entropy, alike=alike)
        (logprobs.sum() if entropies is None else (logprobs + entropies).sum()).backward()
    assert largest.elements == chunk * vocabulary
    inputs = hidden.numel() + weight.numel() + ids.numel()
    assert sum(kept) <= inputs + tokens


@pytest.mark.parametrize("device", ["cpu", *["cuda"] * torch.cuda.is_available()])
def test_log_probabilities_of_a_large_vocabulary_may_stand_where_the_logits_were(device: str) -> None:
    hidden, weight = torch.randn(40, 4, device=device), torch.randn(50257, 4, device=device)
    ids = torch.randint(0, 50257, (40,), device=device)
    found, _ = token_logprobs(hidden, weight, ids, chunk=16)
    exact = (hidden.double() @ weight.double().T).log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
    assert_same(found, exact, 1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_that_are_taken_on_the_way_are_computed_in_float32_under_autocast(frozen: bool) -> None:
    hidden, weight, bias, ids = head(torch.float32)
    expected = torch.autograd.grad(plain(hidden.double(), weight.double(), bias.double(), ids, 1.0)[0].sum(), hidden)[0]
    weight, bias = (x.detach() if frozen else x for x in (weight, bias))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_logprobs(hidden, weight, ids, bias=bias, chunk=4, alike=True)[0].sum()
    assert_same(torch.autograd.grad(found, hidden)[0], expected, 1e-5)


@pytest.mark.parametrize("alike", [True, False])
def test_half_precision_states_are_scaled_by_a_number_that_is_not_rounded_to_it(alike: bool) -> None:
    hidden, weight, _, ids = head(torch.bfloat16)
    states = hidden.detach().double().requires_grad_()
    exact = (states @ weight.detach().double().T).log_softmax(-1).gather(1, ids[:, None])
    (expected,) = torch.autograd.grad(exact.sum() / 3, states)  # a third is 0.2 % larger in bf16
    found, _ = token_logprobs(hidden, weight if alike else weight.detach(), ids, alike=alike)
    (mine,) = torch.autograd.grad(found.sum() / 3, hidden)
    assert abs(mine.double().norm() / expected.norm() - 1) < 1e-3


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_inputs_are_computed_in_float32(autocast: bool) -> None:
    hidden, weight, bias, ids = head(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logprobs, _ = token_logprobs(hidden, weight, ids, bias=bias, chunk=4)
    exact, _ = plain(hidden.double(), weight.double(), bias.double(), ids, 1.0)
    assert logprobs.dtype == torch.float32
    assert_same(logprobs.detach(), exact.detach(), 1e-5)
    logprobs.sum().backward()
    for tensor in (hidden, weight, bias):
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.bfloat16


def test_the_order_of_tokens_and_the_company_they_keep_change_nothing() -> None:
    hidden, weight, bias, ids = head()
    together, _ = token_logprobs(hidden, weight, ids, bias=bias, chunk=4)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    shuffled, _ = token_logprobs(hidden[order], weight, ids[order], bias=bias, chunk=4)
    assert_same(shuffled.detach(), together[order].detach(), 1e-12)
    alone, _ = token_logprobs(hidden[:1], weight, ids[:1], bias=bias)
    assert_same(alone.detach(), together[:1].detach(), 1e-12)


def test_in_float32_regrouping_the_tokens_moves_no_ratio_by_more_than_a_hundred_thousandth() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 128, generator=generator) for n in (96, 1024))
    hidden *= 0.3  # logits of a few units, like a trained model's: rounding grows with them
    ids = torch.randint(0, 1024, (96,), generator=generator)
    together, _ = token_logprobs(hidden, weight, ids)
    apart = torch.cat([token_logprobs(hidden[i : i + 5], weight, ids[i : i + 5])[0] for i in range(0, 96, 5)])
    assert ratio_error(together, apart, torch.ones(96, dtype=torch.bool)) < 1e-5


def test_no_tokens_have_no_logprobs() -> None:
    hidden, weight, bias, ids = head()
    logprobs, entropies = token_logprobs(hidden[:0], weight, ids[:0], bias=bias, with_entropy=True)
    assert entropies is not None
    assert logprobs.shape == entropies.shape == (0,)
    logprobs.sum().backward()


def test_surprise_equals_entropy_for_the_true_sampler_and_not_for_a_truncated_one() -> None:
    """z = Σ(−log p − H)/√ΣVar: within 4 for the policy's own samples, far outside once its tail is cut (top-k)."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, _, _ = head()
    logits = (hidden @ weight.T).detach().repeat(40, 1)
    distributions = logits.log_softmax(-1).tolist()
    sampled = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    assert abs(oracle.entropy_z(sampled.tolist(), distributions)) < 4

    top = logits.where(logits >= logits.topk(3).values[:, -1:], -torch.inf)
    truncated = torch.multinomial(top.softmax(-1), 1, generator=generator).squeeze(1)
    assert oracle.entropy_z(truncated.tolist(), distributions) < -4
    renormalised = top.log_softmax(-1).tolist()  # scored under the support it was really drawn from
    assert abs(oracle.entropy_z(truncated.tolist(), renormalised)) < 4


@quick
@given(batch=batches(fields=1))
def test_completion_loss_is_the_mean_surprise_of_the_counted_tokens(batch: Batch) -> None:
    logprobs = [x for row in batch.rows(0) for x in row]
    assert_same(completion_loss(batch.field(0), batch.mask_BT, total=batch.count), -math.fsum(logprobs) / len(logprobs))


@pytest.mark.parametrize(("rows", "micro"), [(1, 8), (2, 4), (4, 2)])
def test_gradient_accumulation_gives_the_gradient_of_the_big_batch(rows: int, micro: int) -> None:
    """8 rows of different lengths, so that a mean of micro-batch means would be wrong."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(6) < torch.tensor([1, 2, 3, 6, 5, 6, 4, 1])[:, None]
    hidden = torch.randn(8, 6, D, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, V, (8, 6), generator=generator)
    _, weight, _, _ = head()

    def share(index: Tensor) -> Tensor:
        logprobs = torch.full((len(index), 6), math.nan, dtype=torch.float64)
        counts = mask[index]
        logprobs[counts] = token_logprobs(hidden[index][counts], weight, ids[index][counts])[0]
        return completion_loss(logprobs, counts, total=int(mask.sum()))

    everything = torch.arange(8)
    expected = torch.autograd.grad(share(everything), weight)[0]
    parts = everything.split(rows)
    assert len(parts) == micro
    accumulated = sum((torch.autograd.grad(share(part), weight)[0] for part in parts), torch.zeros_like(weight))
    assert_same(accumulated, expected, 1e-12)
    means = sum(torch.autograd.grad(share(part) * mask.sum() / mask[part].sum(), weight)[0] for part in parts) / micro
    assert (means - expected).norm() > 1e-3 * expected.norm(), "equal lengths would make this test empty"


def test_labels_that_do_not_count_change_neither_loss_nor_gradient() -> None:
    logprobs = torch.tensor([[math.nan, -1.0, -2.0, math.inf]], requires_grad=True)
    loss = completion_loss(logprobs, torch.tensor([[False, True, True, False]]), total=2)
    assert loss.item() == 1.5
    assert torch.autograd.grad(loss, logprobs)[0].tolist() == [[0.0, -0.5, -0.5, 0.0]]
