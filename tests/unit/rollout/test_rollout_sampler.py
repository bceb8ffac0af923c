"""The distribution a token is drawn from, and the drawing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles import sampling as oracle
from torch import Tensor
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from assay.rollout.config import SamplingParams
from assay.rollout.sampler import NgramBlock, draw, penalise, restrict, uniforms

logit = st.floats(-8, 8, allow_nan=False, allow_subnormal=False, width=16)  # two that differ, differ after division too


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(logit, min_size=2, max_size=12, unique=True),
    temperature=st.floats(0.3, 3),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.floats(0.05, 1),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_drawn_token_and_its_logprob_are_those_of_the_definition(
    logits: list[float], temperature: float, top_k: int | None, top_p: float, uniform: float
) -> None:
    probabilities = oracle.support(logits, temperature, top_k, top_p)
    if any(abs(sum(probabilities[: i + 1]) - uniform) < 1e-5 for i in range(len(probabilities))):
        return  # on an edge, where rounding decides
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    token, logprob = draw(torch.tensor([logits]), params, torch.tensor([uniform], dtype=torch.float64))
    nucleus_is_clear = all(abs(c - top_p) > 1e-4 for c in cumulative(oracle.support(logits, temperature, top_k, 1.0)))
    if nucleus_is_clear:
        assert token.item() == oracle.inverse(probabilities, uniform)
        assert logprob.item() == pytest.approx(math.log(probabilities[int(token)]), abs=1e-4)


def cumulative(probabilities: list[float]) -> list[float]:
    ordered = sorted(probabilities, reverse=True)
    return [sum(ordered[: i + 1]) for i in range(len(ordered))]


def random_logits(rows: int = 16, words: int = 50) -> Tensor:
    return torch.randn(rows, words, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.5), (None, 0.95), (5, 1.0), (10, 0.7), (1, 1.0), (None, 0.001)])
def test_the_support_is_that_of_transformers(top_k: int | None, top_p: float) -> None:
    logits = random_logits()
    expected = logits
    if top_k:
        expected = TopKLogitsWarper(top_k)(torch.zeros(16, 1, dtype=torch.long), expected)  # pyright: ignore
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(torch.zeros(16, 1, dtype=torch.long), expected)  # pyright: ignore
    assert torch.equal(restrict(logits, SamplingParams(top_k=top_k, top_p=top_p)), expected)


def test_the_repetition_penalty_is_that_of_transformers_and_of_the_definition() -> None:
    logits = random_logits()
    ids = torch.randint(0, 50, (16, 7), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(16, 50, dtype=torch.bool).scatter(1, ids, True)
    ours = penalise(logits, seen, 1.7)
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone()))  # pyright: ignore
    for row in range(16):
        expected = oracle.penalised(logits[row].tolist(), set(ids[row].tolist()), 1.7)
        assert ours[row].tolist() == pytest.approx(expected, rel=1e-5)


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=30), n=st.integers(1, 4))
def test_the_ngram_block_bans_what_transformers_and_the_definition_ban(ids: list[int], n: int) -> None:
    banned = set(NgramBlock(n, ids).banned())
    assert banned == oracle.banned_by_ngrams(ids, n)
    theirs = NoRepeatNGramLogitsProcessor(n)(torch.tensor([ids]), torch.zeros(1, 4))  # pyright: ignore
    assert banned == set(theirs[0].isinf().nonzero().flatten().tolist())


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(top_p=0.8),
        SamplingParams(top_k=7),
        SamplingParams(temperature=1.4, top_p=0.9, top_k=20),
    ],
    ids=str,
)
def test_drawn_tokens_have_the_entropy_of_their_distribution(params: SamplingParams) -> None:
    """E[−log π] = H: |Σ(−log p − H)| / √ΣVar stays below 4, and E[q/π] = 1 over the support (oracles.md, 4)."""
    draws = 20_000
    logits = random_logits(rows=1) / 3
    uniform = torch.rand(draws, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(logits.expand(draws, -1), params, uniform)
    p = restrict(logits / params.temperature, params).softmax(-1)[0].double()
    inside = p > 0
    surprise = -p[inside].log()
    entropy = (p[inside] * surprise).sum()
    variance = (p[inside] * surprise**2).sum() - entropy**2
    z = (-logprobs.double() - entropy).sum() / (draws * variance).sqrt()
    assert abs(z) < 4
    assert inside[tokens].all()
    q = torch.full_like(p, 0).where(~inside, 1 / inside.sum())
    weights = q[tokens] / logprobs.double().exp()
    spread = ((q[inside] ** 2 / p[inside]).sum() - 1).sqrt() / draws**0.5
    assert abs(weights.mean() - 1) < 4 * spread + 1e-9


def test_a_sample_has_its_own_numbers_whoever_is_beside_it() -> None:
    together = uniforms([3, 4, 5], 10)
    assert torch.equal(together[1], uniforms([4], 10)[0])
    assert torch.equal(uniforms([4], 20)[0, :10], together[1])
    assert not torch.equal(together[0], together[1])


def test_the_largest_uniform_number_still_draws_a_possible_token() -> None:
    logits = torch.full((1, 5), -torch.inf)
    logits[0, 2] = 0.0
    token, logprob = draw(logits, SamplingParams(), torch.tensor([1 - 2**-53], dtype=torch.float64))
    assert token.item() == 2
    assert logprob.item() == 0.0
