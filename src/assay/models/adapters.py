"""LoRA adapters on one frozen model, through peft: several in memory, one active at a time.

W x + (α / r)·B A x (Hu et al. 2021, arXiv 2106.09685); rank-stabilised α / √r (arXiv 2312.03732).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL_TARGETS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from assay.errors import ModelError
from assay.models.config import LoraConfig
from assay.models.faster import is_linear
from assay.models.lora_linear import fuse

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the name of every weight it saves."""


class Adapters:
    """The adapters of one model. Adding the first freezes the model; `use` chooses which one a forward pass sees."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.active: str | None = None
        self._peft: peft.PeftModel | None = None
        self._layers: dict[str, LoraLayer] = {}

    @property
    def names(self) -> list[str]:
        return [] if self._peft is None else list(self._peft.peft_config)

    def add(self, name: str, lora: LoraConfig, *, seed: int, dropout: bool) -> None:
        """A new adapter; B = 0, so it changes nothing until it is trained."""
        targets = list(lora.target_modules) if lora.target_modules else usual_targets(self.model)
        config = peft.LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  (a float is fine with it)
            lora_dropout=lora.dropout if dropout else 0.0,
            target_modules=targets,
            use_rslora=lora.rslora,
            fan_in_fan_out=self._transposed(targets),
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._inject(name, config)

    def load(self, name: str, folder: Path) -> None:
        """An adapter that `save` or peft wrote; what else the folder holds (a head) is left to the caller."""
        stored = peft.LoraConfig.from_pretrained(str(folder)).to_dict()
        unwanted = {
            "modules_to_save": None,
            "inference_mode": False,
            "lora_dropout": 0.0,
            "base_model_name_or_path": None,
        }
        self._inject(name, peft.LoraConfig(**{**stored, **unwanted}))
        weights = {key: value for key, value in load_file(folder / WEIGHTS).items() if ".lora_" in key}
        own = self.parameters(name)
        given = {
            key.removeprefix(PREFIX).replace(".weight", f".{name}.weight"): value for key, value in weights.items()
        }
        if own.keys() != given.keys():
            odd = sorted(own.keys() ^ given.keys())
            raise ModelError(
                f"{folder} does not fit the model: {len(odd)} adapter weights differ, {odd[0]} first",
                hint="load it on the model it was trained on",
            )
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(given[key])

    def copy(self, source: str, name: str) -> None:
        """A second adapter with the weights of the first."""
        assert self._peft is not None
        self._inject(name, peft.LoraConfig(**self._peft.peft_config[source].to_dict()))
        with torch.no_grad():
            for mine, other in zip(self.parameters(name).values(), self.parameters(source).values(), strict=True):
                mine.copy_(other)

    def parameters(self, name: str) -> dict[str, Parameter]:
        """The adapter's weights by their name in the model."""
        return {key: p for key, p in self.model.named_parameters() if f".{name}." in key and ".lora_" in key}

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Forward passes inside see this adapter, or the bare model."""
        before = self.active
        self._activate(name)
        try:
            yield
        finally:
            self._activate(before)

    def merged(self, name: str | None) -> dict[str, Tensor]:
        """The model's state dict as if it had never had adapters, with `name`'s product added to the weights."""
        weights: dict[str, Tensor] = {}
        for key, value in self.model.state_dict().items():
            if ".lora_" in key:
                continue
            owner, _, leaf = key.rpartition(".base_layer.")
            if owner and leaf == "weight":
                value = with_product(value, self._layers[owner], name)
            weights[key.replace(".base_layer.", ".")] = value
        return weights

    def linears(self, name: str | None) -> Iterator[tuple[nn.Module, Tensor, Tensor | None]]:
        """The trunk's linear layers: module, weight [O, I] with `name`'s product added, bias [O].

        A weight with a product added is made when its turn comes: keep none, and no second model is in memory.
        """
        trunk: nn.Module = self.model.base_model
        adapted = [module for module in trunk.modules() if isinstance(module, LoraLayer)]
        inner = {module for layer in adapted for module in layer.modules() if module is not layer}
        for module in trunk.modules():
            base = module.base_layer if isinstance(module, LoraLayer) else module
            if module not in inner and is_linear(base):
                weight = with_product(base.weight.detach(), module, name)
                yield module, weight.T if isinstance(base, Conv1D) else weight, base.bias

    def save(self, name: str, folder: Path, *, base: str, head: Mapping[str, Tensor] | None = None) -> None:
        """A folder that peft opens on `base`; `head` holds further trained weights by their name in the model."""
        assert self._peft is not None
        folder.mkdir(parents=True, exist_ok=True)
        config = peft.LoraConfig(**self._peft.peft_config[name].to_dict())
        config.base_model_name_or_path, config.inference_mode = base, True
        config.target_modules = sorted(config.target_modules or ())  # a set has another order in every process
        config.modules_to_save = sorted({key.rsplit(".", 1)[0] for key in head}) if head else None
        config.save_pretrained(str(folder))
        own = {key.replace(f".{name}.", "."): value for key, value in self.parameters(name).items()}
        everything = {**own, **(head or {})}
        tensors = {PREFIX + key: value.detach().cpu().contiguous().clone() for key, value in everything.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    def _inject(self, name: str, config: peft.LoraConfig) -> None:
        attention = linear_names(self.model, within="attn")
        if self._peft is None:
            self._peft = peft.get_peft_model(self.model, config, adapter_name=name)
        else:
            self._peft.add_adapter(name, config)
        experts = getattr(self._peft.peft_config[name], "target_parameters", None)
        if experts:  # which peft has taken for layers of that name
            kind, named = self.model.config.model_type, ", ".join(sorted(experts))
            raise ModelError(
                f"LoRA on experts is not supported: {named} of this {kind}",
                hint=f"choose lora.target_modules among {', '.join(attention)}",
            )
        self._layers = {key: layer for key, layer in self.model.named_modules() if isinstance(layer, LoraLayer)}
        for layer in self._layers.values():
            if "forward" not in vars(layer):
                fuse(layer)
        if isinstance(self.model.get_output_embeddings(), LoraLayer):
            raise ModelError("LoRA on the language-model head is not supported", hint="leave it out of target_modules")
        # peft lets only one adapter have gradients; here each role says for itself what it trains.
        for parameter in self.parameters(name).values():
            parameter.requires_grad_(True)
        self._activate(None)

    def _activate(self, name: str | None) -> None:
        # Set directly: peft's own set_adapter would also switch gradients off for every other adapter.
        for layer in self._layers.values():
            layer._active_adapter = [name] if name else []
        self.active = name

    def _transposed(self, targets: list[str]) -> bool:
        """True where the targets store W as [in, out], as GPT-2's Conv1D does."""
        found = [m for key, m in self.model.named_modules() if key.rsplit(".", 1)[-1] in targets]
        if not found:
            raise ModelError(
                f"no layer of this {self.model.config.model_type} is named {', '.join(targets)}",
                hint=f"choose lora.target_modules among {', '.join(linear_names(self.model))}",
            )
        return any(isinstance(getattr(m, "base_layer", m), Conv1D) for m in found)


