"""Log-probabilities of responses: what is counted, where it is read, and that nothing else matters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
from assay.models.faster import last_mlp
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

    def counted(*args: Any, **more: Any) -> torch.Tensor:
        trees.append(1)
        return lines(*args, **more)

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


@pytest.mark.parametrize("rows", [FAMILY, None], ids=["trees", "padded"])
@pytest.mark.parametrize("kind", tiny.CAUSAL)
def test_the_last_mlp_works_for_states_that_are_read_and_values_and_gradients_stay(
    kind: str, rows: list[Row] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two answers begin after one token of their prompt, whose state is read twice."""
    policy = load_policy(tiny.folder(kind))
    backbone = policy.backbone
    batch = dataclasses.replace(collate(FAMILY, policy.pad_id), rows=rows)
    mlp = last_mlp(backbone.trunk)
    assert mlp is not None
    assert backbone.reads_in_part
    assert backbone.shares_prompts
    tokens: list[int] = []
    mlp.get_submodule(next(name for name, _ in mlp.named_children())).register_forward_pre_hook(
        lambda _, given: tokens.append(given[0].shape[:-1].numel())
    )
    found = []
    for in_part in (True, False):
        backbone.__dict__["reads_in_part"] = in_part
        policy.model.zero_grad()
        policy.logprobs(batch).logprobs_BR.pow(2).sum().backward()
        found.append({name: p.grad.clone() for name, p in policy.parameters_trained().items() if p.grad is not None})
    answers = sum(len(row.ids) - row.prompt_length for row in FAMILY)
    assert tokens[0] <= answers < tokens[1]
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        right = found[1][name]
        assert (gradient - right).abs().max() < 1e-5 * right.abs().max(), name


WIDE = [Row([*range(90, 101), *answer], 11) for answer in ([7], range(30, 42), [8, 9])]
WIDE += [Row([5, 90, 91, *answer], 3) for answer in (range(40, 56), [7, 8], [])] + [Row([5, 6, 7], 2)]
"""Prompts longer than the window, answers that cross it, one of no tokens, and a row that has its prompt to itself."""


