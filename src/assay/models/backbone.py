"""One model in memory, a causal language model or encoder of transformers, and forward passes through its trunk."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from assay.data.forest import STEP, Forest, recurring
from assay.data.pack import TokenBatch, collate, parts
from assay.data.render import Row
from assay.models import tree_attention
from assay.models.adapters import Adapters
from assay.models.faster import last_mlp, only_at, use_faster_kernels
from assay.models.heap import keep_freed_memory
from assay.models.precision import compute_dtype
from assay.models.reading_on import read_on


class Backbone:
    """One trunk in memory and the adapters on it; every role that shares it holds this object.

    Forward passes run in the device's compute format; hidden states come back as the trunk gives them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: str,
        gradient_checkpointing: bool = False,
        parameters: int | None = None,
    ) -> None:
        """`parameters`: of the model that this one stands for, where it is not one itself (pipeline/rates.py)."""
        if model.base_model is model and isinstance(getattr(model, "model", None), PreTrainedModel):
            model.base_model_prefix = "model"  # Llama 4's class names another, and would be its own trunk
        self.model = model
        self.trunk: PreTrainedModel = model.base_model  # pyright: ignore[reportAttributeAccessIssue]
        self.adapters = Adapters(model)
        self.device = device
        self.computes_in = compute_dtype(device, parameters or model.num_parameters())
        self._takes_positions = "position_ids" in inspect.signature(self.trunk.forward).parameters
        keep_freed_memory()
        use_faster_kernels(model)
        in_fp32 = torch.device(device).type == "cpu" and self.computes_in == torch.float32
        if in_fp32 and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(tree_attention.NAME)
        self._computes_again = gradient_checkpointing
        if gradient_checkpointing:
            self._checkpoint_activations()

    def states(self, batch: TokenBatch, places_N: Tensor, adapter: str | None = None) -> Tensor:
        """Last hidden states [N, D] at places of the flattened batch, with one adapter or none.

        Rows that begin with the same prompt share its computation, wherever this model can do so exactly.
        """
        forest = self.forest(batch)
        if forest is not None:
            places_N = forest.places_BT.flatten()[places_N]
            return self.lines(batch, forest, adapter, read=places_N).index_select(0, places_N)
        if batch.rows is not None and shares_a_prompt(batch.rows):
            if self.reads_on:
                states_MD, places_BT = read_on(self, batch.rows, adapter)
                return states_MD.index_select(0, places_BT.flatten()[places_N])
            say_that_prompts_are_read_again(self.model.config.model_type, self._computes_again and self.takes_caches)
        return self.hidden(batch, adapter, read=places_N).flatten(0, 1).index_select(0, places_N)

    def forest(self, batch: TokenBatch) -> Forest | None:
        """The batch as trees; None where this model, with rows as long as these, would not read them exactly."""
        if batch.rows is None or max(len(row.ids) for row in batch.rows) > self.window or not self.shares_prompts:
            return None
        width = None if self.by_blocks else min(self.width, self.window)
        return Forest.of(batch.rows, width=width, step=self.step).to(self.device)

    def hidden(self, batch: TokenBatch, adapter: str | None = None, **more: Any) -> Tensor:
        """Last hidden states [B, T, D] of a padded batch, with one adapter or none; `more` is for `forward`."""
        return self.forward(
            batch.input_ids,
            position_ids=batch.position_ids,
            adapter=adapter,
            attention_mask=batch.attention_mask,
            **more,
        )

    def lines(self, batch: TokenBatch, forest: Forest, adapter: str | None = None, **more: Any) -> Tensor:
        """Last hidden states [L·W, D] of a batch laid out as trees; `more` is for `forward`, such as a cache."""
        return self._lines(batch, forest, adapter, by_blocks=self.by_blocks, **more)

    def _lines(self, batch: TokenBatch, forest: Forest, adapter: str | None, *, by_blocks: bool, **more: Any) -> Tensor:
        return self.forward(adapter=adapter, **self.laid_out(batch, forest, by_blocks=by_blocks), **more).flatten(0, 1)

    def laid_out(self, batch: TokenBatch, forest: Forest, *, by_blocks: bool) -> dict[str, Any]:
        """What `forward` is told of a batch as trees."""
        inputs: dict[str, Any] = {
            name: getattr(batch, name).flatten()[forest.sources_LW] for name in ("input_ids", "position_ids")
        }
        if by_blocks:
            # A mask of four axes is passed on as it is; without one, the model would make its own.
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
            return inputs | {"attention_mask": mask, "blocks": forest.blocks()}
        mask = forest.mask
        if self.model.config._attn_implementation == "eager":  # which adds its mask to the scores
            mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)
        return inputs | {"attention_mask": mask}

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return self.model.config.hidden_size

    @property
    def window(self) -> int:
        """Tokens a line may have: where attention is local, it counts them along the line, and not by position."""
        config = self.model.config
        kinds = (*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ()))
        sizes = (getattr(config, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size"))
        local = next(filter(None, sizes), None)
        return sys.maxsize if local is None or set(kinds) == {"full_attention"} else local

    @property
    def budget(self) -> int:
        """Tokens that go through the model together: enough to keep the machine busy, and little enough to be light."""
        return 2**24 // self.width if torch.device(self.device).type == "cuda" else max(1024, 2**20 // self.width)

    @property
    def step(self) -> int:
        """Tokens between the sizes of long lines: what is prepared for each is dear where the work itself is little."""
        return max(STEP, 2 ** (self.budget // 32).bit_length() // 2)

    def parts(self, examples: Sequence[Sequence[Row]], most: int | None = None) -> list[list[int]]:
        """Numbers of the examples of each forward pass (data/pack.py)."""
        return parts(examples, tokens=self.budget, most=most, shared=self.shares_prompts)

    @property
    def by_blocks(self) -> bool:
        """Whether trees stand in one line, and attention goes through it block by block; it drops nothing then."""
        rates = (rate for name, rate in self.model.config.to_dict().items() if "att" in name and "drop" in name)
        configured = any(rates)  # attn_pdrop, attention_dropout, attention_probs_dropout_prob …
        return self.attends_by_blocks and not (self.model.training and configured and drops(self.model))

    @functools.cached_property
    def attends_by_blocks(self) -> bool:
        """Whether this model hands our attention (tree_attention.py) all that it needs."""
        return self.model.config._attn_implementation == tree_attention.NAME and self._reads_trees(by_blocks=True)

    @functools.cached_property
    def shares_prompts(self) -> bool:
        """Whether two rows of one prompt come out of a tree as they come out alone.

        Not where positions are counted along the line (ALiBi), or where attention takes no mask of its own.
        """
        return self.attends_by_blocks or self._reads_trees(by_blocks=False)

    @property
    def takes_masks(self) -> bool:
        """Whether a mask of four axes, True where a token attends, is passed on to attention as it is."""
        return self.shares_prompts and self.model.config._attn_implementation != "eager"

    def _reads_trees(self, *, by_blocks: bool) -> bool:
        """A few tokens tried."""

        def in_trees(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
            batch, forest = collate(rows, 0).to(self.device), Forest.of(rows, width=None).to(self.device)
            return self._lines(batch, forest, None, by_blocks=by_blocks), forest.places_BT

        return self._takes_positions and self._comes_out_alike(in_trees)

    @property
    def reads_on(self) -> bool:
        """Whether rows are read on from the cache of their prompt.

        Not where activations are computed again in the backward pass: transformers drops caches there.
        """
        return not self._computes_again and self.takes_caches

    @functools.cached_property
    def takes_caches(self) -> bool:
        """Whether rows come out of the cache of their prompt as they come out alone; a few tokens are tried once."""
        return self._comes_out_alike(lambda rows: read_on(self, rows, None))

    def _comes_out_alike(self, read: Callable[[Sequence[Row]], tuple[Tensor, Tensor]]) -> bool:
        """Whether `read` gives states [M, D] and places [B, T] among them that are those of padded rows."""
        rows = [Row([1, 2, 0], 2), Row([1, 2, 1], 2), Row([2, 0], 1)]
        batch = collate(rows, 0).to(self.device)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                alone = self.hidden(batch)[batch.attention_mask].float()
                states_MD, places_BT = read(rows)
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError):  # a mask like this, or a cache
            return False
        finally:
            self.model.train(training)
        together = states_MD[places_BT[batch.attention_mask]].float()
        return bool((alone - together).abs().max() < 0.02 * alone.std())

    @functools.cached_property
    def reads_in_part(self) -> bool:
        """Whether the last block's MLP may leave out the states that nobody reads; a few tokens are tried once.

        Not on a GPU, where to find those states would be waited for, nor where activations are computed again.
        """

        def in_two_parts(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
            batch = collate(rows, 0).to(self.device)
            mask_BT, positions_BT = batch.attention_mask, batch.position_ids
            places = torch.arange(mask_BT.numel(), device=self.device)
            states = torch.zeros(len(places), self.width, device=self.device)
            for read in (places[::2], places[1::2]):
                found = self._forward(batch.input_ids, positions_BT, None, read, attention_mask=mask_BT)
                states[read] = found.flatten(0, 1)[read].float()
            return states, places.view(mask_BT.shape)

        on_cpu = torch.device(self.device).type == "cpu"
        return (
            on_cpu
            and not self._computes_again
            and last_mlp(self.trunk) is not None
            and self._comes_out_alike(in_two_parts)
        )

    def forward(
        self,
        input_ids: Tensor,
        *,
        position_ids: Tensor,
        adapter: str | None,
        read: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Last hidden states [B, T, D]; `inputs` may hold attention_mask and past_key_values.

        `read`: places of the flattened states; what stands elsewhere is of no use then.
        """
        part = self.part(read, input_ids.numel()) if read is not None and self.reads_in_part else None
        return self._forward(input_ids, position_ids, adapter, part, **inputs)

    def part(self, read_N: Tensor, tokens: int) -> Tensor:
        """Places that are read, each once, and others of the `tokens`, so that there are as many as often."""
        places_M = read_N.unique()
        more = min(recurring(len(places_M), self.step), tokens) - len(places_M)
        others = torch.ones(tokens, dtype=torch.bool).index_fill_(0, places_M, False)
        return torch.cat([places_M, others.nonzero()[:more, 0]])

    def _forward(
        self, input_ids: Tensor, position_ids: Tensor, adapter: str | None, part: Tensor | None, **inputs: Any
    ) -> Tensor:
        if self._takes_positions:
            inputs["position_ids"] = position_ids
        mlp = None if part is None else last_mlp(self.trunk)
        in_part = contextlib.nullcontext() if part is None or mlp is None else only_at(mlp, part)
        with self.adapters.use(adapter), self.autocast(), in_part:
            inputs.setdefault("use_cache", False)
            return self.trunk(input_ids=input_ids, **inputs).last_hidden_state

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Matrix products in bf16 where this device is measurably faster with it, everything delicate in fp32."""
        if self.computes_in == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, self.computes_in)

    def freeze(self) -> None:
        self.model.requires_grad_(False)

    def _checkpoint_activations(self) -> None:
        # The backward pass computes each block again, when another role's adapter may be the active one: put back the
        # one the forward pass saw. Without reentrant autograd, inputs need no gradient for LoRA to get its own.
        def contexts() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
            return contextlib.nullcontext(), self.adapters.use(self.adapters.active)

        self.model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})


def shares_a_prompt(rows: Sequence[Row]) -> bool:
    """Whether two rows begin with the same prompt."""
    prompts = [tuple(row.ids[: row.prompt_length]) for row in rows if row.prompt_length]
    return len(set(prompts)) < len(prompts)


@functools.cache
def say_that_prompts_are_read_again(model_type: str, cache_dropped: bool) -> None:
    """Once in a process; `cache_dropped`: the model could read on from a prompt's cache, and its settings forbid it."""
    why = (
        "it takes no trees of rows here, and gradient_checkpointing drops the cache of a prompt; "
        "each is read once with gradient_checkpointing=false (a smaller micro_batch_size takes less memory, too)"
        if cache_dropped
        else "it takes neither trees of rows nor the cache of a prompt"
    )
    logging.getLogger(__name__).warning("%s reads a prompt again for each of its answers: %s", model_type, why)


def rates(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where a model keeps its rates of dropout: modules, and what the attribute is called."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            yield module, "p"
        for name in ("dropout", "attention_dropout", "dropout_prob", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                yield module, name


def drop_dropout(model: nn.Module) -> None:
    """Dropout off for good, in training mode too; the saved configuration keeps its rates."""
    for module, name in rates(model):
        setattr(module, name, 0.0)


def drops(model: nn.Module) -> bool:
    """Whether anything is dropped in training mode; the configuration does not tell."""
    return any(getattr(module, name) for module, name in rates(model))