@contextlib.contextmanager
def instead(copies: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Forward passes inside go through these in the place of layers."""
    own = {layer: vars(layer)["forward"] for layer in copies if "forward" in vars(layer)}
    for layer, copy in copies.items():
        layer.forward = copy
    try:
        yield
    finally:
        for layer in copies:
            del layer.forward
        for layer, forward in own.items():
            layer.forward = forward


def with_product(weight: Tensor, layer: nn.Module | LoraLayer, name: str | None) -> Tensor:
    """A layer's weight as it would be with the adapter `name` merged into it; itself where it has none of that name."""
    if not isinstance(layer, LoraLayer) or name not in layer.scaling:
        return weight
    delta = layer.get_delta_weight(name)  # pyright: ignore[reportAttributeAccessIssue]
    return (weight.float() + delta.detach().float()).to(weight.dtype)


def usual_targets(model: PreTrainedModel) -> list[str]:
    """The layers LoRA is usually put on in this architecture (attention query and value, mostly)."""
    targets = USUAL_TARGETS.get(model.config.model_type)
    return targets if isinstance(targets, list) else linear_names(model)


def linear_names(model: PreTrainedModel, within: str = "") -> list[str]:
    """Names of the linear layers inside the blocks, or inside those of their parts; heads are no part of it."""
    trunk = model.base_model
    names = {key for key, m in trunk.named_modules() if is_linear(m) and "." in key and within in key}
    return sorted({key.rsplit(".", 1)[-1] for key in names})
