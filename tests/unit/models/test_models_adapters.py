"""LoRA: what it trains, that it starts as the base, merges, shares a backbone, and opens in peft (correctness 38)."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from tests import tiny
from transformers import AutoConfig, AutoModelForCausalLM

from assay.data.pack import TokenBatch, collate
from assay.data.render import Renderer, Row
from assay.errors import ModelError
from assay.models.adapters import Adapters
from assay.models.backbone import Backbone, drop_dropout
from assay.models.config import LoraConfig
from assay.models.policy import Policy, load_policy
from assay.rollout.config import SamplingParams
from assay.rollout.engine import Engine
from assay.types import Prompt

ROWS = [Row([5, 90, 91, 92, 93, 94], 2), Row([60, 61, 62, 63, 64, 65, 66, 67], 4)]


def batch(policy: Policy) -> TokenBatch:
    return collate(ROWS, policy.pad_id)


def shake(policy: Policy, *names: str, size: float = 0.1) -> None:
    """Give adapters weights as if they had been trained."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in names:
            for p in policy.backbone.adapters.parameters(name).values():
                p.add_(torch.randn(p.shape, generator=noise) * size)


def test_gpt_neo_125m_with_rank_8_on_query_and_value_trains_294912_parameters() -> None:
    shape = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "vocab_size": 50257}
    with torch.device("meta"):
        config = AutoConfig.for_model("gpt_neo", **shape, attention_types=[[["global", "local"], 6]])
        model = AutoModelForCausalLM.from_config(config)
        adapters = Adapters(model)
        adapters.add("policy", LoraConfig(r=8, target_modules=("q_proj", "v_proj")), seed=0, dropout=True)
    assert sum(p.numel() for p in adapters.parameters("policy").values()) == 294_912
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 294_912


@pytest.mark.parametrize("kind", tiny.CAUSAL)
def test_a_new_adapter_is_the_base_and_its_first_gradient_reaches_every_b_and_no_a(kind: str) -> None:
    base = load_policy(tiny.folder(kind), trainable=False)
    policy = load_policy(tiny.folder(kind), lora=LoraConfig(r=4))
    drop_dropout(policy.model)
    with torch.no_grad():
        assert torch.equal(policy.logprobs(batch(policy)).logprobs_BR, base.logprobs(batch(base)).logprobs_BR)
    policy.logprobs(batch(policy)).logprobs_BR.sum().backward()
    moved = {
        name: bool(p.grad.abs().sum() > 0) for name, p in policy.parameters_trained().items() if p.grad is not None
    }
    assert moved == {name: ".lora_B." in name for name in policy.parameters_trained()}
    assert all(p.grad is None for p in policy.model.parameters() if not p.requires_grad)


@pytest.mark.parametrize("kind", tiny.CAUSAL)
@torch.no_grad()
def test_merged_is_unmerged_and_disabled_is_base(kind: str, tmp_path: Path) -> None:
    policy = load_policy(tiny.folder(kind), lora=LoraConfig(r=4, alpha=32))
    before = policy.logprobs(batch(policy)).logprobs_BR
    shake(policy, "policy")
    after = policy.logprobs(batch(policy)).logprobs_BR
    policy.save(tmp_path)
    assert (after - before).abs().max() > 0.01, "the adapter must change something for this test to see anything"
    assert torch.allclose(load_policy(tmp_path).logprobs(batch(policy)).logprobs_BR, after, atol=1e-4)
    bare = Policy(policy.backbone, policy.tokenizer)
    assert torch.equal(bare.logprobs(batch(policy)).logprobs_BR, before)


@pytest.mark.parametrize("kind", tiny.CAUSAL)
@torch.no_grad()
def test_the_saved_adapter_opens_in_plain_peft_on_the_same_base(kind: str, tmp_path: Path) -> None:
    base = load_policy(tiny.folder(kind), trainable=False)  # with its pad token, as a first stage would leave it
    base.save(tmp_path / "sft")
    policy = load_policy(tmp_path / "sft", lora=LoraConfig(r=4, rslora=True))
    shake(policy, "policy")
    policy.save(tmp_path / "trained")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    opened = peft.PeftModel.from_pretrained(plain, str(tmp_path / "trained" / "adapter")).eval()
    ids = torch.tensor([ROWS[0].ids])
    ours = policy.backbone.hidden(collate(ROWS[:1], policy.pad_id), "policy") @ policy.head[0].T
    assert torch.allclose(opened(input_ids=ids).logits, ours, atol=1e-4)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 32 / 4), (True, 32 / 2)])
@torch.no_grad()
def test_the_product_is_scaled_by_alpha_over_r_or_its_root(rslora: bool, scale: float) -> None:
    policy = load_policy(tiny.folder("llama"), lora=LoraConfig(r=4, alpha=32, rslora=rslora))
    shake(policy, "policy")
    name = "model.layers.0.self_attn.q_proj"
    weights = dict(policy.model.named_parameters())
    product = weights[f"{name}.lora_B.policy.weight"] @ weights[f"{name}.lora_A.policy.weight"]
    expected = weights[f"{name}.base_layer.weight"] + scale * product
    assert torch.allclose(policy.backbone.adapters.merged("policy")[f"{name}.weight"], expected, atol=1e-6)


