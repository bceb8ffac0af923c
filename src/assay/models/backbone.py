"""Any transformers causal language model or encoder, from a folder to memory, and forward passes through its trunk."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from assay.data.forest import Forest
from assay.data.pack import TokenBatch, collate
from assay.data.render import Row
from assay.errors import ModelError
from assay.models import tree_attention
from assay.models.adapters import Adapters
from assay.models.checkpoint import writing
from assay.models.faster import last_mlp, only_at, use_faster_kernels
from assay.models.precision import compute_dtype, weight_dtype
from assay.models.reading_on import read_on

PAD = "<|pad|>"

Tokenizer = Any
"""A transformers tokenizer; its own annotations are too wide to check anything with."""


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
        self.model = model
        self.trunk: PreTrainedModel = model.base_model  # pyright: ignore[reportAttributeAccessIssue]
        self.adapters = Adapters(model)
        self.device = device
        self._compute = compute_dtype(device, parameters or model.num_parameters())
        self._takes_positions = "position_ids" in inspect.signature(self.trunk.forward).parameters
        use_faster_kernels(model)
        in_fp32 = torch.device(device).type == "cpu" and self._compute == torch.float32
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
            say_that_prompts_are_read_again(self.model.config.model_type)
        return self.hidden(batch, adapter, read=places_N).flatten(0, 1).index_select(0, places_N)

    def forest(self, batch: TokenBatch) -> Forest | None:
        """The batch as trees; None where this model, with rows as long as these, would not read them exactly."""
        if batch.rows is None or max(len(row.ids) for row in batch.rows) > self.window or not self.shares_prompts:
            return None
        return Forest.of(batch.rows, width=None if self.by_blocks else min(self.width, self.window)).to(self.device)

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
        kinds = (*(getattr(config, "layer_types", None) or ()), *getattr(config, "attention_layers", ()))
        local = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
        return sys.maxsize if local is None or set(kinds) == {"full_attention"} else local

    @property
    def budget(self) -> int:
        """Tokens that go through the model together: enough to keep the machine busy, and little enough to be light."""
        return 2**24 // self.width if torch.device(self.device).type == "cuda" else max(1024, 2**20 // self.width)

    @property
    def by_blocks(self) -> bool:
        """Whether trees stand in one line, and attention goes through it block by block; it drops nothing then."""
        config = self.model.config
        drops = max(getattr(config, name, 0.0) for name in ("attn_pdrop", "attention_dropout"))
        return self.attends_by_blocks and not (self.model.training and drops)

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

    def _reads_trees(self, *, by_blocks: bool) -> bool:
        """A few tokens tried."""

        def in_trees(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
            batch, forest = collate(rows, 0).to(self.device), Forest.of(rows, width=None).to(self.device)
            return self._lines(batch, forest, None, by_blocks=by_blocks), forest.places_BT

        return self._takes_positions and self._comes_out_alike(in_trees)

    @functools.cached_property
    def reads_on(self) -> bool:
        """Whether rows come out of the cache of their prompt as they come out alone; a few tokens are tried once.

        Not where activations are computed again in the backward pass: transformers drops caches there.
        """
        return not self._computes_again and self._comes_out_alike(lambda rows: read_on(self, rows, None))

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
        except (RuntimeError, ValueError, TypeError):  # a mask of this shape, or a cache, is refused
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
        part = read.unique() if read is not None and self.reads_in_part else None
        return self._forward(input_ids, position_ids, adapter, part, **inputs)

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
        if self._compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(torch.device(self.device).type, self._compute)

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
def say_that_prompts_are_read_again(model_type: str) -> None:
    """Once in a process."""
    logging.getLogger(__name__).warning(
        "%s reads a prompt again for each of its answers: it takes neither trees of rows nor the cache of a prompt",
        model_type,
    )


def load_causal(folder: Path, *, device: str, trained: bool) -> PreTrainedModel:
    """A causal language model; `trained` says that an optimizer will change its own weights."""
    model, missing = _load(AutoModelForCausalLM, folder, device=device, trained=trained)
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} weights of a language model, {missing[0]} first",
            hint="give a causal language model; a reward model has no head for tokens",
        )
    return model


def load_classifier(folder: Path, *, device: str, trained: bool, seed: int | None) -> tuple[PreTrainedModel, bool]:
    """A model with a head of one score, and whether that head is new.

    Where the folder has no head, one is drawn from `seed`; with `seed=None` that is a `ModelError`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed or 0)
        model, missing = _load(AutoModelForSequenceClassification, folder, device=device, trained=trained, num_labels=1)
    if missing and seed is None:
        raise ModelError(
            f"{folder} is no trained reward model: it has no weights for {', '.join(missing)}",
            hint="give the folder of a reward stage, or of a sequence-classification model with one label",
        )
    return model, bool(missing)


def _load(kind: Any, folder: Path, *, device: str, trained: bool, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of weights that the folder does not have."""
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder)
            with torch.device("meta"):
                size = sum(p.numel() for p in kind.from_config(config).parameters())
            model, info = kind.from_pretrained(
                folder,
                dtype=weight_dtype(device, size, trained=trained),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"transformers cannot load {folder}: {error}", hint="is it a complete model of a known architecture?"
        ) from error
    return model.to(device).eval(), sorted(info["missing_keys"])


def context_length(model: PreTrainedModel) -> int:
    """The longest row the model has positions for."""
    return getattr(model.config, "max_position_embeddings", None) or sys.maxsize


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, with a pad token that is not its end token."""
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(
            f"no tokenizer in {folder}: {error}", hint="save it there: tokenizer.save_pretrained"
        ) from error
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer


@torch.no_grad()
def fit_vocabulary(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Give every token of the tokenizer a row; new rows are the mean of the old, so they are neither likely nor odd."""
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    old = model.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) <= old:
        return
    with quiet_transformers():
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    for layer in filter(None, layers):
        weight = layer.get_parameter("weight")
        weight[old:] = weight[:old].mean(0)


def drop_dropout(model: nn.Module) -> None:
    """Dropout off for good, in training mode too (correctness 13 and 27); the saved configuration keeps its rates."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "dropout_prob", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """For writing a model into `folder`: it exists, nothing is printed, and a full disk is a `StorageError`."""
    with quiet_transformers(), writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, and no reports of heads that are new on purpose."""
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
