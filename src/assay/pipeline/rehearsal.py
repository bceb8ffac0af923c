"""A model's passes, rehearsed: on tensors without storage for what they hold, on one block for the time they take.

    bytes      the whole model in PyTorch's fake mode: every tensor has a size and a lifetime, and no memory
    seconds    t(pass) = t(no block) + blocks · (t(one block) − t(no block)), measured on this machine, in proportion to
               the places that go through; and so much a label and word of the vocabulary for the head

Both run the code that the stages run (`Backbone.forward`, `token_logprobs`), so they know what it knows: fused layers,
recomputed logits, checkpointed activations, whatever a new architecture does in its blocks.
"""

from __future__ import annotations

import copy
import functools
import statistics
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from assay.algorithms.logprobs import token_logprobs
from assay.algorithms.product import product
from assay.models.backbone import Backbone, drop_dropout
from assay.models.config import LoraConfig
from assay.models.load import quiet_transformers
from assay.models.precision import bf16_speedup_on_cpu, compute_dtype, weight_dtype
from assay.rollout.cache import SlotCache
from assay.rollout.config import SamplingParams
from assay.rollout.sampler import draw
from assay.stages.config import OptimConfig
from assay.stages.loop import Optimizer

PROBE_OPERATIONS = 1e10
"""Multiplications and additions of one timed pass through a block, about: a tenth of a second on a laptop."""
PROBE_WORDS = 4096
"""Words of the vocabulary that a stand-in knows: its head is timed on those, and its embedding is small."""
HEAP_SHARE = 1.4
"""What glibc's heap grows to, over what is alive in it, while activations and gradients are made and freed by turns:
1.36 to 1.44 for 2,000 to 8,000 places of the embedded model. The cure, mapping every tensor, takes 65 % more time."""
MAPPED = 32 * 2**20
"""Bytes from which glibc maps an allocation for itself, and returns it whole (mallopt(3), M_MMAP_THRESHOLD)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A micro-batch as the trunk sees it: lines of tokens, pads included, and how many of them are labels."""

    lines: int
    width: int
    labels: int

    @property
    def places(self) -> int:
        return self.lines * self.width


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the weights; how many of them an optimizer changes, and their bytes."""

    weights: int
    trained: int
    trained_bytes: int


@dataclass(frozen=True)
class Model:
    """A transformers configuration and what a stage trains of it: everything, adapters, or nothing."""

    config: Any
    device: str = "cpu"
    classifier: bool = False
    trained: bool = False
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False

    def build(self, *, device: str | None = None) -> tuple[Backbone, dict[str, Tensor]]:
        """The backbone with random weights, and the parameters an optimizer would change."""
        full = self.trained and self.lora is None
        with torch.device(device or self.device):
            model = self._new(weight_dtype(self.device, self.parameters, trained=full))
        drop_dropout(model)
        backbone = Backbone(model, device=self.device, gradient_checkpointing=self.gradient_checkpointing)
        model.train(self.gradient_checkpointing)
        if full:
            return backbone, dict(model.named_parameters())
        backbone.freeze()
        if not self.trained or self.lora is None or not self.blocks:
            return backbone, {}
        backbone.adapters.add("policy", self.lora, seed=0, dropout=False)
        return backbone, dict(backbone.adapters.parameters("policy"))

    @functools.cached_property
    def parameters(self) -> int:
        """How many numbers the model has."""
        with torch.device("meta"):
            return self._new(torch.float32).num_parameters()

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """Equal for models that cost the same."""
        settings = (self.device, self.classifier, self.trained, self.gradient_checkpointing)
        return (self.config.to_json_string(), str(self.lora if self.trained else None), *settings)

    @functools.cached_property
    def sizes(self) -> Sizes:
        """Exact: the model is built, without storage."""
        backbone, trained = self.build(device="meta")
        weights = sum(p.nbytes for p in backbone.model.parameters())
        return Sizes(weights, sum(p.numel() for p in trained.values()), sum(p.nbytes for p in trained.values()))

    @property
    def heap(self) -> float:
        """What tensors that come and go by turns take, over what they hold."""
        return HEAP_SHARE if self.device == "cpu" else 1.0

    @property
    def context(self) -> int:
        """Positions it has."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token in all blocks."""
        inner = self.config.get_text_config()
        heads = getattr(inner, "num_key_value_heads", None) or inner.num_attention_heads
        width = getattr(inner, "head_dim", None) or inner.hidden_size // inner.num_attention_heads
        return 2 * self.blocks * heads * width * compute_dtype(self.device, self.parameters).itemsize

    @property
    def blocks(self) -> int:
        return self.config.get_text_config().num_hidden_layers

    @property
    def vocabulary(self) -> int:
        return self.config.get_text_config().vocab_size

    def _new(self, dtype: torch.dtype) -> Any:
        config = copy.deepcopy(self.config)
        if self.classifier:
            config.num_labels = 1
        with quiet_transformers():
            kind = AutoModelForSequenceClassification if self.classifier else AutoModelForCausalLM
            return kind.from_config(config, dtype=dtype)

    def stand_in(self, blocks: int) -> Model:
        """The same architecture and width, with few blocks and words."""
        config = copy.deepcopy(self.config)
        inner = config.get_text_config()
        if getattr(inner, "attention_types", None):  # GPT-Neo lists its blocks; a local one works as a global one does
            inner.attention_types, inner.attention_layers = [[["global"], blocks]], ["global"] * blocks
        if getattr(inner, "layer_types", None):
            inner.layer_types = inner.layer_types[:blocks]
        inner.num_hidden_layers = blocks
        inner.vocab_size = min(self.vocabulary, PROBE_WORDS)
        inner.pad_token_id = inner.bos_token_id = inner.eos_token_id = None
        return Model(config, self.device, self.classifier, self.trained, self.lora)