def test_the_seed_decides_the_adapter() -> None:
    def first(seed: int) -> torch.Tensor:
        policy = load_policy(tiny.folder("llama"), lora=LoraConfig(r=4), seed=seed)
        return next(iter(policy.parameters_trained().values()))

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def two_adapters(*, gradient_checkpointing: bool) -> Policy:
    policy = load_policy(tiny.folder("llama"), lora=LoraConfig(r=4), gradient_checkpointing=gradient_checkpointing)
    policy.backbone.adapters.add("value", LoraConfig(r=2), seed=5, dropout=False)
    shake(policy, "policy", "value")
    policy.train()
    return policy


def gradients_of_two_roles(policy: Policy) -> dict[str, torch.Tensor]:
    """Both forward passes first, then one backward pass: while it runs, neither adapter is the active one."""
    scored = policy.logprobs(batch(policy)).logprobs_BR.sum()
    valued = policy.backbone.hidden(batch(policy), "value").pow(2).sum()
    (scored + valued).backward()
    return {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}


def test_recomputed_activations_see_the_adapter_that_the_forward_pass_saw() -> None:
    plain = gradients_of_two_roles(two_adapters(gradient_checkpointing=False))
    recomputed = gradients_of_two_roles(two_adapters(gradient_checkpointing=True))
    assert plain.keys() == recomputed.keys()
    assert all(grad.abs().sum() > 0 for grad in plain.values())
    for name, grad in plain.items():
        assert torch.allclose(grad, recomputed[name], atol=1e-5), name


def test_one_role_never_moves_the_other() -> None:
    policy = two_adapters(gradient_checkpointing=False)
    policy.logprobs(batch(policy)).logprobs_BR.sum().backward()
    assert all(p.grad is None for p in policy.backbone.adapters.parameters("value").values())


def test_layers_that_do_not_exist_are_named_together_with_those_that_do() -> None:
    with pytest.raises(ModelError, match="q_projection") as caught:
        load_policy(tiny.folder("llama"), lora=LoraConfig(target_modules=("q_projection",)))
    assert "q_proj" in caught.value.hint


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    policy = load_policy(tiny.folder("llama"), lora=LoraConfig(r=4))
    policy.save(tmp_path)
    deeper = tiny.causal_folder(tmp_path / "deeper", "llama", num_hidden_layers=3)
    other = Backbone(AutoModelForCausalLM.from_pretrained(deeper), device="cpu")
    with pytest.raises(ModelError, match="does not fit"):
        other.adapters.load("policy", tmp_path / "adapter")


MIXED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def written(kind: str, folder: Path, **shape: int) -> Path:
    """A folder with a small model of this kind and the tests' tokenizer."""
    words = tiny.tokenizer()
    config = AutoConfig.for_model(kind, **MIXED, **shape, vocab_size=len(words))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_a_router_that_inherits_from_a_linear_layer_is_none(tmp_path: Path) -> None:
    policy = load_policy(written("phimoe", tmp_path, num_key_value_heads=2, num_local_experts=4), lora=LoraConfig(r=4))
    assert not any("router" in name for name in policy.parameters_trained())
    policy.logprobs(batch(policy)).logprobs_BR.sum().backward()
    engine = Engine(policy, Renderer(policy.tokenizer, template="chat", max_length=32), max_batch=2, weights="int8")
    assert len(engine.generate([Prompt.ask("no")] * 2, SamplingParams(max_new_tokens=3), seeds=[0, 1])) == 2


def test_a_model_whose_attention_dropout_has_a_name_of_its_own_is_trained_with_it(tmp_path: Path) -> None:
    policy = load_policy(written("biogpt", tmp_path, max_position_embeddings=64))
    assert policy.model.config.attention_probs_dropout_prob > 0
    policy.model.train()
    policy.logprobs(batch(policy)).logprobs_BR.sum().backward()
    assert all(p.grad is not None for p in policy.backbone.trunk.parameters())


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # peft's, of what is refused here
def test_lora_on_experts_that_are_one_tensor_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    shape = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    heads = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12}
    folder = written("deepseek_v3", tmp_path, **shape, **heads, moe_intermediate_size=32)
    with pytest.raises(ModelError, match="experts") as refused:
        load_policy(folder, lora=LoraConfig(r=4))
    assert "gate_proj" not in str(refused.value.hint)
    names = str(refused.value.hint).split("among ")[1].split(", ")
    load_policy(folder, lora=LoraConfig(r=4, target_modules=tuple(names))).save(tmp_path / "saved")
    load_policy(tmp_path / "saved")
