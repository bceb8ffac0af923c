"""Scored rollouts: whose score and whose log-probabilities stand where, and what batches of them become."""

from __future__ import annotations

import random
from dataclasses import fields

import pytest
import torch
from tests import tiny

from assay.data.render import Renderer, Row
from assay.models.policy import load_policy
from assay.rollout.collect import Experience, Rollouts, collect, joined
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.rollout.sampler import Generation
from assay.types import FinishReason, Prompt

Answer = tuple[list[float], str, FinishReason]
"""Log-probabilities of its tokens, text, how it ended."""

PROMPTS = [Prompt.ask(text) for text in ("what time is it?", "could you help me, please?", "no", "the quick brown fox")]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_a_policy_that_is_its_own_reference_has_a_kl_of_zero_at_every_token(temperature: float) -> None:
    policy = load_policy(tiny.folder("llama"), trainable=False)
    weight, _ = policy.head
    with torch.no_grad():
        weight[policy.tokenizer.eos_token_id] *= 4  # so that answers end at different places
    rollouts = collect(
        Engine(policy, Renderer(policy.tokenizer, max_length=64), max_batch=8),
        PROMPTS * 2,
        SamplingParams(temperature=temperature, max_new_tokens=12),
        seed=0,
        reward=lambda prompts, texts, finishes: [float(len(text)) for text in texts],
        reference=policy,
        micro_batch_size=3,
    )
    lengths = rollouts.mask_BR.sum(1).tolist()
    assert len(set(lengths)) > 2
    assert lengths == [len(row.ids) - row.prompt_length for row in rollouts.rows]
    assert rollouts.kl_B().abs().max() < 1e-4
    assert (rollouts.logprobs_BR - rollouts.reference_BR).abs().max() < 1e-4
    assert rollouts.scores_B.tolist() == [len(text) for text in rollouts.texts]
    assert rollouts.texts[:4] != rollouts.texts[4:]  # the same prompt, another sample


def rollouts(*answers: Answer) -> Rollouts:
    """Of answers; the reference gives each token −1."""
    found = [Generation(PROMPTS[0], [1], [2] * len(logprobs), logprobs, text, end) for logprobs, text, end in answers]
    width = max(len(logprobs) for logprobs, *_ in answers)
    return Rollouts.of(found, [float(len(text)) for _, text, _ in answers], torch.full((len(found), width), -1.0))


def test_the_kl_of_an_answer_is_the_sum_over_its_own_tokens() -> None:
    found = rollouts(([-0.5, -0.25], "yes", "stop"), ([-3.0], "", "stop"), ([-1.0, -2.0, -1.5], "yes, of", "length"))
    assert found.kl_B().tolist() == [0.5 + 0.75, -2.0, -1.5]
    assert found.finished_B.tolist() == [True, True, False]
    assert found.empty_B.tolist() == [False, True, False]
    assert [(c.response, c.finish, c.tokens) for c in found.completions] == [
        ("yes", "stop", 2),
        ("", "stop", 1),
        ("yes, of", "length", 3),
    ]


def test_batches_of_different_widths_are_joined_as_if_they_had_been_one() -> None:
    short: Answer = ([-0.5, -0.25], "yes", "stop")
    long: Answer = ([-1.0, -2.0, -1.5], "no, not now", "length")
    whole, parts = rollouts(short, long, short), joined([rollouts(short), rollouts(long, short)])
    for field in fields(Rollouts):
        one, other = getattr(whole, field.name), getattr(parts, field.name)
        if field.name == "reference_BR":  # the reference says nothing of pads
            one, other = one.where(whole.mask_BR, 0), other.where(parts.mask_BR, 0)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    ("episodes", "count", "sizes"), [(8, 4, [2, 2, 2, 2]), (9, 4, [2, 2, 2, 3]), (3, 4, [1, 1, 1])]
)
def test_minibatches_hold_every_episode_once_and_are_as_equal_as_can_be(
    episodes: int, count: int, sizes: list[int]
) -> None:
    numbers = torch.arange(1.0, episodes + 1)[:, None]
    rows = [Row([n, 1], 1) for n in range(episodes)]
    none = torch.zeros(episodes, 0)
    whole = Experience(rows, numbers > 0, numbers, numbers, numbers, numbers, none, none)
    found = list(whole.minibatches(count, random.Random(0)))
    assert sorted(len(batch.rows) for batch in found) == sizes
    assert sorted(n for batch in found for n in batch.advantages_BR.flatten().tolist()) == numbers.flatten().tolist()
