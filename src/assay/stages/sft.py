"""Supervised fine-tuning: imitate demonstrations.

    demonstrations + base model  →  policy

The loss counts response tokens only, their end included, and is divided by the token count of the whole
optimizer step. Source: InstructGPT (arXiv 2203.02155), sec. 3.5. Formula: algorithms/logprobs.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from assay.algorithms.logprobs import completion_loss
from assay.data.pack import collate
from assay.data.render import Renderer, Row
from assay.errors import DataError
from assay.models.roles import Policy, load_policy
from assay.stages import loop
from assay.stages.config import PretrainConfig, SFTConfig
from assay.stages.context import RunContext, StageInputs
from assay.types import Demonstration


def run(config: SFTConfig, inputs: StageInputs, ctx: RunContext) -> dict[str, float]:
    policy = load_policy(
        inputs.base,
        lora=config.lora,
        device=ctx.device,
        gradient_checkpointing=config.gradient_checkpointing,
        seed=ctx.seed,
    )
    renderer = Renderer(policy.tokenizer, template=inputs.template, max_length=config.max_length)
    rows = demonstration_rows(renderer, inputs.data.demonstrations.train)
    held_out = demonstration_rows(renderer, inputs.data.demonstrations.validation)
    if not rows:
        raise DataError("no demonstration fits the context", hint=f"raise sft.max_length ({config.max_length})")
    metrics = train_causal(policy, rows, held_out, config, ctx)
    policy.save(ctx.folder)
    return {**metrics, "rows": len(rows), "dropped": len(inputs.data.demonstrations.train) - len(rows)}


def demonstration_rows(renderer: Renderer, demonstrations: Sequence[Demonstration]) -> list[Row]:
    """Token rows of the demonstrations that leave at least one label within the context."""
    rendered = (renderer.row(d.prompt, d.response) for d in demonstrations)
    return [row for row in rendered if row is not None]


def train_causal(
    policy: Policy,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    config: SFTConfig | PretrainConfig,
    ctx: RunContext,
) -> dict[str, float]:
    """Minimise the negative log-likelihood of the rows' labels; also the loop of pretraining."""
    plan = loop.plan([len(row.ids) for row in rows], config.batch_size, config.epochs, ctx.seed)
    optimizer = loop.Optimizer(policy.parameters_trained(), config.optim, len(plan))
    start, state = loop.resume(ctx, optimizer)
    first_loss = state.get("first_loss", math.nan)
    loss_value = math.nan

    with ctx.progress(len(plan), config.kind) as progress:
        for step in range(start, len(plan)):
            began = time.perf_counter()
            loop.seed_dropout(ctx.seed, step)
            batch = [rows[i] for i in plan[step]]
            total = sum(len(row.ids) - row.prompt_length for row in batch)
            policy.train()
            loss = torch.zeros((), device=ctx.device)
            for part in loop.micro_batches(batch, config.micro_batch_size):
                scored = policy.logprobs(collate(part, policy.pad_id).to(ctx.device))
                share = completion_loss(scored.logprobs_BR, scored.mask_BR, total=total)
                share.backward()
                loss += share.detach()
            moved = optimizer.update(step)

            done, loss_value = step + 1, loss.item()
            first_loss = loss_value if step == 0 else first_loss
            tokens = sum(len(row.ids) for row in batch)
            metrics = {
                "train/loss": loss_value,
                "train/grad_norm": moved["grad_norm"],
                "train/learning_rate": moved["learning_rate"],
                "train/tokens_per_s": tokens / (time.perf_counter() - began),
            }
            if held_out and (done % config.validate_every == 0 or done == len(plan)):
                metrics["eval/loss"] = mean_loss(policy, held_out, config.batch_size, ctx.device)
            ctx.log(done, metrics)
            progress.update(done, f"loss {loss_value:.3f}")
            loop.finish_step(ctx, optimizer, done, len(plan), config.checkpoint_every, {"first_loss": first_loss})

    result = {"loss_first": first_loss, "loss_last": loss_value, "steps": len(plan)}
    if held_out:
        loss = mean_loss(policy, held_out, config.batch_size, ctx.device)
        result |= {"validation_loss": loss, "perplexity": math.exp(min(loss, 50.0))}
    return result


@torch.no_grad()
def mean_loss(policy: Policy, rows: Sequence[Row], batch_size: int, device: str) -> float:
    """Negative log-likelihood per label token, in nats."""
    policy.eval()
    total = sum(len(row.ids) - row.prompt_length for row in rows)
    ordered = sorted(rows, key=lambda row: len(row.ids))
    loss = 0.0
    for part in loop.micro_batches(ordered, batch_size):
        scored = policy.logprobs(collate(part, policy.pad_id).to(device))
        loss += completion_loss(scored.logprobs_BR, scored.mask_BR, total=total).item()
    return loss
