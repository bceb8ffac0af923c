"""Probes of batches: how one is split for the trainer, and how prompts are padded for the sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from assay.doctor.detector import Missing, detects
from assay.doctor.finding import Finding, Mode
from assay.doctor.probing import unchanged
from assay.models.policy import Policy

ACCUMULATION_BIAS = Mode(
    15,
    "accumulation-bias",
    "sft",
    "The gradient depends on how a batch is split",
    "Each micro-batch divides by its own number of tokens, and a mean of means weighs short rows more than long ones.",
    "Divide every micro-batch by the number of label tokens of the whole optimizer step.",
)
RIGHT_PADDED = Mode(
    32,
    "right-padded-prompts",
    "policy",
    "Prompts are padded on the right before generation",
    "A causal model goes on from the last column, and there it finds pads instead of the end of the prompt.",
    'Pad prompts on the left: `tokenizer.padding_side = "left"`.',
    ("repetition", "empty-answers", "never-stops", "negative-kl", "sampler-differs"),
)

SPLIT_TOLERANCE = 1e-4  # of the gradient's norm; the catalogue's
SPLIT_TOLERANCE_BF16 = 0.02  # where products are rounded to 8 bits: a sound split of GPT-2 differed by 0.004


@dataclass(frozen=True)
class StepProbe:
    """One optimizer step's gradient as the trainer computes it, for any size of micro-batch (None: all at once)."""

    gradient: Callable[[int | None], Any]
    parameters: Mapping[str, Parameter]
    where: str = "sft"
    exact: bool = True
    """Whether products are computed in fp32."""
    kind: str = "step"


@dataclass(frozen=True)
class PromptBatch:
    """Prompts as they are handed to generation, [B, T], with the policy that goes on from them where it is there."""

    input_ids: Tensor
    attention_mask: Tensor
    policy: Policy | None = None
    where: str = "policy"
    kind: str = "prompts"


@detects(ACCUMULATION_BIAS, kinds=("step",))
def accumulation_bias(probe: StepProbe) -> Iterator[Finding]:
    """The gradient of a whole batch against that of its rows one by one."""
    whole, parts = (gradient(probe, size) for size in (None, 1))
    if whole.norm() == 0:
        raise Missing("the step has no gradient")
    difference = ((whole - parts).norm() / whole.norm()).item()
    if difference > (SPLIT_TOLERANCE if probe.exact else SPLIT_TOLERANCE_BF16):
        yield Finding(
            ACCUMULATION_BIAS,
            probe.where,
            f"all rows at once and one by one give gradients that differ by {difference:.1%} of their norm",
            sureness="certain",
        )


def gradient(probe: StepProbe, size: int | None) -> Tensor:
    """All of it, flat."""
    with unchanged(probe.parameters):
        probe.gradient(size)
        found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in probe.parameters.values()]
    return torch.cat([g.flatten().float().cpu() for g in found])


@detects(RIGHT_PADDED, kinds=("prompts",))
def right_padded(batch: PromptBatch) -> Iterator[Finding]:
    """Whether the last column, from which generation goes on, is a pad."""
    padded = batch.attention_mask[:, -1] == 0
    if padded.any():
        yield Finding(
            RIGHT_PADDED,
            batch.where,
            f"{int(padded.sum())} of {len(padded)} prompts end in pads" + consequence(batch),
            sureness="certain",
        )


@torch.no_grad()
def consequence(batch: PromptBatch) -> str:
    """How often the most likely next token is another one than after the prompt alone."""
    if batch.policy is None:
        return ""
    model, device = batch.policy.model, batch.policy.backbone.device
    ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
    together = model(input_ids=ids, attention_mask=mask).logits[:, -1].argmax(1)
    alone = torch.stack(
        [model(input_ids=row[keep == 1][None]).logits[0, -1].argmax() for row, keep in zip(ids, mask, strict=True)]
    )
    changed = int((together != alone).sum())
    return f"; the likeliest next token is another one after {changed} of them"