def adapter(backbone: Backbone) -> str | None:
    return "policy" if backbone.adapters.names else None


def forward(backbone: Backbone, layout: Layout) -> Tensor:
    """States [labels, D] of a micro-batch of one tree a line."""
    device = backbone.device
    ids_LW = torch.zeros(layout.lines, layout.width, dtype=torch.long, device=device)
    mask = torch.ones(layout.lines, 1, layout.width, layout.width, dtype=torch.bool, device=device).tril()
    hidden = backbone.forward(ids_LW, position_ids=ids_LW, adapter=adapter(backbone), attention_mask=mask)
    return hidden.flatten(0, 1)[: max(1, layout.labels)]


def run_pass(model: Model, backbone: Backbone, layout: Layout, *, learns: bool, words: bool) -> None:
    """One micro-batch: forward, at its labels the head where `words`, and backward where it `learns`."""
    with torch.set_grad_enabled(learns):
        hidden_ND = forward(backbone, layout)
        loss_N = hidden_ND.float().sum(1)
        if words:
            ids_N = torch.zeros(len(hidden_ND), dtype=torch.long, device=hidden_ND.device)
            loss_N, _ = token_logprobs(hidden_ND, head_weight(backbone), ids_N)
        if learns and loss_N.requires_grad:
            loss_N.sum().backward()


def head_weight(backbone: Backbone) -> Tensor:
    return backbone.model.get_output_embeddings().weight  # pyright: ignore


# Memory


def taken(size: int, heap: float) -> int:
    """Bytes that the process grows by for a tensor."""
    return round(size * heap) if size < MAPPED else size


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive inside, now and at the most; small ones count `heap` times."""

    def __init__(self, heap: float = 1.0) -> None:
        super().__init__()
        self.heap = heap
        self.now = self.most = 0  # bytes
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in self._sizes:
                self._sizes[storage._cdata] = size = taken(storage.nbytes(), self.heap)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._drop, storage._cdata).atexit = False
        return out

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def held(model: Model, layout: Layout, *, learns: bool, words: bool, again: bool = False) -> int:
    """Most bytes on top of the weights during a pass; `again`: it finds the gradients of an earlier micro-batch."""
    bf16_speedup_on_cpu()  # is measured now and remembered: fake tensors have no speed
    backbone, _ = model.build(device="meta")
    with FakeTensorMode(), LiveBytes(model.heap if learns else 1.0) as live:
        give_sizes(backbone.model)
        weights = live.now
        for _ in range(1 + again):
            live.most = live.now
            run_pass(model, backbone, layout, learns=learns, words=words)
        return live.most - weights


def give_sizes(model: nn.Module) -> None:
    """Put a tensor of its kind on the CPU in the place of each meta tensor; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, meta in tensors.items():
                if meta is not None and id(meta) not in made:
                    empty = torch.empty(meta.shape, dtype=meta.dtype)
                    made[id(meta)] = (
                        nn.Parameter(empty, meta.requires_grad) if isinstance(meta, nn.Parameter) else empty
                    )
                if meta is not None:
                    tensors[name] = made[id(meta)]  # pyright: ignore[reportArgumentType]


# Time


@functools.cache
def _warm(device: str) -> None:
    """Threads, kernels and caches are there before anything is timed."""
    a = torch.ones(256, 256, device=device)
    for _ in range(3):
        _ = a @ a


def seconds(work: Callable[[], Any], device: str, *, repeats: int = 2) -> float:
    """Median time of a few runs after one that is not counted."""
    _warm(device)
    synchronise = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    work()
    times = []
    for _ in range(repeats):
        synchronise()
        began = time.perf_counter()
        work()
        synchronise()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


