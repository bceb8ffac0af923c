"""What a model takes: its parameters and bytes, exactly, and the most bytes that are alive during one of its passes.

The pass is rehearsed with tensors that have a size and a lifetime, and no memory. It is the code that the stages run
(`Backbone.forward`, `token_logprobs`) on a micro-batch laid out as theirs are, so it knows what that knows: attention
by blocks, recomputed logits, checkpointed activations, whatever a new architecture does.
"""

from __future__ import annotations

import copy
import functools
import sys
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoModelForSequenceClassification

from assay.algorithms.logprobs import token_logprobs
from assay.algorithms.product import WIDE, onednn_is_faster
from assay.data.forest import Block
from assay.data.pack import TokenBatch, collate
from assay.models.backbone import Backbone, drop_dropout
from assay.models.config import LoraConfig
from assay.models.faster import last_mlp, only_at
from assay.models.heap import LARGE
from assay.models.load import quiet_transformers
from assay.models.packed import copied
from assay.models.precision import compute_dtype, weight_dtype
from assay.pipeline.workload import Pass
from assay.rollout.config import Weights

HEAP_SHARE = 1.6
"""What glibc's heap grows to, over what is alive in it, while activations and gradients are made and freed by turns:
1.2 in full fine-tuning of GPT-2's shape, 1.6 to 1.8 where batches are ragged and adapters learn (`make preflight`). The
cure, mapping every tensor, takes 65 % more time."""
CODE = 150 * 2**20
"""Bytes of code that oneDNN makes for a stage's products and keeps, beside the few that `algorithms/product.py` lets it
cache: of GPT-2's layers 60 to 300 MiB a stage, and 340 to 480 after three."""
FAKE = FakeTensorMode(allow_non_fake_inputs=True)
"""Tensors that say they are on a device, as autocast and sdpa need to hear. Attention by blocks needs neither, being
fp32 on a CPU, and is rehearsed on "meta", several times as fast."""


