"""The fused low-rank layer against peft's own forward pass and autograd: values, gradients, what it leaves to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from assay.models.lora_linear import fuse

ROWS, INTO, OUT, RANK = 7, 6, 5, 2
KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(INTO, OUT),
    "without bias": lambda: nn.Linear(INTO, OUT, bias=False),
    "conv1d": lambda: Conv1D(OUT, INTO),
}


def layer_of(kind: str, dropout: float = 0.0) -> Any:
    """A frozen layer with two adapters that both do something."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=3, lora_dropout=dropout, target_modules=["only"], fan_in_fan_out=kind == "conv1d"
    )
    model: Any = peft.get_peft_model(nn.ModuleDict({"only": KINDS[kind]()}), config, adapter_name="one")
    model.add_adapter("other", config)
    layer = model.base_model.model["only"]
    for name, parameter in layer.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
        parameter.requires_grad_("lora_" in name)
    return layer.double()


def outcome(layer: Any, adapter: str | None, x: Tensor) -> list[Tensor | None]:
    """The output, and the gradients of the input and of every weight, for an uneven gradient of the output."""
    layer._active_adapter = [adapter] if adapter else []
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y * torch.arange(1.0, 1 + y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("adapter", ["one", "other", None])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_peft(kind: str, adapter: str | None) -> None:
    x = torch.randn(2, ROWS, INTO, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, fused = layer_of(kind), layer_of(kind)
    fuse(fused)
    for expected, actual in zip(outcome(plain, adapter, x), outcome(fused, adapter, x), strict=True):
        assert (expected is None) == (actual is None)
        if expected is not None and actual is not None:
            torch.testing.assert_close(actual, expected)


def test_the_gradient_is_that_of_finite_differences() -> None:
    layer = layer_of("linear")
    fuse(layer)
    layer._active_adapter = ["one"]
    x = torch.randn(3, INTO, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


def test_dropout_is_peft_s_in_training_and_nothing_in_evaluation() -> None:
    plain, fused = layer_of("linear", dropout=0.5), layer_of("linear", dropout=0.5)
    fuse(fused)
    x = torch.randn(ROWS, INTO, dtype=torch.float64)
    for mode in (True, False):
        torch.manual_seed(5)
        expected = outcome(plain.train(mode), "one", x)
        torch.manual_seed(5)
        actual = outcome(fused.train(mode), "one", x)
        torch.testing.assert_close(actual[0], expected[0])


def test_a_layer_that_is_trained_itself_is_left_to_peft() -> None:
    layer = layer_of("linear")
    fuse(layer)
    base = layer.base_layer
    base.weight.requires_grad_(True)
    outcome(layer, "one", torch.randn(ROWS, INTO, dtype=torch.float64))
    assert base.weight.grad is not None
