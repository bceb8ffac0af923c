"""Linear layers in eight bits: how near they are, and that they stand for the layers they should, for as long."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.oracles import int8 as oracle

from assay.data.pack import collate
from assay.data.render import Row
from assay.models.config import LoraConfig
from assay.models.int8 import ROWS, Int8Linear, in_int8
from assay.models.policy import Policy, load_policy

ROWS_OF_TEXT = [Row([5, 90, 91, 92, 93, 94], 2), Row([5, 60, 61, 62, 63, 64, 65, 66], 5), Row([70, 71, 72], 1)]


def layer(outputs: int = 24, inputs: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight whose rows are of very different size, one of them zero, and a bias."""
    noise = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=noise) * torch.logspace(-4, 2, outputs)[:, None]
    weight[3] = 0
    return weight, torch.randn(outputs, generator=noise)


@torch.no_grad()
def states(policy: Policy) -> torch.Tensor:
    return policy.backbone.hidden(collate(ROWS_OF_TEXT, policy.pad_id), policy.adapter)


def test_no_weight_moves_by_more_than_half_a_step_of_its_own_output() -> None:
    weight, bias = layer()
    eight = Int8Linear.of(weight, bias)
    moved = (eight.weight_OI * eight.step_O[:, None] - weight).abs()
    assert (moved <= 0.5001 * weight.abs().amax(1, keepdim=True) / 127).all()
    assert eight.weight_OI.abs().amax(1).tolist() == [127 * (row != 3) for row in range(len(weight))]


@pytest.mark.parametrize("biased", [True, False])
def test_a_token_becomes_what_it_does_counted_by_hand(biased: bool) -> None:
    weight, bias = layer()
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    x[1, 0] = 0
    got = Int8Linear.of(weight, bias if biased else None)(x)
    assert got.shape == (2, 3, 24)
    for token, result in zip(x.flatten(0, 1).tolist(), got.flatten(0, 1).tolist(), strict=True):
        expected = oracle.linear(token, weight.tolist(), bias.tolist() if biased else [0.0] * 24)
        assert result == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_what_a_token_becomes_does_not_depend_on_who_is_beside_it() -> None:
    """To the last bit, however many go through together and however large the others are."""
    eight = Int8Linear.of(*layer())
    x = torch.randn(2 * ROWS + 7, 16, generator=torch.Generator().manual_seed(1)) * torch.arange(2 * ROWS + 7)[:, None]
    together = eight(x)
    assert all(torch.equal(together[n], eight(x[n : n + 1])[0]) for n in (0, 1, ROWS - 1, ROWS, 2 * ROWS + 6))


def test_it_answers_in_the_number_format_of_the_layer_it_stands_for() -> None:
    weight, bias = layer()
    x, plain, eight = torch.randn(4, 16), torch.nn.Linear(16, 24), Int8Linear.of(weight, bias)
    assert eight(x.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert eight(x).dtype == plain(x).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", tiny.CAUSAL)
@pytest.mark.parametrize("lora", [None, LoraConfig(r=4)])
def test_the_trunk_is_near_itself_in_int8_and_bit_for_bit_itself_again_after(
    kind: str, lora: LoraConfig | None
) -> None:
    policy = tiny.moved(kind, lora)
    before = states(policy)
    with in_int8(policy.backbone, policy.adapter):
        inside = states(policy)
    real = collate(ROWS_OF_TEXT, policy.pad_id).attention_mask
    difference = (inside - before)[real].std() / before[real].std()
    assert 1e-4 < difference < 0.1
    assert torch.equal(states(policy), before)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_adapter_is_merged_before_it_is_rounded(kind: str, tmp_path: Path) -> None:
    """Bit for bit what the saved policy, which has no adapter, becomes."""
    policy = tiny.moved(kind, LoraConfig(r=4))
    policy.save(tmp_path)
    merged = load_policy(tmp_path, trainable=False)
    with in_int8(policy.backbone, policy.adapter), in_int8(merged.backbone, None):
        assert torch.equal(states(policy), states(merged))


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    policy = tiny.moved("gpt2", LoraConfig(r=4))
    before = states(policy)
    with pytest.raises(KeyboardInterrupt), in_int8(policy.backbone, policy.adapter):
        raise KeyboardInterrupt
    assert torch.equal(states(policy), before)


def test_merged_weights_are_made_one_at_a_time() -> None:
    """So that int8 costs a quarter of the weights in memory, and never a second model."""
    policy = tiny.moved("gpt2", LoraConfig(r=4))
    made: list[weakref.ref[torch.Tensor]] = []
    for module, weight, _ in policy.backbone.adapters.linears(policy.adapter):
        assert sum(old() is not None for old in made) <= 1
        if hasattr(module, "base_layer"):
            made.append(weakref.ref(weight._base if weight._base is not None else weight))
        del weight
    assert len(made) == 2
    assert all(old() is None for old in made)
