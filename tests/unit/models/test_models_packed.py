"""Packed copies of linear layers: they are what the layers are, for as long as they are asked for."""

from __future__ import annotations

import peft
import pytest
import torch
from tests import tiny
from torch import Tensor

from assay.algorithms import product
from assay.data.pack import collate
from assay.data.render import Row
from assay.models import packed
from assay.models.config import LoraConfig
from assay.models.packed import in_packs
from assay.models.policy import Policy, load_policy

BATCH = collate([Row([5, 90, 91, 92, 93, 94], 2), Row([5, 60, 61, 62, 63, 64, 65, 66], 5), Row([70, 71, 72], 1)], 0)


@pytest.fixture(autouse=True)
def every_layer_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "WIDE", 0)
    monkeypatch.setattr(product, "onednn_is_faster", torch.backends.mkldnn.is_available)


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the weights that have been packed."""
    made: list[tuple[int, ...]] = []

    def spy(weight_OI: Tensor, bias_O: Tensor | None = None) -> packed.Linear:
        made.append(tuple(weight_OI.shape))
        return product.packed_product(weight_OI, bias_O)

    monkeypatch.setattr(packed, "packed_product", spy)
    return made


@torch.inference_mode()
def states(policy: Policy, adapter: str | None = None) -> Tensor:
    return policy.backbone.hidden(BATCH, adapter or policy.adapter)[BATCH.attention_mask.bool()]


@pytest.mark.parametrize("kind", tiny.CAUSAL)
@pytest.mark.parametrize("lora", [None, LoraConfig(r=4)])
def test_the_trunk_is_itself_in_packs_and_bit_for_bit_itself_again_after(
    kind: str, lora: LoraConfig | None, packs: list[tuple[int, ...]]
) -> None:
    policy = tiny.moved(kind, lora)
    before = states(policy)
    with in_packs(policy.backbone, policy.adapter):
        inside = states(policy)
    assert len(packs) == len(list(policy.backbone.adapters.linears(None))) > 0
    assert torch.allclose(inside, before, rtol=1e-5, atol=1e-5)
    assert torch.equal(states(policy), before)


def test_copies_are_made_anew_each_time(packs: list[tuple[int, ...]]) -> None:
    policy = load_policy(tiny.folder("llama"), trainable=True)
    with in_packs(policy.backbone, None):
        pass
    with torch.no_grad():
        for parameter in policy.parameters_trained().values():
            parameter.mul_(1.1)
    after = states(policy)
    with in_packs(policy.backbone, None):
        assert torch.allclose(states(policy), after, rtol=1e-5, atol=1e-5)
    assert len(packs) == 2 * len(set(policy.backbone.adapters.linears(None)))


def test_an_adapter_that_is_more_than_a_product_is_left_to_peft() -> None:
    policy = load_policy(tiny.folder("llama"), trainable=False)
    adapters = policy.backbone.adapters
    adapters._inject("dora", peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], init_lora_weights=False))
    policy.eval()
    before = states(policy, "dora")
    assert not torch.allclose(before, states(policy), atol=1e-3)
    with in_packs(policy.backbone, "dora"):
        assert torch.allclose(states(policy, "dora"), before, rtol=1e-5, atol=1e-5)


def test_a_large_model_is_not_there_twice(monkeypatch: pytest.MonkeyPatch, packs: list[tuple[int, ...]]) -> None:
    policy = tiny.moved("llama", None)
    monkeypatch.setattr(packed, "MOST", policy.model.num_parameters() - 1)
    with in_packs(policy.backbone, None):
        pass
    assert packs == []
