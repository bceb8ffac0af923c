"""A reward model from a folder: what it stands on, its head, its adapters, and how it reads."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from assay import rng
from assay.data.render import Renderer
from assay.models.backbone import Backbone, drop_dropout
from assay.models.config import LoraConfig, Template
from assay.models.heads import init_reward_head, resize_head, score_head
from assay.models.load import Tokenizer, context_length, fit_vocabulary, load_classifier, load_tokenizer
from assay.models.locate import locate
from assay.models.pairs import PairRenderer
from assay.models.readout import Readout
from assay.models.reward_folder import (
    BASE,
    HEADS,
    Provenance,
    adapter_folder,
    adapter_name,
    head_parameters,
    read_config,
)
from assay.models.reward_model import RewardModel


def load_reward_model(
    path: str | Path,
    *,
    lora: LoraConfig | None = None,
    head_seed: int | None = None,
    readout: Readout | None = None,
    trainable: bool = True,
    template: Template = "chat",
    max_length: int = 512,
    device: str = "cpu",
    gradient_checkpointing: bool = False,
) -> RewardModel:
    """A reward model from a causal language model, an encoder, or a finished reward model.

    Where the folder has no head for `readout`, one is drawn from `head_seed`; with None, a missing head is a
    `ModelError`. A model that Assay trained keeps the template it was trained with, and its readout if none is given.
    """
    folder = locate(path)
    tokenizer = load_tokenizer(folder)
    provenance = Provenance.read(read_config(folder), template)
    stored, readout = provenance.readout, readout or provenance.readout
    trunk = folder / BASE if stored.adapters > 1 else folder
    model, new_head = load_classifier(trunk, device=device, trained=trainable and lora is None, seed=head_seed)
    fit_vocabulary(model, tokenizer)
    drop_dropout(model)
    head = score_head(model)
    if readout.columns > 1:
        resize_head(head, readout.columns)
    if readout.columns > 1 and readout.columns == stored.columns:
        head.load_state_dict(load_file(folder / HEADS))
    elif (new_head or readout.columns > 1) and head_seed is not None:
        init_reward_head(head, head_seed)
    renderer = reward_renderer(model, tokenizer, provenance.template, max_length)
    backbone = Backbone(model, device=device, gradient_checkpointing=gradient_checkpointing)
    members = range(1, readout.adapters + 1)
    if stored.adapters > 1:
        for number in members:
            backbone.adapters.load(adapter_name(number), folder / adapter_folder(number))
    elif lora and trainable:
        for number in members:
            seed = (head_seed or 0) if number == 1 else rng.derive(head_seed or 0, "member", number)
            backbone.adapters.add(adapter_name(number), lora, seed=seed, dropout=False)
        for parameter in head_parameters(model).values():
            parameter.requires_grad_(True)
    if not trainable:
        backbone.freeze()
    model.train(gradient_checkpointing)  # transformers recomputes activations in training mode only
    return RewardModel(
        backbone,
        head,
        tokenizer,
        renderer,
        Provenance(provenance.template, provenance.base if stored.adapters > 1 else "", readout),
        adapter=adapter_name(1) if backbone.adapters.names else None,
        source=trunk,
    )


def reward_renderer(
    model: PreTrainedModel, tokenizer: Tokenizer, template: Template, max_length: int
) -> Renderer | PairRenderer:
    """How this model reads: as a dialogue if it is causal, as a pair of texts if it is an encoder."""
    length = min(max_length, context_length(model))
    if isinstance(getattr(model, "score", None), nn.Linear):  # every causal architecture names its head so
        return Renderer(tokenizer, template=template, max_length=length)
    return PairRenderer(tokenizer, max_length=min(length, tokenizer.model_max_length))  # RoBERTa reserves positions