@pytest.mark.parametrize("kind", ["gpt_neo", "mistral"])
@pytest.mark.parametrize("lora", [None, LoraConfig(r=4)])
def test_rows_wider_than_a_local_window_are_read_on_from_their_prompt_as_they_come_out_alone(
    kind: str, lora: LoraConfig | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Local attention counts tokens along the line, so that a tree would be wrong; values, and every gradient."""
    policy = load_policy(tiny.folder(kind), lora=lora)
    assert policy.backbone.window == 8 < len(WIDE[0].ids)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters_trained().values()):
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    policy.eval()
    monkeypatch.setattr(policy.backbone, "lines", lambda *_: pytest.fail("a tree"))
    assert policy.backbone.reads_on

    def learned(rows: Sequence[Row], *, together: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        policy.model.zero_grad()
        batch = collate(rows, policy.pad_id)
        logprobs_BR = policy.logprobs(batch if together else dataclasses.replace(batch, rows=None)).logprobs_BR
        weights_BR = torch.linspace(0.1, 1, 16 * len(WIDE)).view(len(WIDE), 16)[:, : logprobs_BR.shape[1]]
        (logprobs_BR * weights_BR).sum().backward()
        gradients = {name: p.grad.clone() for name, p in policy.parameters_trained().items() if p.grad is not None}
        return logprobs_BR.detach(), gradients

    logprobs, gradients = learned(WIDE, together=True)
    alone, expected = learned(WIDE, together=False)
    torch.testing.assert_close(logprobs, alone, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).abs().max() <= 1e-5 * max(1, float(expected[name].abs().max())), name
    for row, own in zip(WIDE, logprobs, strict=True):
        if lora is None:
            assert own[: len(row.ids) - row.prompt_length].tolist() == pytest.approx(
                by_hand(policy, row, 1.0)[0], abs=1e-4
            )


def test_each_prompt_wider_than_the_window_goes_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_policy(tiny.folder("gpt_neo"), trainable=False).backbone
    assert backbone.reads_on
    shapes: list[tuple[int, ...]] = []
    forward = backbone.forward
    monkeypatch.setattr(
        backbone, "forward", lambda ids, **given: (shapes.append(tuple(ids.shape)), forward(ids, **given))[1]
    )
    with torch.no_grad():
        backbone.states(collate(WIDE, 0), torch.tensor([0]))
    assert shapes == [(1, 11), (3, 12), (1, 3), (3, 16), (1, 3)]


def test_a_model_that_can_share_no_prompt_says_so_once_and_only_where_something_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = load_policy(tiny.folder("gpt2"), trainable=False)
    monkeypatch.setattr(type(policy.backbone), "shares_prompts", False)
    monkeypatch.setattr(type(policy.backbone), "reads_on", False)
    with torch.no_grad():
        policy.logprobs(collate(ROWS, policy.pad_id))
        assert not caplog.messages
        first, again = (policy.logprobs(collate(FAMILY, policy.pad_id)).logprobs_BR for _ in range(2))
    assert torch.equal(first, again)
    [said] = caplog.messages
    assert said.endswith(": it takes neither trees of rows nor the cache of a prompt")
    assert "gpt2 reads a prompt again for each of its answers" in said
    assert first[1, :3].tolist() == pytest.approx(by_hand(policy, FAMILY[1], 1.0)[0], abs=1e-4)


def test_a_model_that_breaks_over_a_tree_or_a_cache_reads_padded_rows_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An attribute that is not there is a refusal like any other."""
    policy = load_policy(tiny.folder("qwen2"), trainable=False)
    expected = by_hand(policy, FAMILY[1], 1.0)[0]
    trunk = policy.backbone.trunk
    plain = trunk.forward

    def forward(input_ids: torch.Tensor, *, attention_mask: torch.Tensor, **more: Any) -> Any:
        if attention_mask.ndim != 2 or more["use_cache"]:
            raise AttributeError("no such thing here")
        return plain(input_ids, attention_mask=attention_mask, **more)

    monkeypatch.setattr(trunk, "forward", forward)
    with torch.no_grad():
        got = policy.logprobs(collate(FAMILY, policy.pad_id)).logprobs_BR
    assert got[1, :3].tolist() == pytest.approx(expected, abs=1e-4)
    [said] = caplog.messages
    assert "qwen2 reads a prompt again" in said


def test_a_model_whose_class_does_not_name_its_trunk_scores_as_by_hand(tmp_path: Path) -> None:
    """Llama 4; its attention is in chunks, which the window knows."""
    words = tiny.tokenizer(pad=False)
    shape = {**tiny.SHAPE["llama"], "intermediate_size_mlp": 64, "head_dim": 8, "num_local_experts": 2}
    config = transformers.AutoConfig.for_model("llama4_text", **shape, vocab_size=len(words), attention_chunk_size=16)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    policy = load_policy(tmp_path, trainable=False)
    assert policy.backbone.window == 16
    with torch.no_grad():
        got = policy.logprobs(collate(FAMILY, policy.pad_id)).logprobs_BR
    for b, row in enumerate(FAMILY):
        expected = by_hand(policy, row, 1.0)[0]
        assert got[b, : len(expected)].tolist() == pytest.approx(expected, abs=1e-4)


def test_where_activations_are_computed_again_there_is_no_cache_to_read_on_from(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is said names the setting, and without it the same rows are read on from."""
    policy = load_policy(tiny.folder("gpt_neo"), gradient_checkpointing=True)
    assert not policy.backbone.reads_on
    with torch.no_grad():
        policy.logprobs(collate(WIDE, policy.pad_id))
    [said] = caplog.messages
    assert "gpt_neo reads a prompt again for each of its answers" in said
    assert "once with gradient_checkpointing=false" in said
    assert load_policy(tiny.folder("gpt_neo")).backbone.reads_on


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


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("gemma2", {"head_dim": 16, "final_logit_softcapping": 0.5}),
        ("cohere", {"logit_scale": 0.0625}),
        ("granite", {"logits_scaling": 8.0}),
    ],
)
def test_logits_that_are_capped_or_scaled_after_the_head_are_refused(
    kind: str, changed: dict[str, float], tmp_path: Path
) -> None:
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    words = tiny.tokenizer()
    config = transformers.AutoConfig.for_model(kind, **shape, **changed, num_key_value_heads=1, vocab_size=len(words))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"{kind} changes its logits after the head"):
        load_policy(tmp_path)


def test_a_reward_model_is_no_policy(tmp_path: Path) -> None:
    load_reward_model(tiny.folder("llama"), head_seed=0).save(tmp_path)
    with pytest.raises(ModelError, match="lacks"):
        load_policy(tmp_path)