@dataclass(frozen=True)
class Model:
    """A transformers configuration and what a stage trains of it: everything, adapters, or nothing."""

    config: Any
    device: str = "cpu"
    classifier: bool = False
    trained: bool = False
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    stands_for: int | None = None
    """Parameters of the model that this is a stand-in of: they decide about the format of its numbers."""

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """Equal for models that cost the same."""
        settings = (self.device, self.classifier, self.trained, self.gradient_checkpointing, self.stands_for)
        return (self.config.to_json_string(), str(self.lora if self.trained else None), *settings)

    def build(self, device: str | None = None) -> tuple[Backbone, dict[str, Tensor]]:
        """The backbone with random weights, and what an optimizer would change of it; on "meta", without storage."""
        full, count = self.trained and self.lora is None, self.stands_for or self.parameters
        model = self._new(device or self.device, weight_dtype(self.device, count, trained=full))
        drop_dropout(model)
        backbone = Backbone(
            model, device=self.device, gradient_checkpointing=self.gradient_checkpointing, parameters=count
        )
        model.train(self.gradient_checkpointing)
        if full:
            return backbone, dict(model.named_parameters())
        backbone.freeze()
        if not self.trained or self.lora is None:
            return backbone, {}
        backbone.adapters.add("policy", self.lora, seed=0, dropout=False)
        return backbone, dict(backbone.adapters.parameters("policy"))

    @functools.cached_property
    def rehearsed(self) -> tuple[Backbone, dict[str, Tensor]]:
        """The whole model without storage."""
        compute_dtype(self.device, self.parameters)  # is measured now and remembered: without numbers nothing has speed
        with torch.device("meta"):
            return self.build("meta")

    @functools.cached_property
    def acted(self) -> tuple[Backbone, dict[str, Tensor]]:
        """The same of fake tensors."""
        backbone, trained = replace(self).rehearsed
        with FAKE:
            made = give_sizes(backbone.model, self.device)
        return backbone, {name: made[id(meta)] for name, meta in trained.items()}

    @functools.cached_property
    def parameters(self) -> int:
        """How many numbers the model has, adapters apart."""
        return self._new("meta", torch.float32).num_parameters()

    def _new(self, device: str, dtype: torch.dtype) -> Any:
        config = copy.deepcopy(self.config)
        if self.classifier:
            config.num_labels = 1
        kind = AutoModelForSequenceClassification if self.classifier else AutoModelForCausalLM
        with quiet_transformers(), torch.device(device):
            return kind.from_config(config, dtype=dtype)

    @functools.cached_property
    def weights(self) -> int:
        """Bytes of all its numbers, adapters included."""
        return sum(p.nbytes for p in self.rehearsed[0].model.parameters())

    @functools.cached_property
    def trained_parameters(self) -> int:
        """How many numbers an optimizer changes."""
        return sum(p.numel() for p in self.rehearsed[1].values())

    @functools.cached_property
    def trained_weights(self) -> int:
        """Bytes of those."""
        return sum(p.nbytes for p in self.rehearsed[1].values())

    @functools.cached_property
    def merged(self) -> int:
        """Bytes of the layers that are written anew, with their adapters merged in, when the model is saved."""
        named = self.rehearsed[0].model.named_parameters()
        return sum(p.nbytes for name, p in named if name.endswith("base_layer.weight"))

    @property
    def code(self) -> int:
        """Bytes of compiled products, of one stage."""
        if self.device != "cpu":
            return 0
        in_fp32 = compute_dtype(self.device, self.parameters).itemsize == 4
        wide = self.config.get_text_config().hidden_size >= WIDE
        return CODE if not in_fp32 or (wide and onednn_is_faster()) else 0

    @property
    def blocks(self) -> int:
        return self.config.get_text_config().num_hidden_layers

    @property
    def vocabulary(self) -> int:
        return self.config.get_text_config().vocab_size

    @property
    def context(self) -> int:
        """Positions it has."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

    @property
    def heap(self) -> float:
        """What tensors that come and go by turns take, over what they hold."""
        return HEAP_SHARE if self.device == "cpu" else 1.0

    @property
    def cached(self) -> int:
        """Bytes of the keys of one token in one block; its values have as many."""
        inner = self.config.get_text_config()
        heads = getattr(inner, "num_key_value_heads", None) or inner.num_attention_heads
        width = getattr(inner, "head_dim", None) or inner.hidden_size // inner.num_attention_heads
        return heads * width * compute_dtype(self.device, self.parameters).itemsize

    def copied(self, weights: Weights) -> int:
        """Bytes of the copies that are sampled from (rollout/engine.py)."""
        backbone, _ = self.rehearsed
        head, _ = head_of(backbone)
        if weights == "int8":
            return head.numel() + sum(weight.numel() for _, weight, _ in backbone.adapters.linears(None))
        packs = copied(backbone)
        return packs + 4 * head.numel() if packs or head.dtype != torch.float32 else 0

    def stand_in(self, blocks: int, words: int) -> Model:
        """The same architecture and width, with few blocks and words of the vocabulary."""
        config = copy.deepcopy(self.config)
        inner = config.get_text_config()
        if getattr(inner, "attention_types", None):  # GPT-Neo lists its blocks; a local one works as a global one does
            inner.attention_types, inner.attention_layers = [[["global"], blocks]], ["global"] * blocks
        if getattr(inner, "layer_types", None):
            inner.layer_types = inner.layer_types[:blocks]
        inner.num_hidden_layers = blocks
        inner.vocab_size = min(self.vocabulary, words)
        inner.pad_token_id = inner.bos_token_id = inner.eos_token_id = None
        stands_for = self.stands_for or self.parameters
        return replace(self, config=config, stands_for=stands_for)

    @property
    def as_causal(self) -> Model:
        """With a language model's head wherever there is such a model: the trunk takes the time, and lays out rows."""
        return replace(self, classifier=self.classifier and type(self.config) not in MODEL_FOR_CAUSAL_LM_MAPPING)

    def held(self, task: Pass, like: Backbone) -> int:
        """Most bytes on top of the weights while a micro-batch, laid out by `like`, goes through this model."""
        inputs, read_N = laid_out(like, task)
        in_part, by_blocks = like.reads_in_part and not self.gradient_checkpointing, "blocks" in inputs
        part = like.part(read_N, inputs["input_ids"].numel()) if in_part else None
        if by_blocks:
            inputs, read_N, part = without_storage((inputs, read_N, part))
        backbone, trained = self.rehearsed if by_blocks else self.acted
        mlp = last_mlp(backbone.trunk)
        weights, heap = backbone.model.parameters(), self.heap if task.learns else 1.0
        with nullcontext() if by_blocks else FAKE, LiveBytes(heap, weights) as live:
            for parameter in trained.values():
                parameter.grad = torch.empty_like(parameter) if task.again else None
            fewer = nullcontext() if part is None or mlp is None else only_at(mlp, part)
            with torch.set_grad_enabled(task.learns), fewer:
                states_ND = backbone.forward(adapter=adapter_of(backbone), **inputs).flatten(0, 1)
                finish(states_ND.index_select(0, read_N), backbone, task)
            return live.most