class Rates:
    """Measured seconds of one model's passes; every measurement is made once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._stand_ins = [model.stand_in(blocks) for blocks in (0, 1)]
        self._built = [stand_in.build() for stand_in in self._stand_ins]
        self._known: dict[tuple[Any, ...], float] = {}

    @property
    def backbone(self) -> Backbone:
        """The stand-in with one block: it lays out a batch as the model itself would."""
        return self._built[1][0]

    def trunk(self, layout: Layout, *, learns: bool) -> float:
        """Seconds of a micro-batch in the trunk, in proportion to those of one that is like it."""
        width = max(16, -(-layout.width // 32) * 32)
        operations = (6 if learns else 2) * (self._stand_ins[1].parameters - self._stand_ins[0].parameters)
        most = max(64, int(PROBE_OPERATIONS / operations))
        probe = Layout(max(1, min(layout.places, most) // width), min(width, most), 1)
        probe = Layout(1 << (probe.lines.bit_length() - 1), probe.width, 1)  # few sizes, so that few are measured
        return layout.places / probe.places * self._in_all(("trunk", probe, learns), self._pass(probe, learns))

    def head(self, labels: int, *, learns: bool) -> float:
        """Seconds of the head and the log-probabilities at so many labels."""
        count, weight = 256, head_weight(self.backbone).detach()
        weight = weight.clone().requires_grad_(learns and self.model.lora is None)
        hidden = torch.ones(count, weight.shape[1], device=weight.device, requires_grad=learns)
        ids = torch.zeros(count, dtype=torch.long, device=weight.device)

        def work() -> None:
            with torch.set_grad_enabled(learns):
                logprobs, _ = token_logprobs(hidden, weight, ids)
                if learns:
                    logprobs.sum().backward()

        share = labels / count * self.model.vocabulary / len(weight)
        return share * self._once(("head", learns), work)

    def optimizer(self) -> float:
        """Seconds of one update of what is trained."""
        parameters = self._built[1][1]

        def work() -> None:
            for parameter in parameters.values():
                parameter.grad = torch.full_like(parameter, 1e-6)
            optimizer.update(0)

        optimizer = Optimizer(parameters, OptimConfig(), 1)  # pyright: ignore[reportArgumentType]
        return self._once(("optimizer",), work) / sum(p.numel() for p in parameters.values())

    def decode(self, rows: int, columns: int) -> float:
        """Seconds to draw one more token of each of `rows` responses that have `columns` tokens behind them."""
        rows, columns = max(1, rows), -(-columns // 32) * 32
        logits = torch.zeros(rows, self.model.vocabulary, device=self.model.device)
        uniform = torch.full((rows,), 0.5, dtype=torch.float64, device=self.model.device)
        drawing = self._once(("draw", rows), lambda: draw(logits, SamplingParams(), uniform))
        weight = head_weight(self.backbone).detach().float()
        states = torch.zeros(rows, weight.shape[1], device=self.model.device)
        logits_s = self._once(("logits", rows), lambda: product(states, weight))
        trunk = self._in_all(("decode", rows, columns), self._decoding(rows, columns))
        return trunk + drawing + logits_s * self.model.vocabulary / len(weight)

    def _pass(self, probe: Layout, learns: bool) -> Callable[[int], Callable[[], None]]:
        def of(place: int) -> Callable[[], None]:
            backbone, trained = self._built[place]
            return lambda: run_pass(self.model, backbone, probe, learns=learns and bool(trained), words=False)

        return of

    def _decoding(self, rows: int, columns: int) -> Callable[[int], Callable[[], None]]:
        def of(place: int) -> Callable[[], None]:
            backbone = self._built[place][0]
            device = backbone.device
            cache = SlotCache.empty(place, columns + 1)
            filled = torch.zeros(rows, columns, dtype=torch.long, device=device)
            mask = torch.ones(rows, columns + 1, dtype=torch.bool, device=device)

            def forward(ids: Tensor, seen: int) -> None:
                with torch.inference_mode():
                    more = {"past_key_values": cache, "use_cache": True} if place else {}
                    backbone.forward(
                        ids, position_ids=ids, adapter=adapter(backbone), attention_mask=mask[:, :seen], **more
                    )

            forward(filled, columns)

            def work() -> None:
                for layer in cache.layers:
                    layer.length = columns
                forward(filled[:, :1], columns + 1 if place else 1)

            return work

        return of

    def _in_all(self, key: tuple[Any, ...], work: Callable[[int], Callable[[], None]]) -> float:
        """From none and one block to all of them."""
        none, one = (self._once((*key, place), work(place)) for place in (0, 1))
        return none + self.model.blocks * max(0.0, one - none)

    def _once(self, key: tuple[Any, ...], work: Callable[[], Any]) -> float:
        if key not in self._known:
            self._known[key] = seconds(work, self.model.device)
            for backbone, _ in self._built:
                backbone.model.zero_grad(set_to_none=True)
        return self._known[key]
