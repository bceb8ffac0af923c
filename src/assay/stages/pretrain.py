"""Train a small causal language model from scratch: the base that a pipeline starts from.

    plain text  →  tokenizer + base model

A byte-level BPE vocabulary is trained on the text first; then next-token prediction over whole documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from assay import rng
from assay.data.export import dialogue_text
from assay.data.prepared import Prepared
from assay.data.render import Renderer, Row
from assay.errors import DataError
from assay.models.backbone import Backbone
from assay.models.roles import Policy
from assay.models.scratch import new_model, train_tokenizer
from assay.stages.causal import train_causal
from assay.stages.config import PretrainConfig
from assay.stages.context import RunContext, StageInputs
from assay.types import Message, Prompt


def run(config: PretrainConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, Any]:
    documents = inputs.data.text or list(training_dialogues(inputs.data))
    if not documents:
        raise DataError("there is no text to pretrain on", hint="set data.text.path, or data.documents of a world")
    held_out_documents, train_documents = held_out(documents, config.validation_share)
    tokenizer = train_tokenizer(train_documents, config.vocabulary)
    model = new_model(
        config.architecture,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        max_length=config.max_length,
        tokenizer=tokenizer,
        seed=ctx.seed,
    )
    policy = Policy(Backbone(model.to(ctx.device), device=ctx.device), tokenizer)  # pyright: ignore[reportArgumentType]
    renderer = Renderer(tokenizer, template=inputs.template, max_length=config.max_length)

    rows = [row for text in train_documents for row in blocks(renderer, text, config.max_length)]
    validation = [row for text in held_out_documents for row in blocks(renderer, text, config.max_length)]
    metrics = train_causal(policy, rows, validation, config, ctx)
    policy.save(ctx.folder)
    return {
        **metrics,
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": len(documents),
        "tokens": sum(len(row.ids) for row in rows) * config.epochs,
    }


def training_dialogues(data: Prepared) -> Iterator[str]:
    """Where a recipe has no text of its own: its training dialogues in plain form. Nothing held out is read."""
    seen = set[tuple[Prompt, str]]()
    shown = ((d.prompt, d.response) for d in data.demonstrations.train)
    compared = ((p.prompt, response) for p in data.preferences.train for response in (p.chosen, p.rejected))
    for prompt, response in chain(shown, compared):
        if (prompt, response) not in seen:
            seen.add((prompt, response))
            yield dialogue_text((*prompt.messages, Message("assistant", response)))


def held_out(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Documents to validate on and to train on; a document's side depends on its text alone."""
    sides: tuple[list[str], list[str]] = ([], [])
    for text in documents:
        sides[rng.derive(0, "document", text) % 10_000 >= share * 10_000].append(text)
    return sides


def blocks(renderer: Renderer, text: str, length: int) -> list[Row]:
    """A document as rows of at most `length` tokens, all of them labels but each row's first."""
    ids = renderer.document(text).ids
    return [Row(ids[start : start + length], 1) for start in range(0, max(1, len(ids) - 1), length)]
