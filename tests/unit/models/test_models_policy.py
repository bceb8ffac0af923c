"""Log-probabilities of responses: what is counted, where it is read, and that nothing else matters."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests import tiny
from transformers import AutoModelForCausalLM

from assay.data.pack import TokenBatch, collate
from assay.data.render import Row
from assay.errors import ModelError
from assay.models.config import LoraConfig
from assay.models.load_reward import load_reward_model
from assay.models.policy import Policy, load_policy

ROWS = [Row([5, 90, 91, 92, 93, 94], 2), Row([5, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69], 7), Row([70, 71, 72], 1)]


@pytest.fixture(params=tiny.CAUSAL, scope="module")
def policy(request: pytest.FixtureRequest) -> Policy:
    return load_policy(tiny.folder(request.param), trainable=False)


def by_hand(policy: Policy, row: Row, temperature: float) -> tuple[list[float], list[float]]:
    """One row alone, one token at a time, from the full logits of transformers."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([row.ids])).logits[0].double() / temperature
    logprobs, entropies = [], []
    for t in range(max(row.prompt_length, 1), len(row.ids)):
        p = [float(x) for x in logits[t - 1].softmax(-1)]
        logprobs.append(torch.tensor(p[row.ids[t]]).log().item())
        entropies.append(-sum(x * torch.tensor(x).log().item() for x in p if x > 0))
    return logprobs, entropies


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_padded_rows_score_as_each_does_alone_by_hand(policy: Policy, side: str, temperature: float) -> None:
    batch = collate(ROWS, policy.pad_id, side=side)  # pyright: ignore[reportArgumentType]
    got = policy.logprobs(batch, temperature=temperature, entropy=True)
    assert got.entropy_BR is not None
    for b, row in enumerate(ROWS):
        logprobs, entropies = by_hand(policy, row, temperature)
        n = len(logprobs)
        assert got.mask_BR[b].tolist() == [True] * n + [False] * (got.mask_BR.shape[1] - n)
        assert got.logprobs_BR[b, :n].tolist() == pytest.approx(logprobs, abs=2e-4)
        assert got.entropy_BR[b, :n].tolist() == pytest.approx(entropies, abs=2e-4)
        assert (got.logprobs_BR[b, n:] == 0).all()


@torch.no_grad()
def test_the_amount_of_padding_and_the_pad_token_change_nothing(policy: Policy) -> None:
    few, many = collate(ROWS[:1], policy.pad_id), collate(ROWS, policy.pad_id)
    other = dataclasses.replace(many, input_ids=many.input_ids.where(many.attention_mask, 42))
    n = len(ROWS[0].ids) - ROWS[0].prompt_length
    alone = policy.logprobs(few).logprobs_BR[0, :n]
    assert torch.allclose(policy.logprobs(many).logprobs_BR[0, :n], alone, atol=1e-5)
    assert torch.allclose(policy.logprobs(other).logprobs_BR[0, :n], alone, atol=1e-5)


FAMILY = [Row([5, 90, 91, *answer], 3) for answer in ([7], [8, 9, 10], [8, 9], [11, 12, 13, 14])] + [Row([5, 6], 0)]


@pytest.mark.parametrize("kind", tiny.CAUSAL)
def test_rows_of_one_prompt_score_and_teach_as_they_do_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree against padding: log-probabilities, and every gradient."""
    policy = load_policy(tiny.folder(kind))
    assert policy.backbone.shares_prompts
    trees: list[int] = []
    lines = policy.backbone.lines

    def counted(*args: Any) -> torch.Tensor:
        trees.append(1)
        return lines(*args)

    monkeypatch.setattr(policy.backbone, "lines", counted)

    def learned(batch: TokenBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        policy.model.zero_grad()
        logprobs_BR = policy.logprobs(batch).logprobs_BR
        (logprobs_BR * torch.arange(1.0, 1 + logprobs_BR.numel()).view_as(logprobs_BR)).sum().backward()
        gradients = {name: p.grad.clone() for name, p in policy.parameters_trained().items() if p.grad is not None}
        return logprobs_BR.detach(), gradients

    batch = collate(FAMILY, policy.pad_id)
    together, gradients = learned(batch)
    alone, expected = learned(dataclasses.replace(batch, rows=None))
    assert len(trees) == 1
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_rows_beyond_a_local_window_are_padded_and_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-Neo's local attention counts tokens along the line: beyond its window a tree would be wrong."""
    policy = load_policy(tiny.folder("gpt_neo"), trainable=False)
    rows = [Row([5, *range(90, 100), answer], 11) for answer in (7, 8)]
    assert policy.backbone.window == 8 < len(rows[0].ids)
    monkeypatch.setattr(policy.backbone, "lines", lambda *_: pytest.fail("a tree"))
    scored = policy.logprobs(collate(rows, policy.pad_id)).logprobs_BR
    for row, own in zip(rows, scored, strict=True):
        assert own.tolist() == pytest.approx(by_hand(policy, row, 1.0)[0], abs=1e-5)


def test_the_gradient_is_that_of_the_full_logits() -> None:
    policy = load_policy(tiny.folder("llama"))
    batch = collate(ROWS, policy.pad_id)
    policy.logprobs(batch).logprobs_BR.sum().backward()
    ours = {name: p.grad.clone() for name, p in policy.parameters_trained().items() if p.grad is not None}
    policy.model.zero_grad()
    logits = policy.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    labels = batch.loss_mask[:, 1:]
    full = logits[:, :-1].log_softmax(-1).gather(2, batch.input_ids[:, 1:, None]).squeeze(2)
    full[labels].sum().backward()
    for name, p in policy.parameters_trained().items():
        assert torch.allclose(ours[name], p.grad, rtol=1e-4, atol=1e-4), name  # pyright: ignore


def test_the_pad_token_is_not_the_end_token_and_its_row_is_the_mean_of_the_others(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer(pad=False)
    tokenizer.pad_token = tokenizer.eos_token
    folder = tiny.causal_folder(tmp_path, "gpt2")
    tokenizer.save_pretrained(folder)
    policy = load_policy(folder)
    weight, _ = policy.head
    assert policy.pad_id != policy.tokenizer.eos_token_id
    assert policy.pad_id == weight.shape[0] - 1 == policy.model.config.pad_token_id
    assert torch.allclose(weight[-1], weight[:-1].mean(0), atol=1e-6)


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4)])
def test_a_saved_policy_opens_in_plain_transformers_with_equal_logits(tmp_path: Path, lora: LoraConfig | None) -> None:
    policy = load_policy(tiny.folder("qwen2"), lora=lora)
    with torch.no_grad():
        for p in policy.parameters_trained().values():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    policy.save(tmp_path)
    batch = collate(ROWS, policy.pad_id)
    with torch.no_grad():
        ours = policy.backbone.hidden(batch, policy.adapter) @ policy.head[0].T
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)
        theirs = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    assert torch.allclose(ours[batch.attention_mask], theirs[batch.attention_mask], atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).pad_token_id == policy.pad_id


def test_logits_that_are_capped_after_the_head_are_refused(tmp_path: Path) -> None:
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "head_dim": 16,
    }
    words = tiny.tokenizer()
    config = transformers.AutoConfig.for_model(
        "gemma2", **shape, num_key_value_heads=1, vocab_size=len(words), final_logit_softcapping=0.5
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="after the head"):
        load_policy(tmp_path)


def test_a_reward_model_is_no_policy(tmp_path: Path) -> None:
    load_reward_model(tiny.folder("llama"), head_seed=0).save(tmp_path)
    with pytest.raises(ModelError, match="lacks"):
        load_policy(tmp_path)
