"""The engine against transformers and against itself: cached, batched, padded and compacted decoding change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.oracles import sampling
from transformers import AutoModelForCausalLM

from assay import rng
from assay.data.pack import collate
from assay.data.render import Renderer, Row
from assay.models.backbone import Backbone
from assay.models.config import LoraConfig
from assay.models.policy import Policy, load_policy
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.rollout.sampler import Generation
from assay.types import Prompt

PROMPTS = [
    Prompt.ask(text)
    for text in (
        "what time is it?",
        "could you help me, please? the quick brown fox jumps over a lazy dog",
        "no",
        "yes!",
    )
]
NEW = 24


def engine_for(kind: str, *, lora: LoraConfig | None = None, max_batch: int = 8) -> Engine:
    policy = load_policy(tiny.folder(kind), lora=lora, trainable=lora is not None)
    return Engine(policy, Renderer(policy.tokenizer, template="chat", max_length=100), max_batch=max_batch)


def with_a_likely_end(policy: Policy) -> None:
    """Raise the end token's logit through the head, so that random models stop at different times."""
    weight, _ = policy.head
    with torch.no_grad():
        weight[policy.tokenizer.eos_token_id] *= 4


@pytest.mark.parametrize("kind", tiny.CAUSAL)
@pytest.mark.parametrize(
    "rules",
    [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram": 2}, {"repetition_penalty": 1.2, "no_repeat_ngram": 3}],
)
def test_batched_greedy_is_generate_of_transformers_token_for_token(kind: str, rules: dict[str, Any]) -> None:
    engine = engine_for(kind)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny.folder(kind))
    ours = engine.generate(PROMPTS, SamplingParams(temperature=0, max_new_tokens=NEW, **rules), seeds=range(4))
    theirs = {{"no_repeat_ngram": "no_repeat_ngram_size"}.get(key, key): value for key, value in rules.items()}
    for answer in ours:
        ids = torch.tensor([answer.prompt_ids])
        expected: Any = model.generate(ids, do_sample=False, max_new_tokens=NEW, pad_token_id=0, **theirs)
        assert answer.ids == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("kind", tiny.CAUSAL)
@pytest.mark.parametrize("slots", [8, 3], ids=["rows leave", "rows leave and others take their place"])
def test_rows_that_come_and_go_do_not_disturb_the_others(kind: str, slots: int) -> None:
    engine = engine_for(kind, max_batch=slots)
    with_a_likely_end(engine.policy)
    params = SamplingParams(temperature=1.5, max_new_tokens=NEW)
    together = engine.generate(PROMPTS * 2, params, seeds=range(8))
    lengths = {len(answer.ids) for answer in together}
    assert len(lengths) > 2, "the test needs rows that end at different times"
    alone = [engine.generate([p], params, seeds=[i])[0] for i, p in enumerate(PROMPTS * 2)]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]


@pytest.mark.parametrize("kind", tiny.CAUSAL)
def test_prompts_beyond_the_budget_of_tokens_are_read_in_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two answers to each prompt: no part has more tokens than the budget, or one prompt, and no answer is another."""
    engine, params = engine_for(kind), SamplingParams(temperature=1.5, max_new_tokens=NEW)
    asked = [prompt for prompt in PROMPTS for _ in range(2)]
    at_once = engine.generate(asked, params, seeds=range(8))
    longest, read = max(len(answer.prompt_ids) for answer in at_once), list[int]()
    forward = Backbone.forward

    def counted(self: Backbone, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        read.append(input_ids.numel())
        return forward(self, input_ids, **inputs)

    monkeypatch.setattr(Backbone, "budget", longest)
    monkeypatch.setattr(Backbone, "forward", counted)
    in_parts = engine.generate(asked, params, seeds=range(8))
    assert [answer.ids for answer in in_parts] == [answer.ids for answer in at_once]
    reading = [count for count in read if count > len(asked)]  # a step of decoding has a token a row
    assert len(reading) > 1
    assert max(reading) <= 2 * longest  # without trees the two rows of one prompt stand beside each other


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo"])
def test_rows_that_linger_or_come_late_stay_within_the_models_positions(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of four ends last and lingers, while three that came late go on: too few ends to renew the batch."""
    lifetimes = [NEW, 20, 20, 20, NEW, NEW, NEW]
    long, short = Prompt.ask("the quick brown fox jumps over a lazy dog"), Prompt.ask("no")
    policy = load_policy(tiny.causal_folder(tmp_path, kind), trainable=False)
    renderer = Renderer(policy.tokenizer, template="chat", max_length=100)
    positions = len(renderer.prompt(long)) + NEW
    policy = load_policy(tiny.causal_folder(tmp_path, kind, max_position_embeddings=positions), trainable=False)
    monkeypatch.setattr(Engine, "_ends_here", lambda _, sample, __: len(sample.ids) == lifetimes[sample.seed])
    prompts, params = [long] * 4 + [short] * 3, SamplingParams(max_new_tokens=NEW)
    queued = Engine(policy, renderer, max_batch=4).generate(prompts, params, seeds=range(7))
    alone = Engine(policy, renderer, max_batch=1).generate(prompts, params, seeds=range(7))
    assert [len(a.ids) for a in queued] == lifetimes
    assert [a.ids for a in queued] == [a.ids for a in alone]


