"""Models and tokenizers from a folder to memory and back: causal language models and encoders of transformers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from assay.errors import ModelError
from assay.models.checkpoint import writing
from assay.models.precision import weight_dtype

PAD = "<|pad|>"

Tokenizer = Any
"""A transformers tokenizer; its own annotations are too wide to check anything with."""


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
        if "allocate memory" in str(error):  # nothing is wrong with the model
            raise MemoryError(f"{folder} does not fit: {error}") from error
        raise ModelError(
            f"transformers cannot load {folder}: {error}", hint="is it a complete model of a known architecture?"
        ) from error
    if trained and torch.device(device).type == "cpu":
        _take_into_memory(model)
    return model.to(device).eval(), sorted(info["missing_keys"])


def _take_into_memory(model: PreTrainedModel) -> None:
    """Copy the weights out of the mapped file, of which the first step would copy every page as it wrote to it.

    That takes a second for GPT-2's 500 MB, this a fifth of it.
    """
    for parameter in model.parameters():
        parameter.data = parameter.detach().clone()


@contextlib.contextmanager
def weights_in(file: Path) -> Iterator[Any]:
    """A file of safetensors, none of which is read yet; ModelError where it is damaged."""
    try:
        with safe_open(file, "pt") as weights:
            yield weights
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read: {error}", hint="it was cut off: save or fetch it anew") from error


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