def without_storage(told: Any) -> Any:
    """The same with every tensor on "meta"."""
    if isinstance(told, Block):
        return replace(told, bias=told.bias.to("meta"))
    if isinstance(told, dict):
        return {key: without_storage(value) for key, value in told.items()}
    if isinstance(told, list | tuple):
        return [without_storage(one) for one in told]
    return told.to("meta") if isinstance(told, Tensor) else told


def read_at(batch: TokenBatch, *, ends: bool) -> Tensor:
    """Places of the flattened batch whose states are read: the rows' last tokens, or what their labels follow."""
    if not ends:
        return batch.labels.before_N
    count, width = batch.input_ids.shape
    return torch.arange(count, device=batch.input_ids.device) * width + batch.attention_mask.sum(1) - 1


def laid_out(backbone: Backbone, task: Pass) -> tuple[dict[str, Any], Tensor]:
    """What a backbone is told of the rows, and which of its states are read."""
    batch = collate(task.rows, 0).to(backbone.device)
    read_N, forest = read_at(batch, ends=task.ends), backbone.forest(batch)
    if forest is not None:
        told = backbone.laid_out(batch, forest, by_blocks=backbone.by_blocks)
        return told, forest.places_BT.flatten()[read_N]
    count, width = batch.input_ids.shape  # a mask of four axes: one of two would be looked into
    mask = torch.ones(count, 1, width, width, dtype=torch.bool, device=backbone.device).tril()
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "attention_mask": mask}, read_N


def finish(states_ND: Tensor, backbone: Backbone, task: Pass) -> None:
    """From the states that are read to the end of the pass: the head's log-probabilities, the backward pass."""
    loss_N = states_ND.float()
    if task.words:
        (weight, _), ids_N = head_of(backbone), torch.zeros(len(states_ND), dtype=torch.long, device=states_ND.device)
        loss_N, _ = token_logprobs(states_ND, weight, ids_N, alike=task.alike)
    if task.learns:
        loss_N.sum().backward()


def adapter_of(backbone: Backbone) -> str | None:
    return "policy" if backbone.adapters.names else None


def head_of(backbone: Backbone) -> tuple[Tensor, Tensor | None]:
    """Weight [V, D] and bias [V] of the language model's head."""
    head: Any = backbone.model.get_output_embeddings()
    return head.weight, getattr(head, "bias", None)


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive inside, now and at the most; small ones count `heap` times.

    What was `there` before does not count, and neither do views of it.
    """

    def __init__(self, heap: float = 1.0, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.heap = heap
        self.now = self.most = 0  # bytes
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in there}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in self._sizes:
                size = storage.nbytes()
                self._sizes[storage._cdata] = size = round(size * self.heap) if size < LARGE else size
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._drop, storage._cdata).atexit = False
        return out

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def give_sizes(model: nn.Module, device: str) -> dict[int, Tensor]:
    """Put a tensor of a device in the place of each meta tensor, whose ids tell which; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, meta in tensors.items():
                if meta is not None and id(meta) not in made:
                    empty = torch.empty(meta.shape, dtype=meta.dtype, device=device)
                    parameter = isinstance(meta, nn.Parameter)
                    made[id(meta)] = nn.Parameter(empty, meta.requires_grad) if parameter else empty
                if meta is not None:
                    tensors[name] = made[id(meta)]  # pyright: ignore[reportArgumentType]
    return made
