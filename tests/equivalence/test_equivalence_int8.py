"""Sampling from int8 copies of the weights: the log-probabilities are those of the copies, whoever shares the batch."""

from __future__ import annotations

import pytest
import torch
from tests import tiny
from tests.equivalence.test_equivalence_generation import PROMPTS

from assay import rng
from assay.data.pack import collate
from assay.data.render import Renderer
from assay.models.config import LoraConfig
from assay.models.int8 import Int8Linear, in_int8
from assay.models.policy import Policy, load_policy
from assay.rollout.collect import pad
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.rollout.sampler import Generation

PARAMS = SamplingParams(max_new_tokens=24, temperature=0.8)


def policy_of(kind: str) -> Policy:
    """With an adapter that says something."""
    policy = load_policy(tiny.folder(kind), lora=LoraConfig(r=4))
    with torch.no_grad():
        for name, parameter in policy.parameters_trained().items():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng.torch_rng(0, name)))
    return policy


def engine_of(policy: Policy, max_batch: int = 8) -> Engine:
    renderer = Renderer(policy.tokenizer, template="chat", max_length=100)
    return Engine(policy, renderer, max_batch=max_batch, weights="int8")


@torch.no_grad()
def scored(policy: Policy, answers: list[Generation]) -> torch.Tensor:
    """log p of whole rows under the int8 copies: no cache, no prompt that is shared, no block of the vocabulary."""
    batch = collate([answer.row for answer in answers], policy.pad_id)
    labels = batch.labels
    with in_int8(policy.backbone, policy.adapter):
        states_ND = policy.backbone.hidden(batch, policy.adapter).flatten(0, 1)[labels.before_N]
    logits_NV = Int8Linear.of(*policy.head)(states_ND) / PARAMS.temperature
    return labels.spread(logits_NV.log_softmax(-1).gather(1, labels.ids_N[:, None]).squeeze(1))


@pytest.mark.parametrize("kind", tiny.CAUSAL)
def test_the_sampled_logprobs_are_those_of_the_int8_policy_and_not_of_the_trained_one(kind: str) -> None:
    """Rounding of 1e-7 before an activation is rounded to a step may now and then be a whole step after it."""
    policy = policy_of(kind)
    answers = engine_of(policy).generate(PROMPTS * 2, PARAMS, seeds=range(8))
    sampled, mask = pad([answer.logprobs for answer in answers])
    with torch.no_grad():
        batch = collate([answer.row for answer in answers], policy.pad_id)
        trained = policy.logprobs(batch, temperature=PARAMS.temperature).logprobs_BR
    own, other = ((logprobs - sampled)[mask].abs() for logprobs in (scored(policy, answers), trained))
    assert own.median() < 1e-5
    assert own.mean() < 0.1 * other.mean()
    assert other.mean() > 1e-3


@pytest.mark.parametrize("kind", tiny.CAUSAL)
def test_an_int8_sample_does_not_depend_on_who_shares_its_batch(kind: str) -> None:
    policy = policy_of(kind)
    together = engine_of(policy).generate(PROMPTS * 2, PARAMS, seeds=range(8))
    queued = engine_of(policy, max_batch=3).generate(PROMPTS * 2, PARAMS, seeds=range(8))
    assert [answer.ids for answer in together] == [answer.ids for answer in queued]


def test_the_copies_are_made_anew_when_the_policy_has_changed() -> None:
    policy = policy_of("llama")
    engine = engine_of(policy)
    before = engine.generate(PROMPTS, PARAMS, seeds=range(4))
    with torch.no_grad():
        for parameter in policy.parameters_trained().values():
            parameter.mul_(0.5)
    after = engine.generate(PROMPTS, PARAMS, seeds=range(4))
    assert [a.ids for a in after] != [b.ids for b in before]
    assert [a.logprobs for a in after] == [
        a.logprobs for a in engine_of(policy).generate(PROMPTS, PARAMS, seeds=range(4))
    ]
