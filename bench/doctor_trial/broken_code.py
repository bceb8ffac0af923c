"""Mistakes of programs, each to be put into a model in memory or, as a patch, into the whole program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from bench.doctor_trial.fault import SEED, chance
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from assay.data import pack
from assay.data.pack import TokenBatch
from assay.data.render import Row
from assay.models.backbone import Backbone
from assay.models.policy import Policy, load_policy
from assay.models.reward_model import RewardModel
from assay.stages import causal

Patch = AbstractContextManager[Any]


# Policies.


class Unmasked(Backbone):
    """Neither mask nor positions of padded rows reach the model."""

    def hidden(self, batch: TokenBatch, adapter: str | None = None, **more: Any) -> Tensor:
        columns = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)
        return self.forward(batch.input_ids, position_ids=columns, adapter=adapter)


def reentrant(model: Any) -> None:
    """Activations are computed again by re-entrant checkpointing, which needs inputs with a gradient."""
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()


def with_dropout(model: Any, rate: float = 0.1) -> None:
    """In attention, and in training mode."""
    model.config.attention_dropout = rate
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = rate
    model.train()


@torch.no_grad()
def in_fp16(model: Any) -> None:
    """With activations that the format cannot hold."""
    for name, parameter in model.named_parameters():
        if "down_proj" in name and "lora" not in name:
            parameter.mul_(1e5)
    model.half()


@torch.no_grad()
def a_little_off(source: str) -> Policy:
    """The model of a folder, its weights off by half of their spread."""
    other = load_policy(source, trainable=False)
    noise = torch.Generator().manual_seed(SEED.get())
    for parameter in other.model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.5 * parameter.std())
    return other


def mean_of_means(rows: int) -> Patch:
    """Every micro-batch is averaged over its own tokens, and the averages over so many rows."""
    own = causal.completion_loss

    def averaged(logprobs_BR: Tensor, mask_BR: Tensor, *, total: int) -> Tensor:
        return own(logprobs_BR, mask_BR, total=int(mask_BR.sum())) * len(mask_BR) / rows

    return patch.object(causal, "completion_loss", averaged)


def end_masked(rows: Sequence[Row], pad_id: int, **more: Any) -> TokenBatch:
    """A batch in which every token that is the end counts as a pad."""
    batch = pack.collate(rows, pad_id, **more)
    mask = batch.loss_mask & (batch.input_ids != rows[0].ids[-1])
    return replace(batch, loss_mask=mask, labels=pack.LabelIndex.of(batch.input_ids, mask), rows=None)


def with_other_ids(tokenizer: Any) -> PreTrainedTokenizerFast:
    """The same words under other ids."""
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    order = list(range(len(tokenizer)))
    chance().shuffle(order)
    made["model"]["vocab"] = {word: order[number] for word, number in made["model"]["vocab"].items()}
    for token in made["added_tokens"]:
        token["id"] = order[token["id"]]
    same = {**tokenizer.special_tokens_map, "chat_template": tokenizer.chat_template}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(made)), **same)


# Reward models.

SCORES = RewardModel.scores


class LastColumn(RewardModel):
    """Scores read at the last column, pad or not."""

    def scores(self, batch: TokenBatch) -> Tensor:
        hidden_BTD = self.backbone.hidden(batch, self.adapter)
        return (hidden_BTD[:, -1].float() @ self.head.weight.float().T)[:, None]


class CutOff(RewardModel):
    """Scores that no gradient goes through to the weights."""

    def scores(self, batch: TokenBatch) -> Tensor:
        return SCORES(self, batch).detach() + torch.zeros((), requires_grad=True)


class DeadHead(RewardModel):
    """Scores that are 0 whatever the weights are."""

    def scores(self, batch: TokenBatch) -> Tensor:
        return 0 * SCORES(self, batch)
