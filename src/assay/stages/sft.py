"""Supervised fine-tuning: imitate demonstrations.

    demonstrations + base model  →  policy

The loss counts response tokens only, their end included, and is divided by the token count of the whole
optimizer step. Source: InstructGPT (arXiv 2203.02155), sec. 3.5. Formula: algorithms/logprobs.py.
"""

from __future__ import annotations

from assay.data.tokens import render
from assay.errors import DataError
from assay.models.roles import load_policy
from assay.stages.causal import train_causal
from assay.stages.config import SFTConfig
from assay.stages.context import RunContext, StageInputs


def run(config: SFTConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, float]:
    policy = load_policy(
        inputs.base,
        lora=config.lora,
        device=ctx.device,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=ctx.seed,
    )
    renderer = policy.renderer(inputs.template, config.max_length)
    shown = inputs.data.demonstrations
    rows, held_out = (render(renderer, part, inputs.cache).whole() for part in (shown.train, shown.validation))
    if not rows:
        raise DataError("no demonstration fits the context", hint=f"raise sft.max_length ({config.max_length})")
    metrics = train_causal(policy, rows, held_out, config, ctx)
    policy.save(ctx.folder)
    return {**metrics, "rows": len(rows), "dropped": len(shown.train) - len(rows)}