@pytest.mark.parametrize("kind", tiny.CAUSAL)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_sampled_logprobs_are_those_the_policy_gives_at_the_first_update(kind: str, temperature: float) -> None:
    """Correctness 26: max|ρ − 1| < 1e-5 in fp32; and decoding with a cache equals decoding without one."""
    engine = engine_for(kind, lora=LoraConfig(r=4))
    with torch.no_grad():
        for name, parameter in engine.policy.parameters_trained().items():  # an adapter that says something else
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng.torch_rng(0, name)))
    answers = engine.generate(PROMPTS, SamplingParams(temperature=temperature, max_new_tokens=NEW), seeds=range(4))
    ratio = (scored(engine.policy, answers, temperature) - sampled(answers)).exp()
    assert (ratio - 1).abs().max() < 1e-5


@torch.no_grad()
def test_every_token_is_drawn_by_a_number_of_its_own_from_what_came_before_it() -> None:
    engine = engine_for("llama")
    model: Any = AutoModelForCausalLM.from_pretrained(tiny.folder("llama"))
    params = SamplingParams(temperature=0.8, top_k=40, max_new_tokens=NEW)
    for answer, seed in zip(engine.generate(PROMPTS, params, seeds=range(4)), range(4), strict=True):
        numbers, ids = rng.numpy_rng(seed, "tokens").random(NEW), list(answer.prompt_ids)
        for number, token in zip(numbers, answer.ids, strict=False):
            logits = model(torch.tensor([ids])).logits[0, -1].tolist()
            assert token == sampling.inverse(sampling.support(logits, 0.8, 40, 1.0), number)
            ids.append(token)


def test_the_kl_of_a_policy_to_the_reference_it_starts_as_is_zero() -> None:
    """Correctness 20 and failure 29: an adapter with B = 0 is the reference, token by token."""
    engine = engine_for("llama", lora=LoraConfig(r=4))
    reference = load_policy(tiny.folder("llama"), trainable=False)
    answers = engine.generate(PROMPTS * 4, SamplingParams(max_new_tokens=NEW), seeds=range(16))
    k1 = sampled(answers) - scored(reference, answers, 1.0)
    assert k1.abs().max() < 1e-5


def test_truncated_sampling_gives_a_kl_that_proves_the_mismatch() -> None:
    """Oracles.md, 4: with support S, E[k1] ≥ log(π(S)/q(S)); scoring top-k samples without their support shows here."""
    engine = engine_for("llama")
    answers = engine.generate(PROMPTS * 8, SamplingParams(max_new_tokens=NEW, top_k=3), seeds=range(32))
    plain = scored(engine.policy, answers, 1.0)
    counted = sampled(answers) != 0
    assert (plain[counted] < sampled(answers)[counted]).all()


def scored(policy: Policy, answers: list[Generation], temperature: float) -> torch.Tensor:
    rows = [Row([*a.prompt_ids, *a.ids], len(a.prompt_ids)) for a in answers]
    with torch.no_grad():
        return policy.logprobs(collate(rows, policy.pad_id), temperature=temperature).logprobs_BR


def sampled(answers: list[Generation]) -> torch.Tensor:
    width = max(len(a.ids) for a in answers)
    return torch.tensor([[*a.logprobs, *[0.0] * (width - len(a.ids))] for a in answers])
